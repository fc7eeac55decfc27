"""Your own files, network and validation: taken where they are clear, refused with what to change."""

import json
import warnings

import numpy as np
import pytest

from jaxbp import load_run
from jaxbp.app.checkpoint import Checkpoints
from jaxbp.app.config import read_config
from jaxbp.app.data.folders import Images, read_images
from jaxbp.app.data.own import File
from jaxbp.app.loop import State
from jaxbp.app.networks import Own
from jaxbp.app.task import make_task
from jaxbp.cli import main
from jaxbp.layer import InputError

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (12, 4, 5), np.uint8)
WORDS = np.asarray(["ant", "bee", "cat"])[np.arange(12) % 3]


def whole(data):
    """All examples, the held-out ones last."""
    return np.concatenate([data.x, data.test_x]), np.concatenate([data.y, data.test_y])


@pytest.mark.parametrize(
    "names", [("X", "Y"), ("x", "y"), ("images", "labels"), ("Data", "Target"), ("inputs", "targets")]
)
def test_arrays_by_the_names_that_people_give_them(tmp_path, names):
    path = tmp_path / "own.npz"
    np.savez(path, **{names[0]: IMAGES, names[1]: WORDS}, more=np.zeros(3))
    data = File(path=str(path)).load()
    assert data.classes == ("ant", "bee", "cat")
    assert (data.shape, data.image, len(data.test_x)) == ((4, 5), (4, 5, 1), 3)
    assert sorted(np.round(whole(data)[0].ravel() * 255)) == sorted(
        IMAGES.ravel()
    )  # bytes come to [0, 1]


def test_arrays_of_both_parts(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, X_train=IMAGES[:8], y_train=WORDS[:8], X_test=IMAGES[8:], y_test=WORDS[8:])
    data = File(path=str(path)).load()
    np.testing.assert_array_equal(np.round(data.test_x * 255), IMAGES[8:])
    np.testing.assert_array_equal(np.asarray(data.classes)[data.test_y], WORDS[8:])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": IMAGES, "y": WORDS}, "expected an array 'x', got a, y; name both when you save them"),
        ({"x": IMAGES, "X": IMAGES, "y": WORDS}, "expected an array 'x', got x, X, y"),
        ({"x": IMAGES, "kinds": WORDS}, "expected an array 'y', got x, kinds"),
        ({"x": IMAGES, "y": WORDS.astype(object)}, "save arrays of numbers, and labels as text"),
    ],
)
def test_arrays_that_are_not_clear(tmp_path, arrays, message):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(InputError) as error:
        File(path=str(tmp_path / "own.npz")).load()
    assert message in str(error.value)


ROWS = [(f"p{i}", "ab"[i % 2], i + 0.25, -i, f"r{i}") for i in range(10)]


def table(path, rows=ROWS, names=("id", "kind", "width", "height", "remark"), mark=","):
    path.write_text("\n".join(mark.join(map(str, row)) for row in (names, *rows)) + "\n")
    return str(path)


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("csv", ";"), ("tsv", "\t"), ("txt", "\t")])
def test_columns_by_their_names(tmp_path, suffix, mark):
    path = table(tmp_path / f"own.{suffix}", mark=mark)
    data = File(path=path, target="kind", skip=("id", "remark")).load()
    x, y = whole(data)
    assert (data.columns, data.target_columns, data.classes) == (
        ("width", "height"),
        ("kind",),
        ("a", "b"),
    )
    order = np.argsort(x[:, 0])
    np.testing.assert_array_equal(x[order], [row[2:4] for row in ROWS])
    np.testing.assert_array_equal(np.asarray(data.classes)[y[order]], [row[1] for row in ROWS])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            "line 2, column 1 (id): expected a number, got 'p0'; a column of words is no input",
        ),
        ({"target": "sort"}, "data.target: 'sort': expected one of the columns id, kind, width"),
        ({"skip": ("ids",)}, "data.skip: 'ids': expected one of the columns id"),
        (
            {"target": "kind", "skip": ("id", "width", "height", "remark")},
            "expected columns of inputs and one of targets, got none besides id, width",
        ),
        (
            {"target": "kind", "skip": ("id", "remark"), "shape": (2, 2)},
            "data.shape: [2, 2] has 4 numbers, but an input of",
        ),
    ],
)
def test_columns_that_are_not_there(tmp_path, fields, message):
    with pytest.raises(InputError) as error:
        File(path=table(tmp_path / "own.csv"), **fields).load()
    assert message in str(error.value)


