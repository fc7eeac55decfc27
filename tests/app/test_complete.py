"""A run's folder is complete: what uses it needs nothing else, and what goes on from it is checked."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from jaxbp.app import loop
from jaxbp.app.checkpoint import Checkpoints
from jaxbp.app.config import read_config
from jaxbp.app.data.description import describe, described
from jaxbp.app.loop import State
from jaxbp.app.pictures import draw_confusion, draw_curves, draw_fit, draw_images
from jaxbp.app.report import to_json
from jaxbp.app.run import reload
from jaxbp.app.task import METRICS, make_task
from jaxbp.cli import main
from jaxbp.layer import InputError

pytestmark = pytest.mark.usefixtures("standard_promotion")

CONFIG = """
[data]
name = "file"
path = "{path}"
targets = "values"
standardize = true

[model]
hidden = []

[optimizer]
learning_rate = 0.1

[train]
loss = "squared_error"
epochs = 20
batch_size = 8
checkpoint_every = 2
prove = false
"""


def strict(text):
    """JSON without `NaN` and `Infinity`."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def write_table(path, rows=40, factor=2, names="hour,load,price"):
    hours, loads = 1700000000 + np.arange(rows) * 60, np.arange(rows) * 7 % 13
    prices = 5e6 + factor * loads + hours % 11
    lines = (f"{h},{w},{p}" for h, w, p in zip(hours, loads, prices, strict=True))
    path.write_text("\n".join([names, *lines]) + "\n")


@pytest.fixture
def priced(tmp_path):
    """`(a function that trains, the run's folder, its data, a file to predict)`."""
    write_table(tmp_path / "table.csv")
    (tmp_path / "priced.toml").write_text(CONFIG.format(path=tmp_path / "table.csv"))
    (tmp_path / "new.csv").write_text("hour,load\n1700000060,7\n1700000300,9\n")

    def train(*flags):
        return main(["train", str(tmp_path / "priced.toml"), "--run.folder", str(tmp_path / "r"), *flags])

    return train, tmp_path / "r" / "priced", tmp_path / "table.csv", tmp_path / "new.csv"


# --- nothing else is needed ---------------------------------------------------------------------------


def test_predictions_stay_when_the_file_changes_or_goes(priced, capsys):
    train, run, table, new = priced
    assert train() == 0
    capsys.readouterr()

    def predicted():
        assert main(["predict", str(run), str(new)]) == 0
        return capsys.readouterr().out

    before = predicted()
    lines = before.splitlines()
    assert lines[0] == "row,price"
    assert all(abs(float(line.split(",")[1]) - 5e6 - 20) < 30 for line in lines[1:])
    assert lines[1].split(",")[1] != lines[2].split(",")[1]
    write_table(table, rows=50, factor=900)
    assert predicted() == before
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"jaxbp: error: {run}: the data is no longer that of the run: rows (training + held out) were "
        "32 + 8, now 40 + 10; what was held out is then not known (predict needs no data)\n"
    )
    table.unlink()
    moved = run.parent / "moved"
    shutil.move(run, moved)
    run.parent.joinpath("priced").mkdir()
    shutil.copytree(moved, run, dirs_exist_ok=True)
    assert predicted() == before
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"jaxbp: error: {run}: the held-out examples are needed and not in the run: {table}: no such "
        "file\n"
    )


