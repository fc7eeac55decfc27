"""The notes' algorithm whole: start at random, iterate, update `w` and `b`, stop and say why.

The loop ends after a number of epochs, **or** when the loss of an epoch is below ε, **or** when the
user interrupts it, **or** when the loss is no longer finite. In each case the last good state is kept:
the compiled calls do not donate their arguments, so that these outlive a failed one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbp.app.compiled import compiled, options
from jaxbp.app.config import Config
from jaxbp.app.optimizers import make
from jaxbp.app.task import Task, keys, make_score
from jaxbp.layer import InputError, PyTree, Train
from jaxbp.train.step import epoch_function, plan_epoch, plan_poisson, steps_function

POINTS = 50  # of a run's curve, at least, where there are as many steps
PROOF_LIMIT = 1e-3  # float32 gradients agree to about 1e-6; a wrong one is off by far more


@dataclasses.dataclass
class State:
    """Everything that the next step depends on.

    `epoch` epochs are done, and `step` steps of the next one, whose losses so far add up to `loss` (each
    weighted by its share of the examples) and, in a run of few epochs, stretch by stretch to `curve`.
    Random keys are those of the seed, `epoch` and `step`. `best` are the parameters of epoch
    `best_epoch`, that with the lowest validation loss, `best_loss`.
    """

    params: PyTree
    opt_state: PyTree
    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    curve: Sequence[float] = ()
    best: PyTree = None
    best_epoch: int = 0
    best_loss: float = math.inf

    @property
    def chosen(self) -> PyTree:
        """The parameters to keep: the best ones where there is a validation part."""
        return self.params if self.best_epoch == 0 else self.best

    def judged(self, loss: float) -> State:
        """The state at the end of an epoch with this validation loss."""
        if not loss < self.best_loss:
            return self
        return dataclasses.replace(self, best=self.params, best_epoch=self.epoch, best_loss=loss)


class Stop(StrEnum):
    """Why training ended; the text is what a run's summary says."""

    EPOCHS = "epochs"
    LOSS_BELOW = "loss below train.stop_below"
    NO_BETTER = "no lower validation loss"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass
class Outcome:
    """Where a run ended and why."""

    state: State
    reason: Stop
    history: list[dict[str, Any]]
    seconds: float
    examples_per_second: float
    detail: str = ""  # of a reason: what was not finite, and when

    @property
    def interrupted(self) -> bool:
        return self.reason is Stop.INTERRUPTED

    @property
    def stopped(self) -> str:
        """The reason as a run's summary says it, with its detail."""
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


def prove_gradient(config: Config, task: Task, params: PyTree) -> tuple[str, float]:
    """`(parameter, error)` of the largest relative error against `jax.grad` on the first batch."""
    from jaxbp.oracle.proof import prove

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
    tx = make(config.optimizer, task.steps, config.train.epochs, task=task)
    from_data = getattr(config.model, "initializer", "") == "data"
    params = task.init(keys(config.train.seed)[0], from_data)
    best = params if task.data.valid_x is not None else None
    return State(params, compiled(tx.init)(params), best=best), tx


