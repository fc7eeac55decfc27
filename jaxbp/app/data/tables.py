"""Tables: rows of numbers with a class or a value for each; scikit-learn's, the notes', your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxbp.app.data.cells import Cells, is_number, read_cells
from jaxbp.app.data.dataset import Data, Dataset, Kind, TestShare, check_values, numbers, split
from jaxbp.app.data.description import fingerprint
from jaxbp.app.data.files import read_arrays, require
from jaxbp.app.data.labels import MISSING, classes_of, seen_once, several
from jaxbp.app.data.scale import At, Scale, fallen_together, standard_scale, within_float32
from jaxbp.app.schema import Rate, Whole
from jaxbp.layer import InputError


class Notes(Data, frozen=True, kw_only=True):
    """The one example of the notes' 4-4-2 network, with the weights that it starts from."""

    name: str = "notes"
    """which data set"""

    def load(self) -> Dataset:
        from jaxbp.models import notes_network

        _, params, x, y = notes_network(np.float32)
        x, y = np.asarray(x)[None], np.asarray(y)[None]
        start = jax.tree.map(np.asarray, params)
        mark = fingerprint([x], [y])
        return Dataset("notes", x, y, x, y, 2, ("1", "2"), held_out=False, fingerprint=mark, start=start)


class BreastCancer(Data, frozen=True, kw_only=True):
    """569 tumours, malignant or benign, by 30 measurements; from scikit-learn, no download."""

    name: str = "breast_cancer"
    """which data set"""
    test_share: TestShare = 0.2
    """share of the examples that is held out, the same of both classes"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        from sklearn.datasets import load_breast_cancer

        x, y = map(np.asarray, load_breast_cancer(return_X_y=True))
        names = ("malignant", "benign")
        return _parts(self, x, y.astype(np.int32), "classes", classes=names, standardize=True)


class Diabetes(Data, frozen=True, kw_only=True):
    """442 patients: how far diabetes went in a year, by ten measurements; from scikit-learn, no download.

    Measurements and targets are standardized by the mean and deviation of those trained on.
    """

    name: str = "diabetes"
    """which data set"""
    test_share: TestShare = 0.2
    """share of the examples that is held out"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        from sklearn.datasets import load_diabetes

        x, y = map(np.asarray, load_diabetes(return_X_y=True, scaled=False))
        return _parts(self, x, y[:, None], "values", standardize=True)


class File(Data, frozen=True, kw_only=True):
    """Your own data: a .csv whose last column is the target, or an .npz with x and y."""

    name: str = "file"
    """which data set"""
    path: str = "data.csv"
    """the file"""
    targets: Literal["classes", "values"] = "classes"
    """labels, whole numbers or words; or real numbers to be predicted, which are standardized"""
    divide: Rate = 1.0
    """what the inputs are divided by, such as 255 for pixels"""
    standardize: bool = False
    """bring every input to mean 0 and deviation 1 over the examples trained on"""
    test_share: TestShare = 0.2
    """share of the examples that is held out, the same of every class"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        path = Path(self.path)
        if path.suffix == ".csv":
            return self._from_cells(read_cells(require(path)))
        if path.suffix == ".npz":
            x, y = read_arrays(path, ("x", "y"))
            where = f"{path}: x", f"{path}: y"
        else:
            (table,) = read_arrays(path)
            if table.ndim != 2 or table.shape[1] < 2:
                raise InputError(
                    f"{path}: expected columns of inputs and one of targets, "
                    f"got shape {list(table.shape)}"
                )
            x, y, where = table[:, :-1], table[:, -1], (str(path), f"{path}: the last column")
        if x.ndim < 2:
            raise InputError(f"{where[0]}: expected at least two axes, got shape {list(x.shape)}")
        if self.targets == "values":
            return self._parts(x, check_values(y, len(numbers(x, where[0])), where[1]), where)
        y, names = classes_of(y, len(numbers(x, where[0])), where[1])
        return self._parts(x, y, where, names)

    def _from_cells(self, cells: Cells) -> Dataset:
        """A table whose last column is the target."""
        if cells.width < 2:
            raise InputError(
                f"{cells.path}: expected columns of inputs and one of targets, got one column"
            )
        last = cells.width - 1
        x, where = cells.numbers(range(last)), (str(cells.path), f"{cells.path}: the last column")
        names, target = cells.names[:-1], cells.names[-1:]
        if self.targets == "values":
            y = check_values(cells.numbers([last]), len(x), where[1])
            return self._parts(x, y, where, (), names, target, cells.at)
        y, classes = classes_of(_labels(cells, last), len(x), where[1], cells.at)
        return self._parts(x, y, where, classes, names, target, cells.at)

    def _parts(
        self,
        x: np.ndarray,
        y: np.ndarray,
        where: tuple[str, str],
        classes: tuple[str, ...] = (),
        columns: tuple[str, ...] = (),
        target_columns: tuple[str, ...] = (),
        at: At | None = None,
    ) -> Dataset:
        if self.targets == "classes":
            several(classes, where[1], len(y))
        return _parts(
            self,
            x,
            y,
            self.targets,
            where=where,
            classes=classes,
            divide=self.divide,
            standardize=self.standardize,
            columns=columns,
            target_columns=target_columns,
            at=at,
        )


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


def _parts(
    config: Any,
    x: np.ndarray,
    y: np.ndarray,
    kind: Kind,
    *,
    where: tuple[str, str] = ("x", "y"),
    classes: tuple[str, ...] = (),
    divide: float = 1.0,
    standardize: bool = False,
    columns: tuple[str, ...] = (),
    target_columns: tuple[str, ...] = (),
    at: At | None = None,
) -> Dataset:
    """Both parts of a table, on the scale of the part that is trained on."""
    train, test = split(y, config.test_share, config.seed, kind)
    scale = standard_scale(x[train]) if standardize else Scale(divide=divide)
    seen = within_float32(scale.apply(x), x, where[0], at)
    target_scale, outputs, targets = Scale(), len(classes), y
    if kind == "values":
        target_scale, outputs = standard_scale(y[train]), y.shape[1]
        targets = within_float32(target_scale.apply(y), y, where[1])
    notes = fallen_together(seen, x, columns)
    if kind == "classes":
        notes += seen_once(y[train], y[test], classes)
    return Dataset(
        config.name,
        seen[train],
        targets[train],
        seen[test],
        targets[test],
        outputs,
        classes,
        kind,
        scale=scale,
        target_scale=target_scale,
        columns=columns,
        target_columns=target_columns,
        notes=notes,
        fingerprint=fingerprint([x], [y]),
    )
