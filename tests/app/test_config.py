"""Configs: every mistake is one exact line, files and flags agree, and nothing is lost on the way."""

from pathlib import Path

import msgspec
import pytest

import jaxbp.app.config as config_module
from jaxbp.app.config import (
    DIGITS_MLP,
    REGISTRIES,
    Config,
    find_config,
    listed_configs,
    read_config,
    same_run,
)
from jaxbp.app.flags import Asked, Resume, override
from jaxbp.cli import main
from jaxbp.layer import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))

WRONG = {
    # what the file says                       what the error says after "x.toml: "
    '[train]\nepochs = "ten"': 'train.epochs: expected a positive integer, got "ten"',
    "[train]\nepochs = 0": "train.epochs: expected a positive integer, got 0",
    "[train]\nepochs = 1.5": "train.epochs: expected a positive integer, got 1.5",
    "[train]\nepochs = true": "train.epochs: expected a positive integer, got true",
    "[train]\nepoch = 3": 'train.epoch: unknown field; did you mean "epochs"?',
    "[train]\nbatch_size = 0": "train.batch_size: expected a positive integer, got 0",
    "[train]\nseed = -1": "train.seed: expected an integer >= 0, got -1",
    '[train]\nshuffle = "yes"': 'train.shuffle: expected true or false, got "yes"',
    "[train]\nstop_below = -0.1": "train.stop_below: expected a number >= 0, got -0.1",
    '[train]\nloss = "hinge"': "train.loss: expected one of cross_entropy, sigmoid_cross_entropy, "
    'squared_error, got "hinge"',
    "[optimizer]\nlearning_rate = -0.1": "optimizer.learning_rate: expected a positive number, got -0.1",
    "[optimizer]\nlearning_rate = 0": "optimizer.learning_rate: expected a positive number, got 0",
    "[optimizer]\nlearning_rate = nan": "optimizer.learning_rate: expected a positive number, got nan",
    "[optimizer]\nlearning_rate = inf": "optimizer.learning_rate: expected a positive number, got inf",
    "[optimizer]\nmomentum = 1.0": "optimizer.momentum: expected a number >= 0 and < 1, got 1.0",
    '[optimizer]\nname = "adma"': "optimizer.name: expected one of sgd, adam, adamw, rmsprop, lion, "
    'kfac, got "adma"; did you mean "adam"?',
    '[optimizer]\nname = "adam"\nmomentum = 0.9': "optimizer.momentum: unknown field; expected one of "
    "name, learning_rate, schedule, warmup, clip, b1, b2, epsilon",
    '[train]\nloss = "squared_error"\nlabel_smoothing = 0.1': "train.label_smoothing: expected 0, since "
    'train.loss is "squared_error" and not "cross_entropy", got 0.1',
    "[train]\nlabel_smoothing = 1.0": "train.label_smoothing: expected a number >= 0 and < 1, got 1.0",
    "[optimizer]\nwarmup = 41": "optimizer.warmup: expected at most train.epochs = 40, got 41",
    "[data]\ntest_share = 1.5": "data.test_share: expected a number > 0 and < 1, got 1.5",
    '[data]\nname = "digit"': "data.name: expected one of digits, mnist, cifar, breast_cancer, diabetes, "
    'notes, file, images, text, got "digit"; '
    'did you mean "digits"?',
    '[model]\nname = "mpl"': None,  # the list of models grows; see below
    '[model]\nactivation = "rleu"': "model.activation: expected one of relu, sigmoid, tanh, leaky_relu, "
    'elu, silu, gelu, softplus, identity, got "rleu"',
    "[model]\nhidden = [0]": "model.hidden: expected a list of positive integers, got [0]",
    "[model]\nhidden = 128": "model.hidden: expected a list of positive integers, got 128",
    "[model]\ndropout = 1": "model.dropout: expected a number >= 0 and < 1, got 1",
    '[model]\noutput = "softmax"': 'model.output: expected "logits", since train.loss = "cross_entropy" '
    'applies its own, got "softmax"',
    '[run]\nname = "a/b"': 'run.name: expected the name of a folder, got "a/b"',
    "[sweep]\nlearning_rates = [0.1, -1]": "sweep.learning_rates: expected a list of positive numbers, "
    "got [0.1, -1]",
    "[sweep]\nseeds = [-1]": "sweep.seeds: expected a list of integers >= 0, got [-1]",
    "[trian]\nepochs = 3": 'trian: unknown section; did you mean "train"?',
    "train = 3": "train: expected a section [train], got 3",
    "model = 3": None,
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_in_a_file_is_one_line_that_names_the_field(tmp_path, text, capsys):
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert main(["train", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    if WRONG[text] is not None:
        assert err == f"jaxbp: error: {path}: {WRONG[text]}\n"
    else:
        assert err.startswith(f"jaxbp: error: {path}: model")


def test_an_unknown_model_gets_the_closest_name(tmp_path, capsys):
    path = tmp_path / "x.toml"
    path.write_text('[model]\nname = "mpl"')
    assert main(["train", str(path)]) == 2
    assert capsys.readouterr().err.endswith('got "mpl"; did you mean "mlp"?\n')


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.epochs", "ten"], '--train.epochs: expected a positive integer, got "ten"'),
        (["--train.epochs=ten"], '--train.epochs: expected a positive integer, got "ten"'),
        (["--train.epochs", "0"], "--train.epochs: expected a positive integer, got 0"),
        (["--train.epochs"], "--train.epochs: expected one value, got 0"),
        (["--train.epochs", "3", "4"], "--train.epochs: expected one value, got 2"),
        (["--train.epoch", "3"], '--train.epoch: unknown flag; did you mean "epochs"?'),
        (
            ["--optimizer.learning-rate", "-1"],
            "--optimizer.learning_rate: expected a positive number, got -1.0",
        ),
        (
            ["--optimizer.learning-rate", "nan"],
            "--optimizer.learning_rate: expected a positive number, got nan",
        ),
        (["--data.test-share", "1.5"], "--data.test_share: expected a number > 0 and < 1, got 1.5"),
        (
            ["--model.hidden", "64", "x"],
            '--model.hidden: expected a list of positive integers, got ["64", "x"]',
        ),
        (
            ["--train.shuffle", "no"],
            "--train.shuffle: expected no value (--train.shuffle or its --no- form), got 'no'",
        ),
        (
            ["--optimizer.name", "adma"],
            "--optimizer.name: expected one of sgd, adam, adamw, rmsprop, lion, kfac, "
            'got "adma"; did you mean "adam"?',
        ),
        (
            ["--optimizer.name", "adam", "--optimizer.momentum", "0.9"],
            "--optimizer.momentum: unknown flag; expected one of name, learning_rate, "
            "schedule, warmup, clip, b1, b2, epsilon",
        ),
        (["--trian.epochs", "3"], '--trian.epochs: unknown flag; did you mean "train.epochs"?'),
        (
            ["--resume", "x.toml"],
            "--resume: expected no value (--resume or its --no- form), got 'x.toml'",
        ),
        (["-x"], "-x: expected a flag such as --train.epochs 40 (CONFIG comes first)"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line_that_names_the_flag(flags, message, capsys):
    assert main(["train", *flags]) == 2
    assert capsys.readouterr().err == f"jaxbp: error: {message}\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.toml", None, "no such file"),
        ("x.toml", "epochs = = 3", "not valid TOML: Invalid value (at line 1, column 10)"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, text, message, capsys):
    path = tmp_path / name
    if text:
        path.write_text(text)
    assert main(["train", str(path)]) == 2
    assert capsys.readouterr().err == f"jaxbp: error: {path}: {message}\n"


def test_a_config_that_is_not_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.toml").write_text("")
    assert main(["train", "yours"]) == 2
    names = ", ".join(sorted([*(path.stem for path in CONFIGS), "mine"]))
    message = f"jaxbp: error: yours: no such config, expected a TOML file or one of {names}\n"
    assert capsys.readouterr().err == message


def test_a_name_is_found_here_then_beside_the_code(tmp_path, monkeypatch):
    """From an empty folder, too; a file of one's own goes before the one that came with jaxbp."""
    monkeypatch.chdir(tmp_path)
    assert find_config("digits_lenet") == ROOT / "configs" / "digits_lenet.toml"
    assert find_config(None) == ROOT / "configs" / "digits_mlp.toml"
    (tmp_path / "configs").mkdir()
    own = Path("configs", "digits_lenet.toml")
    own.write_text("")
    assert find_config("digits_lenet") == own


def test_a_wheel_has_the_configs_inside(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "jaxbp"
    for folder in (package / "configs", package / "train", package.parent / "configs"):
        folder.mkdir(parents=True)
    inside = package / "configs" / "theirs.toml"
    inside.write_text("")
    (package.parent / "configs" / "of_another_package.toml").write_text("")
    monkeypatch.setattr(config_module, "__file__", str(package / "train" / "config.py"))
    monkeypatch.chdir(tmp_path)
    assert listed_configs() == {"theirs": inside}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_are_valid_and_come_back_from_toml(path, tmp_path):
    config = read_config(path)
    assert config.run.name == path.stem
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "again.toml") == config


def test_the_default_config_is_digits_mlp():
    assert read_config(ROOT / "configs" / "digits_mlp.toml") == DIGITS_MLP


def test_every_kind_has_its_name_and_comes_back_from_toml(tmp_path):
    for section, registry in REGISTRIES.items():
        for name, kind in registry.items():
            assert kind().name == name
            config = msgspec.structs.replace(Config(), **{section: kind()})
            (tmp_path / "x.toml").write_text(config.to_toml())
            assert getattr(read_config(tmp_path / "x.toml"), section) == kind()


def test_texts_are_quoted_on_the_way_to_toml(tmp_path):
    run = msgspec.structs.replace(Config().run, folder='a "b"\\c\nπ', name="x")
    config = msgspec.structs.replace(Config(), run=run)
    (tmp_path / "x.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "x.toml") == config


def test_flags_override_every_kind_of_field():
    config, asked = override(
        DIGITS_MLP,
        [
            "--train.epochs",
            "7",
            "--run.folder=there",
            "--model.hidden",
            "4",
            "5",
            "--train.no-shuffle",
            "--data.test_share",
            "0.5",
            "--optimizer.learning-rate",
            "1e-2",
            "--sweep.seeds",
            "1",
            "2",
            "--resume",
        ],
        "",
    )
    assert (config.train.epochs, config.run.folder, config.train.shuffle) == (7, "there", False)
    assert (config.model.hidden, config.data.test_share) == ((4, 5), 0.5)  # pyright: ignore
    assert (config.optimizer.learning_rate, config.sweep.seeds) == (0.01, (1, 2))
    assert asked == Asked(Resume(asked=True))
    assert override(DIGITS_MLP, [], "") == (DIGITS_MLP, Asked(Resume()))
    assert override(DIGITS_MLP, ["--resume-on-other-data"], "")[1].resume.on_other_data
    assert not Resume()


def test_another_kind_by_flag_keeps_what_both_kinds_have():
    config, _ = override(DIGITS_MLP, ["--optimizer.name", "adam", "--optimizer.b1", "0.8"], "")
    assert config.optimizer == REGISTRIES["optimizer"]["adam"](name="adam", learning_rate=0.3, b1=0.8)


def test_help_shows_every_config_and_every_field_with_its_default(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"By name: {', '.join(path.stem for path in CONFIGS)}." in text
    for section, values in DIGITS_MLP.sections().items():
        for field in values:
            assert f"--{section}.{field.replace('_', '-')}" in text
    assert "examples a step" in text
    assert "(default: 100)" in text


def test_what_a_resumed_run_may_change():
    def changed(**fields):
        return msgspec.structs.replace(
            DIGITS_MLP, train=msgspec.structs.replace(DIGITS_MLP.train, **fields)
        )

    assert same_run(DIGITS_MLP, changed(epochs=200, stop_below=0.1)) == []
    assert same_run(DIGITS_MLP, changed(seed=1)) == ["train.seed was 0, is 1"]
    cosine = msgspec.structs.replace(DIGITS_MLP.optimizer, schedule="cosine")
    a = msgspec.structs.replace(DIGITS_MLP, optimizer=cosine)
    b = msgspec.structs.replace(changed(epochs=200), optimizer=cosine)
    assert same_run(a, b) == ["train.epochs was 100, is 200"]


def test_a_message_is_an_input_error():
    with pytest.raises(InputError, match="no such file"):
        read_config(Path("nowhere.toml"))


@pytest.mark.parametrize("name", ["digits_lenet", "gpt", "diabetes"])
def test_a_new_config_has_every_field_with_its_meaning_and_is_the_same(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", name, "mine.toml", "--train.epochs", "7"]) == 0
    mine, theirs = read_config(tmp_path / "mine.toml"), read_config(ROOT / "configs" / f"{name}.toml")
    train = msgspec.structs.replace(theirs.train, epochs=7)
    run = msgspec.structs.replace(theirs.run, name="mine")
    assert mine == msgspec.structs.replace(theirs, train=train, run=run)
    lines = (tmp_path / "mine.toml").read_text().splitlines()
    for section, values in mine.sections().items():
        assert f"[{section}]" in lines
        for key in values:  # each has at least a word on what it means
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
            assert len(lines[at - 1]) > len("# word")
            lines.pop(at)


def test_a_config_is_printed_and_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits_mlp", "--data.name", "file", "--print-config"]) == 0
    (tmp_path / "printed.toml").write_text(text := capsys.readouterr().out)
    assert read_config(tmp_path / "printed.toml").data == REGISTRIES["data"]["file"]()
    assert "# η: the size of a step (default: 0.1)\nlearning_rate = 0.3" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits_mlp"], "new: expected jaxbp new CONFIG FILE.toml"),
        (["digits_mlp", "x.txt"], "x.txt: expected the name of a .toml file"),
        (["digits_mlp", "there.toml"], "there.toml: is there already"),
        (["digits_mpl", "x.toml"], "digits_mpl: no such config"),
    ],
)
def test_a_new_config_overwrites_nothing(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("[data]")
    assert main(["new", *argv]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]


def test_help_lists_what_every_name_may_be_and_the_fields_of_a_kind(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help", "data.name=file"])
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for registry in REGISTRIES.values() for name in registry)
    assert "--data.test-path" in text
    assert "--print-config" in text


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[train]\npatience = 3", "train.patience: expected train.validation_share above 0"),
        (
            "[train]\nvalidation_share = 0.1\n[sweep]\nseeds = [1, 2]",
            "train.validation_share: expected 0 for a sweep",
        ),
        (
            "[train]\nvalidation_share = 0.1\n[private]\nclip_examples = 1.0",
            "train.validation_share: expected 0 in a private run",
        ),
        ('[model]\nname = "mine:build:it"', "model.name: expected one of mlp"),
    ],
)
def test_fields_that_do_not_go_together(section, message, tmp_path):
    (tmp_path / "x.toml").write_text(section)
    with pytest.raises(InputError) as error:
        read_config(tmp_path / "x.toml")
    assert str(error.value).startswith(f"{tmp_path / 'x.toml'}: {message}")
