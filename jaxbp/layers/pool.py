"""Pooling: one number for each window, its largest entry or its mean, channel by channel.

Letters as in `windows.py`: output `o` looks, with tap `k`, at input `i = s o + k - p`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree, Static, require_floating
from jaxbp.layers.windows import Padding, Window, explicit, per_axis, window
from jaxbp.precision import wide


class _Pool(Layer):
    """Hyper-parameters, shapes and checks of a pooling layer."""

    window: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None
    padding: Padding

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("window", "stride", "padding"):  # lists would not be hashable
            value = getattr(self, field)
            if isinstance(value, list | tuple):
                value = tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
                object.__setattr__(self, field, value)
        if not isinstance(self.window, int | tuple) or self._axes < 1:
            raise InputError(
                f"{name}: expected a window of one size, or one an axis, got {self.window!r}"
            )
        taps = per_axis(self.window, self._axes, f"{name}: window")
        _ = self._strides  # raises where it is wrong
        for pair, size in zip(explicit(self.padding, self._axes, name) or (), taps, strict=False):
            if not all(0 <= p < size for p in pair):
                raise InputError(
                    f"{name}: padding must be at least 0 and smaller than the window {list(taps)}, "
                    f"or a window would see padding alone; got {self.padding!r}"
                )

    @property
    def _axes(self) -> int:
        return 2 if isinstance(self.window, int) else len(self.window)

    @property
    def _strides(self) -> tuple[int, ...]:
        stride = self.window if self.stride is None else self.stride
        return per_axis(stride, self._axes, f"{type(self).__name__}: stride")

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._windows(x)
        return ()

    def _windows(self, x: PyTree) -> Window:
        require_floating(x, f"{self}: x")
        if len(x.shape) < self._axes + 1 or x.shape[-1] == 0:
            raise InputError(
                f"{self}: expected x of shape [..., {'position, ' * self._axes}channels], "
                f"got {list(x.shape)}"
            )
        return self._at(x.shape[len(x.shape) - self._axes - 1 : -1])

    def _at(self, size: tuple[int, ...]) -> Window:
        taps = per_axis(self.window, self._axes, str(self))
        return window(size, taps, self._strides, (1,) * self._axes, self.padding, str(self))

    def _flat(self, x: Array) -> Array:
        """`[*batch, *positions, channels]` with the batch axes made one."""
        inner = x.shape[x.ndim - self._axes - 1 :]
        return x.reshape(prod(x.shape[: x.ndim - self._axes - 1]), *inner)

    def _shaped(self, y: Array, like: Array) -> Array:
        """`y` with the batch axes of `like`."""
        return y.reshape(*like.shape[: like.ndim - self._axes - 1], *y.shape[1:])


@dataclass(frozen=True, repr=False)
class MaxPool(_Pool):
    """`y[n,o,c] = max_k x[n, s o + k - p, c]`. `[..., *positions, channels]`, the positions pooled.

    One entry of each window decides its output, so all of the error goes to that entry:

        ∂L/∂x[n,i,c] = Σ_{(o,k): s o + k - p = i} [k is the tap that won at o] ∂L/∂y[n,o,c]

    (a sum, for an entry can win in several windows that overlap). **Ties:** the first of the largest
    entries in the window, in row-major order, wins and gets the whole error, as `jax.grad` of
    `lax.reduce_window` decides it too. Autodiff of `max` over an axis would share it out instead.

    `window` is one integer for images (`2` means `(2, 2)`) or one an axis: `(2,)` pools sequences;
    `stride` is the window's size by default. `padding` as in `Conv`, smaller than the window; padding
    never wins. NaN wins. Keeps, for each output, the number of the tap that won (one byte for windows
    of up to 256 entries), not `x`.

    Raises `InputError` for an integer `x`, a wrong rank, and a window that does not fit.
    """

    window: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: Padding = "VALID"

    def forward(
        self, params: PyTree, x: Float[Array, "*dims channels"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*odims channels"], PyTree]:
        windows = self._windows(x)
        looks = windows.looks(windows.padded(self._flat(x), -jnp.inf))
        best = next(looks)
        won = jnp.zeros(best.shape, np.uint8 if prod(windows.taps) <= 256 else np.int32)
        for k, seen in enumerate(looks, start=1):
            # `best` is -inf where only padding was seen so far
            better = (seen > best) | (seen != seen)
            best, won = jnp.where(better, seen, best), jnp.where(better, won.dtype.type(k), won)
        return self._shaped(best, x), (self._shaped(won, x), Static(windows.size))

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*odims channels"]
    ) -> tuple[Float[Array, "*dims channels"], PyTree]:
        won, size = saved
        windows = self._at(size.value)
        won, d = self._flat(won), self._flat(dy.astype(wide(dy.dtype)))
        zero = jnp.zeros((), d.dtype)
        taps = range(prod(windows.taps))
        dx = windows.unlook(jnp.where(won == won.dtype.type(k), d, zero) for k in taps)
        return self._shaped(dx, dy).astype(dy.dtype), ()


@dataclass(frozen=True, repr=False)
class AvgPool(_Pool):
    """`y[n,o,c] = 1/N_o Σ_k x[n, s o + k - p, c]`. `[..., *positions, channels]`, the positions pooled.

    Every entry of a window has the same path to its output, so the error is shared out evenly:

        ∂L/∂x[n,i,c] = Σ_{(o,k): s o + k - p = i} 1/N_o ∂L/∂y[n,o,c]

    `N_o` counts the entries of `x` in window `o`: padding is not an entry, so that a constant image
    stays constant at its border. With `count_include_pad=True` it is the window's size everywhere (the
    default of torch and Flax). Without padding the two agree. `window`, `stride`, `padding` and errors
    as in `MaxPool`. Keeps the shape only; sums run in float32 at least.
    """

    window: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: Padding = "VALID"
    count_include_pad: bool = False

    def forward(
        self, params: PyTree, x: Float[Array, "*dims channels"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*odims channels"], PyTree]:
        windows = self._windows(x)
        flat = self._flat(x.astype(wide(x.dtype)))
        looks = windows.looks(windows.padded(flat))
        total = next(looks)
        for seen in looks:
            total = total + seen
        y = total * self._shares(windows, total)
        return self._shaped(y, x).astype(x.dtype), Static(windows.size)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*odims channels"]
    ) -> tuple[Float[Array, "*dims channels"], PyTree]:
        windows = self._at(saved.value)
        d = self._flat(dy.astype(wide(dy.dtype)))
        d = d * self._shares(windows, d)
        dx = windows.unlook(d for _ in range(prod(windows.taps)))
        return self._shaped(dx, dy).astype(dy.dtype), ()

    def _shares(self, windows: Window, like: Array) -> Array:
        """`1/N_o` as `[1, *count, 1]`: a window's entries are counted axis by axis."""
        counts = np.full((1, *windows.count, 1), 1)
        for axis, (size, taps, s, (before, _), count) in enumerate(
            zip(windows.size, windows.taps, windows.stride, windows.padding, windows.count, strict=True),
            start=1,
        ):
            start = s * np.arange(count) - before
            inside = np.minimum(start + taps, size) - np.maximum(start, 0)
            along = np.full(count, taps) if self.count_include_pad else inside
            counts = counts * along.reshape([-1 if a == axis else 1 for a in range(counts.ndim)])
        return jnp.asarray(1 / counts, like.dtype)


