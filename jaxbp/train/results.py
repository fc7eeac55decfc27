"""What trained runs tell: the commands `evaluate`, `predict` and `runs`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxbp.layer import InputError
from jaxbp.train import report
from jaxbp.train.data.files import read_arrays
from jaxbp.train.task import METRICS, Task, as_values, labels, make_score, make_task
from jaxbp.weights import load_params


def console() -> Console:
    """Where results go; made per call, so that a redirected stdout is respected."""
    width = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, soft_wrap=True, highlight=False, width=width)


def evaluate(argv: Sequence[str]) -> int:
    """`jaxbp evaluate RUN`: loss and accuracy (or R²) on the held-out data, and a table by class."""
    parser = Arguments("evaluate", "reload a run and report on its held-out data")
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits_mlp")
    path = parser.parse_args(argv).run
    task, params = reload(path)
    data, metric = task.data, task.metric
    score = make_score(task.net, task.loss, data.kind)
    value, result, predicted = score(params, data.test_x, data.test_y)
    out = console()
    part = "held-out" if data.held_out else "training"
    out.print(
        f"{path}: {part} {metric.title} {metric.text(result)}, loss {value:.4g}, "
        f"on {len(data.test_x)} examples"
    )
    if data.kind == "classes" and len(data.names) <= report.CONFUSION_LIMIT:
        counts = report.confusion(np.asarray(labels(data.test_y)), predicted, len(data.names))
        out.print(_class_table(counts, data.names))
    return 0


def _class_table(counts: np.ndarray, names: Sequence[str]) -> Table:
    """Precision, recall and the commonest mistake of every class."""
    table = Table("class", "examples", "recall", "precision", "most often taken for", box=None)
    for i, name in enumerate(names):
        right, total, claimed = counts[i, i], counts[i].sum(), counts[:, i].sum()
        wrong = np.where(np.arange(len(names)) == i, 0, counts[i])
        mistake = f"{names[int(wrong.argmax())]} ({wrong.max()})" if wrong.max() else ""
        shares = [f"{right / of:.1%}" if of else "–" for of in (total, claimed)]
        table.add_row(name, str(total), *shares, mistake)
    return table


def predict(argv: Sequence[str]) -> int:
    """`jaxbp predict RUN FILE [--output OUT.csv]`: of every row the likeliest class, or the values."""
    parser = Arguments(
        "predict", "run a trained network on new inputs, on the scale of the original data"
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits_mlp")
    parser.add_argument("file", metavar="FILE", help="a .npy, .npz or .csv with one row an input")
    parser.add_argument("--output", metavar="OUT.csv", help="write the predictions there instead")
    given = parser.parse_args(argv)
    task, params = reload(given.run)
    (raw,) = read_arrays(Path(given.file))
    x = task.data.inputs(raw, given.file)
    prediction = np.asarray(jax.jit(task.net)(params, x), np.float64)
    rows = _class_rows(task, prediction) if task.data.kind == "classes" else _value_rows(task, prediction)
    lines = [",".join(map(str, row)) for row in rows]
    if given.output:
        report.write(Path(given.output), "\n".join(lines) + "\n")
        print(f"{len(x)} predictions written to {given.output}")
    else:
        print("\n".join(lines))
    return 0


def _class_rows(task: Task, prediction: np.ndarray) -> list[tuple[Any, ...]]:
    """A header, then the likeliest class of every row and its probability."""
    p = probabilities(prediction)
    best, names = p.argmax(axis=-1), task.data.names
    rows = [(i, names[k], f"{p[i, k]:.6f}") for i, k in enumerate(best)]
    return [("row", "class", "probability"), *rows]


def _value_rows(task: Task, prediction: np.ndarray) -> list[tuple[Any, ...]]:
    """A header, then the predicted values of every row, on the scale of the original data."""
    values = task.data.target_scale.undo(np.asarray(as_values(task.loss, prediction)))
    names = [f"y{i + 1}" for i in range(values.shape[1])] if values.shape[1] > 1 else ["y"]
    return [("row", *names), *((i, *(f"{v:.6g}" for v in row)) for i, row in enumerate(values))]


def probabilities(prediction: np.ndarray) -> np.ndarray:
    """Softmax of logits, of a single one its sigmoid; a distribution is left as it is."""
    if prediction.shape[-1] == 1:
        prediction = np.concatenate([np.zeros_like(prediction), prediction], axis=-1)
    elif (prediction >= 0).all() and np.allclose(prediction.sum(axis=-1), 1, atol=1e-5):
        return prediction
    e = np.exp(prediction - prediction.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def runs(argv: Sequence[str]) -> int:
    """`jaxbp runs [FOLDER]`: a table of the runs in a folder."""
    parser = Arguments("runs", "list the runs in a folder")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="default: runs")
    folder = Path(parser.parse_args(argv).folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of runs")
    found = sorted(p.parent for p in folder.glob("*/config.toml"))
    table = Table(
        "run", "accuracy or R²", "loss", "epochs", "stopped", "parameters", "seconds", "device", box=None
    )
    for path in found:
        table.add_row(path.name, *_run_row(path / "summary.json"))
    console().print(table if found else f"{folder}: no runs yet")
    return 0


def _run_row(path: Path) -> list[str]:
    try:
        s = json.loads(path.read_text(encoding="utf-8"))
        metric = next(m for m in METRICS.values() if f"test_{m.key}" in s)
        return [
            metric.text(s[f"test_{metric.key}"]),
            f"{s['test_loss']:.4g}",
            str(s["epochs"]),
            s["stopped"].split(":")[0],
            f"{s['parameters']:,}",
            f"{s['seconds']:.1f}",
            s["device"],
        ]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return ["–", "–", "–", "no summary", "–", "–", "–"]


def reload(path: str) -> tuple[Task, Any]:
    """A run's task and trained parameters."""
    task = make_task(report.open_run(Path(path)))
    like = jax.eval_shape(task.init, jax.random.key(0))
    return task, load_params(Path(path) / "params.safetensors", like)


class Arguments(argparse.ArgumentParser):
    """Arguments of a small command, with errors on one line."""

    def __init__(self, command: str, text: str):
        super().__init__(prog=f"jaxbp {command}", description=text)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('jaxbp ')}: {message}")
