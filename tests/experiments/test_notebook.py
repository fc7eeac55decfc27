"""The Colab notebook runs from its first cell to its last, as a reader would run it."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import jaxbp

EXPERIMENTS = Path(jaxbp.__file__).parents[1] / "experiments"


def test_the_colab_notebook(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXPERIMENTS.parent))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(EXPERIMENTS / "colab.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "L        = 0.105491" in text
    assert "∂L/∂w212 = -0.130377" in text
    accuracy = float(text.split("held-out fifth ")[1].split("%")[0])
    assert accuracy >= 97.0
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) == 2


def first_cell(source: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the cell that installs, where jaxbp is not there yet; what it gives to pip."""
    notebook = nbformat.read(EXPERIMENTS / "colab.ipynb", as_version=4)
    code = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert 'SOURCE = ""' in code
    calls = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda argv, check: calls.append(argv))
    exec(code.replace('SOURCE = ""', f"SOURCE = {source!r}"), {})
    (argv,) = calls
    assert argv[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
    return argv[5:]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("git+https://example.org/jaxbp", "git"),
        ("up/jaxbp-0.1.0.whl", "a wheel"),
        ("jaxbp", "a package index"),
    ],
)
def test_it_installs_from_what_it_is_given(source, kind, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "jaxbp-0.1.0.whl").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    given = first_cell(f" {source} ", monkeypatch)
    assert given == [source, "jax", "matplotlib", "scikit-learn"]
    assert f"installing from {kind}: {source}" in capsys.readouterr().out


def test_it_takes_the_wheel_that_was_uploaded_and_a_jax_for_the_gpu(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jaxbp-0.1.0-py3-none-any.whl").touch()
    monkeypatch.setattr(shutil, "which", {"nvidia-smi": "/usr/bin/nvidia-smi"}.get)
    assert first_cell("", monkeypatch)[:2] == ["jaxbp-0.1.0-py3-none-any.whl", "jax[cuda12]"]


@pytest.mark.parametrize(
    ("source", "said"), [("", "upload a wheel"), ("gone.whl", "gone.whl: no such file")]
)
def test_without_anything_to_install_it_says_so(source, said, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        first_cell(source, monkeypatch)
