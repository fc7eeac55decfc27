"""The Colab notebook runs from its first cell to its last, as a reader would run it."""

from pathlib import Path

import nbclient
import nbformat

import jaxbp

EXPERIMENTS = Path(jaxbp.__file__).parents[1] / "experiments"


def test_the_colab_notebook(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXPERIMENTS.parent))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
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
