"""Attention: every place of a sequence reads from every other, weighted by how well they fit.

Letters: `B` batch (any leading axes), `T` queries, `S` keys, `I` input features, `H` heads, `K` key
and value heads (`H = K G`, each serving a group of `G` heads), `D` features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxbp.bridge import fused_attention, fused_attention_pull
from jaxbp.compose import add_errors
from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Static,
    Train,
    is_training,
    require_share,
    require_whole,
)
from jaxbp.layers.attention_choice import FORMS, Choice, Shape, choose, unsupported
from jaxbp.layers.blockwise import Sight, attend, attend_pull
from jaxbp.layers.initializers import initializer
from jaxbp.layers.rotation import rotate
from jaxbp.layers.sequence_input import read_attention
from jaxbp.precision import PrecisionField, matmul, wide


@dataclass(frozen=True, repr=False)
class Attention(Layer):
    """Multi-head scaled dot-product attention. `[..., T, I] -> [..., T, I]`.

    `x` is an array (self-attention), a pair `(x, memory)` of `[..., T, I]` and `[..., S, J]`
    (cross-attention), or a dict with `x` and any of `memory` and `mask`; `dx` is the same, with `None`
    for the mask. The mask is boolean, `[..., S]` (which keys exist: padding) or `[..., T, S]` (which
    query may see which key). Forward, with `m` for the memory or `x` itself:

        1  q = x w_q + b_q,  k = m w_k + b_k,  v = m w_v + b_v      split into heads; q, k turned (rotary)
        2  s_ij = Σ_d q_id k_jd / √D                                [..., K, G, T, S]
        3  p_ij = e^{s_ij} / Σ_{j' seen} e^{s_ij'}                  0 where i may not see j
        4  o_i  = Σ_j p̃_ij v_j                                      p̃: p, or p after dropout
        5  y    = o w_o + b_o                                       heads joined

    A row that sees no key at all is `p = 0`, so its output is `b_o` and it sends no error back.
    Backward visits the passes in reverse; each line is the pull of the pass with its number:

        5  ∂L/∂o    = ∂L/∂y w_oᵀ
        4  ∂L/∂p̃_ij = Σ_d ∂L/∂o_id v_jd,    ∂L/∂v_j = Σ_i p̃_ij ∂L/∂o_i     (summed over the group)
        3  ∂L/∂s_ij = p_ij (∂L/∂p_ij - Σ_j' ∂L/∂p_ij' p_ij')               softmax: all paths of a row
        2  ∂L/∂q_i  = Σ_j ∂L/∂s_ij k_j / √D,    ∂L/∂k_j = Σ_i ∂L/∂s_ij q_i / √D
        1  ∂L/∂x    = ∂L/∂q w_qᵀ,    ∂L/∂m = ∂L/∂k w_kᵀ + ∂L/∂v w_vᵀ        one sum where m is x

    and `gradient` meets each of the four errors with what its product saw: `∂L/∂w_q = Σ xᵀ ∂L/∂q`,
    `∂L/∂w_k = Σ mᵀ ∂L/∂k`, `∂L/∂w_v = Σ mᵀ ∂L/∂v`, `∂L/∂w_o = Σ oᵀ ∂L/∂y`; a bias meets a 1. Keys have a
    bias with rotary only: without it, `b_k` adds one number to all scores of a row, which the softmax
    ignores, so that its gradient would be 0 for ever.

    Keeps `x`, `m`, `q`, `k`, `v`, `o`, the log-sum-exp of every row `[..., K, G, T]`, the mask that was
    given, and a key an example if dropout drew. Nothing of `[T, S]` is kept: passes 2 and 3 are done
    again on the way back, and beyond a few hundred places all of 2 to 4 goes tile by tile (the derivation
    stands in `blockwise.py`). A vendor's fused pair takes their place where it is faster, and keeps what
    it likes. `implementation` (`"whole"`, `"blocks"`, `"cudnn"`, `"xla"`) and `block`, about how many
    queries and keys a tile has, force what `attention_choice.py` chooses by platform, dtype and shape.

    What is hidden may hold anything: a key that a query does not see, whether by `causal`, `window` or
    the mask, changes neither its output nor what its error adds to a gradient, be it NaN, infinite or
    huge. `q`, `k` and `v` are made finite for that, and a query that sees a NaN or an infinity (or is
    one) is *lost*: its output is NaN, and so are the gradients if an error comes to it; if none comes, it
    adds nothing. A place of `x` that the mask hides from every query is padding, as a query too: where
    it is not finite, it sees no key.

    `causal`: query `i` sees keys `j ≤ i`. `window = n`: only keys less than `n` places away.
    `kv_heads`: fewer key and value heads than heads (grouped queries; 1 is multi-query). `rotary`:
    turn `q` and `k` by their places (`PositionEmbedding`), with `base`. `dropout`: of `p`, in
    training. `head_features`: `D`, by default `I / heads`. `output_initializer`: for `w_o`, if not
    the same. Scores and softmax run in float32 at least, products in the dtype of `x` or
    `precision.compute`.

    Parameters `w_q: [I, H D]`, `w_k, w_v: [J, K D]`, `w_o: [H D, I]` and, with `bias`, `b_q, b_v,
    b_o` (and `b_k`). Raises `InputError` for sizes that do not divide, shapes that do not fit, dropout
    without a key, and a form that cannot do what was asked. Sources: Vaswani et al. 2017; grouped
    queries Ainslie et al. 2023; rotary Su et al. 2021.
    """

    heads: int
    causal: bool = False
    kv_heads: int | None = None
    window: int | None = None
    rotary: bool = False
    dropout: float = 0.0
    bias: bool = True
    head_features: int | None = None
    base: float = 10000.0
    initializer: str | Callable[..., Array] = "glorot"
    output_initializer: str | Callable[..., Array] | None = None
    precision: Any = PrecisionField()
    implementation: str | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("kv_heads", "window", "head_features", "block")}
        given = {name: size for name, size in sizes.items() if size is not None}
        require_whole("Attention", heads=self.heads, **given)
        if self.heads % (self.kv_heads or self.heads):
            raise InputError(f"Attention: {self.kv_heads} kv_heads do not divide {self.heads} heads")
        require_share(self.dropout, "Attention: dropout")
        if self.implementation not in (None, *FORMS):
            names = ", ".join(map(repr, FORMS))
            raise InputError(
                f"Attention: expected implementation {names} or None, got {self.implementation!r}"
            )
        initializer(self.initializer)
        initializer(self.output_initializer or self.initializer)

    # --- parameters -----------------------------------------------------------------------------

    def init(self, key: Array, x: PyTree) -> PyTree:
        _, inputs, memory, _ = read_attention(self, x)
        size, kv_heads = self._head_size(inputs.shape[-1]), self.kv_heads or self.heads
        dtype = jnp.dtype(self.precision.params or inputs.dtype)
        make = dict.fromkeys("qkv", initializer(self.initializer))
        make["o"] = initializer(self.output_initializer or self.initializer)
        wide_q, wide_kv = self.heads * size, kv_heads * size
        shapes = {
            "q": (inputs.shape[-1], wide_q),
            "k": (memory.shape[-1], wide_kv),
            "v": (memory.shape[-1], wide_kv),
            "o": (wide_q, inputs.shape[-1]),
        }
        keys = dict(zip(shapes, jax.random.split(key, 4), strict=True))
        params = {f"w_{name}": make[name](keys[name], shape, dtype) for name, shape in shapes.items()}
        if self.bias:
            params |= {f"b_{n}": jnp.zeros(shapes[n][1], dtype) for n in shapes if self._has_bias(n)}
        return params

    def _has_bias(self, name: str) -> bool:
        return self.bias and (name != "k" or self.rotary)

    # --- forward --------------------------------------------------------------------------------

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[Array, PyTree]:
        form, inputs, memory, mask = read_attention(self, x, params)
        dtype = jnp.dtype(self.precision.compute or inputs.dtype)
        form = Static((form, inputs.dtype, memory.dtype))
        x_, right = _finite(inputs.astype(dtype), -1)
        m, m_right = (None, right) if memory is inputs else _finite(memory.astype(dtype), -1)
        q, k, v = self._project(params, x_, x_ if m is None else m)  # 1
        q, k, v, lost = self._hide(q, k, v, right, m_right, mask)
        key = self._draw(q.shape[:-4], mode)
        choice = self._choose(q, k, mask, key is not None)
        saved = {"x": x_, "memory": m, "mask": mask, "key": key, "form": form}
        if choice.fused:
            heads = _time_first(q), _time_first(k[..., None, :, :]), _time_first(v[..., None, :, :])
            o, saved["pair"] = fused_attention(*heads, self.causal, self.window, choice.form)
            o = o.reshape(*o.shape[:-2], -1)
        else:
            o, lse = attend(self._sight, choice.block, q, k, v, mask, key)  # 2, 3, 4
            o = o.astype(dtype)
            lost = lost | ~_finite(o, (-4, -3, -1))[1]
            rows = _rows(lost, q)
            q, o = jnp.where(rows, 0, q), jnp.where(rows, 0, o)
            lse = jnp.where(rows[..., 0], jnp.inf, lse)
            o = _join(o)
            saved |= {"q": q, "k": k, "v": v, "lse": lse}
        if memory is inputs and mask is not None:
            lost = lost & jnp.any(mask, axis=-2)  # padding, as a query too: there is nothing to lose
        y = self._out(params, o)  # 5
        y = jnp.where(lost[..., None], jnp.nan, y).astype(self.precision.output or inputs.dtype)
        return y, {**saved, "o": o, "lost": lost}

    def _hide(
        self, q: Array, k: Array, v: Array, right: Array, m_right: Array, mask: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        """Nothing but finite numbers in `q`, `k` and `v`, and which queries are lost, `[..., T]`.

        A query is lost if it, or a key that it sees, is not finite. A key that is not, or that no query
        sees, is 0: it meets a share of 0, and so must not hold what times 0 isn't 0.
        """
        q, q_right = _finite(q, (-4, -3, -1), whole=True)
        (k, k_right), (v, v_right) = (_finite(a, (-3, -1), whole=True) for a in (k, v))
        wrong = ~(m_right & k_right & v_right)
        if mask is not None:
            exists = jnp.any(mask, axis=-2)
            k, v = (jnp.where(_rows(exists, a), a, 0) for a in (k, v))
        lost = ~(right & q_right) | self._sight.any_seen(wrong, q.shape[-2], mask)
        return q, k, v, lost

    @property
    def _sight(self) -> Sight:
        return Sight(self.causal, self.window, self.dropout)

    def _choose(self, q: Array, k: Array, mask: Array | None, dropped: bool) -> Choice:
        window, masked = self.window is not None, mask is not None
        queries, (keys, features) = q.shape[-2], k.shape[-2:]
        shape = Shape(queries, keys, features, self.causal, window, masked, dropped)
        if self.implementation in ("cudnn", "xla"):
            problem = unsupported(q.dtype, shape, self.implementation)
            if problem:
                raise InputError(f"{self}: the fused form cannot do {problem}")
        return choose(self.implementation, self.block, q.dtype, shape)

    def _project(
        self, params: PyTree, x: Array, m: Array, past: Array | int = 0
    ) -> tuple[Array, Array, Array]:
        """Pass 1: `q: [..., K, G, T, D]` and `k, v: [..., K, S, D]`, in the dtype of `x`."""

        def product(name: str, a: Array) -> Array:
            biased = self._has_bias(name)  # added wide, so that both are rounded once
            y = matmul(a, params[f"w_{name}"].astype(a.dtype), None if biased else a.dtype)
            if biased:
                y = y + jnp.broadcast_to(params[f"b_{name}"].astype(y.dtype), y.shape)
            return y.astype(a.dtype)

        kv_heads = self.kv_heads or self.heads
        q = _split(product("q", x), kv_heads, self.heads // kv_heads)
        k, v = _split(product("k", m), kv_heads), _split(product("v", m), kv_heads)
        if self.rotary:
            q = rotate(q, past + _places(q.shape[-2]), self.base)
            k = rotate(k, past + _places(k.shape[-2]), self.base)
        return q, k, v

    def _out(self, params: PyTree, o: Array) -> Array:
        """Pass 5: `y: [..., T, I]`, wide."""
        y = matmul(o, params["w_o"].astype(o.dtype))
        return y + jnp.broadcast_to(params["b_o"].astype(y.dtype), y.shape) if self.bias else y

    def _draw(self, batch: tuple[int, ...], mode: Mode) -> PyTree:
        """A key an example, so that what is saved belongs to examples; `None` if nothing is dropped."""
        if not is_training(mode) or not self.dropout:
            return None
        if not isinstance(mode, Train) or mode.key is None:
            raise InputError(f"{self}: training draws a mask; pass mode=Train(key)")
        return jax.random.split(mode.key, batch) if batch else mode.key

    # --- backward -------------------------------------------------------------------------------

    def pull(self, params: PyTree, saved: PyTree, dy: Array) -> tuple[PyTree, PyTree]:
        dtype, kv_heads = saved["o"].dtype, self.kv_heads or self.heads
        dy = dy.astype(dtype)
        wrong = _meets(saved["lost"], dy)
        # 5: y = o w_o
        do = matmul(dy, params["w_o"].T.astype(dtype), dtype)
        # 4, 3, 2: o = p̃ v, p = softmax(s), s = q kᵀ / √D
        if "pair" in saved:
            do = jnp.where(wrong[..., None], jnp.nan, do)
            do = do.reshape(*do.shape[:-1], self.heads, -1)
            dq, dk, dv = fused_attention_pull(saved["pair"], do)
            dq = _split(dq.reshape(*dq.shape[:-2], -1), kv_heads, self.heads // kv_heads)
            dk, dv = (jnp.moveaxis(d, -2, -3) for d in (dk, dv))
        else:
            q, k, v, lse = (saved[name] for name in ("q", "k", "v", "lse"))
            heads = kv_heads, self.heads // kv_heads
            lse = jnp.where(_rows(wrong, q)[..., 0], jnp.nan, lse)
            o, do = _split(saved["o"], *heads), _split(do, *heads)
            block = self._choose(q, k, saved["mask"], saved["key"] is not None).block
            dq, dk, dv = attend_pull(self._sight, block, q, k, v, o, lse, do, saved["mask"], saved["key"])
        # 1: q, k, v = x w_q, m w_k, m w_v
        if self.rotary:
            dq = rotate(dq, -_places(dq.shape[-2]), self.base)
            dk = rotate(dk, -_places(dk.shape[-2]), self.base)
        errors = {"q": _join(dq), "k": _join(dk[..., None, :, :]), "v": _join(dv[..., None, :, :])}
        errors = {name: error.astype(dtype) for name, error in errors.items()}
        down = {
            name: matmul(error, params[f"w_{name}"].T.astype(dtype)) for name, error in errors.items()
        }
        dx, dmemory = down["q"], add_errors(down["k"], down["v"])
        form, x_dtype, memory_dtype = saved["form"].value
        if "memory" not in form.present:  # one array, read three times
            dx = add_errors(dx, dmemory)
        dx, dmemory = dx.astype(x_dtype), dmemory.astype(memory_dtype)
        return form.errors(x=dx, memory=dmemory), {**errors, "o": dy}

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        x, o = saved["x"], saved["o"]
        m = x if saved["memory"] is None else saved["memory"]
        grads = {}
        for name, met in {"q": x, "k": m, "v": m, "o": o}.items():
            error = delta[name].reshape(-1, delta[name].shape[-1])
            grads[f"w_{name}"] = matmul(met.reshape(-1, met.shape[-1]).T, error)
            if self._has_bias(name):
                grads[f"b_{name}"] = jnp.sum(error, axis=0, dtype=wide(error.dtype))
        wrong = jnp.any(_meets(saved["lost"], delta["o"]))  # o is kept finite, though it was not
        grads["w_o"] = jnp.where(wrong, jnp.nan, grads["w_o"])
        return {name: g.astype(params[name].dtype) for name, g in grads.items()}

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        """Four `Dense`s: `q` meets `x`, `k` and `v` the memory, and what comes out meets `o`."""
        x, o = saved["x"], saved["o"]
        m = x if saved["memory"] is None else saved["memory"]
        wrong = _meets(saved["lost"], delta["o"])  # o is kept finite, though it was not
        o = jnp.where(wrong[..., None], jnp.nan, o)
        met = {"q": x, "k": m, "v": m, "o": o}
        weights = {f"w_{name}": (seen, delta[name]) for name, seen in met.items()}
        return weights | {f"b_{name}": (None, delta[name]) for name in met if self._has_bias(name)}

    # --- decoding -------------------------------------------------------------------------------

    def start(self, params: PyTree, batch: int, length: int, dtype: DTypeLike) -> PyTree:
        """Decoding: room for the keys and values of `length` places, and how many are filled."""
        if not self.causal:
            raise InputError(f"{self}: only causal attention can decode one place after another")
        kv_heads = self.kv_heads or self.heads
        room = (batch, kv_heads, length, params["w_k"].shape[1] // kv_heads)
        dtype = jnp.dtype(self.precision.compute or dtype)
        return jnp.zeros(room, dtype), jnp.zeros(room, dtype), jnp.zeros((), jnp.int32)

    def advance(self, params: PyTree, cache: PyTree, x: Array) -> tuple[Array, PyTree]:
        """Decoding: further places read from the keys and values so far (and their own)."""
        keys, values, past = cache
        x_ = x.astype(keys.dtype)
        q, k, v = self._project(params, x_, x_, past)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k, past, axis=-2)
        values = jax.lax.dynamic_update_slice_in_dim(values, v, past, axis=-2)
        y = self._out(params, self._look_back(q, keys, values, past))
        return y.astype(self.precision.output or x.dtype), (keys, values, past + x.shape[-2])

    def _look_back(self, q: Array, keys: Array, values: Array, past: PyTree) -> Array:
        """Passes 2 to 4 for queries at `past` and later: `o`, heads joined."""
        values, right = _finite(values, -1)
        keys = jnp.where(right[..., None], keys, jnp.nan)  # whoever sees it is lost
        at = past + _places(q.shape[-2])
        seen = self._sight.seen(at, _places(keys.shape[-2]))
        assert seen is not None, "only causal attention decodes"
        mask = jnp.broadcast_to(seen, (*q.shape[:-4], *seen.shape))
        o, _ = attend(Sight(), None, q, keys, values, mask)
        return _join(o.astype(values.dtype))

    # --- input ----------------------------------------------------------------------------------

    def _head_size(self, features: int) -> int:
        if self.head_features is None and features % self.heads:
            raise InputError(f"{self}: {self.heads} heads do not divide {features} features")
        size = self.head_features or features // self.heads
        if self.rotary and size % 2:
            raise InputError(f"{self}: rotary needs an even number of features a head, got {size}")
        return size


def _places(count: int) -> Array:
    return jnp.arange(count, dtype=jnp.int32)


def _finite(a: Array, axes: int | tuple[int, ...], whole: bool = False) -> tuple[Array, Array]:
    """`a` with 0 for what is not finite (`whole`: for every row that isn't), and which rows are finite.

    A row is what lies along `axes`.
    """
    finite = jnp.isfinite(a)
    right = jnp.all(finite, axis=axes)
    return jnp.where(_rows(right, a) if whole else finite, a, 0), right


def _rows(flags: Array, a: Array) -> Array:
    """`[..., T]` flags as `[..., 1, T, 1]`, to stand beside `a: [..., (heads,) T, D]`."""
    heads = range(flags.ndim - 1, a.ndim - 2)
    return jnp.broadcast_to(jnp.expand_dims(flags, (*heads, a.ndim - 1)), a.shape)


def _meets(lost: Array, dy: Array) -> Array:
    """Which rows are lost and yet have an error."""
    return lost & jnp.any(dy != 0, axis=-1)


def _split(a: Array, *heads: int) -> Array:
    """`[..., T, (heads) D] -> [..., heads, T, D]`."""
    a = a.reshape(*a.shape[:-1], *heads, a.shape[-1] // math.prod(heads))
    return jnp.moveaxis(a, -2 - len(heads), -2)


def _join(a: Array) -> Array:
    """`[..., K, G, T, D] -> [..., T, K G D]`."""
    a = jnp.moveaxis(a, -2, -4)
    return a.reshape(*a.shape[:-3], math.prod(a.shape[-3:]))


def _time_first(a: Array) -> Array:
    """`[..., K, G, T, D] -> [..., T, K G, D]`."""
    a = jnp.moveaxis(a, -2, -4)
    return a.reshape(*a.shape[:-3], math.prod(a.shape[-3:-1]), a.shape[-1])