def test_rows_as_images(tmp_path):
    """The usual table of images: a label, then a pixel a column."""
    rows = [(k % 2, *image.ravel()) for k, image in enumerate(IMAGES)]
    names = ("label", *(f"p{i}" for i in range(20)))
    path = table(tmp_path / "own.csv", rows, names)
    data = File(path=path, target="label", shape=(4, 5), divide=255.0).load()
    assert (data.shape, data.image) == ((4, 5), (4, 5, 1))
    order = np.argsort(whole(data)[0][:, 0, 0])
    expected = IMAGES[np.argsort(IMAGES[:, 0, 0])] / 255
    np.testing.assert_allclose(whole(data)[0][order], expected, rtol=1e-6)


def test_a_second_file_to_test_on_has_its_columns_by_name(tmp_path):
    names = ("id", "kind", "width", "height", "remark")
    turned = [(row[3], row[2], row[0], row[4], row[1]) for row in ROWS[:4]]
    first = table(tmp_path / "a.csv")
    fields = {"target": "kind", "skip": ("id", "remark")}
    second = table(tmp_path / "b.tsv", turned, ("height", "width", "id", "remark", "kind"), "\t")
    data = File(path=first, test_path=second, **fields).load()
    np.testing.assert_array_equal(data.x, [row[2:4] for row in ROWS])
    np.testing.assert_array_equal(data.test_x, [row[2:4] for row in ROWS[:4]])
    np.testing.assert_array_equal(data.test_y, [0, 1, 0, 1])
    for other, message in (
        (("id", "kind", "width", "depth", "remark"), "in any order: 'height' is missing"),
        (("id", "kind", "width", "height", "remark", "depth"), "in any order: 'depth' is new"),
    ):
        rows = [(*row, 1)[: len(other)] for row in ROWS]
        with pytest.raises(InputError, match=message):
            File(path=first, test_path=table(tmp_path / "c.csv", rows, other), **fields).load()
    wrong = table(tmp_path / "d.csv", [(*row[:2], "x", *row[3:]) for row in ROWS[:2]], names)
    with pytest.raises(InputError, match=r"d.csv: line 2, column 3 \(width\): .* got 'x'"):
        File(path=first, test_path=wrong, **fields).load()
    values = {"target": "width", "skip": ("id", "kind", "remark"), "targets": "values"}
    data = File(path=first, test_path=table(tmp_path / "e.csv", ROWS[:1]), **values).load()
    assert (len(data.x), data.test_x.tolist()) == (10, [[0]])


def test_a_column_that_counts_the_rows_is_said(tmp_path):
    rows = [(i, i % 3, "ab"[i % 2]) for i in range(12)]
    path = table(tmp_path / "own.csv", rows, ("", "u", "kind"))
    assert File(path=path).load().notes == (
        "column 1 () only counts the rows: data.skip = [''] leaves it out",
    )
    assert File(path=path, skip=("",)).load().notes == ()
    np.save(tmp_path / "own.npy", [(i + 1, i % 3, i % 2) for i in range(12)])
    assert File(path=str(tmp_path / "own.npy")).load().notes == ("column 1 only counts the rows",)


def test_large_inputs_are_said(tmp_path):
    path = table(tmp_path / "own.csv", [(i, 100 * i, "ab"[i % 2]) for i in range(9)], ("a", "b", "c"))
    (note,) = File(path=path).load().notes
    assert note.startswith("inputs reach ")
    assert "column 2 (b): --data.standardize" in note
    assert File(path=path, standardize=True).load().notes == ()


# --- a network of one's own --------------------------------------------------------------------------

