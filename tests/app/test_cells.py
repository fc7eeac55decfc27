"""Tables: cells, headers and labels are what an editor shows; classes are the labels that occur."""

import json

import numpy as np
import pytest

from jaxbp.app.data.cells import read_cells
from jaxbp.app.data.images import Mnist
from jaxbp.app.data.own import File
from jaxbp.cli import main
from jaxbp.layer import InputError

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1,2.5,0\n-3,4e-1,1\n",
        "\ufeffa;b;c\r\n1;2.5;0\r\n\r\n-3;.4;1",
        '"a"\tb\tc\n"1"\t2.50\t0\n \n-3\t0.4\t"1"\n\n',
        "a, b ,c\n 1, 2.5 ,+0\n-3, 0.4,1\r",
        "# a,b,c\n1.0,2.5,0e0\n-3.,40e-2,1\n",
    ],
)
def test_a_table_in_every_spelling(tmp_path, text):
    (tmp_path / "x.csv").write_text(text, newline="")
    cells = read_cells(tmp_path / "x.csv")
    assert cells.names == ("a", "b", "c")
    np.testing.assert_array_equal(cells.numbers(range(3)), [[1, 2.5, 0], [-3, 0.4, 1]])


def test_integers_keep_their_digits(tmp_path):
    path = tmp_path / "x.csv"
    for cells in (["9007199254740993", "3"], ["9007199254740993", "0.5"], [str(2**70), "-1"]):
        path.write_text(",".join(cells) + "\n")
        assert int(read_cells(path).numbers(range(2))[0, 0]) == int(cells[0])
    path.write_text("3,4\n")
    assert read_cells(path).numbers(range(2)).dtype == np.int64


def test_bytes_that_are_no_utf_8_are_where_they_are(tmp_path):
    path = tmp_path / "x.csv"
    for raw, says in (
        ("a,b\n1,2\n1,é\n".encode("latin-1"), "line 3: expected text, got bytes that are not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "expected UTF-8, got UTF-16"),
    ):
        path.write_bytes(raw)
        with pytest.raises(InputError) as error:
            read_cells(path)
        assert str(error.value).startswith(f"{path}: {says}")


def labelled(path, labels, header="x,label"):
    rows = (f"{0.5 + i % 7},{label}" for i, label in enumerate(labels))
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n")
    return File(path=str(path))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1000, 2000], ("0", "1000", "2000")),
        ([1, 2, 3], ("1", "2", "3")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["1.0", "3.0", "2e0"], ("1", "2", "3")),
        (["dog", "cat", '"a, b"'], ("a, b", "cat", "dog")),
        (["true", "false", "true"], ("false", "true")),
    ],
)
@pytest.mark.parametrize("header", ["x,label", ""])
def test_classes_are_the_labels_that_occur(tmp_path, labels, names, header):
    data = labelled(tmp_path / "x.csv", labels * 10, header).load()
    assert (data.outputs, data.classes) == (len(names), names)
    found = [data.classes[k] for k in np.concatenate([data.y, data.test_y])]
    counts = [found.count(name) for name in names]
    assert counts == ([10] * 3 if len(names) == 3 else [10, 20])
    assert data.y.dtype == np.int32


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (np.asarray([1, 2, 3] * 4, np.uint8), ("1", "2", "3")),
        (np.asarray([-5, 7, 0] * 4, np.float32), ("-5", "0", "7")),
        (np.asarray([True, False, True] * 4), ("False", "True")),
        (np.asarray(["b", "a", "c"] * 4), ("a", "b", "c")),
        (np.asarray([b"b", b"a", b"c"] * 4), ("a", "b", "c")),
        (np.asarray([[3], [1], [2]] * 4), ("1", "2", "3")),
    ],
)
def test_classes_of_an_npz(tmp_path, y, names):
    x = np.arange(24.0).reshape(12, 2)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    data = File(path=str(tmp_path / "x.npz")).load()
    assert data.classes == names
    if y.dtype != bool:  # every row is with its own label still
        wanted = [str(v.decode() if isinstance(v, bytes) else v).removesuffix(".0") for v in y.ravel()]
        rows = np.concatenate([data.x, data.test_x])[:, 0].astype(int) // 2
        labels = np.concatenate([data.y, data.test_y])
        assert [names[k] for k in labels] == [wanted[r] for r in rows]


