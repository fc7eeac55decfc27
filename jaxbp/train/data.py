"""The data sets that a config can name. Adding one: a struct with its fields and a `load`, here.

`load()` returns a `Dataset`: a training part and a held-out part as arrays in memory, inputs in float32
(or integers for tokens). Anything wrong with a file or its values is an `InputError` that says where.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from jaxbp.layer import InputError
from jaxbp.train.files import read_arrays, read_idx
from jaxbp.train.schema import Count, Rate, Section, Whole
from jaxbp.train.text import VOCABULARY, read_parts, spread, windows

TestShare = Annotated[float, Meta(gt=0, lt=1)]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples in memory. `y` is integer labels, or a distribution over `outputs` for each example."""

    name: str
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    outputs: int
    classes: tuple[str, ...] = ()
    held_out: bool = True  # False: there is no held-out part, and the test part is the training part
    divide: float = 1.0  # what raw inputs are divided by
    start: Any = None  # initial parameters of an MLP that come with the data

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.x.shape[1:]

    @property
    def labelled(self) -> bool:
        """Whether targets are integer labels."""
        return np.issubdtype(self.y.dtype, np.integer)

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

    def inputs(self, raw: np.ndarray, what: str) -> np.ndarray:
        """New inputs, on the scale of the original data, as the network takes them."""
        if np.issubdtype(raw.dtype, np.integer) and np.issubdtype(self.x.dtype, np.integer):
            x = raw.astype(self.x.dtype)
        else:
            x = numbers(raw, what) / np.float32(self.divide)
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
        return x.reshape(len(x), *self.shape)


class Data(Section, frozen=True, kw_only=True):
    """What every data set has."""

    name: str = "digits"
    """which data set"""

    def load(self) -> Dataset:
        raise InputError(f"data.name: {self.name!r} cannot be loaded")


class Digits(Data, frozen=True, kw_only=True):
    """1,797 real handwritten digits of 8×8 pixels, from scikit-learn; no download."""

    test_share: TestShare = 0.2
    """share of the examples that is held out, the same of every class"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = np.asarray(x, np.float32).reshape(-1, 8, 8, 1) / np.float32(16)
        return split("digits", x, np.asarray(y, np.int32), self.test_share, self.seed, divide=16.0)


class Notes(Data, frozen=True, kw_only=True):
    """The one example of the notes' 4-4-2 network, with the weights that it starts from."""

    name: str = "notes"
    """which data set"""

    def load(self) -> Dataset:
        x, y = np.asarray([[2, 5, 3, 3]], np.float32), np.asarray([[1, 0]], np.float32)
        w1 = [[0.1, 0.3, 0.8, -0.4], [-0.3, -0.2, 0.5, 0.5], [-0.3, 0.0, 0.5, 0.4], [0.2, 0.5, -0.9, 0.7]]
        w2 = [[0.5, 0.8, 0.2, 0.4], [0.5, 0.2, 0.3, -0.5]]
        dense = [{"w": np.asarray(w, np.float32).T, "b": np.zeros(len(w), np.float32)} for w in (w1, w2)]
        return Dataset(
            "notes", x, y, x, y, 2, ("1", "2"), held_out=False, start=(dense[0], (), dense[1], ())
        )


class Mnist(Data, frozen=True, kw_only=True):
    """MNIST, or anything in its format: IDX files (gzipped or not), or an .npz."""

    name: str = "mnist"
    """which data set"""
    path: str = "data/mnist"
    """a folder with the four IDX files, or an .npz with x_train, y_train, x_test, y_test"""

    def load(self) -> Dataset:
        path = Path(self.path)
        if path.suffix == ".npz":
            arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
            where = [f"{path}: {name}" for name in ("x_train", "y_train", "x_test", "y_test")]
        else:
            files = [
                _idx(path, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")
            ]
            arrays, where = [read_idx(file) for file in files], [str(file) for file in files]
        x, y, test_x, test_y = arrays
        x, test_x = _images(x, where[0]), _images(test_x, where[2])
        y = check_labels(y, len(x), where[1])
        outputs = int(y.max()) + 1
        test_y = check_labels(test_y, len(test_x), where[3], outputs)
        if x.shape[1:] != test_x.shape[1:]:
            raise InputError(
                f"{where[2]}: expected images of {list(x.shape[1:3])} pixels as in training, "
                f"got {list(test_x.shape[1:3])}"
            )
        names = tuple(map(str, range(outputs)))
        return Dataset("mnist", x, y, test_x, test_y, outputs, names, divide=255.0)


class File(Data, frozen=True, kw_only=True):
    """Your own data: a .csv whose last column is the label, or an .npz with x and y."""

    name: str = "file"
    """which data set"""
    path: str = "data.csv"
    """the file; the labels are integers from 0"""
    divide: Rate = 1.0
    """what the inputs are divided by, such as 255 for pixels"""
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
                    f"{path}: expected columns of inputs and one of labels, got shape {list(table.shape)}"
                )
            x, y, where = table[:, :-1], table[:, -1], (str(path), f"{path}: the last column")
        if x.ndim < 2:
            raise InputError(f"{where[0]}: expected at least two axes, got shape {list(x.shape)}")
        x, y = numbers(x, where[0]) / np.float32(self.divide), check_labels(y, len(x), where[1])
        return split("file", x, y, self.test_share, self.seed, divide=self.divide)


