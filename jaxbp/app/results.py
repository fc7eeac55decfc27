"""What trained runs tell: the commands `evaluate`, `predict` and `runs`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxbp.app import report
from jaxbp.app.data import Dataset
from jaxbp.app.data.cells import Cells, read_cells
from jaxbp.app.data.files import TABLES, read_arrays, require
from jaxbp.app.data.folders import IMAGES, image_files, read_images
from jaxbp.app.run import Run, keep_programs, load_run, probabilities, with_examples
from jaxbp.app.task import METRICS, Task, as_values, labels, make_score
from jaxbp.layer import InputError


def console() -> Console:
    """Where results go; made per call, so that a redirected stdout is respected."""
    width = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, soft_wrap=True, highlight=False, width=width)


def evaluate(argv: Sequence[str]) -> int:
    """`jaxbp evaluate RUN`: loss and accuracy (or R²) on the held-out data, and a table by class."""
    parser = Arguments("evaluate", "reload a run and report on its held-out data")
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits_mlp")
    path = parser.parse_args(argv).run
    keep_programs(path)
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
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a .csv, .tsv, .npy or .npz with one row an input; for images also one, or a folder of them",
    )
    parser.add_argument("--output", metavar="OUT.csv", help="write the predictions there instead")
    given = parser.parse_args(argv)
    keep_programs(given.run)
    run, names = load_run(given.run), None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        prediction, names = _predicted(run, Path(given.file))
    for each in said:
        print(f"jaxbp: warning: {each.message}", file=sys.stderr)
    make = _class_rows if run.data.kind == "classes" else _value_rows
    rows = make(run.task, prediction)
    if names is not None:
        rows = [("file", *rows[0][1:]), *((n, *row[1:]) for n, row in zip(names, rows[1:], strict=True))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    if given.output:
        report.write(Path(given.output), text.getvalue())
        print(f"{len(prediction)} predictions written to {given.output}")
    else:
        print(text.getvalue(), end="")
    return 0


def _predicted(run: Run, path: Path) -> tuple[np.ndarray, list[str] | None]:
    """What the network gives for the inputs in a file; for images, with the names of their files."""
    if not path.is_dir() and path.suffix.lower() not in IMAGES:
        return run.outputs(*_read_inputs(run.data, path)), None
    data = run.data
    if not (data.image and data.pixels):
        raise InputError(
            f"{path}: image files go to a network that was trained on images of bytes, such as "
            f'data.name = "images"; {run.path} was on "{data.name}"'
        )
    files = image_files(path) if path.is_dir() else [require(path)]
    if not files:
        raise InputError(f"{path}: expected images in this folder, got none")
    height, width, channels = data.image
    x = read_images(files, (height, width), grey=channels == 1)
    return run.outputs(x, str(path)), [file.name for file in files]


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


class Arguments(argparse.ArgumentParser):
    """Arguments of a small command, with errors on one line."""

    def __init__(self, command: str, text: str):
        super().__init__(prog=f"jaxbp {command}", description=text)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('jaxbp ')}: {message}")
