"""How far every layer's hand-written gradient is from `jax.grad`, layer by layer, in three dtypes.

    python experiments/gradient_equivalence.py

Each layer runs on random signed data, compiled, with a random cotangent; the reference is un-jitted
float64 autodiff of the same forward pass at the same (rounded) inputs. An error is relative to the
largest entry of its array; a row shows the worst over the parameters, the input and the output. The
last column is what autodiff's own compiled gradient loses in float32: the noise that cannot be avoided.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import jaxbp as bp  # noqa: E402
from jaxbp import Eval, Layer, Train  # noqa: E402
from jaxbp.layer import leaves  # noqa: E402
from jaxbp.oracle import relative_error, to_float64  # noqa: E402

DTYPES = ("float64", "float32", "bfloat16")
IDS = 11  # a table's rows, of what looks up ids
ROWS: list[tuple[Layer, tuple[int, ...]]] = [
    (bp.Dense(48), (32, 64)),
    (bp.Dense(48, bias=False), (8, 9, 64)),
    *((layer, (32, 48)) for layer in (bp.Identity(), bp.Sigmoid(), bp.Tanh(), bp.ReLU())),
    *((layer, (32, 48)) for layer in (bp.LeakyReLU(), bp.ELU(), bp.SiLU(), bp.Softplus())),
    *((layer, (32, 48)) for layer in (bp.GELU(), bp.GELU(approximate=False))),
    (bp.Softmax(), (32, 48)),
    (bp.LogSoftmax(), (32, 48)),
    (bp.Dropout(0.3), (32, 48)),
    (bp.Flatten(), (32, 6, 8)),
    (bp.LastStep(), (8, 9, 48)),
    (bp.Conv(12, (3, 3)), (8, 9, 10, 6)),
    (bp.Conv(12, (3, 3), stride=2, groups=3), (8, 9, 10, 6)),
    (bp.Conv(12, (3,), padding=((4, 0),), dilation=2), (8, 20, 6)),
    (bp.ConvTranspose(12, (3, 3), stride=2), (8, 5, 6, 4)),
    *((layer, (8, 9, 10, 6)) for layer in (bp.MaxPool(2), bp.AvgPool(3, 2), bp.GlobalAvgPool())),
    *((layer, (8, 9, 48)) for layer in (bp.LayerNorm(), bp.RMSNorm(), bp.GroupNorm(6), bp.BatchNorm())),
    (bp.Attention(6), (4, 16, 48)),
    (bp.Attention(6, causal=True, kv_heads=2, rotary=True, window=5), (4, 16, 48)),
    *((layer, (8, 12, 20)) for layer in (bp.RNN(24), bp.LSTM(24), bp.GRU(24))),
    (bp.Embedding(IDS, 48), (8, 9)),
    (bp.PositionEmbedding(), (8, 9, 48)),
    (bp.Head(IDS), (8, 9, 48)),
    (bp.Chain(bp.Dense(64), bp.Tanh(), bp.Dense(10)), (32, 48)),
    (bp.Residual(bp.Chain(bp.Dense(48), bp.Tanh())), (32, 48)),
    (bp.Branch(bp.Dense(24), bp.Tanh(), merge="concat"), (32, 48)),
    (bp.Stack(bp.Residual(bp.Chain(bp.Dense(48), bp.Tanh())), 6), (32, 48)),
    (bp.Tied(bp.Embedding(IDS, 48), bp.LayerNorm(), bp.Head(IDS)), (8, 9)),
    (bp.Graph(a=(bp.Dense(20), "x"), b=(bp.Tanh(), "a"), y=(bp.Add(), ("a", "b"))), (32, 48)),
    (bp.Recompute(bp.Chain(bp.Dense(48), bp.GELU(), bp.Dense(20))), (32, 48)),
]


def draw(layer: Layer, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any, Any, Any]:
    """`(params, x, dy, mode)`, exact in `dtype`."""
    keys = jax.random.split(jax.random.key(0), 4)
    narrow = jnp.float32 if dtype == "float64" else jnp.dtype(dtype)
    if isinstance(next(leaf for _, leaf in leaves(layer)), bp.Embedding):
        x = jax.random.randint(keys[0], shape, 0, IDS)
    else:
        x = jax.random.normal(keys[0], shape, narrow)
    params = jax.tree.map(lambda p: p.astype(narrow), jax.jit(layer.init)(keys[1], x))
    mode = Train(keys[2]) if isinstance(layer, bp.Dropout | bp.BatchNorm) else Eval()
    y = jax.eval_shape(lambda: layer.forward(params, x, mode)[0])
    dy = jax.random.normal(keys[3], y.shape, y.dtype)
    if dtype == "float64":
        params, x, dy = to_float64((params, x, dy))
    return params, x, dy, mode


def errors(layer: Layer, shape: tuple[int, ...], dtype: str) -> tuple[float, float]:
    """The worst relative error `(by hand, by jax.vjp in the same dtype)` against the float64 oracle."""
    params, x, dy, mode = draw(layer, shape, dtype)
    has_error = jnp.issubdtype(x.dtype, jnp.floating)  # ids have none

    def by_hand(params: Any, x: Any, dy: Any) -> Any:
        y, saved = layer.forward(params, x, mode)
        grads, dx = layer.backward(params, saved, dy)
        return y, (grads, dx) if has_error else (grads,)

    def by_autodiff(params: Any, x: Any, dy: Any) -> Any:
        def forward(params: Any, x: Any = x) -> Any:
            return layer.forward(params, x, mode)[0]

        y, vjp = jax.vjp(forward, *(params, x) if has_error else (params,))
        return y, vjp(dy)

    reference = by_autodiff(*to_float64((params, x, dy)))

    def worst(result: Any) -> float:
        pairs = zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True)
        return max(relative_error(np.asarray(a, "float64"), b) for a, b in pairs)

    return worst(jax.jit(by_hand)(params, x, dy)), worst(jax.jit(by_autodiff)(params, x, dy))


def table(rows: list[tuple[Layer, tuple[int, ...]]] = ROWS) -> Iterator[tuple[str, list[float], float]]:
    """`(layer, [error by hand in each dtype], error of autodiff in float32)`, one after another."""
    for layer, shape in rows:
        found = {dtype: errors(layer, shape, dtype) for dtype in DTYPES}
        yield f"{layer} on {list(shape)}", [found[d][0] for d in DTYPES], found["float32"][1]


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.platform} ({device.device_kind})\n")
    width = 80
    print(f"{'layer':<{width}}" + "".join(f"{d:>10}" for d in DTYPES) + f"{'autodiff f32':>14}")
    rows = []
    for row in table():
        rows.append(row)
        name, by_hand, autodiff = row
        cells = "".join(f"{e:>10.1e}" for e in by_hand) + f"{autodiff:>14.1e}"
        print(f"{name:<{width}}{cells}", flush=True)
    worst = [max(row[1][i] for row in rows) for i in range(3)]
    print("\nlargest: " + ", ".join(f"{d} {e:.1e}" for d, e in zip(DTYPES, worst, strict=True)))


if __name__ == "__main__":
    main()
