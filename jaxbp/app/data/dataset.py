"""What a data set is: examples in memory, a part of them held out, and the scale they are kept on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from jaxbp.app.data.scale import At, Scale, place, within_float32
from jaxbp.app.schema import Section
from jaxbp.layer import InputError

TestShare = Annotated[float, Meta(gt=0, lt=1)]
Kind = Literal["classes", "values"]
BYTES = Scale(divide=255.0)
SAMPLE = 10_000  # examples that say how large they are
FAR = 4.0  # new examples so many times smaller or larger than those are in other numbers


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in memory.

    Of `kind="classes"`, `y` is integer labels, or a distribution over `outputs` for each example; of
    `kind="values"`, real numbers `[n, outputs]`. `scale` and `target_scale` lead from the numbers in
    the file to `x` and to such `y`; `columns` and `target_columns` are what it calls them.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    outputs: int
    classes: tuple[str, ...] = ()
    kind: Kind = "classes"
    held_out: bool = True  # False: there is no held-out part, and the test part is the training part
    scale: Scale = Scale()
    target_scale: Scale = Scale()
    image: tuple[int, ...] = ()  # height, width and channels of an input, where it is an image
    pixels: bool = False  # whether inputs are bytes or in [0, 1], and the numbers say which
    given: tuple[int, ...] = ()  # the shape of an input before it became a vector
    columns: tuple[str, ...] = ()
    target_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what whoever trains on it should know
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of what the file holds
    sizes: tuple[float, ...] = ()  # how large examples are in the file, see `size_range`
    valid_x: np.ndarray | None = None  # of the examples to train on, those that choose the best epoch
    valid_y: np.ndarray | None = None
    start: Any = None  # initial parameters of an MLP that come with the data

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.x.shape[1:]

    @property
    def labelled(self) -> bool:
        """Whether targets are integer labels."""
        return np.issubdtype(self.y.dtype, np.integer)

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.classes or tuple(map(str, range(self.outputs)))

    def flat(self) -> Dataset:
        """The same with every input as a vector."""
        size = math.prod(self.shape)
        x, test_x = (a.reshape(len(a), size) for a in (self.x, self.test_x))
        return dataclasses.replace(self, x=x, test_x=test_x, given=self.given or self.shape)

    def as_image(self) -> Dataset:
        """The same with an axis for the one channel of an image that has none."""
        if len(self.shape) != 2:
            return self
        x, test_x = self.x[..., None], self.test_x[..., None]
        return dataclasses.replace(self, x=x, test_x=test_x, given=self.given or self.shape)

    def one_hot(self) -> Dataset:
        """The same with every label as a vector of 0 and 1."""
        if not self.labelled:
            return self
        eye = np.eye(self.outputs, dtype=np.float32)
        return dataclasses.replace(self, y=eye[self.y], test_y=eye[self.test_y])

    def binary(self) -> Dataset:
        """Two classes as one number, 0 or 1: for a network with one logit."""
        y, test_y = (a[:, None].astype(np.float32) for a in (self.y, self.test_y))
        return dataclasses.replace(self, y=y, test_y=test_y, outputs=1, classes=self.names)

    def reproduced(self) -> Dataset:
        """The same with every input, as a vector, for its own target."""
        if not np.issubdtype(self.x.dtype, np.floating):
            raise InputError(
                f'data.name: "{self.name}" has inputs of dtype {self.x.dtype}, '
                "which cannot be reproduced; expected real numbers"
            )
        data = self.flat()
        return dataclasses.replace(
            data,
            y=data.x,
            test_y=data.test_x,
            outputs=data.x.shape[1],
            classes=(),
            kind="values",
            target_scale=self.scale,
            target_columns=self.columns,
        )

    def with_validation(self, share: float, seed: int) -> Dataset:
        """The same with a share of the examples to train on set apart, the same of every class."""
        y = self.y
        if self.kind == "values" or (self.labelled and y.ndim > 1):
            kind = "values"
        else:
            kind, y = "classes", y if self.labelled else y.argmax(axis=-1) if y.shape[-1] > 1 else y[:, 0]
        train, valid = split(y, share, seed, kind, "train.validation_share")
        return dataclasses.replace(
            self, x=self.x[train], y=self.y[train], valid_x=self.x[valid], valid_y=self.y[valid]
        )

    def inputs(self, raw: np.ndarray, what: str, at: At | None = None) -> np.ndarray:
        """New inputs, on the scale of the original data, as the network takes them.

        Many `[n, …]` or a single one, each in the shape that inputs had in the original data or as a
        vector; one channel of an image need not have an axis. Any other shape is refused, for numbers in
        another order are another input. `at` names the place of an entry of `raw` in errors.
        """
        shape = self.given or self.shape
        allowed = {shape, (math.prod(shape),)}
        if len(shape) == 3 and shape[-1] == 1:
            allowed.add(shape[:-1])
        whole = np.issubdtype(self.x.dtype, np.integer)
        if raw.shape in allowed and raw.size:
            raw = raw[None]
        if raw.ndim > 1 and not len(raw):
            raise InputError(f"{what}: expected at least one row, got none")
        if raw.shape[1:] not in allowed or raw.ndim < 2:
            size = math.prod(shape)
            wanted = f"rows of {size} features (inputs of shape {list(shape)})"
            if shape[1:]:
                wanted = f"inputs of shape {list(shape)}, or rows of {size} numbers"
            raise InputError(f"{what}: expected {wanted}, got shape {list(raw.shape)}")
        raw = raw.reshape(len(raw), *self.shape)
        if whole:
            return _tokens(raw, self.outputs, what).astype(self.x.dtype)
        raw = numbers(raw, what)
        if not self.pixels:
            return within_float32(self.scale.apply(raw), raw, what, at if raw.ndim == 2 else None)
        return pixel_scale(raw, what, trained_on=self.scale).apply(raw)

    def size_range(self) -> tuple[float, ...]:
        """How large examples are in the file: the largest number of the 1st and of the 99th in 100.

        Nothing where inputs are no numbers on a scale, or bytes and [0, 1], which dtypes tell apart.
        """
        if self.sizes or self.pixels or not len(self.x) or self.x.dtype.kind != "f":
            return self.sizes
        some = self.x[:: -(-len(self.x) // SAMPLE)]
        raw = self.scale.undo(some.reshape(len(some), *(self.given or self.shape)))
        return tuple(float(v) for v in np.quantile(_largest(raw), (0.01, 0.99)))

    def of_another_size(self, raw: np.ndarray, what: str) -> str | None:
        """A line if new inputs cannot be in the numbers that the network was trained on."""
        if not self.sizes or not raw.size:
            return None
        low, high = self.sizes
        one = raw.shape in (self.given or self.shape, (math.prod(self.shape),))
        size = float(np.median(_largest(raw[None] if one else raw)))
        if low / FAR <= size <= high * FAR:
            return None
        return (
            f"{what}: the largest numbers of inputs are about {size:.3g}, but {low:.3g} to {high:.3g} in "
            "what the network was trained on; give them in the same units, unscaled"
        )


def _largest(raw: np.ndarray) -> np.ndarray:
    """Of every example the largest absolute value."""
    flat = np.asarray(raw).reshape(len(raw), -1)
    return np.abs(flat.astype(np.float64)).max(axis=1)


def pixel_scale(images: np.ndarray, what: str, trained_on: Scale | None = None) -> Scale:
    """How images come to [0, 1]: integers are bytes, real numbers and truth values are there already.

    Integers that are all 0 or 1 are taken for truth values, unless the network was `trained_on` bytes.
    """
    low, high = images.min(), images.max()
    as_they_are = images.dtype.kind == "f" or images.dtype.kind == "b"
    top = 1 if as_they_are else 255
    if low < 0 or high > top:
        kind = "real numbers in [0, 1]" if as_they_are else "whole numbers in 0 … 255"
        hint = (
            "divide them by 255, or give whole numbers such as uint8"
            if as_they_are and low >= 0 and high <= 255
            else "bring them to bytes, 0 … 255, or to real numbers in [0, 1]"
        )
        raise InputError(
            f"{what}: expected images of {kind}, got {images.dtype} from {low:g} to {high:g}; {hint}"
        )
    binary = high <= 1 and (trained_on is None or float(trained_on.divide) == 1)
    return Scale() if as_they_are or binary else BYTES


def _tokens(raw: np.ndarray, size: int, what: str) -> np.ndarray:
    if raw.dtype.kind not in "iu" or raw.min() < 0 or raw.max() >= size:
        raise InputError(
            f"{what}: expected tokens, whole numbers in 0 … {size - 1}, got {raw.dtype} "
            + (f"from {raw.min():g} to {raw.max():g}" if raw.dtype.kind in "iuf" else "")
        )
    return raw


class Data(Section, frozen=True, kw_only=True):
    """What every data set has. Adding one: a struct with its fields and a `load`, named in `DATA`."""

    name: str = "digits"
    """which data set"""

    def load(self) -> Dataset:
        raise InputError(f"data.name: {self.name!r} cannot be loaded")


def split(
    y: np.ndarray, share: float, seed: int, kind: Kind = "classes", field: str = "data.test_share"
) -> tuple[Any, Any]:
    """`(rows to train on, rows held out)`: `⌈share · n⌉` are held out, each class by its share of them.

    Of values, which have no classes, any are.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    # Each class's examples are spread evenly over [0, 1); the first `share` of that line is held out.
    rank = np.empty(len(y))
    for label in np.unique(y) if kind == "classes" else [None]:
        mine = order if label is None else order[y[order] == label]
        rank[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    held = order[np.argsort(rank[order], kind="stable")]
    cut = math.ceil(share * len(y))
    if not 0 < cut < len(y):
        raise InputError(
            f"{field}: {share} of {len(y)} examples leaves {cut} to test on and "
            f"{len(y) - cut} to train on; expected at least one of each"
        )
    return np.sort(held[cut:]), np.sort(held[:cut])


def numbers(array: np.ndarray, what: str) -> np.ndarray:
    """`array` as it is, if it holds finite numbers and at least one."""
    if array.dtype.kind not in "fiubO":
        raise InputError(f"{what}: expected numbers, got an array of {array.dtype}")
    if not array.size:
        raise InputError(f"{what}: expected at least one example, got shape {list(array.shape)}")
    finite = np.isfinite(array) if array.dtype.kind == "f" else np.asarray(True)
    if not finite.all():
        first = np.unravel_index(np.argmin(finite), array.shape)
        bad = array.size - int(finite.sum())
        raise InputError(
            f"{what}: expected finite numbers, got {array[first]} in {place(first)} ({bad} such in all)"
        )
    return array


def check_values(targets: np.ndarray, count: int, what: str, differ: bool = True) -> np.ndarray:
    """`targets` as numbers `[count, outputs]`, which must `differ` from each other."""
    if targets.ndim not in (1, 2) or len(targets) != count:
        raise InputError(
            f"{what}: expected {count} targets, a number or a row of them for each example, "
            f"got shape {list(targets.shape)}"
        )
    values = numbers(targets, what).reshape(count, -1)
    if differ and (values == values[:1]).all():
        raise InputError(f"{what}: expected targets that differ, got {values[0, 0]:g} throughout")
    return values
