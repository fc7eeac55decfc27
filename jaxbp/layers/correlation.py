"""The three sums of a convolution, each by the way that is fast for its shape.

Letters and the derivation of the sums stand in `conv.py`; the index arithmetic in `windows.py`.

`spread`, the error to the input. For stride 1, `o = i + p - d k`, which is again a correlation, of `δ`
with the kernel turned round. For a stride `s > 1`, the positions `i + p = s j + r` fall into `s` phases
`r`. A tap `k` looks at phase `r` only where `d k = s m + r` for an integer `m`; then `o = j - m`, so that
*each phase is a correlation of stride 1* with the taps that belong to it, and the phases are interleaved
at the end. With `t = gcd(s, d)` those taps are `k₀, k₀ + s/t, k₀ + 2s/t, …`, and `m` grows by `d/t` from
each to the next: a dilation of `d/t`. Where a phase has no taps (stride > kernel) no output looked, and
its error is 0. Nothing is multiplied by the zeros of a stretched `δ`.

`kernel_error`, the error to the kernel, is taken as it stands: for each tap a strided slice of `x` and
one matrix product over `n` and `o`. For stride 1 it is a correlation too, of `x` with `δ` as its kernel:
channels take the place of examples, examples that of channels, and the dilation that of the stride. On
CPU images take it so in float32; sequences, volumes, strides and single taps are faster as they stand.
XLA has a fast convolution there for one order of the axes alone, and brings others into it only outside
of loops: inside an epoch's `scan` any other order is a plain nest of loops, ten to thirty times slower.
So the axes are put into that order here.

Groups. On CPU, XLA's grouped convolutions run five to fifty times slower than its plain ones. There, a
depthwise one is a sum of shifted products, one a tap, and of others neighbouring groups are put into
blocks of at least `BLOCK` channels, each block a plain convolution with a kernel that is zero between its
groups. The shifted products run in a loop over a few examples a turn: a bare sum goes, in XLA, into any
reduction that follows (a loss, a norm's mean), which then writes all the shifted images first.

On accelerators all that is for nothing: their libraries have a program of their own for each of the three
sums, and XLA finds it where the sum is one convolution. `_spread_whole` is the correlation of `δ`,
stretched by `s - 1` zeros between its entries, with the kernel turned round: with `K` taps and
`k' = K - 1 - k`, output position `s o = i + p - d k = i + d k' - p'`, where `p' = d (K - 1) - p` takes
the place of the padding. `_kernel_whole` is the correlation of `x` (channels for examples) with `δ`
(examples for channels), stride and dilation exchanged. These are the forms of autodiff's own transposes,
so that what is compiled there is never slower than its.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import gcd, prod

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxbp.layers.windows import Pair, Window
from jaxbp.precision import wide

BLOCK = 16  # channels; measured on AVX-512 with 64 channels in 2 to 32 groups
TURN = 1 << 19  # numbers that a turn of the loop over examples reads: they stay in the cache
SHIFTED_TAPS = 64  # of more taps, the sum of shifted products would take long to compile


def _correlate(
    x: Array,
    w: Array,
    stride: Sequence[int],
    padding: Sequence[Pair],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """`[n, *in, c], [*taps, c/G, f] -> [n, *out, f]`, accumulated and returned wide."""
    if groups == 1:
        return _convolve(x, w, stride, padding, dilation, 1)

    def shifted(x: Array, w: Array) -> Array:
        return _shifted(x, w, stride, padding, dilation)

    def blocks(x: Array, w: Array) -> Array:
        count = _blocks(groups, w.shape[-2])
        kernels = jnp.split(_between_zeros(w, groups, count), count, axis=-1)
        pairs = zip(jnp.split(x, count, axis=-1), kernels, strict=True)
        return jnp.concatenate([_convolve(a, b, stride, padding, dilation, 1) for a, b in pairs], axis=-1)

    def grouped(x: Array, w: Array) -> Array:
        return _convolve(x, w, stride, padding, dilation, groups)

    depthwise = w.shape[-2] == 1 and prod(w.shape[:-2]) <= SHIFTED_TAPS
    return lax.platform_dependent(x, w, cpu=shifted if depthwise else blocks, default=grouped)


def _convolve(
    x: Array,
    w: Array,
    stride: Sequence[int],
    padding: Sequence[Pair],
    dilation: Sequence[int],
    groups: int,
    stretch: Sequence[int] | None = None,
) -> Array:
    axes = "DHW"[-len(stride) :]
    if stretch is None:
        x, padding = _cropped(x, padding)
    return lax.conv_general_dilated(
        x,
        w,
        tuple(stride),
        tuple(padding),
        lhs_dilation=stretch,
        rhs_dilation=tuple(dilation),
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
        preferred_element_type=wide(x.dtype),
    )


def _cropped(x: Array, padding: Sequence[Pair]) -> tuple[Array, Sequence[Pair]]:
    """`x` without what a negative padding crops, and the padding that is left.

    XLA's convolution on CPU is wrong in JAX 0.10 where an axis is cropped in front and not behind.
    """
    if all(before >= 0 or after < 0 for before, after in padding):
        return x, padding
    config = [(0, 0, 0), *((min(a, 0), min(b, 0), 0) for a, b in padding), (0, 0, 0)]
    left = [(max(before, 0), max(after, 0)) for before, after in padding]
    return lax.pad(x, jnp.zeros((), x.dtype), config), left


def _shifted(
    x: Array, w: Array, stride: Sequence[int], padding: Sequence[Pair], dilation: Sequence[int]
) -> Array:
    """Depthwise: `y[n,o,f] = Σ_k x[n, s o + d k - p, c(f)] w[k,f]`, with `f/C` features a channel."""
    *taps, _, features = w.shape
    repeats = features // x.shape[-1]
    axes = zip(x.shape[1:-1], taps, stride, dilation, padding, strict=True)
    count = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, k, s, d, (a, b) in axes]
    win = Window(x.shape[1:-1], tuple(taps), tuple(stride), tuple(dilation), tuple(padding), tuple(count))
    dtype = wide(x.dtype)
    x = jnp.repeat(x.astype(dtype), repeats, axis=-1) if repeats > 1 else x.astype(dtype)

    def example(x: Array) -> Array:
        total = jnp.zeros((*count, features), dtype)
        for seen, weight in zip(win.looks(win.padded(x[None])), w.reshape(-1, features), strict=True):
            total = total + seen[0] * jnp.broadcast_to(weight.astype(dtype), seen.shape[1:])
        return total

    return lax.map(example, x, batch_size=max(1, TURN // prod(x.shape[1:])))


def _blocks(groups: int, inner: int) -> int:
    """Into how many blocks the groups go: the most whose channels are `BLOCK` at least, or one."""
    fits = [n for n in range(1, groups + 1) if groups % n == 0 and groups // n * inner >= BLOCK]
    return max(fits, default=1)


def _between_zeros(w: Array, groups: int, blocks: int) -> Array:
    """`w[k, c/G, f] -> w[k, c/B, f]`: a feature's kernel over its whole block, 0 outside its group."""
    *taps, inner, features = w.shape
    m = groups // blocks
    parts = w.reshape(*taps, 1, inner, blocks, m, features // groups)
    own = jnp.eye(m, dtype=w.dtype).reshape(*(1 for _ in taps), m, 1, 1, m, 1)
    shape = (*taps, m, inner, blocks, m, features // groups)
    whole = jnp.broadcast_to(parts, shape) * jnp.broadcast_to(own, shape)
    return whole.reshape(*taps, m * inner, features)


def _own_group(e: Array, groups: int, blocks: int) -> Array:
    """The inverse of `_between_zeros`: of an error over a whole block, each feature's own group."""
    *taps, _, features = e.shape
    m = groups // blocks
    parts = e.reshape(*taps, m, e.shape[-2] // m, blocks, m, features // groups)
    at = len(taps)
    own = jnp.diagonal(parts, axis1=at, axis2=at + 3)  # [*taps, c/G, B, f/G, m]
    return jnp.swapaxes(own, -1, -2).reshape(*taps, e.shape[-2] // m, features)


def correlate(x: Array, w: Array, win: Window, groups: int) -> Array:
    """`y[n,o,f] = Σ_{k,c} x[n, s o + d k - p, c] w[k,c,f]`."""
    return _correlate(x, w, win.stride, win.padding, win.dilation, groups)


def swap_channels(w: Array, groups: int) -> Array:
    """`w[k, c/G, f] -> w[k, f/G, c]`: channels and features exchanged within each group."""
    *taps, inner, features = w.shape
    blocks = w.reshape(*taps, inner, groups, features // groups)
    return jnp.swapaxes(blocks, -1, -3).reshape(*taps, features // groups, groups * inner)


def spread(d: Array, w: Array, win: Window, groups: int) -> Array:
    """`e[n,i,c] = Σ_{(o,k): s o + d k - p = i} Σ_f d[n,o,f] w[k,c,f]`, wide."""

    def phases(d: Array, w: Array) -> Array:
        return _spread_phases(d, w, win, groups)

    def whole(d: Array, w: Array) -> Array:
        return _spread_whole(d, w, win, groups)

    return lax.platform_dependent(d, w, cpu=phases, default=whole)


def _spread_whole(d: Array, w: Array, win: Window, groups: int) -> Array:
    """`spread` as one convolution, of `δ` with `s - 1` zeros between its entries."""
    reach = [k * (taps - 1) for k, taps in zip(win.dilation, win.taps, strict=True)]
    before = [r - b for r, (b, _) in zip(reach, win.padding, strict=True)]
    inner = zip(win.size, reach, win.stride, win.count, before, strict=True)
    padding = [(b, n + r - s * (o - 1) - 1 - b) for n, r, s, o, b in inner]
    turned = jnp.flip(swap_channels(w, groups), axis=tuple(range(len(win.taps))))
    return _convolve(d, turned, (1,) * len(reach), padding, win.dilation, groups, win.stride)


def _spread_phases(d: Array, w: Array, win: Window, groups: int) -> Array:
    """`spread` phase by phase: each a correlation of stride 1, interleaved at the end."""
    turned = jnp.flip(swap_channels(w, groups), axis=tuple(range(len(win.taps))))
    # positions i + p = s (j + first) + r, where i = 0 has j = 0: `skip` of them are before i = 0
    first = [before // s for (before, _), s in zip(win.padding, win.stride, strict=True)]
    skip = [before % s for (before, _), s in zip(win.padding, win.stride, strict=True)]
    lengths = [-(-(n + k) // s) for n, k, s in zip(win.size, skip, win.stride, strict=True)]
    parts = [_phase(d, turned, r, first, lengths, win, groups) for r in product(*map(range, win.stride))]
    n, channels, a = d.shape[0], turned.shape[-1], len(win.stride)
    both = jnp.stack(parts, axis=1).reshape(n, *win.stride, *lengths, channels)
    # [n, r₁, r₂, j₁, j₂, c] -> [n, j₁, r₁, j₂, r₂, c] -> [n, s₁ j₁ + r₁, s₂ j₂ + r₂, c]
    order = [0, *(axis for i in range(a) for axis in (1 + a + i, 1 + i)), 1 + 2 * a]
    whole = [j * s for j, s in zip(lengths, win.stride, strict=True)]
    full = jnp.transpose(both, order).reshape(n, *whole, channels)
    ends = [k + size for k, size in zip(skip, win.size, strict=True)]
    return lax.slice(full, (0, *skip, 0), (n, *ends, channels))


def _phase(
    d: Array,
    turned: Array,
    r: Sequence[int],
    first: Sequence[int],
    lengths: Sequence[int],
    win: Window,
    groups: int,
) -> Array:
    """`Σ_{k in the phase} d[n, j + first - m(k), :] w[k]` for `0 ≤ j < lengths`."""
    picks, paddings, dilations = [], [], []
    for axis, (s, dil, taps) in enumerate(zip(win.stride, win.dilation, win.taps, strict=True)):
        step = dil // gcd(s, dil)
        mine = [k for k in range(taps) if (dil * k - r[axis]) % s == 0]
        if not mine:
            return jnp.zeros((d.shape[0], *lengths, turned.shape[-1]), wide(d.dtype))
        m = (dil * mine[0] - r[axis]) // s - first[axis]
        # in the turned kernel tap k stands at taps - 1 - k, so the phase's last tap comes first
        picks.append(slice(taps - 1 - mine[-1], taps - mine[0], s // gcd(s, dil)))
        before = m + step * (len(mine) - 1)
        paddings.append((before, lengths[axis] - m - d.shape[1 + axis]))
        dilations.append(step)
    return _correlate(d, turned[tuple(picks)], (1,) * len(r), paddings, dilations, groups)


def kernel_error(x: Array, d: Array, win: Window, groups: int) -> Array:
    """`e[k,c,f] = Σ_n Σ_o x[n, s o + d k - p, c] d[n,o,f]`, wide."""
    depthwise = 1 < groups == x.shape[-1] == d.shape[-1]
    several = len(win.taps) == 2 and prod(win.taps) > 1
    correlation = several and {*win.stride} == {1} and wide(x.dtype) == jnp.float32

    def examples(x: Array, d: Array) -> Array:
        return _by_examples(x, d, win)

    def blocks(x: Array, d: Array) -> Array:
        count = _blocks(groups, x.shape[-1] // groups)
        pairs = zip(jnp.split(x, count, axis=-1), jnp.split(d, count, axis=-1), strict=True)
        error = jnp.concatenate([_by_correlation(a, b, win) for a, b in pairs], axis=-1)
        return _own_group(error, groups, count)

    def taps(x: Array, d: Array) -> Array:
        return _by_taps(x, d, win, groups)

    def whole(x: Array, d: Array) -> Array:
        return _kernel_whole(x, d, win, groups)

    on_cpu = examples if depthwise else blocks if correlation else taps
    return lax.platform_dependent(x, d, cpu=on_cpu, default=whole)


def _kernel_whole(x: Array, d: Array, win: Window, groups: int) -> Array:
    """`kernel_error` as one convolution: channels for examples, examples for channels."""
    axes = "DHW"[-len(win.taps) :]
    inner = zip(win.size, win.count, win.taps, win.stride, win.dilation, win.padding, strict=True)
    padding = [(b, s * (o - 1) + k * (t - 1) + 1 - n - b) for n, o, t, s, k, (b, _) in inner]
    return lax.conv_general_dilated(
        x,
        d,
        win.dilation,
        padding,
        rhs_dilation=win.stride,
        dimension_numbers=(f"C{axes}N", f"I{axes}O", f"{axes}NC"),
        batch_group_count=groups,
        preferred_element_type=wide(x.dtype),
    )


def _by_correlation(x: Array, d: Array, win: Window) -> Array:
    """Stride 1: `x` looked at through `δ`, channels for examples and examples for channels."""
    axes = range(1, 1 + len(win.taps))
    last = 1 + len(win.taps)
    reach = zip(win.size, win.count, win.taps, win.dilation, win.padding, strict=True)
    padding = [(before, o + d * (k - 1) - n - before) for n, o, k, d, (before, _) in reach]
    seen, looking = jnp.transpose(x, (last, *axes, 0)), jnp.transpose(d, (*axes, 0, last))
    e = _convolve(seen, looking, win.dilation, padding, win.stride, 1)
    return jnp.transpose(e, (*axes, 0, last))


def _by_taps(x: Array, d: Array, win: Window, groups: int) -> Array:
    """One matrix product a tap and group."""
    rows = x.shape[0] * prod(win.count)
    d_blocks = d.reshape(rows, groups, d.shape[-1] // groups)

    def tap(seen: Array) -> Array:
        x_blocks = seen.reshape(rows, groups, x.shape[-1] // groups)
        return jnp.einsum(
            "ngc,ngf->cgf", x_blocks, d_blocks, preferred_element_type=wide(x.dtype)
        ).reshape(x_blocks.shape[-1], d.shape[-1])

    blocks = jnp.stack([tap(seen) for seen in win.looks(win.padded(x))])
    return blocks.reshape(*win.taps, *blocks.shape[1:])


def _by_examples(x: Array, d: Array, win: Window) -> Array:
    """Depthwise: example by example, so that all taps find `x` and `δ` in the cache."""
    dtype, channels = wide(x.dtype), x.shape[-1]
    ones = jnp.ones(prod(win.count), dtype)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        seen = win.looks(part[0][None])
        sums = [ones @ (look[0] * part[1]).reshape(-1, channels) for look in seen]
        return total + jnp.stack(sums), None

    start = jnp.zeros_like(d, dtype, shape=(prod(win.taps), channels))
    total, _ = lax.scan(add, start, (win.padded(x).astype(dtype), d.astype(dtype)))
    return total.reshape(*win.taps, 1, channels)
