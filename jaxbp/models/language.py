"""Networks for text: `gpt`, `char_lstm`, and the gated MLP that newer transformers use.

They take token ids `[batch, time]` and return the logits of the token after each, `[batch, time,
vocabulary]`, or with `deferred=True` the pair `(h, w)` for `LinearCrossEntropy`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxbp.compose import Branch, Chain, Residual, Stack, Tied
from jaxbp.layer import InputError, Layer, require_whole
from jaxbp.layers import (
    GELU,
    LSTM,
    Attention,
    Dense,
    Dropout,
    Embedding,
    Head,
    LayerNorm,
    PositionEmbedding,
    SiLU,
)
from jaxbp.layers.initializers import Scaled
from jaxbp.precision import with_precision


class Size(NamedTuple):
    """The sizes of a transformer."""

    depth: int
    heads: int
    features: int
    length: int = 1024
    vocabulary: int = 50257


SIZES = {
    "gpt2": Size(12, 12, 768),
    "gpt2-medium": Size(24, 16, 1024),
    "gpt2-large": Size(36, 20, 1280),
    "gpt2-xl": Size(48, 25, 1600),
}


def gated_mlp(
    features: int,
    hidden: int,
    activation: Layer = SiLU(),
    bias: bool = False,
    precision: Any = None,
) -> Chain:
    """`y = (g(x w_1) ⊙ x w_2) w_3`, `[..., in] -> [..., features]`:
    SwiGLU with `SiLU()`, GEGLU with `GELU()`.

    A composition: the product rule of its two factors stands in `Branch(merge="product")`, so that
    `∂L/∂(x w_2) = ∂L/∂(…) ⊙ g(x w_1)` and the other way round. `precision` is
    that of every layer, as in `with_precision`. Source: Shazeer 2020.
    """
    gate = Chain(Dense(hidden, bias), activation)
    net = Chain(Branch(gate, Dense(hidden, bias), merge="product"), Dense(features, bias))
    return with_precision(net, precision)


def gpt(
    vocabulary: int | None = None,
    size: str | None = None,
    *,
    depth: int = 4,
    heads: int = 4,
    features: int = 128,
    length: int = 128,
    positions: str = "learned",
    dropout: float = 0.0,
    deferred: bool = False,
    unroll: int | None = None,
    recompute: bool | int | str = False,
    precision: Any = None,
) -> Tied:
    """A decoder-only transformer: pre-norm blocks in a `Stack`, the embedding as output head.

        h = embedding(ids) + positions          [batch, time, features]
        h = h + attention(norm(h))              depth times: causal, `heads` heads
        h = h + mlp(norm(h))                    features → 4 features → features, GELU between
        logits = norm(h) wᵀ                     w is the embedding's table

    `size` takes all of depth, heads, features, length and (unless given) vocabulary from `SIZES`:
    `gpt(size="gpt2")`. `positions` is `"learned"` (then at most `length` tokens) or `"rotary"`. The two
    products of a block that end in the residual stream start smaller by `√(2 depth)`, so that its
    variance does not grow with depth. `unroll` and `recompute` are those of the `Stack`; `precision` is
    that of every layer, as in `with_precision`. Source: Radford et al. 2019.
    """
    if size is not None:
        if size not in SIZES:
            raise InputError(f"gpt: size must be one of {', '.join(SIZES)}, got {size!r}")
        depth, heads, features, length, default = SIZES[size]
        vocabulary = vocabulary or default
    if vocabulary is None:
        raise InputError("gpt: expected the size of the vocabulary, or the name of a size")
    if positions not in ("learned", "rotary"):
        raise InputError(f"gpt: positions must be 'learned' or 'rotary', got {positions!r}")
    drop = [Dropout(dropout)] if dropout else []
    rotary = positions == "rotary"
    into = Scaled(0.02)
    back = Scaled(0.02 / (2 * depth) ** 0.5)
    attention = Attention(
        heads, causal=True, rotary=rotary, dropout=dropout, initializer=into, output_initializer=back
    )
    mlp = (Dense(4 * features, initializer=into), GELU(), Dense(features, initializer=back))
    block = Chain(
        Residual(Chain(LayerNorm(), attention, *drop)),
        Residual(Chain(LayerNorm(), *mlp, *drop)),
    )
    net = Tied(
        Embedding(vocabulary, features, initializer=into),
        *([] if rotary else [PositionEmbedding("learned", length)]),
        *drop,
        Stack(block, depth, unroll, recompute),
        LayerNorm(),
        Head(vocabulary, deferred),
    )
    return with_precision(net, precision)


def char_lstm(
    vocabulary: int = 256,
    *,
    features: int = 256,
    depth: int = 1,
    embedding: int = 64,
    dropout: float = 0.0,
    deferred: bool = False,
    precision: Any = None,
) -> Chain:
    """`Embedding → LSTM → … → LSTM → Head`: predicts the next character from all before it.

    `features` is the size of every LSTM's state, `depth` how many stand in a row, each followed by
    `Dropout(dropout)` in training. `precision` is that of every layer, as in `with_precision`.
    """
    require_whole("char_lstm", depth=depth)
    drop = [Dropout(dropout)] if dropout else []
    body = [layer for _ in range(depth) for layer in (LSTM(features), *drop)]
    net = Chain(Embedding(vocabulary, embedding), *body, Head(vocabulary, deferred))
    return with_precision(net, precision)