def test_a_run_from_before_is_read_with_its_data_and_not_without(priced, capsys):
    train, run, table, new = priced
    assert train() == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(new)]) == 0
    before = capsys.readouterr().out
    (run / "data.json").unlink()
    assert main(["predict", str(run), str(new)]) == 0
    assert capsys.readouterr().out == before
    assert main(["evaluate", str(run)]) == 0
    table.unlink()
    assert main(["predict", str(run), str(new)]) == 2
    assert f"has no data.json (it was trained before there was one), so its data is needed: {table}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": "jaxbp da', "truncated or not JSON"),
        ("[]", 'expected a "jaxbp data" of version 1, got version None'),
        ('{"format": "jaxbp data", "version": 2}', "of version 1, got version 2"),
        ('{"format": "jaxbp data", "version": 1}', "damaged: KeyError: 'inputs'"),
    ],
)
def test_a_description_that_is_damaged(trained, tmp_path, text, says, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "data.json").write_text(text)
    np.save(tmp_path / "x.npy", np.zeros((1, 6)))
    assert main(["predict", str(copy), str(tmp_path / "x.npy")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"jaxbp: error: {copy}/data.json: ")
    assert says in err


@pytest.mark.parametrize("name", ["digits_mlp", "digits_autoencoder", "breast_cancer", "digits_lenet"])
def test_a_description_builds_the_same_network(name):
    from tests.app.test_tasks import CONFIGS

    task = make_task(read_config(CONFIGS / f"{name}.toml"))
    again = described(json.loads(to_json(describe(task.data))))
    assert again.shape == task.data.shape
    assert (again.names, again.outputs, again.kind) == (
        task.data.names,
        task.data.outputs,
        task.data.kind,
    )
    raw = task.data.scale.undo(task.data.test_x[:3])
    np.testing.assert_array_equal(again.inputs(raw, "x"), task.data.inputs(raw, "x"))


def test_text_goes_on_without_the_text(tmp_path, capsysbinary):
    text = tmp_path / "text"
    text.write_bytes(bytes(range(32, 127)) * 20)
    config = tmp_path / "t.toml"
    config.write_text(
        f'[data]\nname = "text"\npath = "{text}"\nlength = 8\n[model]\nname = "char_lstm"\nfeatures = 4\n'
        "embedding = 3\n[train]\nepochs = 1\nprove = false\n"
    )
    assert main(["train", str(config), "--run.folder", str(tmp_path)]) == 0
    text.unlink()
    run = str(tmp_path / "t")
    capsysbinary.readouterr()
    (tmp_path / "prompt").write_bytes(b"caf\xe9 ")
    for prompt in (
        ["--prompt", "café"],
        ["--prompt", b"caf\xe9".decode("utf-8", "surrogateescape")],  # as the shell hands it on
        ["--prompt-file", str(tmp_path / "prompt")],
    ):
        for heat in ("1", "0", "1e-45", "1e-300", "1e-30"):
            assert main(["sample", run, *prompt, "--length", "3", "--temperature", heat]) == 0
            assert capsysbinary.readouterr().out.startswith(b"caf")
    (tmp_path / "prompt").write_bytes(b"")
    for flags, says in (
        (["--temperature", "nan"], b"temperature: expected a finite number, at least 0, got nan"),
        (["--temperature", "inf"], b"temperature: expected a finite number, at least 0, got inf"),
        (["--temperature", "-1"], b"temperature: expected a finite number, at least 0, got -1.0"),
        (["--prompt", ""], b"--prompt: expected at least one character, got none"),
        (["--prompt", "a\ud800"], b"expected characters that UTF-8 can write, got '\\ud800' at 1"),
        (["--prompt-file", str(tmp_path / "prompt")], b"--prompt-file: expected at least one byte in "),
        (["--prompt-file", str(tmp_path / "none")], b"none: no such file"),
    ):
        assert main(["sample", run, *flags]) == 2
        err = capsysbinary.readouterr().err
        assert says in err
        assert err.count(b"\n") == 1
    np.save(tmp_path / "x.npy", np.zeros((1, 8), np.uint8))
    assert main(["predict", run, str(tmp_path / "x.npy")]) == 2
    assert b"is a network for text; jaxbp sample lets it go on with one" in capsysbinary.readouterr().err


# --- resuming on other data ---------------------------------------------------------------------------


def test_other_data_is_refused_with_what_differs(priced, capsys):
    train, run, table, _ = priced
    assert train("--train.epochs", "2") == 0
    for change, says in (
        ({"rows": 45}, "rows (training + held out) were 32 + 8, now 36 + 9"),
        ({"names": "hour,demand,price"}, "columns were hour, load, now hour, demand"),
        ({"names": "hour,load,cost"}, "the target's column was price, now cost"),
        ({"factor": 3}, "targets are others"),
    ):
        write_table(table, **change)
        capsys.readouterr()
        assert train("--resume") == 2
        assert capsys.readouterr().err == (
            f"jaxbp: error: {run}: cannot resume on other data: {says} (--resume-on-other-data goes on "
            "all the same)\n"
        )
    write_table(table)
    table.write_text(table.read_text().replace("1700000060,7", "1700000061,7"))
    assert train("--resume") == 2
    assert "cannot resume on other data: values of the inputs are others" in capsys.readouterr().err
    table.write_text("a,b,c,price\n" + "\n".join(f"{i},1,{i % 3},{i * i}" for i in range(40)))
    assert train("--resume-on-other-data") == 2
    err = capsys.readouterr().err
    assert "cannot resume on this data, which takes another network: an input's shape was 2, now 3" in err
    # the same data elsewhere, written otherwise, is the same data
    write_table(table)
    other = table.with_name("other.csv")
    other.write_text("\ufeff" + table.read_text().replace(",", ";").replace("\n", "\r\n"))
    table.unlink()
    assert train("--resume", "--train.epochs", "4", "--data.path", str(other)) == 0
    write_table(other, factor=3)
    capsys.readouterr()
    flags = ("--train.epochs", "6", "--data.path", str(other))
    assert train("--resume-on-other-data", *flags) == 0
    out = capsys.readouterr().out
    assert "other data than before: targets are others" in out
    assert "resumed   after epoch 4" in out
    assert train("--resume", "--train.epochs", "8", "--data.path", str(other)) == 0  # its own by now


def test_other_labels_are_refused_in_a_sweep_too(tmp_path, small, capsys):
    config = read_config(small)
    with np.load(config.data.path) as arrays:  # pyright: ignore[reportAttributeAccessIssue]
        x, y = arrays["x"], arrays["y"]
    path = tmp_path / "blobs.npz"
    np.savez(path, x=x, y=y)
    flags = ["--run.folder", str(tmp_path), "--data.path", str(path), "--sweep.seeds", "0", "1"]
    assert main(["train", str(small), *flags, "--train.epochs", "2"]) == 0
    for labels, says in (
        (np.roll(y, 3)[::-1].copy(), "labels are others"),
        (y + 1, "labels were 0, 1, 2, now 1, 2, 3"),
    ):
        np.savez(path, x=x, y=labels)
        capsys.readouterr()
        assert main(["train", str(small), *flags, "--resume"]) == 2
        assert f"cannot resume on other data: {says}" in capsys.readouterr().err


# --- checkpoints that are damaged ---------------------------------------------------------------------


def states(count=2):
    """States that differ in every number."""
    for i in range(count):
        p = {"w": jax.random.normal(jax.random.key(i), (5, 3), jnp.float32), "b": jnp.arange(3) + i}
        yield State(p, optax.sgd(0.1, momentum=0.9).init(p), epoch=i + 1, step=i, loss=0.1 * i)


def same(a, b):
    trees = [jax.tree.leaves((s.params, s.opt_state, s.epoch, s.step, s.loss)) for s in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*trees, strict=True))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with Checkpoints(folder, 10) as checkpoints:
        for state in states():
            checkpoints.save(state)
    return folder


