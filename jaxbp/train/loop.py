"""The notes' algorithm whole: start at random, iterate, update `w` and `b`, stop and say why.

The loop ends after a number of epochs, **or** when the loss of an epoch is below ε, **or** when the
user interrupts it, **or** when the loss is no longer finite. In each case the state of the last good
epoch is kept: the compiled epoch does not donate its arguments, so they outlive a failed one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.layer import InputError, PyTree, Train
from jaxbp.train.config import Config
from jaxbp.train.optimizers import make
from jaxbp.train.step import batch_weights, make_epoch
from jaxbp.train.task import Task, keys, make_score

PROOF_LIMIT = 1e-3  # float32 gradients agree to about 1e-6; a wrong one is off by far more


@dataclasses.dataclass
class State:
    """Everything that the next epoch depends on; its random key is that of the seed and `epoch`."""

    params: PyTree
    opt_state: PyTree
    epoch: int = 0


@dataclasses.dataclass
class Outcome:
    """Where a run ended and why."""

    state: State
    reason: str
    history: list[dict[str, Any]]
    seconds: float
    examples_per_second: float

    @property
    def interrupted(self) -> bool:
        return self.reason == "interrupted"


def prove_gradient(config: Config, task: Task, params: PyTree) -> tuple[str, float]:
    """`(parameter, error)` of the largest relative error against `jax.grad` on the first batch."""
    from jaxbp.check.oracle import prove

    x, y = (jnp.asarray(a[: task.batch_size]) for a in (task.data.x, task.data.y))
    proof = prove(task.net, task.loss, params, x, y, Train(keys(config.train.seed)[1]))
    name, error = worst(proof.errors)
    if not error <= PROOF_LIMIT:
        raise InputError(
            f"the gradient by hand of {name} differs from jax.grad's by {error:.1e} of its largest "
            f"entry, expected at most {PROOF_LIMIT:g} (--train.no-prove trains all the same)"
        )
    return name, error


def worst(errors: dict[str, float]) -> tuple[str, float]:
    """The largest error with its parameter's dotted name; NaN counts as largest."""
    path = max(errors, key=lambda p: (math.isnan(errors[p]), errors[p]))
    return path.strip("[]'").replace("'][", ".").replace("]['", ".").replace("][", "."), errors[path]


def start(config: Config, task: Task) -> tuple[State, optax.GradientTransformation]:
    """The state before the first epoch, and the optimizer."""
    tx = make(config.optimizer, task.steps, config.train.epochs)
    from_data = getattr(config.model, "initializer", "") == "data"
    params = task.init(keys(config.train.seed)[0], from_data)
    return State(params, tx.init(params)), tx


def train(
    config: Config,
    task: Task,
    state: State,
    tx: optax.GradientTransformation,
    *,
    on_epoch: Callable[[State, dict[str, Any]], None] = lambda state, record: None,
) -> Outcome:
    """Run epochs from `state` on until there is a reason to stop; `on_epoch` sees each good one."""
    score, history = make_score(task.net, task.loss), []
    x, y, test_x, test_y = map(
        jnp.asarray, (task.data.x, task.data.y, task.data.test_x, task.data.test_y)
    )
    sample = slice(0, len(test_x))  # as many training examples as held-out ones
    weights = np.asarray(batch_weights(len(x), task.batch_size))
    _, key = keys(config.train.seed)
    seconds, steady, reason = 0.0, [], "epochs"
    try:
        run: Any = make_epoch(
            task.net, task.loss, tx, task.batch_size, shuffle=config.train.shuffle, donate=False
        )
        epoch = run.lower(state.params, state.opt_state, x, y, key).compile()
        for number in range(state.epoch + 1, config.train.epochs + 1):
            began = time.perf_counter()
            params, opt_state, losses = epoch(
                state.params, state.opt_state, x, y, jax.random.fold_in(key, number)
            )
            value = float(np.sum(weights * np.asarray(losses)))
            took = time.perf_counter() - began
            if not math.isfinite(value):
                reason = f"diverged: the loss was {value} in epoch {number}"
                break
            _, accuracy, _ = score(params, x[sample], y[sample])
            test_loss, test_accuracy, _ = score(params, test_x, test_y)
            state = State(params, opt_state, number)
            seconds += took
            steady.append(took)
            record = {
                "epoch": number,
                "loss": value,
                "accuracy": accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "seconds": took,
                "examples_per_second": len(x) / took,
            }
            history.append(record)
            on_epoch(state, record)
            if value < config.train.stop_below:
                reason = "loss below train.stop_below"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    return Outcome(state, reason, history, seconds, len(x) / float(np.median(steady)) if steady else 0.0)


def why(outcome: Outcome, config: Config) -> str:
    """The reason to stop, in words."""
    epoch = outcome.state.epoch
    if outcome.reason == "epochs":
        return f"stopped after {epoch} epochs, the number asked for"
    if outcome.reason.startswith("loss below"):
        loss = outcome.history[-1]["loss"]
        return f"stopped after {epoch} epochs: the loss {loss:.4g} is below {config.train.stop_below:g}"
    if outcome.interrupted:
        return f"interrupted after {epoch} epochs; --resume goes on from there"
    return f"stopped after {epoch} epochs, {outcome.reason}"


def milestones(first: int, last: int, lines: int = 20) -> Iterable[int]:
    """At most `lines` + 1 of the epochs `first … last`, evenly, the first and the last among them."""
    count = min(lines, last - first + 1)
    return sorted({first, *(first + round((last - first) * i / max(count - 1, 1)) for i in range(count))})