class Text(Data, frozen=True, kw_only=True):
    """Windows of a text, byte by byte; each predicts the byte after every one of its own."""

    name: str = "text"
    """which data set"""
    path: str = ""
    """a file, or a folder of files; by default the interpreter's own standard library"""
    length: Count = 128
    """bytes in a window"""
    test_share: TestShare = 0.1
    """share of the files (of a single file: of its end) that is held out"""
    train_bytes: Whole = 0
    """train on windows of so many bytes, spread evenly over the text; 0 for all"""
    test_bytes: Whole = 0
    """measure on windows of so many held-out bytes, spread evenly; 0 for all"""

    def load(self) -> Dataset:
        parts = read_parts(self.path, self.test_share)
        counts = (self.train_bytes // self.length, self.test_bytes // self.length)
        (x, y), (test_x, test_y) = (
            spread(*windows(text, self.length), count) for text, count in zip(parts, counts, strict=True)
        )
        return Dataset("text", x, y, test_x, test_y, VOCABULARY)


DATA: dict[str, type[Data]] = {
    "digits": Digits,
    "mnist": Mnist,
    "notes": Notes,
    "file": File,
    "text": Text,
}


def split(
    name: str, x: np.ndarray, y: np.ndarray, share: float, seed: int, divide: float = 1.0
) -> Dataset:
    """Hold out `share` of the examples: `⌈share · n⌉` in all, each class by its share of them."""
    order = np.random.default_rng(seed).permutation(len(y))
    # Each class's examples are spread evenly over [0, 1); the first `share` of that line is held out.
    rank = np.empty(len(y))
    for label in np.unique(y):
        mine = order[y[order] == label]
        rank[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    held = order[np.argsort(rank[order], kind="stable")]
    cut = math.ceil(share * len(y))
    if not 0 < cut < len(y):
        raise InputError(
            f"data.test_share: {share} of {len(y)} examples leaves {cut} to test on and "
            f"{len(y) - cut} to train on; expected at least one of each"
        )
    test, rest = np.sort(held[:cut]), np.sort(held[cut:])
    outputs = int(y.max()) + 1
    names = tuple(map(str, range(outputs)))
    return Dataset(name, x[rest], y[rest], x[test], y[test], outputs, names, divide=divide)


def numbers(array: np.ndarray, what: str) -> np.ndarray:
    """`array` as float32; every entry must be a finite number."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what}: expected numbers, got an array of {array.dtype}")
    if not array.size:
        raise InputError(f"{what}: expected at least one example, got shape {list(array.shape)}")
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


def _images(images: np.ndarray, what: str) -> np.ndarray:
    """Bytes `[n, height, width]` as float32 `[n, height, width, 1]` in [0, 1]."""
    if images.ndim != 3:
        raise InputError(f"{what}: expected images of shape [n, height, width], got {list(images.shape)}")
    return numbers(images, what)[..., None] / np.float32(255)


def _idx(folder: Path, part: str, kind: str) -> Path:
    """`train-images-idx3-ubyte`, with the spellings that are about, gzipped or not."""
    digit = 3 if kind == "images" else 1
    stems = [f"{part}-{kind}-idx{digit}-ubyte", f"{part}-{kind}.idx{digit}-ubyte"]
    for name in (f"{stem}{end}" for stem in stems for end in ("", ".gz")):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder / stems[0]}: no such file, gzipped or not (data.path: {folder})")