def damaged_files(folder):
    newest = folder / "checkpoints" / "21"
    return sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("how", ["truncated", "flipped", "removed"])
def test_a_damaged_checkpoint_is_never_gone_on_from(two_checkpoints, tmp_path, how):
    """Each file in turn."""
    old, new = states()
    for i, original in enumerate(damaged_files(two_checkpoints)):
        folder = tmp_path / str(i)
        shutil.copytree(two_checkpoints, folder)
        path = folder / original.relative_to(two_checkpoints)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 16
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(raw if how == "flipped" else raw[: len(raw) // 2])
        with Checkpoints(folder, 10) as checkpoints:
            state, lines = checkpoints.restore(new)
            assert same(state, old), original
            name = path.relative_to(folder / "checkpoints" / "21")
            what = f"file {name} is {'missing' if how == 'removed' else 'not what was written'}"
            assert lines == [
                f"checkpoint 21 cannot be used: its {what}",
                "going on from the older checkpoint 10; the damaged is in damaged/",
            ]
            assert (folder / "damaged" / "21").is_dir()  # nothing is lost
            checkpoints.save(new)
            assert same(checkpoints.restore(old)[0], new)


def test_the_record_of_hashes_may_be_missing_but_not_wrong(two_checkpoints, tmp_path):
    """A run from before there was one goes on; a record that says something else is no record."""
    _, new = states()
    folder = tmp_path / "kept"
    shutil.copytree(two_checkpoints, folder)
    record = folder / "checkpoints.json"
    assert set(strict(record.read_text())) == {"10", "21"}
    record.write_text(record.read_text()[:-9])
    with Checkpoints(folder, 10) as checkpoints:
        with pytest.raises(InputError, match="truncated or not JSON"):
            checkpoints.restore(new)
        record.unlink()
        state, lines = checkpoints.restore(new)
        assert same(state, new)
        assert lines == []


def test_no_checkpoint_is_whole(two_checkpoints, tmp_path):
    folder = tmp_path / "kept"
    shutil.copytree(two_checkpoints, folder)
    for path in (folder / "checkpoints").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1])
    with Checkpoints(folder, 10) as checkpoints, pytest.raises(InputError) as error:
        checkpoints.restore(next(states()))
    assert "no checkpoint can be used: checkpoint 21 cannot be used: " in str(error.value)
    assert "train anew with --run.overwrite" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(list((folder / "checkpoints").iterdir())) == 2


