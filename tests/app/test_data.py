"""Data: what is read is what was written, what is held out is held out, and every fault has a line."""

import gzip
import struct

import numpy as np
import pytest

from jaxbp.app.data import DATA, Dataset
from jaxbp.app.data.dataset import numbers, split
from jaxbp.app.data.files import read_arrays, read_idx
from jaxbp.app.data.images import Cifar, Digits, Mnist
from jaxbp.app.data.labels import classes_of
from jaxbp.app.data.own import File
from jaxbp.app.data.scale import Scale
from jaxbp.app.data.tables import BreastCancer, Diabetes, Notes
from jaxbp.layer import InputError


def idx(array: np.ndarray) -> bytes:
    """IDX bytes, written independently of the reader."""
    code = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}[
        str(array.dtype)
    ]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_comes_back(tmp_path, dtype, zipped):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype) * 3
    path = tmp_path / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    got = read_idx(path)
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype


IDX = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x", IDX[:3], "truncated: expected an IDX header of 4 bytes, got 3"),
        ("x", IDX[:7], "truncated: expected a header of 12 bytes, got 7"),
        ("x", IDX[:-1], "truncated: expected 6 bytes of data for shape [2, 3], got 5"),
        ("x", IDX + b"0", "too long: expected 6 bytes of data for shape [2, 3], got 7"),
        ("x", b"PK\3\4" + IDX, "not an IDX file: expected a magic number such as 00000803, got 504b0304"),
        ("x.gz", gzip.compress(IDX, mtime=0)[:-9], "truncated or not gzip: "),
        ("x.gz", IDX, "truncated or not gzip: "),
        ("x", None, "no such file"),
    ],
)
def test_a_bad_idx_file(tmp_path, name, raw, message):
    path = tmp_path / name
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(InputError) as error:
        read_idx(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def write_mnist(folder, images, labels, test_images, test_labels, end=""):
    parts = {"train": (images, labels), "t10k": (test_images, test_labels)}
    for part, arrays in parts.items():
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
            raw = idx(np.asarray(array, np.uint8))
            path = folder / f"{part}-{kind}-ubyte{end}"
            path.write_bytes(gzip.compress(raw) if end else raw)


IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_from_a_folder_and_from_npz_is_the_same(tmp_path, end):
    write_mnist(tmp_path, IMAGES, [0, 1, 2, 1, 0], IMAGES[:2], [2, 0], end)
    data = Mnist(path=str(tmp_path)).load()
    np.testing.assert_array_equal(data.x, IMAGES[..., None].astype(np.float32) / np.float32(255))
    assert (data.x.dtype, data.y.tolist(), data.test_y.tolist(), data.outputs) == (
        np.float32,
        [0, 1, 2, 1, 0],
        [2, 0],
        3,
    )
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=IMAGES, y_train=[0, 1, 2, 1, 0], x_test=IMAGES[:2], y_test=[2, 0])
    again = Mnist(path=str(path)).load()
    for name in ("x", "y", "test_x", "test_y"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            (IMAGES, [0, 1, 2, 1], IMAGES, [0] * 5),
            "train-labels-idx1-ubyte: expected 5 labels, one an example, got shape [4]",
        ),
        (
            (IMAGES, [3] * 5, IMAGES[:2], [3, 3]),
            "train-labels-idx1-ubyte: expected at least two classes to tell apart, got '3' for all 7 "
            "examples",
        ),
        (
            (IMAGES[:0], [], IMAGES, [0] * 5),
            "train-images-idx3-ubyte: expected at least one example, got shape [0, 4, 3]",
        ),
        (
            (IMAGES[..., 0], [0] * 5, IMAGES, [0] * 5),
            "train-images-idx3-ubyte: expected images of shape [n, height, width] or "
            "[n, height, width, 3], got [5, 4]",
        ),
        (
            (IMAGES, [0] * 5, IMAGES[:, :3], [0] * 5),
            "t10k-images-idx3-ubyte: expected images of [4, 3] pixels as in training, got [3, 3]",
        ),
    ],
)
def test_mnist_that_does_not_fit_together(tmp_path, parts, message):
    write_mnist(tmp_path, *parts)
    with pytest.raises(InputError) as error:
        Mnist(path=str(tmp_path)).load()
    assert str(error.value) == f"{tmp_path}/{message}"


def test_mnist_that_is_not_there(tmp_path):
    with pytest.raises(InputError) as error:
        Mnist(path=str(tmp_path)).load()
    expected = f"{tmp_path}/train-images-idx3-ubyte: no such file, gzipped or not (data.path: {tmp_path})"
    assert str(error.value) == expected