MODULE = """
from jaxbp import Chain, Dense, Tanh

def build(data):
    return Chain(Dense(3 * data.outputs), Tanh(), Dense(data.outputs))

def wrong(data):
    return Chain(Dense(data.outputs + 1))

def nothing(data):
    pass
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a module of networks in it and a table of two classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("def build(data)\n    pass")
    (tmp_path / "own_lacking.py").write_text("import not_installed_at_all")
    rows = [(i % 7 / 7, (i % 2) - 0.5 + i % 5 / 9, "ab"[i % 2]) for i in range(30)]
    table(tmp_path / "own.csv", rows, ("u", "v", "kind"))
    (tmp_path / "own.toml").write_text(
        '[data]\nname = "file"\npath = "own.csv"\n[model]\nname = "own_nets:build"\n'
        "[optimizer]\nlearning_rate = 0.5\n[train]\nepochs = 6\nbatch_size = 8\nprove = false\n"
    )
    return tmp_path


def test_ones_own_network_trains_and_predicts(here, capsys):
    assert main(["train", "own.toml"]) == 0
    assert main(["predict", "runs/own", "own.csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-30].startswith("0,a,0.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nets:biuld", "no function 'biuld' in .*own_nets.py; did you mean \"own_nets:build\"?"),
        ("own_net:build", "no module own_net in .* run this in the folder of own_net.py"),
        ("own_lacking:build", "own_lacking imports not_installed_at_all, which is not there"),
        ("own_broken:build", "own_broken.py, line 1: expected ':'"),
        ("own_nets:nothing", "returned NoneType, expected a layer"),
        ("own_nets:wrong", r"expected an output of shape \[8, 2\] .* got \[8, 3\]"),
    ],
)
def test_a_network_that_cannot_be_had(here, name, message):
    config = read_config(here / "own.toml")
    other = type(config)(data=config.data, model=Own(name=name), train=config.train)
    with pytest.raises(InputError, match=message):
        make_task(other)


# --- validation --------------------------------------------------------------------------------------


def test_the_best_epoch_by_validation_is_kept_and_ends_the_run(here, capsys):
    flags = ["--train.validation-share", "0.25", "--train.epochs", "40", "--train.patience", "2"]
    rate = ["--optimizer.learning-rate", "30"]  # too much: the loss goes up and down
    assert main(["train", "own.toml", *flags, *rate]) == 0
    out = capsys.readouterr().out
    records = [json.loads(line) for line in (here / "runs/own/metrics.jsonl").read_text().splitlines()]
    losses = [record["valid_loss"] for record in records]
    best = int(np.argmin(losses)) + 1
    assert len(records) == best + 2 < 40
    summary = json.loads((here / "runs/own/summary.json").read_text())
    assert (summary["best_epoch"], summary["valid_loss"]) == (best, losses[best - 1])
    assert summary["test_loss"] == records[best - 1]["test_loss"]
    assert f"the parameters of epoch {best}" in out
    assert "18 training examples of [2], 6 held out, 6 for validation" in out


def test_a_resumed_run_knows_its_best_epoch(tmp_path):
    """The best parameters are in the checkpoint: they may be older than it."""
    one, two = ({"w": np.full(3, v)} for v in (1.0, 2.0))
    state = State(one, (), 1, best=two).judged(0.5)
    later = State(two, (), 2, best=state.best, best_epoch=1, best_loss=0.5).judged(0.75)
    with Checkpoints(tmp_path, 3) as checkpoints:
        checkpoints.save(later)
        found, _ = checkpoints.restore(State({"w": np.zeros(3)}, (), best={"w": np.zeros(3)}))
    assert (found.best_epoch, found.best_loss) == (1, 0.5)
    np.testing.assert_array_equal(found.chosen["w"], one["w"])


# --- folders of images -------------------------------------------------------------------------------


def save(path, pixels, mode=None):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)


def folder(root, shape=(4, 5), count=6, mode=None):
    """Images of `ant`, all dark, and `bee`, all light."""
    for k, kind in enumerate(("bee", "ant")):
        for i in range(count):
            pixels = RNG.integers(0, 100, shape, np.uint8) + np.uint8(150 * (1 - k))
            save(root / kind / f"{i}.png", pixels, mode)
    return root


def test_a_folder_a_class(tmp_path):
    root = folder(tmp_path / "own")
    (root / "ant" / "remarks.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    data = Images(path=str(root)).load()
    assert (data.classes, data.pixels) == (("ant", "bee"), True)
    assert data.shape == data.image == (4, 5, 1)
    assert data.notes == ("left out, since they are no images: remarks.txt",)
    x, y = whole(data)
    assert len(x) == 12
    np.testing.assert_array_equal(x.mean(axis=(1, 2, 3)) > 0.5, y == 1)
    assert sorted(np.bincount(data.test_y)) == [1, 2]


def test_a_second_folder_to_test_on_and_a_size(tmp_path):
    first, second = folder(tmp_path / "a", (4, 5, 3)), folder(tmp_path / "b", (8, 10, 3), 2)
    with pytest.raises(InputError, match=r"has 8 × 10 pixels, but .* has 4 × 5; data.size"):
        Images(path=str(first), test_path=str(second)).load()
    data = Images(path=str(first), test_path=str(second), size=(4, 5)).load()
    assert (data.x.shape, data.test_x.shape) == ((12, 4, 5, 3), (4, 4, 5, 3))
    assert Images(path=str(first), grey=True).load().shape == (4, 5, 1)
    (second / "bee").rename(second / "wasp")
    with pytest.raises(InputError, match=r"expected the classes of .*, ant, bee, got wasp"):
        Images(path=str(first), test_path=str(second), size=(4, 5)).load()


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = 10, 20, 30, 255
    save(tmp_path / "x.png", pixels)
    (array,) = read_images([tmp_path / "x.png"])
    assert array[0, 0].tolist() == [10, 20, 30]
    assert (array[1] == 255).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: save(root / "x.png", IMAGES[0]), "in it; the images lie in it without one"),
        (lambda root: save(root / "ant" / "x.png", IMAGES[0]), "expected at least two classes"),
        (lambda root: folder(root / "train"), "train has folders itself: data.path is one such"),
        (
            lambda root: (folder(root), (root / "bee" / "0.png").write_bytes(b"no image")),
            "0.png: is no image that can be read",
        ),
        (
            lambda root: (folder(root), save(root / "bee" / "0.png", IMAGES[0].astype(np.uint16))),
            "0.png: expected an image of 8 bits a channel, got mode I",
        ),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path, make, message):
    make(tmp_path / "own")
    with pytest.raises(InputError) as error:
        Images(path=str(tmp_path / "own")).load()
    assert message in str(error.value)


def test_images_are_predicted_by_the_names_of_their_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "own", (4, 4))
    flags = ["--train.epochs", "9", "--train.batch-size", "4", "--train.no-prove", "--run.name", "own"]
    data = ["--data.name", "images", "--data.path", "own"]
    net = ["--model.dropout", "0", "--optimizer.learning-rate", "0.1"]
    assert main(["train", *data, *flags, *net]) == 0
    capsys.readouterr()
    save(tmp_path / "large.png", np.full((9, 8), 240, np.uint8))
    for given, rows in (
        ("large.png", ["large.png,bee"]),
        ("own/ant", [f"{i}.png,ant" for i in range(6)]),
    ):
        assert main(["predict", "runs/own", given]) == 0
        header, *found = capsys.readouterr().out.splitlines()
        assert header == "file,class,probability"
        assert [row.rpartition(",")[0] for row in found] == rows


# --- a run from Python -------------------------------------------------------------------------------


def test_a_run_is_loaded_without_its_data_and_says_what_the_command_says(
    here, capsys, recwarn, monkeypatch
):
    assert main(["train", "own.toml", "--data.standardize"]) == 0
    x = np.loadtxt("own.csv", delimiter=",", skiprows=1, usecols=(0, 1))
    (here / "new.csv").write_text("u,v\n" + "\n".join(f"{u},{v}" for u, v in x.tolist()))
    (here / "own.csv").unlink()
    run = load_run("runs/own")
    capsys.readouterr()
    assert main(["predict", "runs/own", "new.csv"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert run.predict(x).tolist() == [row[1] for row in rows]
    likeliest = run.probabilities(x).max(axis=-1)
    np.testing.assert_allclose(likeliest, [float(row[2]) for row in rows], atol=1e-6)
    assert (run.classes, run.config.model.name) == (("a", "b"), "own_nets:build")
    assert run.predict(x[0]).shape == (1,)
    np.testing.assert_allclose(run.net(run.params, run.inputs(x)), run.outputs(x), rtol=1e-5)
    assert not recwarn.list
    with pytest.raises(InputError, match="x: expected rows of 2 features"):
        run.predict(x[:, :1])
    with pytest.raises(InputError, match="nowhere: no such run folder"):
        load_run("nowhere")


def test_values_are_predicted_in_the_numbers_of_the_data(here):
    rows = [(i, 3 * i, 1000 + 10 * i) for i in range(20)]
    table(here / "own.csv", rows, ("u", "v", "price"))
    flags = ["--data.targets", "values", "--data.standardize", "--train.loss", "squared_error"]
    small = ["--model.name", "mlp", "--model.hidden", "4", "--train.epochs", "60"]
    assert main(["train", "own.toml", *flags, *small, "--optimizer.learning-rate", "0.1"]) == 0
    run = load_run(here / "runs" / "own")
    predicted = run.predict([[8, 24], [10, 30]])
    np.testing.assert_allclose(predicted, [[1080], [1100]], atol=10)
    assert (run.classes, run.data.target_columns) == ((), ("price",))
    with pytest.raises(InputError, match="predicts values, which have no probabilities"):
        run.probabilities([[8, 24]])


def test_data_in_other_numbers_is_warned_of(here, capsys):
    """0 … 1 where 0 … 16 was, and the other way round; single rows and half of the size are nothing."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 17, (40, 9)).astype(float)
    np.savez("own.npz", x=x, y=np.arange(40) % 2)
    flags = ["--data.path", "own.npz", "--data.divide", "16", "--train.epochs", "1"]
    assert main(["train", "own.toml", *flags]) == 0
    run = load_run("runs/own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (x, x[:1], x[0], x / 2, 2 * x):
            run.predict(fine)
    for wrong in (x / 16, 16 * x, x[0] / 16):
        with pytest.warns(UserWarning, match=r"are about .*, but .* to 16 in what the network"):
            run.predict(wrong)
    np.save("new.npy", x / 16)
    assert main(["predict", "runs/own", "new.npy"]) == 0
    assert "jaxbp: warning: new.npy: the largest numbers of inputs are about" in capsys.readouterr().err