def test_a_run_goes_on_from_the_older_checkpoint_to_the_same_bits(tmp_path, small, trained, capsys):
    flags = ["--run.folder", str(tmp_path)]
    assert main(["train", str(small), *flags, "--train.epochs", "3"]) == 0
    newest = max((tmp_path / "small" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for path in newest.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-7])
    assert main(["train", str(small), *flags, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "note      checkpoint 9 cannot be used: " in out
    assert "resumed   after epoch 2" in out
    a, b = (load_file(path / "params.safetensors") for path in (tmp_path / "small", trained))
    assert all(np.array_equal(a[name], b[name]) for name in b)


# --- the smallest and the most awkward runs -----------------------------------------------------------


def test_ctrl_c_before_the_first_checkpoint_can_be_gone_on_from(
    tmp_path, small, trained, monkeypatch, capsys
):
    def interrupt(*_):
        raise KeyboardInterrupt

    flags = ["train", str(small), "--run.folder", str(tmp_path)]
    for sweep in ([], ["--sweep.seeds", "0", "1"]):
        name = ["--run.name", f"cut{len(sweep)}", *sweep]
        with monkeypatch.context() as patch:
            if sweep:
                patch.setattr("jaxbp.app.sweep.measure", interrupt)
            else:
                patch.setattr(loop, "all_finite", interrupt)
            assert main([*flags, *name]) == 130
        assert "interrupted after 0 epochs; --resume goes on from there" in capsys.readouterr().out
        assert main([*flags, *name, "--resume"]) == 0
        assert "resumed   after epoch 0" in capsys.readouterr().out
    a, b = (load_file(path / "params.safetensors") for path in (tmp_path / "cut0", trained))
    assert all(np.array_equal(a[name], b[name]) for name in b)


def test_one_held_out_row_has_no_r2(tmp_path, capsys):
    write_table(tmp_path / "table.csv", rows=5)
    config = tmp_path / "one.toml"
    config.write_text(
        CONFIG.format(path=tmp_path / "table.csv").replace("batch_size = 8", "batch_size = 2")
    )
    for name, flags in (
        ("plain", []),
        ("images", ["--model.name", "autoencoder", "--model.features", "2"]),
        ("swept", ["--sweep.seeds", "0", "1"]),
    ):
        where = ["--run.folder", str(tmp_path), "--run.name", name, "--train.epochs", "2"]
        assert main(["train", str(config), *where, *flags]) == 0
        out = capsys.readouterr().out
        assert "R² –" in out or name == "swept"
        summary = strict((tmp_path / name / "summary.json").read_text())
        assert summary["test_r2"] is None
        for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines():
            strict(line)
        assert (tmp_path / name / "curves.png").stat().st_size > 1000
        assert main(["evaluate", str(tmp_path / name)]) == 0
        assert "R² –" in capsys.readouterr().out
        where[-1] = "4"
        assert main(["train", str(config), *where, *flags, "--resume"]) == 0
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    assert "–" in capsys.readouterr().out


def test_json_has_no_word_for_infinity():
    value = {"a": [float("nan"), float("-inf"), 1.5, "NaN"], "b": (np.float64("inf"), None, True)}
    assert strict(to_json(value)) == {"a": [None, None, 1.5, "NaN"], "b": [None, None, True]}


def test_pictures_of_what_is_missing(tmp_path):
    none = {"epoch": 1, "loss": float("inf"), "test_loss": None, "r2": None, "test_r2": float("nan")}
    draw_curves(tmp_path / "a.png", [none, {**none, "epoch": 2}], "costs $1 and $2", METRICS["values"])
    draw_confusion(tmp_path / "b.png", np.asarray([[0, 1], [0, 0]]), ("$x^", "猫"))
    draw_fit(tmp_path / "c.png", np.zeros(1), np.zeros(1))
    draw_images(tmp_path / "d.png", np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4, 1)))
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in "abcd")


def test_reloading_needs_no_examples(trained):
    task, params = reload(str(trained))
    assert len(task.data.x) == 0
    assert task.net(params, jnp.zeros((2, 6), jnp.float32)).shape == (2, 3)
