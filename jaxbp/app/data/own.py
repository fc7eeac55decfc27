"""Your own data: a table or arrays from a file of yours, and what is held out from it or from another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from jaxbp.app.data.cells import Cells, is_number, read_cells
from jaxbp.app.data.dataset import Data, Dataset, TestShare, check_values, numbers, split
from jaxbp.app.data.files import TABLES, read_arrays, read_named, require
from jaxbp.app.data.labels import MISSING, label_keys, named_classes, several
from jaxbp.app.data.scale import At, column, place
from jaxbp.app.data.tables import parts
from jaxbp.app.schema import Count, NotNegative, Whole
from jaxbp.layer import InputError

CALLED = {"x": ("x", "inputs", "images", "features", "data"), "y": ("y", "targets", "labels", "target")}
"""What arrays in an .npz are called, in letters of either case; the first is the name in messages."""
BOTH = "x_train", "y_train", "x_test", "y_test"


@dataclasses.dataclass(frozen=True)
class Part:
    """What a file holds: inputs `[n, …]`, a target for each, and what both are called."""

    x: np.ndarray
    y: np.ndarray
    where: tuple[str, str]
    columns: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    at: At | None = None  # of a table, the place of an entry in the file


class File(Data, frozen=True, kw_only=True):
    """Your own data: a table (.csv, .tsv) with a column of targets, or an .npz with arrays x and y."""

    name: str = "file"
    """which data set"""
    path: str = "data.csv"
    """the file"""
    test_path: str = ""
    """a second file whose examples are held out, in the place of a share of the first"""
    targets: Literal["classes", "values"] = "classes"
    """labels, whole numbers or words; or real numbers to be predicted, which are standardized"""
    target: str = ""
    """the column of a table that holds the targets, by its name; by default the last"""
    skip: Annotated[tuple[str, ...], Meta()] = ()
    """columns of a table that are left out, by their names"""
    shape: Annotated[tuple[Count, ...], Meta()] = ()
    """shape of one input where the file has rows, such as 28 28 for images of so many pixels"""
    divide: NotNegative = 0.0
    """what inputs are divided by; 0: by 255 if they are images of bytes, else not at all"""
    standardize: bool = False
    """bring every input to mean 0 and deviation 1 over the examples trained on"""
    test_share: TestShare = 0.2
    """share of the examples that is held out, the same of every class"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        found = [self._shaped(part) for part in self._read(Path(self.path))]
        if self.test_path:
            if len(found) > 1:
                raise InputError(f"{self.path}: has a part to test on; expected no data.test_path")
            (more,) = self._read(Path(self.test_path))[:1]
            found.append(self._shaped(_as_in_training(more, found[0])))
        y, classes = self._targets(found)
        whole = _together(found)
        if len(found) > 1:
            first = len(found[0].x)
            rows = np.arange(first), np.arange(first, len(y))
        else:
            rows = split(y, self.test_share, self.seed, self.targets)
        image, counting = _image(whole.x), _counting(found[0])
        divide = self.divide or (255.0 if image and whole.x.dtype == np.uint8 else 1.0)
        data = parts(
            self.name,
            whole.x,
            y,
            self.targets,
            rows,
            where=whole.where,
            classes=classes,
            divide=1.0 if self.standardize else divide,
            standardize=self.standardize,
            columns=whole.columns,
            target_columns=whole.target,
            at=whole.at,
            image=image,
        )
        return dataclasses.replace(data, notes=counting + data.notes)

    def _read(self, path: Path) -> list[Part]:
        """The file's part, or both where an .npz has arrays for training and for testing."""
        if path.suffix.lower() in TABLES:
            return [self._from_cells(read_cells(require(path)))]
        if path.suffix == ".npz":
            return _from_npz(path)
        (table,) = read_arrays(path)
        if table.ndim != 2 or table.shape[1] < 2:
            raise InputError(
                f"{path}: expected columns of inputs and one of targets, got shape {list(table.shape)}"
            )
        return [Part(table[:, :-1], table[:, -1], (str(path), f"{path}: the last column"))]

    def _from_cells(self, cells: Cells) -> Part:
        """A table with a column of targets."""
        j = _column(cells, self.target, "data.target") if self.target else cells.width - 1
        out = {_column(cells, name, "data.skip") for name in self.skip}
        inputs = [i for i in range(cells.width) if i != j and i not in out]
        if not inputs:
            left = "one column" if cells.width == 1 else f"none besides {', '.join(self.skip)}"
            raise InputError(f"{cells.path}: expected columns of inputs and one of targets, got {left}")
        y = _labels(cells, j) if self.targets == "classes" else cells.numbers([j])
        what = f"column {cells.names[j]!r}" if self.target else "the last column"
        return Part(
            cells.numbers(inputs),
            y,
            (str(cells.path), f"{cells.path}: {what}"),
            tuple(cells.names[i] for i in inputs) if cells.names else (),
            cells.names[j : j + 1],
            lambda row, *column: cells.at(row, *(inputs[i] for i in column)),
        )

    def _shaped(self, part: Part) -> Part:
        """Inputs in the shape that `data.shape` says."""
        if part.x.ndim < 2:
            got = list(part.x.shape)
            raise InputError(f"{part.where[0]}: expected at least two axes, got shape {got}")
        x = numbers(part.x, part.where[0])
        if not self.shape:
            return dataclasses.replace(part, x=x)
        if math.prod(x.shape[1:]) != math.prod(self.shape):
            raise InputError(
                f"data.shape: {list(self.shape)} has {math.prod(self.shape)} numbers, but an input of "
                f"{part.where[0]} has {math.prod(x.shape[1:])}"
            )
        return dataclasses.replace(part, x=x.reshape(len(x), *self.shape), at=None)

    def _targets(self, found: Sequence[Part]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The targets of all parts; of labels, numbers of classes and what those are called."""
        if self.targets == "values":
            each = [check_values(p.y, len(p.x), p.where[1], differ=p is found[0]) for p in found]
            if len({y.shape[1] for y in each}) > 1:
                got = " and ".join(str(y.shape[1]) for y in each)
                raise InputError(f"{found[1].where[1]}: expected targets as in training, got {got}")
            return np.concatenate(each), ()
        at = [p.at or "row {}".format for p in found]
        keys = [label_keys(p.y, len(p.x), p.where[1], a) for p, a in zip(found, at, strict=True)]
        if len({key.dtype.kind == "U" for key in keys}) > 1:
            raise InputError(
                f"{found[1].where[1]}: expected labels as in training ({keys[0].dtype}), "
                f"got {keys[1].dtype}"
            )
        y, classes = named_classes(np.concatenate(keys))
        several(classes, found[0].where[1], len(y))
        return y, classes


def _from_npz(path: Path) -> list[Part]:
    arrays = read_named(path)
    lower: dict[str, list[str]] = {}
    for name in arrays:
        lower.setdefault(name.lower(), []).append(name)
    if all(len(lower.get(name, ())) == 1 for name in BOTH):
        x, y, test_x, test_y = (lower[name][0] for name in BOTH)
        return [_arrays_part(path, arrays, x, y), _arrays_part(path, arrays, test_x, test_y)]
    chosen = []
    for short, known in CALLED.items():
        # `x` goes before `images`; what is then left over decides nothing
        fitting = next((lower[name] for name in known if name in lower), [])
        if len(fitting) != 1:
            there = ", ".join(arrays) or "none"
            raise InputError(
                f"{path}: expected an array {short!r}, got {there}; "
                "name both when you save them: np.savez(path, x=…, y=…)"
            )
        chosen.append(fitting[0])
    return [_arrays_part(path, arrays, *chosen)]


def _arrays_part(path: Path, arrays: Any, x: str, y: str) -> Part:
    return Part(arrays[x], arrays[y], (f"{path}: {x}", f"{path}: {y}"))


def _as_in_training(part: Part, first: Part) -> Part:
    """The part with its columns in the order of the first's, by their names."""
    if part.columns and first.columns and part.columns != first.columns:
        missing = [name for name in first.columns if name not in part.columns]
        more = [name for name in part.columns if name not in first.columns]
        if missing or more or len({*part.columns}) != len(part.columns):
            said = [f"{name!r} is missing" for name in missing] + [f"{name!r} is new" for name in more]
            said = said or ["a name is there twice"]
            raise InputError(
                f"{part.where[0]}: expected the columns of {first.where[0]}, in any order: {said[0]}"
            )
        order = [part.columns.index(name) for name in first.columns]
        part = dataclasses.replace(part, x=part.x[:, order], columns=first.columns, at=None)
    if part.x.shape[1:] != first.x.shape[1:]:
        raise InputError(
            f"{part.where[0]}: expected inputs of shape {list(first.x.shape[1:])} as in training, "
            f"got {list(part.x.shape[1:])}"
        )
    return part


def _together(found: Sequence[Part]) -> Part:
    """All inputs in one part, each place still called by its own file's."""
    first = found[0]
    if len(found) == 1:
        return first
    count, second = len(first.x), found[1]

    def at(row: int, *column: int) -> str:
        part, i = (first, row) if row < count else (second, row - count)
        inside = part.at(i, *column) if part.at else place((i, *column))
        return inside if part is first else f"{part.where[0]}: {inside}"

    return dataclasses.replace(first, x=np.concatenate([first.x, second.x]), at=at)


def _column(cells: Cells, name: str, field: str) -> int:
    """The place of the column that a field names."""
    if not cells.names:
        raise InputError(f"{field}: {cells.path} has no header, so no column {name!r}")
    if cells.names.count(name) != 1:
        said = "expected one of" if name not in cells.names else "is there more than once among"
        raise InputError(f"{field}: {name!r}: {said} the columns {', '.join(cells.names)}")
    return cells.names.index(name)


def _counting(part: Part) -> tuple[str, ...]:
    """A line for a column that numbers the rows: it tells where an example stands, and nothing of it."""
    x = part.x
    if x.ndim != 2 or len(x) < 10:
        return ()
    numbered = (x - x[0] == np.arange(len(x))[:, None]).all(axis=0)
    counts = np.flatnonzero(numbered & ((x[0] == 0) | (x[0] == 1)))
    if not counts.size:
        return ()
    j = int(counts[0])
    hint = f": data.skip = [{part.columns[j]!r}] leaves it out" if part.columns else ""
    return (f"{column(j, part.columns)} only counts the rows{hint}",)


def _image(x: np.ndarray) -> tuple[int, ...]:
    """The shape of an input as an image `[height, width, channels]`, where it may be one."""
    inner = x.shape[1:]
    if len(inner) == 3 and inner[-1] in (1, 3, 4):
        return inner
    return (*inner, 1) if len(inner) == 2 else ()


def _labels(cells: Cells, j: int) -> np.ndarray:
    """A column of labels: numbers if all of them are, else words."""
    texts = cells.text(j)
    is_whole = np.asarray([is_number(text) for text in texts.tolist()])
    if is_whole.all():
        return cells.numbers([j])[:, 0]
    other = int(np.argmin(is_whole))
    if is_whole.any() and texts[other] not in MISSING:
        raise InputError(
            f"{cells.path}: {cells.at(other, j)}: expected labels that are all numbers or all words, got "
            f"{str(texts[other])!r} and, in {cells.at(int(np.argmax(is_whole)))}, "
            f"{str(texts[is_whole][0])!r}"
        )
    return texts
