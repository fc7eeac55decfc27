"""Tables: rows of numbers with a class or a value for each; scikit-learn's, the notes', your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxbp.layer import InputError
from jaxbp.train.data.dataset import (
    Data,
    Dataset,
    Kind,
    Scale,
    TestShare,
    check_labels,
    check_values,
    numbers,
    split,
    standard_scale,
)
from jaxbp.train.data.files import read_arrays
from jaxbp.train.schema import Rate, Whole


class Notes(Data, frozen=True, kw_only=True):
    """The one example of the notes' 4-4-2 network, with the weights that it starts from."""

    name: str = "notes"
    """which data set"""

    def load(self) -> Dataset:
        from jaxbp.models import notes_network

        _, params, x, y = notes_network(np.float32)
        x, y = np.asarray(x)[None], np.asarray(y)[None]
        start = jax.tree.map(np.asarray, params)
        return Dataset("notes", x, y, x, y, 2, ("1", "2"), held_out=False, start=start)


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
    """integer labels from 0; or real numbers to be predicted, which are standardized"""
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
        x = numbers(x, where[0])
        check = check_labels if self.targets == "classes" else check_values
        y = check(y, len(x), where[1])
        return _parts(self, x, y, self.targets, divide=self.divide, standardize=self.standardize)


def _parts(
    config: Any,
    x: np.ndarray,
    y: np.ndarray,
    kind: Kind,
    *,
    classes: tuple[str, ...] = (),
    divide: float = 1.0,
    standardize: bool = False,
) -> Dataset:
    """Both parts of a table, on the scale of the part that is trained on."""
    train, test = split(y, config.test_share, config.seed, kind)
    x = np.asarray(x, np.float32)
    scale = standard_scale(x[train]) if standardize else Scale(divide=divide)
    target_scale, outputs = Scale(), int(y.max()) + 1
    if kind == "values":
        target_scale, outputs = standard_scale(y[train]), y.shape[1]
        y = target_scale.apply(np.asarray(y, np.float32))
    names = classes or tuple(map(str, range(outputs if kind == "classes" else 0)))
    x = scale.apply(x)
    return Dataset(
        config.name,
        x[train],
        y[train],
        x[test],
        y[test],
        outputs,
        names,
        kind,
        scale=scale,
        target_scale=target_scale,
    )
