"""The command that trains: `jaxbp train`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxbp.app import report
from jaxbp.app.budget import with_budget
from jaxbp.app.checkpoint import Checkpoints
from jaxbp.app.compiled import use_cache
from jaxbp.app.config import DIGITS_MLP, Config, find_config, read_config, same_run
from jaxbp.app.data.description import describe, differences, fits, read_description
from jaxbp.app.flags import HELP, Asked, Resume, override
from jaxbp.app.loop import State, Stop, choose_devices, prove_gradient, start, why
from jaxbp.app.loop import train as run_loop
from jaxbp.app.memory import keep_memory
from jaxbp.app.pictures import draw_sweep
from jaxbp.app.progress import reporter
from jaxbp.app.results import console
from jaxbp.app.sweep import by_rate, member_records, members, run_sweep, start_sweep
from jaxbp.app.task import Metric, Task, count_parameters, make_task
from jaxbp.layer import InputError
from jaxbp.weights import save_params

INTERRUPTED = 130


def train(argv: Sequence[str]) -> int:
    """`jaxbp train [CONFIG] [--section.field value …] [--resume]`."""
    keep_memory()
    config, asked = configure(list(argv))
    if asked.print_config:
        print(config.to_commented_toml(), end="")
        return 0
    resume = asked.resume
    if not resume:
        report.check_free(config)  # before any work is done
    if config.run.cache:
        use_cache()
    task, out = make_task(config), console()
    if config.is_sweep:
        return _sweep(config, task, out, resume)
    return _single(config, task, out, resume)


def new(argv: Sequence[str]) -> int:
    """`jaxbp new CONFIG FILE.toml [--section.field value …]`: a config to start from."""
    argv, usage = list(argv), "jaxbp new CONFIG FILE.toml [--section.field value …]"
    if {*argv} & {*HELP}:
        print(
            f"usage: {usage}\n\nWrite a config to start from: every field of CONFIG (a name or a file) "
            "with its meaning.\nFlags are those of jaxbp train: --data.name file --model.name lenet."
        )
        raise SystemExit(0)
    if len(argv) < 2 or any(token.startswith("-") for token in argv[:2]):
        raise InputError(f"new: expected {usage}")
    path = Path(argv.pop(1))
    if path.suffix != ".toml":
        raise InputError(f"{path}: expected the name of a .toml file")
    if path.exists():
        raise InputError(f"{path}: is there already, and is left as it is")
    config, _ = configure(argv)
    run = msgspec.structs.replace(config.run, name="")  # named after the new file
    report.write(path, msgspec.structs.replace(config, run=run).to_commented_toml())
    print(f"written to {path}; train it: jaxbp train {path}")
    return 0


def configure(argv: list[str]) -> tuple[Config, Asked]:
    """The config that the arguments ask for, and what else they ask."""
    argument = argv.pop(0) if argv and not argv[0].startswith("-") else None
    path = find_config(argument)
    base = read_config(path) if path else DIGITS_MLP
    config, asked = override(base, argv, str(path) if path else "")
    if asked.resume and argument is None and config.path != DIGITS_MLP.path:
        # a run that is named by its flags goes on with its own config, not with the default one
        base = report.open_run(config.path)
        config, _ = override(base, argv, str(config.path / "config.toml"))
    return config, asked


def _single(config: Config, task: Task, out: Console, resume: Resume) -> int:
    if resume:
        _check_resumable(config, task, out, resume)
    task, budget = with_budget(config, task)
    state, tx = start(config, task)
    _introduce(config, task, state, out)
    if budget is not None:
        out.print(f"private   {budget.plan(config.train.epochs)}")
    proof = _prove(config, task, state, out) if config.train.prove else None
    path = report.claim(config, task, bool(resume))
    with Checkpoints(path, task.steps) as checkpoints:
        if resume:
            state = _restored(config, checkpoints, state, out)
        else:
            checkpoints.save(state)  # however early a run is stopped, `--resume` goes on from there
        with (
            report.Metrics(path / "metrics.jsonl", state.epoch) as metrics,
            reporter(out, state.epoch + 1, config.train.epochs, task) as progress,
        ):
            kept = time.monotonic()

            def keep(state: State) -> None:
                nonlocal kept
                checkpoints.save(state)
                kept = time.monotonic()

            def on_call(state: State, loss: float, rate: float) -> None:
                progress.steps_done(state.epoch, state.step, loss, rate)
                minutes = config.train.checkpoint_minutes
                if minutes and time.monotonic() - kept > 60 * minutes:
                    keep(state)

            def on_epoch(state: State, record: dict[str, Any]) -> None:
                if budget is not None:
                    record["epsilon"] = budget.spent(state)
                metrics.add(record)
                progress.epoch(record)
                every = config.train.checkpoint_every
                if every and state.epoch % every == 0:
                    keep(state)

            outcome = run_loop(config, task, state, tx, on_epoch=on_epoch, on_call=on_call)
        checkpoints.save(outcome.state)
    spent = None if budget is None else budget.to_json(outcome.state)
    summary = report.finish(path, config, task, outcome, metrics.records, proof, spent)
    if outcome.reason is Stop.DIVERGED:
        raise InputError(
            f"{outcome.stopped}; the last good parameters are in {path} "
            "(a smaller --optimizer.learning_rate or an --optimizer.clip may help)"
        )
    out.print(f"{why(outcome, config)}")
    if "best_epoch" in summary:
        best, loss = summary["best_epoch"], summary["valid_loss"]
        out.print(f"kept: the parameters of epoch {best}, with the lowest validation loss, {loss:.4g}")
    part, metric = "held-out" if task.data.held_out else "training", task.metric
    score = metric.text(summary[f"test_{metric.key}"])
    out.print(
        f"[bold]{part} {metric.title} {score}[/], loss {summary['test_loss']:.4g}, on "
        f"{summary['test_examples']} examples; {summary['seconds']:.1f} s of training, "
        f"{summary['examples_per_second']:,} examples/s"
    )
    if budget is not None:
        out.print(f"private   {budget.text(outcome.state)}")
    out.print(f"written to {path}")
    return INTERRUPTED if outcome.interrupted else 0


def _check_resumable(config: Config, task: Task, out: Console, resume: Resume) -> None:
    """A resumed run must be the same run, on the same data wherever that now is."""
    then, data = report.open_run(config.path), read_description(config.path)
    changed = same_run(then, config, () if data is None else ("data.path",))
    if changed:
        raise InputError(f"{config.path}: cannot resume with other settings: {'; '.join(changed)}")
    if data is None:
        out.print(
            "[bold]note[/]      this run knows no fingerprint of its data, which is taken as it is now"
        )
        return
    now = describe(task.data)
    others = differences(data, now)
    if not fits(data, now):
        raise InputError(
            f"{config.path}: cannot resume on this data, which takes another network: {'; '.join(others)}"
        )
    if others and config.private.clip_examples:
        raise InputError(
            f"{config.path}: cannot resume a private run on other data, which its budget does not count: "
            f"{'; '.join(others)}"
        )
    if others and not resume.on_other_data:
        raise InputError(
            f"{config.path}: cannot resume on other data: {'; '.join(others)} "
            "(--resume-on-other-data goes on all the same)"
        )
    if others:
        out.print(f"[bold]note[/]      other data than before: {escape('; '.join(others))}")


def _restored(config: Config, checkpoints: Checkpoints, like: State, out: Console) -> State:
    """The state to go on from."""
    state, damaged = checkpoints.restore(like)
    for line in damaged:
        out.print(f"[bold]note[/]      {escape(line)}")
    more = f" and step {state.step}" if state.step else ""
    out.print(f"resumed   after epoch {state.epoch}{more}")
    if state.epoch >= config.train.epochs:
        raise InputError(
            f"train.epochs: expected more than the {state.epoch} epochs already done, "
            f"got {config.train.epochs}"
        )
    return state


def _introduce(config: Config, task: Task, state: State, out: Console) -> None:
    data = task.data
    held = f"{len(data.test_x):,} held out" if data.held_out else "none held out"
    held += "" if data.valid_x is None else f", {len(data.valid_x):,} for validation"
    mesh = None if config.is_sweep else choose_devices(config)
    out.print(f"device    {report.device(mesh.size if mesh else 1)}, jax {jax.__version__}")
    out.print(f"data      {data.name}: {len(data.x):,} training examples of {list(data.shape)}, {held}")
    for note in (*data.notes, *task.batches.notes()):
        out.print(f"[bold]note[/]      {escape(note)}")
    out.print(f"network   {config.model.name}, {count_parameters(state.params):,} parameters")
    out.print(f"training  {config.train.loss} by {config.optimizer.name}, batches of {task.batch_size}")


def _prove(config: Config, task: Task, state: State, out: Console) -> tuple[str, float]:
    name, error = prove_gradient(config, task, state.params)
    out.print(f"gradient  by hand against jax.grad: largest relative error {error:.1e}, at {name}")
    return name, error


def _sweep(config: Config, task: Task, out: Console, resume: Resume) -> int:
    if resume:
        _check_resumable(config, task, out, resume)
    one, _ = start(config, task)
    _introduce(config, task, one, out)
    state, run = start_sweep(config, task)
    out.print(f"sweep     {len(members(config))} members in one compiled step")
    proof = _prove(config, task, one, out) if config.train.prove else None
    path = report.claim(config, task, bool(resume))
    names = ("loss", "test_loss", f"test_{task.metric.key}")
    with Checkpoints(path, task.steps) as checkpoints:
        if resume:
            state = _restored(config, checkpoints, state, out)
        else:
            checkpoints.save(state)
        with (
            report.Metrics(path / "metrics.jsonl", state.epoch) as metrics,
            reporter(out, state.epoch + 1, config.train.epochs, task) as progress,
        ):
            columns = [[record[name] for name in names] for record in metrics.records]
            done = [np.asarray(values, np.float64).T for values in columns]  # `null` becomes NaN

            def on_epoch(state: State, scores: np.ndarray, took: float) -> None:
                values = dict(zip(names, scores.T.tolist(), strict=True))
                metrics.add({"epoch": state.epoch, **values, "seconds": took})
                progress.members(state.epoch, scores)
                every = config.train.checkpoint_every
                if every and state.epoch % every == 0:
                    checkpoints.save(state)

            outcome = run_sweep(config, task, state, run, done, on_epoch)
        checkpoints.save(outcome.state)
    if outcome.reason == Stop.INTERRUPTED:
        out.print(f"interrupted after {outcome.state.epoch} epochs; --resume goes on from there")
    if not outcome.history.shape[1]:
        return INTERRUPTED
    best = outcome.best
    report.keep_description(path, task)
    save_params(path / "params.safetensors", outcome.member(best))
    metric = task.metric
    draw_sweep(path / "curves.png", outcome.history, outcome.members, config.run.name, metric)
    rows = member_records(outcome, f"test_{metric.key}")
    summary = {
        **{key: value for key, value in rows[best].items() if key != "loss"},
        "best": best,
        "members": rows,
        "test_examples": len(task.data.test_x),
        "batches": report.batches(task),
        "epochs": outcome.history.shape[1],
        "stopped": str(outcome.reason),
        "seconds": round(sum(record["seconds"] for record in metrics.records), 3),
        "gradient_error": proof[1] if proof else None,
        "gradient_error_at": proof[0] if proof else None,
        **report.about(outcome.member(best), rows[best]["seed"]),
    }
    report.write(path / "summary.json", report.to_json(summary, indent=2) + "\n")
    out.print(_sweep_table(rows, best, metric))
    for rate, mean, deviation, seeds in by_rate(outcome):
        spread = f"{metric.text(mean)} ± {metric.text(deviation)}"
        out.print(f"η = {rate:<6g} {metric.title} {spread} over {seeds} seeds")
    out.print(
        f"written to {path}: parameters of the best member, whose {metric.title} flatters it a little, "
        "since it was chosen by it"
    )
    return INTERRUPTED if outcome.reason == Stop.INTERRUPTED else 0


def _sweep_table(rows: Sequence[dict[str, Any]], best: int, metric: Metric) -> Table:
    last = f"held-out {metric.title}"
    table = Table("seed", "learning rate", "training loss", "held-out loss", last, box=None)
    for i, row in enumerate(rows):
        losses = ["diverged" if row[k] is None else f"{row[k]:.4g}" for k in ("loss", "test_loss")]
        score = metric.text(row[f"test_{metric.key}"]) + ("  best" if i == best else "")
        table.add_row(str(row["seed"]), f"{row['learning_rate']:g}", *losses, score)
    return table
