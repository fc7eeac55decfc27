"""Cross-entropy of a linear layer's logits, of which there are never more than a few rows at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.layer import InputError, PyTree, require_floating, require_whole, shape_text
from jaxbp.losses.softmax import Rows, SoftmaxCrossEntropy
from jaxbp.precision import wide


class Plan(NamedTuple):
    """How the work is cut on a platform."""

    bytes: int
    """What the logits of one chunk may take. More is no faster; less adds to `∂L/∂w` more often."""
    multiple: int
    """What the number of classes is padded to in the products."""


# CPU: for N 2048, D 256, V 32000 in float32, chunks of 64, 128, 256 and 512 rows take 0.92, 0.82, 0.79
# and 0.89 of the time of jax.grad (all logits at once: 0.96), and 43, 51, 68 and 133 MB beside the
# result (524). In bfloat16 it is 0.90, 0.71, 0.71 and 0.72 (0.91).
# GPU: reasoned, not measured. A chunk adds to ∂L/∂w once, 0.1 ms for GPT-2's table on an H100, beside the
# 0.4 ms of its three products at 1024 rows; and bfloat16 rows that do not start at a multiple of 16
# bytes take a slower product.
PLANS = {"cpu": Plan(32 << 20, 1), "gpu": Plan(256 << 20, 128), "tpu": Plan(256 << 20, 128)}


@dataclass(frozen=True, repr=False)
class LinearCrossEntropy(SoftmaxCrossEntropy):
    """`SoftmaxCrossEntropy` of the logits `a = h w`, taken from the pair `(h, w)` that makes them.

    `h: [..., features]` and `w: [features, classes]` are what a deferred head hands on
    (`Head(classes, deferred=True)`). With `δ = ∂L/∂a` from `SoftmaxCrossEntropy`, the linear layer's
    two equations follow in the loss:

        ∂L/∂h_j  = Σ_i δ_i w_ji
        ∂L/∂w_ji = Σ_n h_nj δ_ni          summed over the predictions

    A row of logits is needed for its own loss and its own `δ` only, so the rows are taken `chunk` at a
    time: their logits, their losses, their `δ`, their `∂L/∂h`, and what they add to `∂L/∂w`. The
    gradient is therefore there when the value is, and is what is kept: three products for each row, as
    autodiff has, and no more than `chunk` rows of logits at once in place of all `N`. (To keep only the
    rows' normalizers and make the logits again going backward costs a fourth product; to go by chunks of
    classes does so too.) Under `jit`, XLA drops from the loop what nobody asks for: of a value alone, one
    product is left.

    Logits are taken, and `∂L/∂w` is added up, in float32 at least, the products in the dtype of `h` and
    `w`, of which no wider copy is made. Where a platform likes classes by the multiple, products are
    padded with columns of 0 that are cut off before a softmax sees them. Chunks are strided, row `n` in
    chunk `n mod count`, so that rows that are shared out among devices stay so in each. The last of
    them are filled up with rows that do not count.

    `chunk=None` takes as many rows as a platform's `PLANS` allow, `backward` returns both gradients as
    a pair, each in the dtype of what it belongs to. Targets, fields, range checks and errors are those
    of `SoftmaxCrossEntropy`. Sources: Hsu et al. 2024 (Liger Kernel); Wijmans et al. 2024 (Cut
    Cross-Entropy).
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None:
            require_whole(str(self), chunk=self.chunk)

    def forward(self, prediction: Any, target: Any) -> tuple[Float[Array, ""], PyTree]:
        h, w = self._pair(prediction)
        logits = jax.ShapeDtypeStruct((*h.shape[:-1], w.shape[1]), wide(h.dtype))
        rows = self._read(logits, target)
        features, classes = w.shape
        visible = rows.visible(h).reshape(-1, features)  # or its NaN meets δ = 0 in ∂L/∂w
        labels = rows.target.reshape(-1, *rows.target.shape[h.ndim - 1 :])
        parts = visible, labels, rows.weight.reshape(-1, 1)
        table = jnp.pad(w.T, ((0, -classes % _plan().multiple), (0, 0)))  # laid out like a Head's

        def take(h: Array, target: Array, weight: Array) -> tuple[Array, ...]:
            return self._chunk(h, table, Rows(target, weight, rows.scale, None), classes)

        many = len(visible)
        size, count = self._sizes(many, classes * logits.dtype.itemsize)
        if count == 1:
            value, dh, dw = take(*parts)
        else:
            value, dh, dw = _in_turns(take, [_cut(x, size, count) for x in parts], count)
        dh, dw = dh[:many].reshape(h.shape), (rows.scale * dw[:classes]).T
        return rows.scale * value, (dh, dw.astype(w.dtype))

    def backward(self, saved: PyTree) -> Any:
        return saved

    def hessian_root(self, saved: PyTree, v: Array) -> Array:
        raise InputError(f"{self}: its predictions are not kept; use SoftmaxCrossEntropy")

    def hessian(self, saved: PyTree, v: Array) -> Array:
        return self.hessian_root(saved, v)

    def _chunk(self, h: Array, table: Array, rows: Rows, classes: int) -> tuple[Array, ...]:
        """`(Σ losses, ∂L/∂h, ∂L/∂table)` of some rows; the scale is in the second only."""
        a = _product(h, table, 1, 1)[:, :classes]
        losses, normalizer = self._losses(a, rows)
        delta = self._error(a, rows, normalizer).astype(h.dtype)
        delta = jnp.pad(delta, ((0, 0), (0, len(table) - classes)))
        dh = (rows.scale * _product(delta, table, 1, 0)).astype(h.dtype)
        return jnp.sum(rows.weight * losses), dh, _product(delta, h, 0, 0)

    def _sizes(self, many: int, row: int) -> tuple[int, int]:
        """Rows a chunk and the number of chunks, of `many` rows whose logits take `row` bytes each."""
        if self.chunk is not None:
            size = min(self.chunk, max(many, 1))
            return size, -(-many // size) or 1
        fewest = -(-many // max(_plan().bytes // max(row, 1), 16)) or 1
        even = (count for count in range(fewest, 2 * fewest) if many % count == 0)  # nothing to fill up
        count = next(even, fewest)
        return -(-many // count), count

    def _pair(self, prediction: Any) -> tuple[Array, Array]:
        if not isinstance(prediction, tuple | list) or len(prediction) != 2:
            raise InputError(f"{self}: expected the pair (h, w) of a deferred head, got {prediction!r}")
        h, w = prediction
        require_floating(h, f"{self}: h")
        require_floating(w, f"{self}: w")
        if w.ndim != 2 or h.ndim < 1 or h.shape[-1] != w.shape[0] or h.dtype != w.dtype:
            raise InputError(
                f"{self}: expected h as [..., features] and w as [features, classes] of one dtype, "
                f"got {shape_text(h)} and {shape_text(w)}"
            )
        return h, w


def _plan() -> Plan:
    return PLANS.get(jax.default_backend(), PLANS["gpu"])


def _product(a: Array, b: Array, axis: int, other: int) -> Array:
    """`Σ` over `axis` of `a` and `other` of `b`, wide; nothing is transposed before or after."""
    contract = (((axis,), (other,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, preferred_element_type=wide(a.dtype))


def _cut(x: Array, size: int, count: int) -> Array:
    """`[N, …]` as `[size, count, …]`, filled up with zeros: chunk `i` is `[:, i]`."""
    missing = size * count - len(x)
    x = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) if missing else x
    return x.reshape(size, count, *x.shape[1:])


def _in_turns(take: Callable[..., Any], parts: list[Array], count: int) -> tuple[Array, ...]:
    """`take` of every chunk: values and weight gradients added up, errors put where the rows were."""

    def one(i: Any) -> Any:
        return take(*(jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False) for x in parts))

    def step(sums: Any, i: Any) -> Any:
        value, dh, dw = one(i)
        return (sums[0] + value, sums[1] + dw), dh

    turns = jnp.arange(count, dtype=jnp.int32)
    value, _, dw = (jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(one, turns[0]))
    (value, dw), dh = jax.lax.scan(step, (value, dw), turns)
    return value, dh.swapaxes(0, 1).reshape(-1, dh.shape[-1]), dw