def test_an_npz_without_the_arrays(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x_train=IMAGES)
    with pytest.raises(InputError, match=r"x\.npz: expected an array 'y_train', got x_train$"):
        Mnist(path=str(path)).load()


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_a_truncated_numpy_file(tmp_path, name):
    path = tmp_path / name
    (np.savez if name.endswith("z") else np.save)(path, np.arange(1000.0))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="truncated or not a NumPy file") as error:
        read_arrays(path)
    assert "\n" not in str(error.value)


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.asarray([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"holds Python objects.*y.astype\(str\)"):
        read_arrays(path)


GONE = ", which says that it is missing; fill it in, or remove the row or the column"


def test_csv_with_and_without_a_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,label\n1,2.5,0\n\n-3,4e-1,1\n")
    np.testing.assert_array_equal(read_arrays(path)[0], [[1, 2.5, 0], [-3, 0.4, 1]])
    path.write_text("1,2,0\n")
    np.testing.assert_array_equal(read_arrays(path)[0], [[1, 2, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected rows of numbers, got none"),
        ("a,b\n", "expected rows of numbers, got none below the header"),
        ("1,2\n3,x\n", "line 2, column 2: expected a number, got 'x'"),
        ("1,2\n3\n", "line 2: expected 2 columns, as line 1 has, got 1"),
        ("5.1,?,0\n1,2,3\n", "line 1, column 2: expected a number, got '?'" + GONE),
        ("?,?,?\n1,2,3\n", "line 1, column 1: expected a number, got '?'" + GONE),
        (
            "a,b,1\n1,2,3\n",
            "line 1, column 1: expected a number, got 'a' (no header either: in one, no cell is a "
            "number)",
        ),
        ("a,b\n\n\n1,2\n \n3,x\n", "line 6, column 2 (b): expected a number, got 'x'"),
        ("\ufeffa;b\r\n1;2\r\n\r\n3;x\r\n", "line 4, column 2 (b): expected a number, got 'x'"),
        ('"a\n(b)",c\n"1",2\n1,x\n', "line 4, column 2 (c): expected a number, got 'x'"),
        ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 columns, as the header has, got 3"),
        (
            "a,b\n1,\n",
            "line 2, column 2 (b): expected a number, got an empty cell; fill it in, or remove the row "
            "or the column",
        ),
        ("a,b\n1,nan\n", "line 2, column 2 (b): expected a number, got 'nan'" + GONE),
        ("a,b\n1,1e999\n", "line 2, column 2 (b): expected a number, got '1e999'"),
        ("a,b\n1,1_000\n", "line 2, column 2 (b): expected a number, got '1_000'"),
        (
            "a;b\n1;2,5\n",
            "line 2, column 2 (b): expected a number, got '2,5'; write a decimal point and no thousands "
            "separator",
        ),
        (
            "1 2 3\n",
            "line 1, column 1: expected a number, got '1 2 3'; separate columns by commas, semicolons or "
            "tabs",
        ),
        ('1,2\n3,"4\n', "line 2: not a CSV: unexpected end of data"),
    ],
)
def test_a_bad_csv(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_arrays(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_file_of_ones_own(tmp_path):
    table = np.column_stack([np.arange(20.0), np.arange(20.0) ** 2, np.arange(20) % 2])
    np.savetxt(tmp_path / "x.csv", table, delimiter=",")
    np.savez(tmp_path / "x.npz", x=table[:, :2], y=table[:, 2].astype(int))
    one, other = (File(path=str(tmp_path / name), divide=2.0).load() for name in ("x.csv", "x.npz"))
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.test_y, other.test_y)
    together = np.concatenate([one.x, one.test_x])
    np.testing.assert_allclose(np.sort(together[:, 0]), np.arange(20) / 2)
    np.testing.assert_array_equal(
        one.y, (one.x[:, 0] * 2 % 2).astype(int)
    )  # rows stayed with their labels


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            [[1, 2], [3, np.nan], [np.inf, 0]],
            [0, 1, 0],
            "x: expected finite numbers, got nan in row 1, column 1 (2 such in all)",
        ),
        (
            [[1.0], [2], [3]],
            [0, 0.5, 0],
            "y: expected labels that are whole numbers or words, got 0.5 in row 1 (numbers to be "
            'predicted are data.targets = "values")',
        ),
        (
            [[1.0], [2], [3]],
            ["a", "", "b"],
            "y: expected a label, got '' in row 1, which says that it is missing; remove the row, or "
            "call the class by another word",
        ),
        (
            [[1.0], [2], [3]],
            [7, 7, 7],
            "y: expected at least two classes to tell apart, got '7' for all 3 examples",
        ),
        (
            [[1.0], [1e39], [3]],
            [0, 1, 0],
            "x: expected numbers that float32 can hold, got 1e+39 in row 1, column 0; data.standardize "
            "or data.divide brings it into range",
        ),
        ([[1.0], [2], [3]], [0, 1], "y: expected 3 labels, one an example, got shape [2]"),
        (np.zeros((0, 2)), [], "x: expected at least one example, got shape [0, 2]"),
        ([1.0, 2.0], [0, 1], "x: expected at least two axes, got shape [2]"),
        ([["a"], ["b"]], [0, 1], "x: expected numbers, got an array of <U1"),
    ],
)
def test_values_that_cannot_be_trained_on(tmp_path, x, y, message):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.asarray(x), y=np.asarray(y))
    with pytest.raises(InputError) as error:
        File(path=str(path)).load()
    assert str(error.value) == f"{path}: {message}"


