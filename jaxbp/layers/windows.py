"""Where a sliding window looks: the index arithmetic that convolution and pooling share.

Along each spatial axis, output position `o` looks with tap `k` at input position

    i = s o + d k - p          s stride, d dilation, p padding in front of the first entry

Everything below is over that one relation. Backwards it is read the other way round: which pairs
`(o, k)` look at `i`?
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxbp.layer import InputError

Pair = tuple[int, int]
Padding = str | int | Sequence[Sequence[int]]  # a name, one number, or (before, after) an axis


def per_axis(value: int | Sequence[int], axes: int, what: str, least: int = 1) -> tuple[int, ...]:
    """One integer an axis, from one for all of them or from a sequence."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or not all(isinstance(v, int) and v >= least for v in values):
        raise InputError(
            f"{what}: expected an integer of at least {least}, or {axes} of them, got {value!r}"
        )
    return values


def explicit(padding: Padding, axes: int, what: str) -> tuple[Pair, ...] | None:
    """Padding given as one integer, or as `(before, after)` for each axis; `None` for a name."""
    if padding in ("SAME", "VALID"):
        return None
    if isinstance(padding, int):
        padding = ((padding, padding),) * axes
    try:
        pairs = tuple((int(before), int(after)) for before, after in padding)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != axes:
        raise InputError(
            f"{what}: padding must be 'SAME', 'VALID', an integer, or {axes} pairs (before, after), "
            f"got {padding!r}"
        )
    return pairs


@dataclass(frozen=True)
class Window:
    """The windows over one input: everything is per spatial axis, and static.

    `size` is the input's, `taps` the window's, `count` the number of output positions.
    """

    size: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[Pair, ...]
    count: tuple[int, ...]

    def padded(self, x: Array, value: float = 0) -> Array:
        """`x: [n, *size, c]` with its padding (negative padding crops)."""
        if not any(map(any, self.padding)):
            return x
        config = [(0, 0, 0), *((before, after, 0) for before, after in self.padding), (0, 0, 0)]
        return lax.pad(x, jnp.asarray(value, x.dtype), config)

    def looks(self, x_padded: Array) -> Iterator[Array]:
        """For every tap `k` in order, `x[n, s o + d k - p, c]` as `[n, *count, c]`: a strided slice."""
        for tap in product(*map(range, self.taps)):
            first = [d * k for d, k in zip(self.dilation, tap, strict=True)]
            last = [f + s * (c - 1) + 1 for f, s, c in zip(first, self.stride, self.count, strict=True)]
            n, *_, channels = x_padded.shape
            strides = (1, *self.stride, 1)
            yield lax.slice(x_padded, (0, *first, 0), (n, *last, channels), strides)

    def unlook(self, parts: Iterator[Array]) -> Array:
        """`dx[n,i,c] = Σ_{(o,k): s o + d k - p = i} part_k[n,o,c]`: the transpose of `padded`, `looks`.

        Each part is spread to its stride and put where its tap looked, and the parts are added.
        """
        placed = self.placed(parts)
        total = next(placed)
        for part in placed:
            total = total + part
        return total

    def placed(self, parts: Iterable[Array]) -> Iterator[Array]:
        """For every tap `k` in order, `part_k[n,o,c]` put at `i = s o + d k - p`, and 0 elsewhere."""
        for tap, part in zip(product(*map(range, self.taps)), parts, strict=True):
            config = [(0, 0, 0)]
            axes = zip(tap, self.size, self.stride, self.dilation, self.padding, self.count, strict=True)
            for k, size, s, d, (before, _), count in axes:
                low = d * k - before
                config.append((low, size - (low + s * (count - 1) + 1), s - 1))
            yield lax.pad(part, jnp.zeros((), part.dtype), [*config, (0, 0, 0)])


def window(
    size: Sequence[int],
    taps: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Padding,
    what: str,
) -> Window:
    """The windows over an input of `size`.

    `"VALID"`: no padding, `count = ⌈(size - d(taps - 1)) / s⌉`. `"SAME"`: `count = ⌈size / s⌉`, the
    padding split evenly, the odd one after. Raises `InputError` where no window fits.
    """
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    pairs = explicit(padding, len(taps), what)
    if pairs is None:
        pairs = tuple((0, 0) for _ in taps)
        if padding == "SAME":
            axes = zip(size, stride, reach, strict=True)
            totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in axes]
            pairs = tuple((total // 2, total - total // 2) for total in totals)
    axes = zip(size, stride, reach, pairs, strict=True)
    count = tuple((n + before + after - r) // s + 1 for n, s, r, (before, after) in axes)
    if min(size) < 1 or min(count) < 1:
        raise InputError(
            f"{what}: a window that reaches over {reach} does not fit into {list(size)} positions "
            f"with padding {list(map(list, pairs))}"
        )
    return Window(tuple(size), tuple(taps), tuple(stride), tuple(dilation), pairs, count)
