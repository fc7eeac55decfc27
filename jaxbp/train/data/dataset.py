"""What a data set is: examples in memory, a part of them held out, and the scales they are kept on."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from jaxbp.layer import InputError
from jaxbp.train.schema import Section

TestShare = Annotated[float, Meta(gt=0, lt=1)]
Kind = Literal["classes", "values"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """From the numbers in a file to those that a network sees: `(v - shift) / divide`, entry by entry."""

    shift: Any = 0.0
    divide: Any = 1.0

    def apply(self, values: np.ndarray) -> np.ndarray:
        return (values - np.float32(self.shift)) / np.float32(self.divide)

    def undo(self, values: np.ndarray) -> np.ndarray:
        return values * np.float32(self.divide) + np.float32(self.shift)


def standard_scale(values: np.ndarray) -> Scale:
    """Mean 0 and deviation 1 for each column of `[n, …]`; one that never changes is only shifted."""
    deviation = values.std(axis=0, dtype=np.float64)
    return Scale(values.mean(axis=0, dtype=np.float64), np.where(deviation > 0, deviation, 1.0))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in memory.

    Of `kind="classes"`, `y` is integer labels, or a distribution over `outputs` for each example; of
    `kind="values"`, real numbers `[n, outputs]`. `scale` and `target_scale` lead from the numbers in
    the file to `x` and to such `y`.
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
    image: tuple[int, ...] = ()  # the shape of an input as an image, where it is one
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
        x, test_x = (a.reshape(len(a), -1) for a in (self.x, self.test_x))
        return dataclasses.replace(self, x=x, test_x=test_x)

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
        )

    def inputs(self, raw: np.ndarray, what: str) -> np.ndarray:
        """New inputs, on the scale of the original data, as the network takes them."""
        whole = np.issubdtype(raw.dtype, np.integer) and np.issubdtype(self.x.dtype, np.integer)
        x = raw.astype(self.x.dtype) if whole else numbers(raw, what)
        size = int(np.prod(self.shape))
        if x.shape == self.shape or (x.ndim == 1 and x.size == size):
            x = x[None]
        if not len(x):
            raise InputError(f"{what}: expected at least one row, got none")
        got = int(np.prod(x.shape[1:]))
        if x.ndim < 2 or got != size:
            raise InputError(
                f"{what}: expected rows of {size} features (inputs of shape {list(self.shape)}), "
                f"got shape {list(raw.shape)}"
            )
        x = x.reshape(len(x), *self.shape)
        return x if whole else self.scale.apply(x)


class Data(Section, frozen=True, kw_only=True):
    """What every data set has. Adding one: a struct with its fields and a `load`, named in `DATA`."""

    name: str = "digits"
    """which data set"""

    def load(self) -> Dataset:
        raise InputError(f"data.name: {self.name!r} cannot be loaded")


def split(y: np.ndarray, share: float, seed: int, kind: Kind = "classes") -> tuple[Any, Any]:
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
            f"data.test_share: {share} of {len(y)} examples leaves {cut} to test on and "
            f"{len(y) - cut} to train on; expected at least one of each"
        )
    return np.sort(held[cut:]), np.sort(held[:cut])


def numbers(array: np.ndarray, what: str) -> np.ndarray:
    """`array` as float32; every entry must be a finite number."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what}: expected numbers, got an array of {array.dtype}")
    if not array.size:
        raise InputError(f"{what}: expected at least one example, got shape {list(array.shape)}")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        first = np.unravel_index(np.argmin(finite), values.shape)
        column = ", ".join(str(i) for i in first[1:])
        place = f"row {first[0]}" + (f", column {column}" if column else "")
        bad = values.size - int(finite.sum())
        raise InputError(
            f"{what}: expected finite numbers, got {values[first]} in {place} ({bad} such in all)"
        )
    return values


def check_labels(labels: np.ndarray, count: int, what: str, outputs: int | None = None) -> np.ndarray:
    """`labels` as int32 `[count]`, in `0 … outputs - 1` (any from 0 if `outputs` is not known)."""
    if labels.shape != (count,):
        raise InputError(
            f"{what}: expected {count} labels, one an example, got shape {list(labels.shape)}"
        )
    values = numbers(labels, what)
    top = 65536 if outputs is None else outputs
    wrong = (values != np.floor(values)) | (values < 0) | (values >= top)
    if wrong.any():
        row = int(np.argmax(wrong))
        limit = "integer labels from 0" if outputs is None else f"labels in 0 … {outputs - 1}"
        raise InputError(f"{what}: expected {limit}, got {values[row]:g} in row {row}")
    return labels.astype(np.int32)


def check_values(targets: np.ndarray, count: int, what: str) -> np.ndarray:
    """`targets` as float32 `[count, outputs]`, not the same number throughout."""
    if targets.ndim not in (1, 2) or len(targets) != count:
        raise InputError(
            f"{what}: expected {count} targets, a number or a row of them for each example, "
            f"got shape {list(targets.shape)}"
        )
    values = numbers(targets, what).reshape(count, -1)
    if (values == values[:1]).all():
        raise InputError(f"{what}: expected targets that differ, got {values[0, 0]:g} throughout")
    return values
