"""The command: exit codes, one-line errors, and no traceback, also in a process of its own."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxbp
from jaxbp import cli
from jaxbp.cli import COMMANDS, PACKAGES, main

ROOT = Path(__file__).resolve().parents[1]


def test_usage_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and about in text for name, (_, about) in COMMANDS.items())
    assert main([]) == 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxbp {jaxbp.__version__}\n"


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.startswith(
        "jaxbp: error: unknown command 'trian'; did you mean 'train'?"
    )


@pytest.mark.parametrize("name", ["msgspec", "sklearn.datasets", "orbax"])
def test_a_package_that_is_not_installed_is_named(name, capsys, monkeypatch, tmp_path):
    """At the start of a command, or deep in it; by the name that pip knows, with what else is missing."""
    top = name.split(".")[0]
    (tmp_path / f"late_{top}.py").write_text(f"def run(argv):\n    import {name}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "train", (f"late_{top}:run", ""))
    for module in (name, top):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(cli, "find_spec", lambda module: module not in (top, "rich"))
    assert main(["train"]) == 2
    package = PACKAGES[top]
    assert capsys.readouterr().err == (
        f"jaxbp: error: this command needs the package {package!r}, which is not installed: pip install "
        f"{package} rich (or, in a checkout of jaxbp: pip install '.[train]')\n"
    )


def test_a_package_that_is_none_of_ours_is_an_error_like_any_other(monkeypatch):
    monkeypatch.setitem(COMMANDS, "train", ("no_such_package.module:run", ""))
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


def test_the_packages_that_are_named_are_those_of_the_extra():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "train"
    ]
    assert sorted(PACKAGES.values()) == sorted(line.split(">")[0] for line in extra)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"jaxbp {name}" in capsys.readouterr().out


def test_a_process_exits_with_2_and_no_traceback():
    pytest.importorskip("tyro")
    done = subprocess.run(
        [sys.executable, "-m", "jaxbp", "train", "--train.epochs", "ten"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == 'jaxbp: error: --train.epochs: expected a positive integer, got "ten"\n'
