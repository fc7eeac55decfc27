"""Tables: rows of numbers with a class or a value for each; scikit-learn's and the notes'."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxbp.app.data.dataset import Data, Dataset, Kind, TestShare, split
from jaxbp.app.data.description import fingerprint
from jaxbp.app.data.labels import seen_once
from jaxbp.app.data.scale import (
    At,
    Scale,
    fallen_together,
    far_from_one,
    standard_scale,
    within_float32,
)
from jaxbp.app.schema import Whole


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
        y = y.astype(np.int32)
        rows = split(y, self.test_share, self.seed)
        return parts(self.name, x, y, "classes", rows, classes=names, standardize=True)


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
        rows = split(y, self.test_share, self.seed, "values")
        return parts(self.name, x, y[:, None], "values", rows, standardize=True)


def parts(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    kind: Kind,
    rows: tuple[Any, Any],
    *,
    where: tuple[str, str] = ("x", "y"),
    classes: tuple[str, ...] = (),
    divide: float = 1.0,
    standardize: bool = False,
    columns: tuple[str, ...] = (),
    target_columns: tuple[str, ...] = (),
    at: At | None = None,
    image: tuple[int, ...] = (),
) -> Dataset:
    """Both parts of a table, `rows` to train on and held out, on the scale of those to train on."""
    train, test = rows
    scale = standard_scale(x[train]) if standardize else Scale(divide=divide)
    seen = within_float32(scale.apply(x), x, where[0], at)
    target_scale, outputs, targets = Scale(), len(classes), y
    if kind == "values":
        target_scale, outputs = standard_scale(y[train]), y.shape[1]
        targets = within_float32(target_scale.apply(y), y, where[1])
    notes = fallen_together(seen, x, columns) or far_from_one(seen[train], columns)
    if kind == "classes":
        notes += seen_once(y[train], y[test], classes)
    return Dataset(
        name,
        seen[train],
        targets[train],
        seen[test],
        targets[test],
        outputs,
        classes,
        kind,
        scale=scale,
        target_scale=target_scale,
        image=image,
        columns=columns,
        target_columns=target_columns,
        notes=notes,
        fingerprint=fingerprint([x], [y]),
    )
