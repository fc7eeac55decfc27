"""Networks that `jaxbp train` made, ready to be explained on one of their examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.explain.page import Frame
from jaxbp.explain.weight import Explainer
from jaxbp.layer import InputError

MOMENTS = 20
SECOND_STEPS = 0.1

Loaded = tuple[Explainer, list[Frame] | None, dict[str, Any]]


def from_run(path: Path, example: int) -> Loaded:
    """A run folder: the trained network. The page's slider then takes further steps on the example."""
    from jaxbp.train.report import open_run
    from jaxbp.train.task import keys, make_task
    from jaxbp.weights import load_params

    task = make_task(open_run(path))
    params = load_params(path / "params.safetensors", task.init(keys(0)[0]))
    explainer = _explainer(task, params, example)
    return explainer, None, {"title": _title(path.name, task, example), "rate": SECOND_STEPS}


def from_config(source: str, example: int, watch: bool) -> Loaded:
    """A config: the network is trained now; for the page (`watch`), up to 20 epochs are kept.

    The slider begins at the trained network's first epoch and ends with its last.
    """
    from jaxbp.train.config import find_config, read_config
    from jaxbp.train.loop import start, train
    from jaxbp.train.task import make_task

    found = find_config(source)
    if found is None:
        raise InputError(f"{source}: expected a config file or a run folder")
    config = read_config(found)
    if config.is_sweep:
        raise InputError(f"{source}: a sweep trains many networks; expected a config of one")
    task = make_task(config)
    state, tx = start(config, task)
    kept = [Frame("start", state.params)]

    def keep(state: Any, record: dict[str, Any]) -> None:
        kept.append(Frame(f"epoch {state.epoch}", state.params))

    outcome = train(config, task, state, tx, on_epoch=keep)
    explainer = _explainer(task, outcome.state.params, example)
    title = _title(Path(found).stem, task, example)
    if not watch:
        return explainer, None, {"title": title}
    at = sorted({round(k * (len(kept) - 1) / MOMENTS) for k in range(MOMENTS + 1)})
    frames = [Frame(kept[k].label, explainer.at(kept[k].params).params) for k in at]
    rate = float(getattr(config.optimizer, "learning_rate", 1.0))
    options = {"title": title, "rate": rate, "open_at": len(frames) - 1}
    return explainer, frames, options


def _explainer(task: Any, params: Any, example: int) -> Explainer:
    data = task.data
    x, y = (data.test_x, data.test_y) if len(data.test_x) else (data.x, data.y)
    if not 0 <= example < len(x):
        raise InputError(f"--example: expected 0 … {len(x) - 1}, got {example}")
    return Explainer(task.net, params, np.asarray(x[example]), np.asarray(y[example]), task.loss)


def _title(name: str, task: Any, example: int) -> str:
    held = "held-out " if task.data.held_out else ""
    return f"{name}, {held}example {example}"
