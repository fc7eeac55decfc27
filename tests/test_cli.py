"""The command: exit codes, one-line errors, and no traceback, also in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import jaxbp
from jaxbp.cli import COMMANDS, main

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


def test_a_package_that_is_not_installed_is_named(capsys, monkeypatch):
    monkeypatch.setitem(COMMANDS, "train", ("no_such_package.module:run", ""))
    assert main(["train"]) == 2
    assert "needs the package 'no_such_package'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"jaxbp {name}" in capsys.readouterr().out


def test_a_process_exits_with_2_and_no_traceback():
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
