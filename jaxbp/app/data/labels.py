"""Classes from labels: whatever occurs, with its name. 0, 1000 and 2000 are three classes, not 2001.

Labels are whole numbers of any sign (`1.0` is one), truth values or words; classes are sorted, numbers by
their size, and are those of the whole data, held-out part included.
"""

from __future__ import annotations

import numpy as np

from jaxbp.app.data.scale import At
from jaxbp.layer import InputError

MISSING = {"", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL"}


def classes_of(
    labels: np.ndarray, count: int, what: str, at: At = "row {}".format
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`(y, names)`: `y` int32 `[count]`, an index into the classes' `names` for each of `labels`."""
    return named_classes(label_keys(labels, count, what, at))


def named_classes(keys: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The same of labels that are checked already."""
    found, y = np.unique(keys, return_inverse=True)
    return y.reshape(-1).astype(np.int32), tuple(str(label) for label in found.tolist())


def label_keys(labels: np.ndarray, count: int, what: str, at: At = "row {}".format) -> np.ndarray:
    """`labels` `[count]` (or `[count, 1]`) as integers, truth values or words; each names a class."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise InputError(
            f"{what}: expected {count} labels, one an example, got shape {list(labels.shape)}"
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        return _words(np.char.strip(labels), what, at)
    if labels.dtype.kind not in "fiub":
        raise InputError(f"{what}: expected labels, got an array of {labels.dtype}")
    if labels.dtype.kind != "f":
        return labels
    wrong = ~np.isfinite(labels) | (labels != np.floor(labels)) | (np.abs(labels) > 2.0**53)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{what}: expected labels that are whole numbers or words, got {labels[row]:g} in {at(row)}"
            ' (numbers to be predicted are data.targets = "values")'
        )
    return labels.astype(np.int64)


def _words(labels: np.ndarray, what: str, at: At) -> np.ndarray:
    missing = np.isin(labels, list(MISSING))
    if missing.any():
        row = int(np.argmax(missing))
        raise InputError(
            f"{what}: expected a label, got {str(labels[row])!r} in {at(row)}, which says that it is "
            "missing; remove the row, or call the class by another word"
        )
    return labels


def several(names: tuple[str, ...], what: str, count: int) -> None:
    """There is something to tell apart, or an `InputError`."""
    if len(names) < 2:
        found = " and ".join(map(repr, names))
        raise InputError(
            f"{what}: expected at least two classes to tell apart, got {found} for all {count} examples"
        )


def seen_once(y: np.ndarray, test_y: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """Lines on classes that training does not see, and on labels that look like numbers to predict."""
    lines = []
    unseen = [names[k] for k in np.setdiff1d(test_y, y)]
    if unseen:
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        lines.append(f"classes held out only, which cannot be learnt: {', '.join(unseen[:5])}{more}")
    count = len(y) + len(test_y)
    if len(names) > 20 and 2 * len(names) > count:
        lines.append(
            f"{len(names)} classes among {count} examples; numbers to be predicted are "
            'data.targets = "values"'
        )
    return tuple(lines)
