"""Networks that `jaxbp train` made, ready to be explained on one of their examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.explain.page import Frame
from jaxbp.explain.weight import Explainer
from jaxbp.layer import InputError

MOMENTS = 20
LINES = 5  # of progress while it trains
LENGTH = 8  # tokens of a sequence that are taken where nothing is asked: every token adds its neurons

Loaded = tuple[Explainer, list[Frame] | None, dict[str, Any]]


def from_run(path: Path, example: int, length: int | None = None) -> Loaded:
    """A run folder: the trained network. The page's slider then takes further steps on the example."""
    from jaxbp.app.report import open_run
    from jaxbp.app.run import keep_programs, with_examples

    keep_programs(path)
    task, params = with_examples(path)
    rate = open_run(path).optimizer.learning_rate
    explainer, what = _explainer(task, params, example, length, rate)
    return explainer, None, {"title": f"{path.name}, {what}", "data": task.data}


def from_config(
    source: str,
    example: int,
    watch: bool,
    length: int | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> Loaded:
    """A config: the network is trained now; for the page (`watch`), up to 20 epochs are kept.

    The slider begins at the trained network's first epoch and ends with its last.
    """
    from jaxbp.app.compiled import use_cache
    from jaxbp.app.config import find_config, read_config
    from jaxbp.app.loop import start, train
    from jaxbp.app.task import make_task

    found = find_config(source)
    if found is None:
        raise InputError(f"{source}: expected a config file or a run folder")
    config = read_config(found)
    if config.is_sweep:
        raise InputError(f"{source}: a sweep trains many networks; expected a config of one")
    if config.run.cache:
        use_cache()
    task = make_task(config)
    state, tx = start(config, task)
    kept = [Frame("start", state.params)]

    def keep(state: Any, record: dict[str, Any]) -> None:
        if watch:
            kept.append(Frame(f"epoch {state.epoch}", state.params))
        every, epochs = max(1, config.train.epochs // LINES), config.train.epochs
        if state.epoch % every == 0 or state.epoch == epochs:
            say(f"epoch {state.epoch} of {epochs}, loss {record['loss']:.4g}")

    say(f"training {Path(found).stem} …")
    outcome = train(config, task, state, tx, on_epoch=keep)
    rate = float(getattr(config.optimizer, "learning_rate", 1.0))
    explainer, what = _explainer(task, outcome.state.params, example, length, rate)
    title = f"{Path(found).stem}, {what}"
    if not watch:
        return explainer, None, {"title": title, "data": task.data}
    at = sorted({round(k * (len(kept) - 1) / MOMENTS) for k in range(MOMENTS + 1)})
    frames = [Frame(kept[k].label, explainer.at(kept[k].params).params) for k in at]
    options = {"title": title, "open_at": len(frames) - 1, "data": task.data}
    return explainer, frames, options


def _explainer(
    task: Any, params: Any, example: int, length: int | None, rate: float = 1.0
) -> tuple[Explainer, str]:
    """The network on one example, and in words which one."""
    data = task.data
    xs, ys = (data.test_x, data.test_y) if len(data.test_x) else (data.x, data.y)
    if not 0 <= example < len(xs):
        raise InputError(f"--example: expected 0 … {len(xs) - 1}, got {example}")
    x, y = np.asarray(xs[example]), np.asarray(ys[example])
    what = f"{'held-out ' if data.held_out else ''}example {example}"
    tokens = x.ndim == 1 and x.shape == y.shape and np.issubdtype(x.dtype, np.integer)
    if length is not None and not (tokens and 1 <= length <= len(x)):
        found = f"1 … {len(x)}" if tokens else "examples that are sequences of tokens"
        raise InputError(f"--length: expected {found}, got {length}")
    if tokens and len(x) > (length or LENGTH):
        x, y = x[: length or LENGTH], y[: length or LENGTH]
        what += f", the first {len(x)} of its {len(xs[example])} tokens"
        if x.dtype == np.uint8:
            what += f": {x.tobytes().decode('utf-8', 'replace')!r}"
    return Explainer(task.net, params, x, y, task.loss, rate=rate), what