class Epochs:
    """Epochs as compiled calls: one an epoch, or several where it has more than `steps_per_call` steps.

    Between two calls there is a state that can be kept, so that a long epoch can be watched, interrupted
    and resumed.
    """

    def __init__(self, config: Config, task: Task, tx: optax.GradientTransformation):
        self.task, self.key = task, keys(config.train.seed)[1]
        self.x, self.y = jnp.asarray(task.data.x), jnp.asarray(task.data.y)
        self.batches, self.shuffle = task.batches, config.train.shuffle
        self.longest = config.train.steps_per_call
        self.weights = self.batches.shares
        # of a run of a few epochs the curve is drawn by step: in so many stretches of an epoch
        stretches = min(task.steps, POINTS // max(config.train.epochs, 1))
        self.stretch = np.arange(task.steps) * stretches // task.steps if stretches > 4 else None
        self.mesh, everywhere = choose_devices(config), None
        if self.mesh is not None:
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            self.x, self.y = jax.device_put((self.x, self.y), everywhere)
        whole = epoch_function(
            task.net,
            task.loss,
            tx,
            task.batch_size,
            self.shuffle,
            self.mesh,
            task.augment,
            task.drop_last,
            config.train.accumulate,
            task.private,
        )
        self._whole = jax.jit(whole, out_shardings=everywhere, compiler_options=options())
        part = steps_function(
            task.net, task.loss, tx, self.mesh, task.augment, config.train.accumulate, task.private
        )
        self._part = jax.jit(part, out_shardings=everywhere, compiler_options=options())
        self._draw = compiled(partial(plan_poisson, batches=self.batches))
        self._programs: dict[Any, Any] = {}

    def place(self, state: State) -> State:
        """`state` on the devices that train."""
        if self.mesh is None:
            return state
        params, opt_state = jax.device_put(
            (state.params, state.opt_state), NamedSharding(self.mesh, PartitionSpec())
        )
        return dataclasses.replace(state, params=params, opt_state=opt_state)

    def calls(self, state: State) -> Iterator[tuple[State, float]]:
        """`(the state after it, its seconds)` for every call that is left of `state`'s epoch."""
        key = jax.random.fold_in(self.key, state.epoch + 1)
        if self.batches.poisson:
            yield from self._drawn(state, key)
            return
        if self.task.steps <= self.longest and state.step == 0:
            yield self._call(self._whole, state, self.task.steps, key)
            return
        full, rest, step_keys = plan_epoch(key, self.batches, self.shuffle)
        while state.step < self.task.steps:
            end = min(state.step + self.longest, len(full))
            rows, part = full[state.step : end], step_keys[state.step : end]
            if state.step == len(full):
                rows, part = rest[None], step_keys[-1:]
            state, took = self._call(self._part, state, len(rows), rows, part)
            yield state, took

    def _drawn(self, state: State, key: Any) -> Iterator[tuple[State, float]]:
        """`calls` of Poisson batches, none of which may have lost an example."""
        *parts, drawn = self._draw(key)
        widest = self.batches.widest
        if np.max(drawn) > widest:
            raise InputError(
                f"a batch of epoch {state.epoch + 1} drew {np.max(drawn)} examples and has room for "
                f"{widest}; train anew with another --train.seed"
            )
        rows, present, keys = parts
        while state.step < self.task.steps:
            now = slice(state.step, state.step + self.longest)
            steps = len(rows[now])
            state, took = self._call(self._part, state, steps, rows[now], keys[now], present[now])
            yield state, took

    def _call(self, program: Any, state: State, steps: int, *args: Any) -> tuple[State, float]:
        """Run a program, compiled ahead so that compiling does not count as training."""
        given = (state.params, state.opt_state, self.x, self.y, *args)
        which = program, tuple(a.shape for a in args)
        if which not in self._programs:
            self._programs[which] = program.lower(*given).compile()
        began = time.perf_counter()
        params, opt_state, losses = self._programs[which](*given)
        now = slice(state.step, state.step + steps)
        parts = self.weights[now] * np.asarray(losses, np.float64)
        took = time.perf_counter() - began
        new = {"params": params, "opt_state": opt_state, "step": now.stop}
        sums = {"loss": state.loss + float(np.sum(parts)), "curve": self._added(state.curve, parts, now)}
        return dataclasses.replace(state, **new, **sums), took

    def _added(self, curve: Sequence[float], parts: np.ndarray, now: slice) -> Sequence[float]:
        if self.stretch is None:
            return ()
        sums = np.asarray(curve, np.float64)
        if len(sums) != self.stretch[-1] + 1:  # at the start, or resumed with other epochs
            sums = np.full(self.stretch[-1] + 1, np.nan)
            sums[self.stretch[now.start] + (now.start > 0) :] = 0
        np.add.at(sums, self.stretch[now], parts)
        return sums.tolist()

    def means(self, curve: Sequence[float]) -> dict[str, list[float]]:
        """For the record of an epoch: the mean loss of each of its stretches, if it has any."""
        if self.stretch is None:
            return {}
        return {"losses": (np.asarray(curve) / np.bincount(self.stretch, self.weights)).tolist()}


def choose_devices(config: Config) -> Mesh | None:
    """The devices to share each batch out among; `None` for a single one."""
    wanted, there, batch = config.train.devices, jax.device_count(), config.train.batch_size
    if wanted > there:
        raise InputError(f"train.devices: expected at most the {there} there are, got {wanted}")
    if wanted and batch % wanted:
        raise InputError(
            f"train.devices: expected a number that divides train.batch_size = {batch}, got {wanted}"
        )
    count = wanted or max(n for n in range(1, there + 1) if batch % n == 0)
    return Mesh(np.asarray(jax.devices()[:count]), ("batch",)) if count > 1 else None


def train(
    config: Config,
    task: Task,
    state: State,
    tx: optax.GradientTransformation,
    *,
    on_epoch: Callable[[State, dict[str, Any]], None] = lambda state, record: None,
    on_call: Callable[[State, float, float], None] = lambda state, loss, rate: None,
) -> Outcome:
    """Run epochs from `state` on until there is a reason to stop.

    `on_epoch` sees the state after each good epoch, with its record; `on_call` the states inside one
    that takes several calls, with its loss so far and the examples a second.
    """
    score, history = make_score(task.net, task.loss, task.data.kind), []
    key, seconds, steady, reason = task.metric.key, 0.0, [], Stop.EPOCHS
    detail = ""
    try:
        epochs = Epochs(config, task, tx)
        state = epochs.place(state)
        test_x, test_y = jnp.asarray(task.data.test_x), jnp.asarray(task.data.test_y)
        first = slice(0, len(test_x))  # as many training examples as held-out ones
        sample = tuple(jnp.asarray(a[first]) for a in (task.data.x, task.data.y))
        valid = [None if a is None else jnp.asarray(a) for a in (task.data.valid_x, task.data.valid_y)]

        def judge(params: PyTree) -> dict[str, Any]:
            if valid[0] is None:
                return {}
            loss, metric, _ = score(params, *valid)
            return {"valid_loss": loss, f"valid_{key}": metric}

        while state.epoch < config.train.epochs:
            took, seen, first = 0.0, 0.0, state.step
            for new, spent in epochs.calls(state):
                took, seen = (
                    took + spent,
                    float(np.sum(epochs.weights[first : new.step])) * epochs.batches.seen,
                )
                if not (math.isfinite(new.loss) and all_finite(new.params)):
                    what = "a parameter was not finite"
                    what = what if math.isfinite(new.loss) else f"the loss was {new.loss}"
                    reason, detail = Stop.DIVERGED, f"{what} in epoch {new.epoch + 1}"
                    break
                state = new
                if state.step < task.steps:
                    share = float(np.sum(epochs.weights[: state.step]))
                    on_call(state, state.loss / share, seen / took)
            if reason is not Stop.EPOCHS:
                break
            _, metric, _ = score(state.params, *sample)
            test_loss, test_metric, _ = score(state.params, test_x, test_y)
            record = {
                "epoch": state.epoch + 1,
                "loss": state.loss,
                **epochs.means(state.curve),
                key: metric,
                "test_loss": test_loss,
                f"test_{key}": test_metric,
                **judge(state.params),
                "seconds": took,
                "examples_per_second": seen / took if took else 0.0,
            }
            state = dataclasses.replace(state, epoch=state.epoch + 1, step=0, loss=0.0, curve=())
            if "valid_loss" in record:
                state = state.judged(record["valid_loss"])
            seconds += took
            steady.append(record["examples_per_second"])
            history.append(record)
            on_epoch(state, record)
            if record["loss"] < config.train.stop_below:
                reason = Stop.LOSS_BELOW
                break
            if 0 < config.train.patience <= state.epoch - state.best_epoch:
                reason = Stop.NO_BETTER
                break
    except KeyboardInterrupt:
        reason = Stop.INTERRUPTED
    speed = float(np.median(steady)) if steady else 0.0
    return Outcome(state, reason, history, seconds, speed, detail)


@jax.jit
def all_finite(params: PyTree) -> Any:
    """Whether there is no NaN and no infinity among the parameters."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.stack([jnp.asarray(True), *finite]))


def why(outcome: Outcome, config: Config) -> str:
    """The reason to stop, in words."""
    epoch = outcome.state.epoch
    if outcome.reason is Stop.EPOCHS:
        return f"stopped after {epoch} epochs, the number asked for"
    if outcome.reason is Stop.LOSS_BELOW:
        loss = outcome.history[-1]["loss"]
        return f"stopped after {epoch} epochs: the loss {loss:.4g} is below {config.train.stop_below:g}"
    if outcome.reason is Stop.NO_BETTER:
        return f"stopped after {epoch} epochs, {config.train.patience} without a lower validation loss"
    if outcome.interrupted:
        more = f" and {outcome.state.step} steps" if outcome.state.step else ""
        return f"interrupted after {epoch} epochs{more}; --resume goes on from there"
    return f"stopped after {epoch} epochs, {outcome.stopped}"


def milestones(first: int, last: int, lines: int = 20) -> Iterable[int]:
    """At most `lines` + 1 of the epochs `first … last`, evenly, the first and the last among them."""
    count = min(lines, last - first + 1)
    return sorted({first, *(first + round((last - first) * i / max(count - 1, 1)) for i in range(count))})
