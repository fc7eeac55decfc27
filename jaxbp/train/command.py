"""The commands around training: `train`, `evaluate`, `predict`, `runs`."""

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
from jaxbp.train.checkpoint import Checkpoints
from jaxbp.train.config import DIGITS_MLP, Config, find_config, read_config, same_run
from jaxbp.train.files import read_arrays
from jaxbp.train.flags import override
from jaxbp.train.loop import State, prove_gradient, start, why
from jaxbp.train.loop import train as run_loop
from jaxbp.train.pictures import draw_sweep
from jaxbp.train.progress import reporter
from jaxbp.train.sweep import by_rate, member_records, run_sweep
from jaxbp.train.task import Task, count_parameters, labels, make_score, make_task
from jaxbp.weights import load_params, save_params

INTERRUPTED = 130


def console() -> Console:
    """Where results go; made per call, so that a redirected stdout is respected."""
    width = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, soft_wrap=True, highlight=False, width=width)


# --- train ------------------------------------------------------------------------------------------


def train(argv: Sequence[str]) -> int:
    """`jaxbp train [CONFIG] [--section.field value …] [--resume]`."""
    config, resume = configure(list(argv))
    if not resume:
        report.check_free(config)  # before any work is done
    task, out = make_task(config), console()
    if config.is_sweep:
        if resume:
            raise InputError("--resume: a sweep cannot be resumed; expected a single run")
        return _sweep(config, task, out)
    return _single(config, task, out, resume)


def configure(argv: list[str]) -> tuple[Config, bool]:
    """The config that the arguments ask for, and whether to resume."""
    argument = argv.pop(0) if argv and not argv[0].startswith("-") else None
    path = find_config(argument)
    base = read_config(path) if path else DIGITS_MLP
    return override(base, argv, str(path) if path else "")


def _single(config: Config, task: Task, out: Console, resume: bool) -> int:
    if resume:
        _check_resumable(config)
    state, tx = start(config, task)
    _introduce(config, task, state, out)
    proof = _prove(config, task, state, out) if config.train.prove else None
    path = report.claim(config, resume)
    with Checkpoints(path) as checkpoints:
        if resume:
            state = checkpoints.restore(state)
            out.print(f"resumed   after epoch {state.epoch}")
            if state.epoch >= config.train.epochs:
                raise InputError(
                    f"train.epochs: expected more than the {state.epoch} epochs already done, "
                    f"got {config.train.epochs}"
                )
        with (
            report.Metrics(path / "metrics.jsonl", state.epoch) as metrics,
            reporter(out, state.epoch + 1, config.train.epochs) as progress,
        ):

            def on_epoch(state: State, record: dict[str, Any]) -> None:
                metrics.add(record)
                progress.epoch(record)
                every = config.train.checkpoint_every
                if every and state.epoch % every == 0:
                    checkpoints.save(state)

            outcome = run_loop(config, task, state, tx, on_epoch=on_epoch)
        if outcome.state.epoch:
            checkpoints.save(outcome.state)
    summary = report.finish(path, config, task, outcome, metrics.records, proof)
    if outcome.reason.startswith("diverged"):
        raise InputError(
            f"{outcome.reason}; the parameters after epoch {outcome.state.epoch} are in {path} "
            "(a smaller --optimizer.learning_rate or an --optimizer.clip may help)"
        )
    out.print(f"{why(outcome, config)}")
    part = "held-out" if task.data.held_out else "training"
    out.print(
        f"[bold]{part} accuracy {summary['test_accuracy']:.2%}[/], loss {summary['test_loss']:.4g}, on "
        f"{summary['test_examples']} examples; {summary['seconds']:.1f} s of training, "
        f"{summary['examples_per_second']:,} examples/s"
    )
    out.print(f"written to {path}")
    return INTERRUPTED if outcome.interrupted else 0


def _check_resumable(config: Config) -> None:
    """A resumed run must be the same run."""
    differences = same_run(report.open_run(config.path), config)
    if differences:
        raise InputError(f"{config.path}: cannot resume with other settings: {'; '.join(differences)}")


def _introduce(config: Config, task: Task, state: State, out: Console) -> None:
    data = task.data
    held = f"{len(data.test_x):,} held out" if data.held_out else "none held out"
    out.print(f"device    {report.device()}, jax {jax.__version__}")
    out.print(f"data      {data.name}: {len(data.x):,} training examples of {list(data.shape)}, {held}")
    out.print(f"network   {config.model.name}, {count_parameters(state.params):,} parameters")
    out.print(f"training  {config.train.loss} by {config.optimizer.name}, batches of {task.batch_size}")


def _prove(config: Config, task: Task, state: State, out: Console) -> tuple[str, float]:
    name, error = prove_gradient(config, task, state.params)
    out.print(f"gradient  by hand against jax.grad: largest relative error {error:.1e}, at {name}")
    return name, error


