"""Images: digits that come with scikit-learn, and MNIST and CIFAR from files given by path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.app.data.dataset import Data, Dataset, TestShare, numbers, pixel_scale, split
from jaxbp.app.data.description import fingerprint
from jaxbp.app.data.files import read_arrays, read_idx, require
from jaxbp.app.data.labels import classes_of, label_keys, seen_once, several
from jaxbp.app.data.scale import Scale
from jaxbp.app.schema import Whole
from jaxbp.layer import InputError

NPZ = ("x_train", "y_train", "x_test", "y_test")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Digits(Data, frozen=True, kw_only=True):
    """1,797 real handwritten digits of 8×8 pixels, from scikit-learn; no download."""

    test_share: TestShare = 0.2
    """share of the examples that is held out, the same of every class"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        raw, y = _digits()
        scale = Scale(divide=16.0)
        raw, y = np.asarray(raw).reshape(-1, 8, 8, 1), np.asarray(y, np.int32)
        x = scale.apply(raw)
        train, test = split(y, self.test_share, self.seed)
        names = tuple(map(str, range(10)))
        return Dataset(
            "digits",
            x[train],
            y[train],
            x[test],
            y[test],
            10,
            names,
            scale=scale,
            image=(8, 8, 1),
            fingerprint=fingerprint([raw], [y]),
        )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, out of its file: importing scikit-learn takes longer than training."""
    found = find_spec("sklearn")
    file = Path(found.origin or "").with_name("datasets") / "data" / "digits.csv.gz" if found else None
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        bunch: Any = load_digits()
        return bunch.data, bunch.target
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1]


class Mnist(Data, frozen=True, kw_only=True):
    """MNIST, or anything in its format: IDX files (gzipped or not), or an .npz."""

    name: str = "mnist"
    """which data set"""
    path: str = "data/mnist"
    """a folder with the four IDX files, or an .npz with x_train, y_train, x_test, y_test"""

    def load(self) -> Dataset:
        path = Path(self.path)
        if path.suffix == ".npz":
            return _from_npz("mnist", path)
        files = [_idx(path, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")]
        return _dataset("mnist", [read_idx(file) for file in files], [str(file) for file in files])


class Cifar(Data, frozen=True, kw_only=True):
    """CIFAR-10 or CIFAR-100 in its binary version, or an .npz: 32×32 pixels in three colours."""

    name: str = "cifar"
    """which data set"""
    path: str = "data/cifar-10-batches-bin"
    """a folder with the .bin files, or an .npz with x_train, y_train, x_test, y_test"""

    def load(self) -> Dataset:
        path = Path(self.path)
        if path.suffix == ".npz":
            return _from_npz("cifar", path)
        if not path.is_dir():
            raise InputError(f"{path}: no such folder (data.path)")
        hundred = (path / "train.bin").is_file()
        parts = ["train.bin"] if hundred else [f"data_batch_{i}.bin" for i in range(1, 6)]
        if not (path / parts[0]).is_file() and (path / parts[0]).with_suffix("").is_file():
            raise InputError(
                f"{path}: holds the Python version, whose files are pickles and are not read; "
                "expected the binary version (cifar-10-binary.tar.gz) or an .npz"
            )
        names = _class_names(path / ("fine_label_names.txt" if hundred else "batches.meta.txt"))
        read = [_cifar_batch(path / part, hundred) for part in parts]
        test = "test.bin" if hundred else "test_batch.bin"
        x, y = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
        arrays = [x, y, *_cifar_batch(path / test, hundred)]
        where = [str(path / part) for part in (parts[0], parts[0], test, test)]
        usual = tuple(map(str, range(100))) if hundred else CIFAR10
        return _dataset("cifar", arrays, where, names or usual)


def _cifar_batch(path: Path, hundred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label (of CIFAR-100: a coarse and a fine one) and 32×32 bytes of red, green, blue."""
    raw = np.frombuffer(require(path).read_bytes(), np.uint8)
    record = 3072 + 1 + hundred
    if not raw.size or raw.size % record:
        raise InputError(
            f"{path}: truncated or not CIFAR's binary version: expected records of {record} bytes, "
            f"got {raw.size} bytes"
        )
    rows = raw.reshape(-1, record)
    images = rows[:, 1 + hundred :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, rows[:, int(hundred)]


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _from_npz(name: str, path: Path) -> Dataset:
    return _dataset(name, read_arrays(path, NPZ), [f"{path}: {part}" for part in NPZ])


def _dataset(
    name: str, arrays: Sequence[np.ndarray], where: Sequence[str], classes: tuple[str, ...] = ()
) -> Dataset:
    """Images and labels of both parts, checked against each other; labels count in `classes` if given."""
    x, y, test_x, test_y = arrays
    x, test_x = _images(x, where[0]), _images(test_x, where[2])
    if x.shape[1:] != test_x.shape[1:]:
        raise InputError(
            f"{where[2]}: expected images of {list(x.shape[1:3])} pixels as in training, "
            f"got {list(test_x.shape[1:3])}"
        )
    scale = pixel_scale(x, where[0])
    test_scale = pixel_scale(test_x, where[2], trained_on=scale)
    if scale != test_scale:
        raise InputError(
            f"{where[2]}: expected images on the scale of those to train on ({x.dtype} up to "
            f"{x.max():g}), got {test_x.dtype} up to {test_x.max():g}"
        )
    mark = fingerprint([x, test_x], [y, test_y])
    y, test_y, classes = _labels(y, test_y, (len(x), len(test_x)), (where[1], where[3]), classes)
    binary = x.dtype.kind in "iu" and scale == Scale()
    notes = ("images are of 0 and 1 only, which are taken as they are",) if binary else ()
    return Dataset(
        name,
        scale.apply(x),
        y,
        scale.apply(test_x),
        test_y,
        len(classes),
        classes,
        scale=scale,
        image=tuple(x.shape[1:]),
        pixels=True,
        notes=notes + seen_once(y, test_y, classes),
        fingerprint=mark,
    )


def _labels(
    y: np.ndarray,
    test_y: np.ndarray,
    counts: tuple[int, int],
    where: tuple[str, str],
    classes: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Both parts' labels as numbers of the same classes: those given, or all that occur."""
    keys = [label_keys(*part) for part in zip((y, test_y), counts, where, strict=True)]
    if keys[0].dtype.kind != keys[1].dtype.kind and "U" in (keys[0].dtype.kind, keys[1].dtype.kind):
        raise InputError(f"{where[1]}: expected labels as in training ({y.dtype}), got {test_y.dtype}")
    if classes:
        for part, what in zip(keys, where, strict=True):
            wrong = (part < 0) | (part >= len(classes))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise InputError(
                    f"{what}: expected labels in 0 … {len(classes) - 1}, got {part[row]} in row {row}"
                )
        return keys[0].astype(np.int32), keys[1].astype(np.int32), classes
    numbers, classes = classes_of(np.concatenate(keys), sum(counts), where[0])
    several(classes, where[0], sum(counts))
    return numbers[: counts[0]], numbers[counts[0] :], classes


def _images(images: np.ndarray, what: str) -> np.ndarray:
    """`[n, height, width]` or `[n, height, width, 1 or 3]` as `NHWC`."""
    if images.ndim != 3 and (images.ndim != 4 or images.shape[-1] not in (1, 3)):
        raise InputError(
            f"{what}: expected images of shape [n, height, width] or [n, height, width, 3], "
            f"got {list(images.shape)}"
        )
    images = numbers(images, what)
    return images[..., None] if images.ndim == 3 else images


def _idx(folder: Path, part: str, kind: str) -> Path:
    """`train-images-idx3-ubyte`, with the spellings that are about, gzipped or not."""
    digit = 3 if kind == "images" else 1
    stems = [f"{part}-{kind}-idx{digit}-ubyte", f"{part}-{kind}.idx{digit}-ubyte"]
    for name in (f"{stem}{end}" for stem in stems for end in ("", ".gz")):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder / stems[0]}: no such file, gzipped or not (data.path: {folder})")
