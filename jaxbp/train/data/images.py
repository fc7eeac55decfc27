"""Images: digits that come with scikit-learn, and MNIST and CIFAR from files given by path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxbp.layer import InputError
from jaxbp.train.data.dataset import Data, Dataset, Scale, TestShare, check_labels, numbers, split
from jaxbp.train.data.files import read_arrays, read_idx, require
from jaxbp.train.schema import Whole

NPZ = ("x_train", "y_train", "x_test", "y_test")
BYTES = Scale(divide=255.0)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Digits(Data, frozen=True, kw_only=True):
    """1,797 real handwritten digits of 8×8 pixels, from scikit-learn; no download."""

    test_share: TestShare = 0.2
    """share of the examples that is held out, the same of every class"""
    seed: Whole = 0
    """which examples are held out"""

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits

        raw, y = load_digits(return_X_y=True)
        scale = Scale(divide=16.0)
        x = scale.apply(np.asarray(raw, np.float32).reshape(-1, 8, 8, 1))
        y = np.asarray(y, np.int32)
        train, test = split(y, self.test_share, self.seed)
        names = tuple(map(str, range(10)))
        return Dataset(
            "digits", x[train], y[train], x[test], y[test], 10, names, scale=scale, image=(8, 8, 1)
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
        data = _dataset("cifar", arrays, where, 100 if hundred else 10)
        return dataclasses.replace(data, classes=names or (() if hundred else CIFAR10))


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
    arrays = read_arrays(path, NPZ)
    labels = [a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a for a in arrays[1::2]]
    arrays = [arrays[0], labels[0], arrays[2], labels[1]]
    return _dataset(name, arrays, [f"{path}: {part}" for part in NPZ])


def _dataset(
    name: str, arrays: Sequence[np.ndarray], where: Sequence[str], outputs: int | None = None
) -> Dataset:
    """Images and labels of both parts, checked against each other."""
    x, y, test_x, test_y = arrays
    x, test_x = _images(x, where[0]), _images(test_x, where[2])
    y = check_labels(y, len(x), where[1], outputs)
    outputs = outputs or int(y.max()) + 1
    test_y = check_labels(test_y, len(test_x), where[3], outputs)
    if x.shape[1:] != test_x.shape[1:]:
        raise InputError(
            f"{where[2]}: expected images of {list(x.shape[1:3])} pixels as in training, "
            f"got {list(test_x.shape[1:3])}"
        )
    names = tuple(map(str, range(outputs)))
    return Dataset(name, x, y, test_x, test_y, outputs, names, scale=BYTES, image=tuple(x.shape[1:]))


def _images(images: np.ndarray, what: str) -> np.ndarray:
    """Bytes `[n, height, width]` or `[n, height, width, 3]` as float32 `NHWC` in [0, 1]."""
    if images.ndim != 3 and (images.ndim != 4 or images.shape[-1] not in (1, 3)):
        raise InputError(
            f"{what}: expected images of shape [n, height, width] or [n, height, width, 3], "
            f"got {list(images.shape)}"
        )
    images = BYTES.apply(numbers(images, what))
    return images[..., None] if images.ndim == 3 else images


def _idx(folder: Path, part: str, kind: str) -> Path:
    """`train-images-idx3-ubyte`, with the spellings that are about, gzipped or not."""
    digit = 3 if kind == "images" else 1
    stems = [f"{part}-{kind}-idx{digit}-ubyte", f"{part}-{kind}.idx{digit}-ubyte"]
    for name in (f"{stem}{end}" for stem in stems for end in ("", ".gz")):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder / stems[0]}: no such file, gzipped or not (data.path: {folder})")