@dataclass(frozen=True, repr=False)
class GlobalAvgPool(Layer):
    """`y[n,c] = 1/N Σ_i x[n,i,c]`, all positions. `[batch, ..., channels] -> [batch, channels]`.

    Each of the `N` positions has one path, of slope `1/N`: `∂L/∂x[n,i,c] = 1/N ∂L/∂y[n,c]`. Keeps the
    shape only; the sum runs in float32 at least. Raises `InputError` for an integer `x` and where there
    are no positions.
    """

    def forward(
        self, params: PyTree, x: Float[Array, "batch *positions channels"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "batch channels"], PyTree]:
        require_floating(x, f"{self}: x")
        positions = x.shape[1:-1]
        if x.ndim < 3 or prod(positions) == 0:
            raise InputError(
                f"GlobalAvgPool: expected x of shape [batch, positions..., channels], got {list(x.shape)}"
            )
        y = jnp.mean(x.astype(wide(x.dtype)), axis=tuple(range(1, x.ndim - 1)))
        return y.astype(x.dtype), Static(positions)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "batch channels"]
    ) -> tuple[Float[Array, "batch *positions channels"], PyTree]:
        positions = saved.value
        batch, channels = dy.shape
        share = (dy / prod(positions)).reshape(batch, *(1 for _ in positions), channels)
        return jnp.broadcast_to(share, (batch, *positions, channels)), ()
