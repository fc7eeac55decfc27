"""The sweep that a config asks for: every seed with every learning rate, trained side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.app.config import Config
from jaxbp.app.loop import State, Stop
from jaxbp.app.optimizers import make
from jaxbp.app.task import Task, keys, measure, score_function
from jaxbp.layer import PyTree
from jaxbp.train.sweep import make_sweep


@dataclasses.dataclass
class SweepOutcome:
    """`history: [members, epochs, 3]`: training loss, held-out loss and the metric there, NaN if none."""

    members: list[tuple[int, float]]
    history: np.ndarray
    state: State
    reason: str  # a `Stop`
    seconds: float

    @property
    def best(self) -> int:
        """The member with the best held-out metric, among equals that with the lowest loss."""
        loss, score = self.history[:, -1, 1], self.history[:, -1, 2]
        loss = np.where(np.isfinite(loss), loss, np.inf)
        score = np.where(np.isfinite(score), score, -np.inf)
        return min(range(len(loss)), key=lambda m: (-score[m], loss[m]))

    def member(self, index: int) -> PyTree:
        """The parameters of one member."""
        return jax.tree.map(lambda leaf: leaf[index], self.state.params)


def members(config: Config) -> list[tuple[int, float]]:
    """`(seed, learning rate)` of every member that `config.sweep` asks for."""
    seeds = config.sweep.seeds or (config.train.seed,)
    rates = config.sweep.learning_rates or (config.optimizer.learning_rate,)
    return [(seed, rate) for rate in rates for seed in seeds]


def start_sweep(config: Config, task: Task) -> tuple[State, Any]:
    """The state of all members before the first epoch, and `make_sweep`'s `epoch`."""
    start, run = make_sweep(
        task.net,
        task.loss,
        lambda learning_rate: make(
            config.optimizer, task.steps, config.train.epochs, learning_rate, task
        ),
        task.batch_size,
        shuffle=config.train.shuffle,
        augment=task.augment,
        drop_last=task.drop_last,
        accumulate=config.train.accumulate,
    )
    all_of = members(config)
    init = jnp.stack([keys(seed)[0] for seed, _ in all_of])
    rates = jnp.asarray([rate for _, rate in all_of], jnp.float32)
    return State(*start(init, rates, task.like())), run


def run_sweep(
    config: Config,
    task: Task,
    state: State,
    run: Any,
    history: Sequence[np.ndarray] = (),
    on_epoch: Callable[[State, np.ndarray, float], None] = lambda state, scores, seconds: None,
) -> SweepOutcome:
    """Train all members from `state` on; a member that diverges does not stop the others.

    `history` has the `[members, 3]` of the epochs that are done; `on_epoch` sees the state after each
    further one, with its own and the seconds that it took.
    """
    data, all_of = task.data, members(config)
    training = jnp.stack([keys(seed)[1] for seed, _ in all_of])
    x, y, test_x, test_y = map(jnp.asarray, (data.x, data.y, data.test_x, data.test_y))
    part = jax.jit(jax.vmap(score_function(task.net, task.loss, data.kind), (0, None, None)))

    def score(params: PyTree) -> tuple[np.ndarray, list[float]]:
        values, predicted = part(params, test_x, test_y)
        found = (measure(data.kind, data.test_y, one) for one in np.asarray(predicted))
        return np.asarray(values), [np.nan if one is None else one for one in found]

    history, seconds, reason = list(history), 0.0, Stop.EPOCHS
    fold = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
    try:
        epoch = run.lower(state.params, state.opt_state, x, y, training).compile()
        while state.epoch < config.train.epochs:
            began = time.perf_counter()
            params, opt_state, losses = epoch(
                state.params, state.opt_state, x, y, fold(training, state.epoch + 1)
            )
            loss = np.asarray(losses, np.float64) @ task.batches.shares
            took = time.perf_counter() - began
            scores = np.column_stack([loss, *score(params)])
            state = State(params, opt_state, state.epoch + 1)
            seconds += took
            history.append(scores)
            on_epoch(state, scores, took)
            if np.all(loss < config.train.stop_below):
                reason = Stop.LOSS_BELOW
                break
    except KeyboardInterrupt:
        reason = Stop.INTERRUPTED
    scores = np.stack(history, axis=1) if history else np.zeros((len(all_of), 0, 3))
    return SweepOutcome(all_of, scores, state, reason, seconds)


def by_rate(outcome: SweepOutcome) -> list[tuple[float, float, float, int]]:
    """`(learning rate, mean metric, its standard deviation over seeds, seeds)`, best first."""
    score = outcome.history[:, -1, 2]
    rows = []
    for rate in dict.fromkeys(rate for _, rate in outcome.members):
        mine = score[[r == rate for _, r in outcome.members]]
        mine = mine[np.isfinite(mine)]
        mean = float(mine.mean()) if len(mine) else float("nan")
        rows.append((rate, mean, float(mine.std(ddof=1)) if len(mine) > 1 else 0.0, len(mine)))
    return sorted(rows, key=lambda row: -row[1] if np.isfinite(row[1]) else np.inf)


def member_records(outcome: SweepOutcome, metric: str) -> list[dict[str, Any]]:
    """One plain record a member, with its metric under that name; `None` for what is not finite."""

    def finite(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    rows = zip(outcome.members, outcome.history[:, -1], strict=True)
    return [
        {
            "seed": s,
            "learning_rate": r,
            "loss": finite(a),
            "test_loss": finite(b),
            metric: finite(c),
        }
        for (s, r), (a, b, c) in rows
    ]