def _sweep(config: Config, task: Task, out: Console) -> int:
    state, _ = start(config, task)
    count = len(config.sweep.seeds or (0,)) * len(config.sweep.learning_rates or (0,))
    _introduce(config, task, state, out)
    out.print(f"sweep     {count} members in one compiled step")
    proof = _prove(config, task, state, out) if config.train.prove else None
    path = report.claim(config, resume=False)
    with (
        report.Metrics(path / "metrics.jsonl") as metrics,
        reporter(out, 1, config.train.epochs) as progress,
    ):

        def on_epoch(number: int, scores: np.ndarray) -> None:
            columns = dict(zip(("loss", "test_loss", "test_accuracy"), scores.T.tolist(), strict=True))
            metrics.add({"epoch": number, **columns})
            progress.members(number, scores)

        outcome = run_sweep(config, task, on_epoch)
    best = outcome.best
    save_params(path / "params.safetensors", outcome.member(best))
    draw_sweep(path / "curves.png", outcome.history, outcome.members, config.run.name)
    members = member_records(outcome)
    summary = {
        **{key: members[best][key] for key in ("test_accuracy", "test_loss", "seed", "learning_rate")},
        "best": best,
        "members": members,
        "test_examples": len(task.data.test_x),
        "epochs": outcome.history.shape[1],
        "stopped": outcome.reason,
        "seconds": round(outcome.seconds, 3),
        "gradient_error": proof[1] if proof else None,
        "gradient_error_at": proof[0] if proof else None,
        **report.about(outcome.member(best), members[best]["seed"]),
    }
    report.write(path / "summary.json", json.dumps(summary, indent=2) + "\n")
    out.print(_sweep_table(members, best))
    for rate, mean, deviation, seeds in by_rate(outcome):
        out.print(f"η = {rate:<6g} accuracy {mean:.2%} ± {deviation:.2%} over {seeds} seeds")
    out.print(
        f"written to {path}: parameters of the best member, whose accuracy flatters it a little, "
        "since it was chosen by it"
    )
    return INTERRUPTED if outcome.reason == "interrupted" else 0


def _sweep_table(members: Sequence[dict[str, Any]], best: int) -> Table:
    table = Table(
        "seed", "learning rate", "training loss", "held-out loss", "held-out accuracy", box=None
    )
    for i, row in enumerate(members):
        losses = ["diverged" if row[k] is None else f"{row[k]:.4g}" for k in ("loss", "test_loss")]
        accuracy = f"{row['test_accuracy']:.2%}" + ("  best" if i == best else "")
        table.add_row(str(row["seed"]), f"{row['learning_rate']:g}", *losses, accuracy)
    return table


# --- evaluate, predict, runs ---------------------------------------------------------------------------


def evaluate(argv: Sequence[str]) -> int:
    """`jaxbp evaluate RUN`: accuracy, loss and a table by class, on the held-out data."""
    parser = Arguments("evaluate", "reload a run and report on its held-out data")
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits_mlp")
    path = parser.parse_args(argv).run
    task, params = reload(path)
    data = task.data
    value, accuracy, predicted = make_score(task.net, task.loss)(params, data.test_x, data.test_y)
    out = console()
    part = "held-out" if data.held_out else "training"
    out.print(f"{path}: {part} accuracy {accuracy:.2%}, loss {value:.4g}, on {len(data.test_x)} examples")
    if data.outputs <= report.CONFUSION_LIMIT:
        counts = report.confusion(np.asarray(labels(data.test_y)), predicted, data.outputs)
        out.print(_class_table(counts, data.classes or tuple(map(str, range(data.outputs)))))
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
    """`jaxbp predict RUN FILE [--output OUT.csv]`: the class of every row and its probability."""
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
    p = probabilities(prediction)
    best = p.argmax(axis=-1)
    names = task.data.classes or tuple(map(str, range(task.data.outputs)))
    rows = [(i, names[k], p[i, k]) for i, k in enumerate(best)]
    lines = ["row,class,probability", *(f"{i},{name},{share:.6f}" for i, name, share in rows)]
    if given.output:
        report.write(Path(given.output), "\n".join(lines) + "\n")
        print(f"{len(rows)} predictions written to {given.output}")
    else:
        print("\n".join(lines))
    return 0


def probabilities(prediction: np.ndarray) -> np.ndarray:
    """Softmax of logits; a prediction that is a distribution already is left as it is."""
    if (prediction >= 0).all() and np.allclose(prediction.sum(axis=-1), 1, atol=1e-5):
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
        "run", "accuracy", "loss", "epochs", "stopped", "parameters", "seconds", "device", box=None
    )
    for path in found:
        table.add_row(path.name, *_run_row(path / "summary.json"))
    console().print(table if found else f"{folder}: no runs yet")
    return 0


def _run_row(path: Path) -> list[str]:
    try:
        s = json.loads(path.read_text(encoding="utf-8"))
        numbers = f"{s['test_accuracy']:.2%}", f"{s['test_loss']:.4g}", str(s["epochs"])
        return [
            *numbers,
            s["stopped"].split(":")[0],
            f"{s['parameters']:,}",
            f"{s['seconds']:.1f}",
            s["device"],
        ]
    except (OSError, ValueError, KeyError, TypeError):
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
