"""The run folder: what a run leaves behind, written as it goes."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

from jaxbp.app.config import Config, read_config
from jaxbp.app.data import Dataset
from jaxbp.app.data.description import FILE, describe
from jaxbp.app.loop import Outcome, choose_devices
from jaxbp.app.pictures import draw_confusion, draw_curves, draw_fit, draw_images
from jaxbp.app.task import Task, count_parameters, labels, make_score
from jaxbp.layer import InputError, PyTree
from jaxbp.weights import save_params

CONFUSION_LIMIT = 100  # classes


def check_free(config: Config) -> None:
    """An existing run folder must be meant, and nothing but a run folder is ever replaced."""
    path = config.path
    if not path.exists():
        return
    if not path.is_dir() or not _is_run(path):
        raise InputError(f"{path}: exists and is not a run folder; choose another --run.name")
    if not config.run.overwrite:
        raise InputError(
            f"{path}: this run folder already exists; choose another --run.name, go on with it "
            "(--resume) or replace it (--run.overwrite)"
        )


def claim(config: Config, task: Task, resume: bool) -> Path:
    """The run's folder, with the resolved config and the description of the data in it."""
    path = config.path
    if not resume:
        check_free(config)
        shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from None
    # a wish for this once, not for a next run
    kept = msgspec.structs.replace(config.run, overwrite=False)
    write(path / "config.toml", msgspec.structs.replace(config, run=kept).to_toml())
    if not resume:
        keep_description(path, task)
    return path


def keep_description(path: Path, task: Task) -> None:
    """Write what the parameters in the folder need to be used; it goes wherever they go."""
    write(path / FILE, to_json(describe(task.data), indent=1) + "\n")


def _is_run(path: Path) -> bool:
    return (path / "config.toml").is_file() or not any(path.iterdir())


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that is JSON: a number that is not finite, for which it has no word, is `null`."""

    def plain(v: Any) -> Any:
        if isinstance(v, dict):
            return {key: plain(one) for key, one in v.items()}
        if isinstance(v, list | tuple):
            return [plain(one) for one in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


class Metrics:
    """`metrics.jsonl`: one line an epoch, on disk as soon as the epoch is done."""

    def __init__(self, path: Path, upto: int = 0):
        """Go on after epoch `upto`: what an interrupted run wrote beyond its checkpoint is dropped."""
        self.records = [r for r in read_metrics(path) if r["epoch"] <= upto] if upto else []
        write(path, "".join(to_json(record) + "\n" for record in self.records))
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def confusion(true: np.ndarray, predicted: np.ndarray, outputs: int) -> np.ndarray:
    """`counts[i, j]`: examples of class `i` that were taken for class `j`."""
    flat = np.asarray(true).ravel() * outputs + np.asarray(predicted).ravel()
    return np.bincount(flat, minlength=outputs * outputs).reshape(outputs, outputs)


def finish(
    path: Path,
    config: Config,
    task: Task,
    outcome: Outcome,
    records: Sequence[dict[str, Any]],
    proof: tuple[str, float] | None,
    private: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write parameters, pictures and summary; returns the summary, with what was `private` of the run."""
    data, params, mesh = task.data, outcome.state.chosen, choose_devices(config)
    keep_description(path, task)
    save_params(path / "params.safetensors", params)
    score = make_score(task.net, task.loss, data.kind)
    value, metric, predicted = score(params, data.test_x, data.test_y)
    if records:
        draw_curves(path / "curves.png", records, config.run.name, task.metric, data.held_out)
    if data.kind == "values":
        _draw_values(path, data, predicted)
    elif len(data.names) <= CONFUSION_LIMIT:
        counts = confusion(np.asarray(labels(data.test_y)), predicted, len(data.names))
        draw_confusion(path / "confusion.png", counts, data.names)
    if config.run.attributions:
        from jaxbp.app.attributions import draw_attributions

        draw_attributions(path / "attributions.png", task, params)
    summary = {
        f"test_{task.metric.key}": metric,
        "test_loss": value,
        "test_examples": len(data.test_x),
        "held_out": data.held_out,
        "train_examples": len(data.x),
        "batches": batches(task),
        "train_loss": records[-1]["loss"] if records else None,
        "epochs": outcome.state.epoch,
        **_chosen(outcome, records),
        "steps_of_the_next": outcome.state.step,
        "stopped": outcome.stopped,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "examples_per_second": round(outcome.examples_per_second),
        "gradient_error": proof[1] if proof else None,
        "gradient_error_at": proof[0] if proof else None,
        **({} if private is None else {"private": private}),
        **about(params, config.train.seed, mesh.size if mesh else 1),
    }
    write(path / "summary.json", to_json(summary, indent=2) + "\n")
    return summary


def _chosen(outcome: Outcome, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whose epoch's parameters are kept, where a validation part chose, and how good they were on it."""
    state = outcome.state
    if not state.best_epoch:
        return {}
    best = next((record for record in records if record["epoch"] == state.best_epoch), {})
    return {"best_epoch": state.best_epoch, **{k: best[k] for k in best if k.startswith("valid_")}}


def _draw_values(path: Path, data: Dataset, predicted: np.ndarray) -> None:
    """Images beside what became of them, or predicted against true values."""
    true, guess = (data.target_scale.undo(a) for a in (data.test_y, predicted))
    if data.image and math.prod(data.image) == data.outputs:
        shape = (-1, *data.image)
        draw_images(path / "images.png", true.reshape(shape), guess.reshape(shape))
    elif data.outputs == 1:
        name = "".join(data.target_columns)
        draw_fit(path / "fit.png", true[:, 0], guess[:, 0], data.held_out, name)


def batches(task: Task) -> dict[str, int]:
    """Steps of an epoch, and how many examples its last one has."""
    every = task.batches
    return {"steps": every.steps, "last": every.last or every.size}


def about(params: PyTree, seed: int, devices: int = 1) -> dict[str, Any]:
    """What a result depends on besides the config: versions, device, commit."""
    return {
        "parameters": count_parameters(params),
        "seed": seed,
        "device": device(devices),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "optax", "numpy"):
        found[package] = version(package)
    try:
        found["jaxbp"] = version("jaxbp")
    except PackageNotFoundError:  # run from a checkout that is not installed
        found["jaxbp"] = __import__("jaxbp").__version__
    return found


def device(used: int = 1) -> str:
    """The device that computes, such as `cpu` or `gpu (NVIDIA H200)`; with their number if several."""
    first, count = jax.devices()[0], jax.device_count()
    kind = first.device_kind
    text = first.platform if kind.lower() == first.platform else f"{first.platform} ({kind})"
    return text if count == 1 else f"{text}, {used} of {count} used"


def commit() -> str | None:
    """The commit of the checkout that jaxbp runs from, if it does; `+` when it has changes."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def open_run(path: Path) -> Config:
    """The config of a run folder."""
    if not path.is_dir():
        raise InputError(f"{path}: no such run folder")
    if not (path / "config.toml").is_file():
        raise InputError(f"{path}: expected a run folder with a config.toml, got none")
    return read_config(path / "config.toml")