def test_labels_of_images_have_names(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (6, 4, 3), np.uint8)
    path = tmp_path / "m.npz"
    np.savez(path, x_train=x, y_train=np.asarray([5, 7, 5, 7, 9, 5]), x_test=x[:2], y_test=[7, 100])
    data = Mnist(path=str(path)).load()
    assert (data.classes, data.y.tolist(), data.test_y.tolist()) == (
        ("5", "7", "9", "100"), [0, 1, 0, 1, 2, 0], [1, 3],
    )  # fmt: skip
    assert data.notes == ("classes held out only, which cannot be learnt: 100",)
    np.savez(path, x_train=x, y_train=np.asarray([5, 7] * 3), x_test=x[:2], y_test=["a", "b"])
    with pytest.raises(InputError, match=r"y_test: expected labels as in training \(int64\), got <U1"):
        Mnist(path=str(path)).load()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            [1, 2, "cat"],
            "line 4, column 2 (label): expected labels that are all numbers or all words, got 'cat' and, "
            "in line 2, '1'",
        ),
        (["a", "?", "b"], "the last column: expected a label, got '?' in line 3, which says that it"),
        (
            [1, "", 2],
            "the last column: expected a label, got '' in line 3, which says that it is missing",
        ),
        (
            [1, 2.5, 2],
            "the last column: expected labels that are whole numbers or words, got 2.5 in line 3",
        ),
        (
            ["a", "a", "a"],
            "the last column: expected at least two classes to tell apart, got 'a' for all 3",
        ),
    ],
)
def test_labels_that_are_none(tmp_path, labels, says):
    with pytest.raises(InputError) as error:
        labelled(tmp_path / "x.csv", labels).load()
    assert str(error.value).startswith(f"{tmp_path}/x.csv: {says}")


def test_a_number_that_float32_cannot_hold_is_where_the_editor_shows_it(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b,label\n1,2,0\n\n1,-1e39,1\n1,2,0\n")
    with pytest.raises(InputError, match=r"got -1e\+39 in line 4, column 2 \(b\); data.standardize or"):
        File(path=str(path)).load()


def test_labels_that_look_like_values(tmp_path):
    (note,) = labelled(tmp_path / "x.csv", range(100, 160)).load().notes[1:]
    assert note.startswith("60 classes among 60 examples; numbers to be predicted are data.targets")


# --- a run on a table with names -------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A run on a table with a header whose labels are words, and its file."""
    folder = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(3)
    rows = [
        (
            1700000000 + i + 40 * (i % 3 == 2),
            round(10 * (i % 3) + rng.normal(), 3),
            ["cat", "[b]", "$x"][i % 3],
        )
        for i in range(60)
    ]
    path = folder / "pets.csv"
    path.write_text("\n".join(["seen,weight,pet", *(",".join(map(str, row)) for row in rows)]))
    config = folder / "pets.toml"
    config.write_text(
        f'[data]\nname = "file"\npath = "{path}"\nstandardize = true\n[model]\nhidden = [8]\n'
        "[optimizer]\nlearning_rate = 0.5\n[train]\nepochs = 30\nbatch_size = 12\nprove = false\n"
    )
    import jax

    with jax.numpy_dtype_promotion("standard"):
        assert main(["train", str(config), "--run.folder", str(folder)]) == 0
    return folder / "pets", path


def test_names_are_shown_where_classes_are(pets, capsys):
    run, _ = pets
    assert main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("cat", "[b]", "$x"))
    known = json.loads((run / "data.json").read_text())
    assert known["targets"]["classes"] == ["$x", "[b]", "cat"]
    assert (known["inputs"]["columns"], known["targets"]["columns"]) == (["seen", "weight"], ["pet"])


def predicted(run, path, text, capsys):
    path.write_text(text)
    code = main(["predict", str(run), str(path)])
    out, err = capsys.readouterr()
    return code, [line.split(",")[1] for line in out.splitlines()[1:]], err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seen,weight\n1700000003,0\n1700000004,10\n", ""),
        ("1700000003,0\n1700000004,10\n", ""),
        ("weight,seen\n0,1700000003\n10,1700000004\n", "taken by name"),
        ("pet,weight,seen\n?,0,1700000003\ndog,10,1700000004\n", "taken by name"),
        ("seen,weight,pet\n1700000003,0,cat\n1700000004,10,\n", ""),
    ],
)
def test_columns_are_taken_by_name(pets, tmp_path, text, says, capsys):
    code, classes, err = predicted(pets[0], tmp_path / "new.csv", text, capsys)
    assert (code, classes) == (0, ["cat", "[b]"])
    assert says in err
    assert bool(says) == bool(err)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "seen,age\n1,2\n",
            "column 'weight' is missing; expected seen, weight (in any order), got seen, age",
        ),
        (
            "seen,weight,age\n1,2,3\n",
            "column 'age' is none that the network was trained on; expected seen, weight (in any order), "
            "got seen, weight, age",
        ),
        (
            "1,2,3\n",
            "expected 2 columns, got 3; is the target one of them? A header on both files tells, or",
        ),
        ("1,2,3,4\n", "expected rows of 2 features (inputs of shape [2]), got shape [1, 4]"),
        ("seen,weight\n1,?\n", "line 2, column 2 (weight): expected a number, got '?'"),
        (
            "seen,weight\n\n1,2\n1,1e300\n",
            "expected numbers that float32 can hold, got 1e+300 in line 4, column 2 (weight); data",
        ),
    ],
)
def test_columns_that_are_not_those_of_training(pets, tmp_path, text, says, capsys):
    code, _, err = predicted(pets[0], tmp_path / "new.csv", text, capsys)
    assert code == 2
    assert err.startswith(f"jaxbp: error: {tmp_path}/new.csv: {says}")
    assert err.count("\n") == 1
