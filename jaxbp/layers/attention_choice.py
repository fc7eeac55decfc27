"""Which form attention's core takes: one tile, tiles, or a vendor's fused pair.

All three keep the same few arrays and give the same numbers; only the time and the memory inside a pass
differ. The choice is made while tracing, for the default backend of the process, so that both passes of
a layer agree on it whatever they are compiled for afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

FORMS = ("whole", "blocks", "cudnn", "xla")
"""One tile; tiles; the pair that JAX hands out for cuDNN, and the same without a GPU (for proofs)."""


class Choice(NamedTuple):
    """A form, and about how many queries and keys a tile has (`None`: all of them)."""

    form: str
    block: int | None = None

    @property
    def fused(self) -> bool:
        return self.form in ("cudnn", "xla")


class Shape(NamedTuple):
    """What the choice depends on besides platform and dtype."""

    queries: int
    keys: int
    features: int
    causal: bool
    window: bool
    mask: bool
    dropout: bool


class Row(NamedTuple):
    """From `queries × keys` of `least` on, on `platform` (`None`: any), in one of `dtypes` (or any)."""

    platform: str | None
    dtypes: tuple[str, ...] | None
    least: int
    choice: Choice


HALF = ("bfloat16", "float16")

# The first row that fits is taken.
TABLE = (
    # B4 T2048 H16 D64 causal, forward and backward on an H100: 0.92 ms, where a layer that keeps [T, S]
    # takes 5.26; B1 T8192: 1.66 and 17.95 ms, and 10.8 GB less.
    Row("gpu", HALF, 128 * 128, Choice("cudnn")),
    # Not measured: few and large products; a tile of a head is 4 MB in float32.
    Row("gpu", None, 1024 * 1024 + 1, Choice("blocks", 1024)),
    Row("tpu", None, 1024 * 1024 + 1, Choice("blocks", 1024)),
    # Two shared cores, float32, H4 D64 causal, a layer's two passes in ms of processor time: B1 T512 in
    # tiles of 64, 128 and 256 18.8, 19.4 and 20.6, where a layer that keeps [T, S] takes 26.3; B4 T256 in
    # tiles of 64 and 128 30.3 and 30.9, whole 44.7, kept 34.6; B4 T128 in tiles of 64 12.7, whole 14.0,
    # kept 13.1. At T2048 tiles of 128 and 256 are alike, and 512 is a quarter slower.
    Row("cpu", None, 1024 * 1024, Choice("blocks", 256)),
    Row("cpu", None, 256 * 256, Choice("blocks", 128)),
    Row("cpu", None, 128 * 128, Choice("blocks", 64)),
    Row(None, None, 0, Choice("whole")),
)


def choose(form: str | None, block: int | None, dtype: DTypeLike, shape: Shape) -> Choice:
    """The row of the table that fits, or the `form` and `block` that were asked for."""
    if form is not None:
        return Choice(form, (block or 256) if form == "blocks" else None)
    platform, name, size = jax.default_backend(), jnp.dtype(dtype).name, shape.queries * shape.keys
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    for row in TABLE:
        fits = row.platform in (None, platform) and (row.dtypes is None or name in row.dtypes)
        if fits and size >= row.least and (not row.choice.fused or not unsupported(dtype, shape)):
            return row.choice if block is None else Choice("blocks", block)
    raise AssertionError("the last row fits everything")


def unsupported(dtype: DTypeLike, shape: Shape, form: str = "cudnn") -> str:
    """What the fused pair cannot do of this, in words; empty if it can."""
    if shape.dropout:
        return "dropout"
    if shape.mask:
        return "a mask (it would be a bias of [T, S])"
    if shape.causal and shape.queries != shape.keys:
        return "causal attention to another sequence"
    if form == "xla":
        return ""
    if jnp.dtype(dtype).name not in HALF:
        return f"{jnp.dtype(dtype).name}"
    if shape.features % 8 or shape.features > 128:
        return f"{shape.features} features a head (a multiple of 8, up to 128)"
    return "a window that is not causal" if shape.window and not shape.causal else ""
