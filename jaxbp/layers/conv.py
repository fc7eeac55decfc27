"""Convolution, the error to its input and the error to its kernel, each by hand.

`y` at output position `o` and feature `f` is a sum over taps `k` and input channels `c` (dimension
letters: `n` example, `i` input position, `o` output position, `k` tap, `c` channel, `f` feature; `i`,
`o`, `k` stand for one index per spatial axis):

    y[n,o,f] = Σ_k Σ_c x[n, s o + d k - p, c] w[k,c,f] + b[f]

(as everywhere in deep learning, this is a correlation: the kernel is not turned round). With
`δ = ∂L/∂y`, and each of `x`, `w`, `b` followed to every `y` in which it stands:

    ∂L/∂w[k,c,f] = Σ_n Σ_o x[n, s o + d k - p, c] δ[n,o,f]        tap by tap, δ meets what the tap saw
    ∂L/∂b[f]     = Σ_n Σ_o δ[n,o,f]
    ∂L/∂x[n,i,c] = Σ_{(o,k): s o + d k - p = i} Σ_f δ[n,o,f] w[k,c,f]

How these sums are computed stands in `correlation.py`. With `groups = G`, channels and features fall into
`G` blocks, and block `g` of `y` sees only block `g` of `x`: every sum over `c` or `f` above runs within a
block. `G = channels` is a depthwise convolution.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Static,
    require_floating,
    require_params,
    require_whole,
)
from jaxbp.layers.correlation import correlate, kernel_error, spread, swap_channels
from jaxbp.layers.initializers import initializer
from jaxbp.layers.windows import Padding, Window, explicit, per_axis, window
from jaxbp.precision import PrecisionField, wide


@dataclass(frozen=True, repr=False)
class _Convolution(Layer):
    """What `Conv` and `ConvTranspose` share: hyper-parameters, parameters, shapes and checks."""

    features: int
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: Padding = "SAME"
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    bias: bool = True
    initializer: str | Callable[..., Array] = "lecun"
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_whole(name, features=self.features, groups=self.groups)
        if self.features % self.groups:
            raise InputError(
                f"{name}: features must be divisible by groups, got {self.features} and {self.groups}"
            )
        for field in ("kernel", "stride", "dilation", "padding"):  # lists would not be hashable
            value = getattr(self, field)
            if isinstance(value, list | tuple):
                value = tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
                object.__setattr__(self, field, value)
        if not isinstance(self.kernel, int | tuple) or not 1 <= self._axes <= 3:
            raise InputError(f"{name}: expected a kernel of 1 to 3 sizes, got {self.kernel!r}")
        _ = self._taps, self._strides, self._dilations  # each raises where it is wrong
        explicit(self.padding, self._axes, name)
        initializer(self.initializer)

    @property
    def _axes(self) -> int:
        return 2 if isinstance(self.kernel, int) else len(self.kernel)

    @property
    def _taps(self) -> tuple[int, ...]:
        return per_axis(self.kernel, self._axes, f"{type(self).__name__}: kernel")

    @property
    def _strides(self) -> tuple[int, ...]:
        return per_axis(self.stride, self._axes, f"{type(self).__name__}: stride")

    @property
    def _dilations(self) -> tuple[int, ...]:
        return per_axis(self.dilation, self._axes, f"{type(self).__name__}: dilation")

    @abstractmethod
    def _window(self, x: PyTree) -> Window:
        """The windows over the larger side: `Conv`'s input, `ConvTranspose`'s output."""

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._check(x)
        self._window(x)
        dtype = self.precision.params or x.dtype
        shape = (*self._taps, x.shape[-1] // self.groups, self.features)
        w = initializer(self.initializer)(key, shape, dtype)
        return {"w": w, "b": jnp.zeros(self.features, dtype)} if self.bias else {"w": w}

    def _finish(self, y: Array, params: PyTree, x: Array) -> Array:
        """Add the bias, restore the batch axes of `x`, and cast to the output's dtype."""
        if self.bias:
            y = y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape)
        y = y.reshape(*x.shape[: x.ndim - self._axes - 1], *y.shape[1:])
        return y.astype(self.precision.output or x.dtype)

    def _grads(self, params: PyTree, dw: Array, delta: Array) -> PyTree:
        grads = {"w": dw.astype(params["w"].dtype)}
        if self.bias:
            axes = tuple(range(delta.ndim - 1))
            db = jnp.sum(delta, axis=axes, dtype=wide(delta.dtype))
            grads["b"] = db.astype(params["b"].dtype)
        return grads

    def _met(self, x: Array, taps: Iterable[Array], delta: Array) -> PyTree:
        """What the kernel's gradient is the product of; `taps` are what each tap looked at."""
        batch = x.shape[: x.ndim - self._axes - 1]
        if not batch:
            return {}
        seen = jnp.stack([a.reshape(*a.shape[:-1], self.groups, -1) for a in taps], axis=-2)
        seen = seen.reshape(*batch, *seen.shape[1 : 1 + self._axes], -1)  # [*batch, *positions, (g k c)]
        bias = {"b": (None, delta)} if self.bias else {}
        return {"w": (seen, delta, self.groups)[: 3 if self.groups > 1 else 2], **bias}

    def _flat(self, x: Array) -> Array:
        """`[*batch, *positions, channels]` with the batch axes made one."""
        inner = x.shape[x.ndim - self._axes - 1 :]
        return x.reshape(prod(x.shape[: x.ndim - self._axes - 1]), *inner)

    def _size(self, x: PyTree) -> tuple[int, ...]:
        return tuple(x.shape[len(x.shape) - self._axes - 1 : -1])

    def _check(self, x: PyTree, w: Array | None = None) -> None:
        require_floating(x, f"{self}: x")
        if len(x.shape) < self._axes + 1 or x.shape[-1] == 0:
            raise InputError(
                f"{self}: expected x of shape [..., {'position, ' * self._axes}channels], "
                f"got {list(x.shape)}"
            )
        if x.shape[-1] % self.groups:
            raise InputError(
                f"{self}: the channels of x must be divisible by groups={self.groups}, got {x.shape[-1]}"
            )
        shape = (*self._taps, x.shape[-1] // self.groups, self.features)
        if w is not None and w.shape != shape:
            raise InputError(
                f"{self}: expected {w.shape[-2] * self.groups} channels in the last axis of x, "
                f"got {x.shape[-1]} (x has shape {list(x.shape)}, w has shape {list(w.shape)})"
            )


@dataclass(frozen=True, repr=False)
class Conv(_Convolution):
    """`y[n,o,f] = Σ_k Σ_c x[n, s o + d k - p, c] w[k,c,f] + b[f]`. Derivation at the top of this file.

    `[..., *positions, channels] -> [..., *positions', features]`, images `NHWC`. The kernel's rank says
    over how many axes: `(3,)` is a convolution over sequences, `(3, 3)` over images, `(3, 3, 3)` over
    volumes, and a single integer `k` means `(k, k)`. `stride` and `dilation` are one integer or one an
    axis. `padding`: `"SAME"` keeps `⌈size / stride⌉` positions (padding split evenly, the odd one
    after), `"VALID"` pads nothing, an integer pads each side, or give `(before, after)` for each axis.
    `groups` up to `channels` (depthwise).

    Parameters `w: [*kernel, channels/groups, features]` (`HWIO`) and `b: [features]`. Keeps `x`, not the
    padded one. Computes in the dtype of `x` unless `precision` says otherwise; sums run in float32 at
    least. `initializer` as for `Dense`; its fan-in is `prod(kernel) · channels/groups`.

    Raises `InputError` for an integer `x`, a wrong rank or channel count, groups that do not divide
    channels and features, and a window that does not fit.
    Source: Dumoulin and Visin, A guide to convolution arithmetic, 2016.
    """

    def forward(
        self, params: PyTree, x: Float[Array, "*dims channels"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*odims features"], PyTree]:
        require_params(self, params, *(("w", "b") if self.bias else ("w",)))
        self._check(x, params["w"])
        seen = x.astype(self.precision.compute or x.dtype)
        w = params["w"].astype(seen.dtype)
        y = correlate(self._flat(seen), w, self._window(x), self.groups)
        return self._finish(y, params, x), (seen, Static(x.dtype))

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*odims features"]
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*odims features"]]:
        x, dtype = saved
        delta = dy.astype(x.dtype)
        w = params["w"].astype(x.dtype)
        dx = spread(self._flat(delta), w, self._window(x), self.groups)
        return dx.reshape(x.shape).astype(dtype.value), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*odims features"]) -> PyTree:
        x, _ = saved
        dw = kernel_error(self._flat(x), self._flat(delta), self._window(x), self.groups)
        return self._grads(params, dw, delta)

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        """`Dense` on patches, `[n, *o, (k c)]`, group by group."""
        x, _ = saved
        win = self._window(x)
        return self._met(x, win.looks(win.padded(self._flat(x))), delta)

    def _window(self, x: PyTree) -> Window:
        return window(self._size(x), self._taps, self._strides, self._dilations, self.padding, str(self))


@dataclass(frozen=True, repr=False)
class ConvTranspose(_Convolution):
    """`y[n,i,f] = Σ_{(o,k): s o + d k - p = i} Σ_c x[n,o,c] w[k,c,f] + b[f]`: `Conv`'s pull as a layer.

    `[..., *positions, channels] -> [..., *positions', features]`. Input position `o` is spread, by tap
    `k`, to output position `s o + d k - p`; a stride makes the output larger. Everything that `Conv` does
    is done the other way round, so the two exchange their equations (letters as in `Conv`, where `i` is
    now the output's position):

        ∂L/∂x[n,o,c]  = Σ_k Σ_f δ[n, s o + d k - p, f] w[k,c,f]          pull: a convolution of δ
        ∂L/∂w[k,c,f]  = Σ_n Σ_o x[n,o,c] δ[n, s o + d k - p, f]          gradient
        ∂L/∂b[f]      = Σ_n Σ_i δ[n,i,f]

    With `reach = d (kernel - 1) + 1`, the full output has `s (size - 1) + reach` positions. `padding`:
    `"SAME"` makes it `s · size`, cropping evenly (the odd one after); `"VALID"` is the full output, or
    `s · size` if that is more; an integer or pairs `(before, after)` crop so much off the full output
    (a negative `after` adds positions that no tap reaches: torch's `output_padding`).

    Parameters `w: [*kernel, channels/groups, features]`, `b: [features]`. The kernel is not turned round:
    as in torch, unlike `jax.lax.conv_transpose`, whose kernel is this one flipped along its taps. Keeps
    `x`. Kernel rank, precision, initialiser and errors as for `Conv`.
    Source: Dumoulin and Visin 2016, chapter 4.
    """

    def forward(
        self, params: PyTree, x: Float[Array, "*dims channels"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*odims features"], PyTree]:
        require_params(self, params, *(("w", "b") if self.bias else ("w",)))
        self._check(x, params["w"])
        seen = x.astype(self.precision.compute or x.dtype)
        w = swap_channels(params["w"].astype(seen.dtype), self.groups)
        y = spread(self._flat(seen), w, self._window(x), self.groups)
        return self._finish(y, params, x), (seen, Static(x.dtype))

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*odims features"]
    ) -> tuple[Float[Array, "*dims channels"], Float[Array, "*odims features"]]:
        x, dtype = saved
        delta = dy.astype(x.dtype)
        w = swap_channels(params["w"].astype(x.dtype), self.groups)
        dx = correlate(self._flat(delta), w, self._window(x), self.groups)
        return dx.reshape(x.shape).astype(dtype.value), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*odims features"]) -> PyTree:
        x, _ = saved
        dw = kernel_error(self._flat(delta), self._flat(x), self._window(x), self.groups)
        return self._grads(params, swap_channels(dw, self.groups), delta)

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        """`Dense` on what each tap put at a position of the output: `x` there, or 0."""
        x, _ = saved
        flat = self._flat(x)
        return self._met(x, self._window(x).placed(flat for _ in range(prod(self._taps))), delta)

    def _window(self, x: PyTree) -> Window:
        """The windows of the convolution whose pull this is: over the *output*'s positions."""
        count, taps, strides, dilations = self._size(x), self._taps, self._strides, self._dilations
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, taps, strict=True)]
        crops = explicit(self.padding, self._axes, str(self))
        if crops is None:
            over = [r - s for r, s in zip(reach, strides, strict=True)]
            if self.padding == "SAME":
                crops = tuple((max(o, 0) // 2, o - max(o, 0) // 2) for o in over)
            else:
                crops = tuple((0, min(o, 0)) for o in over)
        axes = zip(count, strides, reach, crops, strict=True)
        size = tuple(s * (n - 1) + r - before - after for n, s, r, (before, after) in axes)
        if min(count) < 1 or min(size) < 1:
            raise InputError(
                f"{self}: cropping {list(map(list, crops))} leaves an output of {list(size)} positions "
                f"for x of shape {list(x.shape)}"
            )
        return Window(size, taps, strides, dilations, crops, count)