def test_one_example_cannot_be_split(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=[[1.0, 2.0], [3.0, 4.0]], y=[0, 1])
    with pytest.raises(
        InputError, match=r"data\.test_share: 0\.9 of 2 examples leaves 2 to test on and 0 to"
    ):
        File(path=str(path), test_share=0.9).load()


def test_digits_hold_out_a_fifth_of_every_class():
    data = Digits().load()
    assert (data.x.shape, data.test_x.shape) == ((1437, 8, 8, 1), (360, 8, 8, 1))
    assert (data.x.min(), data.x.max(), data.x.dtype, data.outputs) == (0, 1, np.float32, 10)
    both = np.bincount(data.y) + np.bincount(data.test_y)
    np.testing.assert_allclose(np.bincount(data.test_y), both / 5, atol=1)
    np.testing.assert_array_equal(Digits().load().test_x, data.test_x)
    other = Digits(seed=1).load()
    assert not np.array_equal(other.test_x, data.test_x)
    rows = {row.tobytes() for row in data.x} | {row.tobytes() for row in data.test_x}
    assert len(rows) == len({row.tobytes() for row in np.concatenate([other.x, other.test_x])})


def test_a_split_loses_nothing():
    for kind in ("classes", "values"):
        train, test = split((np.arange(50) % 7 // 3).astype(np.int32), 0.3, 4, kind)
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(50))
        assert len(test) == 15


def test_the_notes_example():
    data = Notes().load()
    assert data.x.tolist() == [[2, 5, 3, 3]]
    assert data.y.tolist() == [[1, 0]]
    h = 1 / (1 + np.exp(-(data.x @ data.start[0]["w"])))
    np.testing.assert_allclose(h, [[0.947846, 0.802184, 0.890903, 0.908877]], atol=1e-6)
    np.testing.assert_allclose(h @ data.start[2]["w"], [[1.657402, 0.447192]], atol=1e-6)


def test_labels_become_vectors_and_images_become_rows():
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    data = Dataset("x", x, np.int32([2, 0]), x, np.int32([1, 1]), 3)
    assert data.one_hot().y.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert data.flat().x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_new_inputs_are_scaled_and_shaped_as_the_data():
    x = np.zeros((2, 4), np.float32)
    data = Dataset("x", x, np.int32([0, 1]), x, np.int32([0, 1]), 2, scale=Scale(divide=4.0))
    assert data.inputs(np.arange(4), "f").tolist() == [[0, 0.25, 0.5, 0.75]]
    assert data.inputs(np.ones((3, 4)), "f").shape == (3, 4)
    with pytest.raises(InputError) as error:
        data.inputs(np.ones((3, 5)), "f.csv")
    assert str(error.value) == (
        "f.csv: expected rows of 4 features (inputs of shape [4]), got shape [3, 5]"
    )
    with pytest.raises(InputError, match=r"got nan in row 0, column 2"):
        data.inputs(np.asarray([[0, 1, np.nan, 3]]), "f")


def test_checks_of_single_arrays():
    assert numbers(np.asarray([True, False]), "x").tolist() == [1, 0]
    y, names = classes_of(np.asarray([1.0, 0.0]), 2, "y")
    assert (y.dtype, y.tolist(), names) == (np.int32, [1, 0], ("0", "1"))
    assert set(DATA) >= {"digits", "mnist", "notes", "file"}


# --- CIFAR, tables with values ------------------------------------------------------------------------


def cifar(count: int, seed: int, coarse: bool = False) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Images `NHWC`, labels, and CIFAR's bytes, written independently of the reader."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count)
    raw = b""
    for image, label in zip(images, labels, strict=True):
        raw += bytes([7, label] if coarse else [label])
        raw += b"".join(image[:, :, channel].tobytes() for channel in range(3))
    return images, labels, raw


def test_cifar_from_its_binary_version(tmp_path):
    parts = [cifar(2, seed) for seed in range(6)]
    for i, (_, _, raw) in enumerate(parts):
        (tmp_path / (f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin")).write_bytes(raw)
    data = Cifar(path=str(tmp_path)).load()
    images = np.concatenate([p[0] for p in parts[:5]])
    np.testing.assert_array_equal(data.x, images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.y, np.concatenate([p[1] for p in parts[:5]]))
    np.testing.assert_array_equal(data.test_y, parts[5][1])
    assert (data.outputs, data.names[3], data.image) == (10, "cat", (32, 32, 3))
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"kind{i}" for i in range(10)) + "\n\n")
    assert Cifar(path=str(tmp_path)).load().names[3] == "kind3"


def test_cifar_100_takes_the_fine_label(tmp_path):
    train, test = cifar(3, 0, coarse=True), cifar(2, 1, coarse=True)
    (tmp_path / "train.bin").write_bytes(train[2])
    (tmp_path / "test.bin").write_bytes(test[2])
    data = Cifar(path=str(tmp_path)).load()
    np.testing.assert_array_equal(data.y, train[1])
    np.testing.assert_array_equal(data.test_x[1], test[0][1].astype(np.float32) / np.float32(255))
    assert data.outputs == 100


def test_cifar_from_an_npz_with_labels_in_a_column(tmp_path):
    x, y, _ = cifar(4, 0)
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y[:, None], x_test=x[:2], y_test=y[:2, None])
    data = Cifar(path=str(tmp_path / "c.npz")).load()
    assert data.x.shape == (4, 32, 32, 3)
    assert [int(data.names[k]) for k in data.test_y] == y[:2].tolist()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("data_batch_1.bin", cifar(2, 0)[2][:-1], "data_batch_1.bin: truncated or not CIFAR's binary"),
        ("data_batch_1.bin", b"", "data_batch_1.bin: truncated or not CIFAR's binary version"),
        ("data_batch_1.bin", cifar(2, 0)[2], "data_batch_2.bin: no such file"),
        ("data_batch_1", b"\x80\x02}q\x00", "holds the Python version, whose files are pickles"),
    ],
)
def test_cifar_files_that_are_wrong(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError) as error:
        Cifar(path=str(tmp_path)).load()
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_tables_are_standardized_by_what_is_trained_on():
    for kind, count in ((BreastCancer, 569), (Diabetes, 442)):
        data = kind().load()
        assert len(data.x) + len(data.test_x) == count
        np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(data.x.std(axis=0), 1, atol=1e-5)
        assert np.abs(data.test_x.mean(axis=0)).max() > 1e-3  # the held-out part is not looked at
    np.testing.assert_allclose([data.y.mean(), data.y.std()], [0, 1], atol=1e-5)
    raw = data.target_scale.undo(np.concatenate([data.y, data.test_y]))
    assert (round(float(raw.min())), round(float(raw.max()))) == (25, 346)  # as its documentation says


