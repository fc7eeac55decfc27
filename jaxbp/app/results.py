"""What trained runs tell: the commands `evaluate`, `predict` and `runs`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxbp.app import report
from jaxbp.app.data import Dataset
from jaxbp.app.data.cells import Cells, read_cells
from jaxbp.app.data.description import FILE, describe, described, differences, read_description
from jaxbp.app.data.files import TABLES, read_arrays, require
from jaxbp.app.task import METRICS, Task, as_values, labels, make_score, make_task, task_of
from jaxbp.layer import InputError
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
    task, params = with_examples(path)
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
        table.add_row(escape(name), str(total), *shares, escape(mistake))
    return table


def predict(argv: Sequence[str]) -> int:
    """`jaxbp predict RUN FILE [--output OUT.csv]`: of every row the likeliest class, or the values."""
    parser = Arguments(
        "predict", "run a trained network on new inputs, on the scale of the original data"
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits_mlp")
    parser.add_argument("file", metavar="FILE", help="a .csv, .tsv, .npy or .npz with one row an input")
    parser.add_argument("--output", metavar="OUT.csv", help="write the predictions there instead")
    given = parser.parse_args(argv)
    task, params = reload(given.run)
    if np.issubdtype(task.data.x.dtype, np.integer):
        raise InputError(f"{given.run}: is a network for text; jaxbp sample lets it go on with one")
    x = task.data.inputs(*_read_inputs(task.data, Path(given.file)))
    prediction = np.asarray(jax.jit(task.net)(params, x), np.float64)
    rows = _class_rows(task, prediction) if task.data.kind == "classes" else _value_rows(task, prediction)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    if given.output:
        report.write(Path(given.output), text.getvalue())
        print(f"{len(x)} predictions written to {given.output}")
    else:
        print(text.getvalue(), end="")
    return 0


def _read_inputs(data: Dataset, path: Path) -> tuple[Any, ...]:
    """The inputs in a file, its name, and how a table's entries are called in errors.

    Of a table with a header, those columns that the network was trained on.
    """
    if path.suffix.lower() not in TABLES:
        return read_arrays(path)[0], str(path)
    cells = read_cells(require(path))
    columns = _which(data, cells)
    return cells.numbers(columns), str(path), lambda i, j: cells.at(i, columns[j])


def _which(data: Dataset, cells: Cells) -> Sequence[int]:
    """The columns of the inputs, by name where both sides have names, else in the order of the file."""
    known = data.columns
    if cells.names and known and len({*known}) == len(known) and len({*cells.names}) == cells.width:
        missing = [name for name in known if name not in cells.names]
        more = [name for name in cells.names if name not in (*known, *data.target_columns)]
        for names, verb in ((missing, "is missing"), (more, "is none that the network was trained on")):
            if names:
                raise InputError(
                    f"{cells.path}: column {names[0]!r} {verb}; expected {', '.join(known)} "
                    f"(in any order), got {', '.join(cells.names)}"
                )
        found = [cells.names.index(name) for name in known]
        if found != sorted(found):
            print("jaxbp: columns in another order than in training; taken by name", file=sys.stderr)
        return found
    if cells.names and known and cells.names != known:
        raise InputError(
            f"{cells.path}: expected the columns {', '.join(known)}, got {', '.join(cells.names)}"
        )
    size = math.prod(data.given or data.shape)
    if cells.width == size + 1:
        hint = "is the target one of them? A header on both files tells, or leave it out"
        raise InputError(f"{cells.path}: expected {size} columns, got {cells.width}; {hint}")
    return range(cells.width)


def _class_rows(task: Task, prediction: np.ndarray) -> list[tuple[Any, ...]]:
    """A header, then the likeliest class of every row and its probability."""
    p = probabilities(prediction)
    best, names = p.argmax(axis=-1), task.data.names
    rows = [(i, names[k], f"{p[i, k]:.6f}") for i, k in enumerate(best)]
    return [("row", "class", "probability"), *rows]


def _value_rows(task: Task, prediction: np.ndarray) -> list[tuple[Any, ...]]:
    """A header, then the predicted values of every row, on the scale of the original data."""
    scale, values = task.data.target_scale, np.asarray(as_values(task.loss, prediction))
    values = scale.undo(values)
    names = [f"y{i + 1}" for i in range(values.shape[1])] if values.shape[1] > 1 else ["y"]
    names = task.data.target_columns or names
    # Six digits of what the network computes, whose unit is the scale's: more of a value far from 0.
    unit = np.broadcast_to(np.asarray(scale.divide, np.float64), values.shape)
    more = np.ceil(np.log10(np.maximum(np.abs(values) / unit, 1.0)))
    digits = np.where(np.isfinite(more), np.minimum(6 + more, 17), 6).astype(int)
    shown = [
        [f"{v:.{d}g}" for v, d in zip(*pair, strict=True)] for pair in zip(values, digits, strict=True)
    ]
    return [("row", *names), *((i, *row) for i, row in enumerate(shown))]


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
    """A run's task, without examples, and trained parameters: nothing outside of its folder is read."""
    folder = Path(path)
    config, known = report.open_run(folder), read_description(folder)
    if known is not None:
        return _with_params(folder, task_of(config, described(known)))
    try:
        return _with_params(folder, make_task(config))
    except InputError as error:
        raise InputError(
            f"{path}: has no {FILE} (it was trained before there was one), so its data is needed: {error}"
        ) from None


def with_examples(path: str) -> tuple[Task, Any]:
    """The same with the data itself, which must still be the run's."""
    folder = Path(path)
    config, known = report.open_run(folder), read_description(folder)
    try:
        task = make_task(config)
    except InputError as error:
        raise InputError(
            f"{path}: the held-out examples are needed and not in the run: {error}"
        ) from None
    others = differences(known, describe(task.data)) if known else []
    if others:
        raise InputError(
            f"{path}: the data is no longer that of the run: {'; '.join(others)}; what was held out is "
            "then not known (predict needs no data)"
        )
    return _with_params(folder, task)


def _with_params(folder: Path, task: Task) -> tuple[Task, Any]:
    like = jax.eval_shape(task.init, jax.random.key(0))
    return task, load_params(folder / "params.safetensors", like)


class Arguments(argparse.ArgumentParser):
    """Arguments of a small command, with errors on one line."""

    def __init__(self, command: str, text: str):
        super().__init__(prog=f"jaxbp {command}", description=text)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('jaxbp ')}: {message}")