def test_values_of_ones_own(tmp_path):
    x, y = np.arange(30.0).reshape(10, 3) ** 2, np.arange(20.0).reshape(10, 2) * [1, -50]
    np.savez(tmp_path / "v.npz", x=x, y=y)
    data = File(path=str(tmp_path / "v.npz"), targets="values", standardize=True).load()
    assert (data.kind, data.outputs, len(data.test_x)) == ("values", 2, 2)
    both = data.target_scale.undo(np.concatenate([data.y, data.test_y]))
    np.testing.assert_allclose(np.sort(both[:, 0]), np.sort(y[:, 0]), atol=1e-4)
    np.testing.assert_allclose(data.inputs(x[:1], "new"), data.scale.apply(x[:1].astype(np.float32)))
    np.savez(tmp_path / "v.npz", x=x, y=np.full(10, 2.5))
    with pytest.raises(InputError, match=r"y: expected targets that differ, got 2\.5 throughout"):
        File(path=str(tmp_path / "v.npz"), targets="values").load()


def test_two_classes_as_one_number():
    x = np.zeros((2, 1), np.float32)
    data = Dataset("x", x, np.int32([1, 0]), x, np.int32([0, 1]), 2, ("no", "yes")).binary()
    assert (data.y.tolist(), data.outputs, data.names) == ([[1], [0]], 1, ("no", "yes"))


def test_tokens_cannot_be_reproduced():
    x = np.zeros((2, 4), np.uint8)
    with pytest.raises(InputError, match="has inputs of dtype uint8, which cannot be reproduced"):
        Dataset("text", x, x, x, x, 256).reproduced()
