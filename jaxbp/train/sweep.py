"""A sweep: many members (seeds × learning rates) trained by one compiled step, mapped over them.

The members share the data and differ in their initial parameters, their random key and their learning
rate, which `optax.inject_hyperparams` keeps in the optimizer's state. `jax.vmap` of the whole epoch
turns every product with a weight matrix into a batched one; nothing in a layer knows of it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.layer import InputError, Layer, PyTree
from jaxbp.losses import Loss
from jaxbp.train.step import batch_weights, epoch_function


def make_sweep(
    net: Layer,
    loss: Loss,
    optimizer: Callable[..., optax.GradientTransformation] = optax.sgd,
    batch_size: int = 32,
    *,
    shuffle: bool = True,
    donate: bool = True,
    augment: Callable[[Any, Any], Any] | None = None,
) -> tuple[Callable[..., Any], Any]:
    """`(start, epoch)` for an ensemble that trains in one compiled call an epoch.

    `start(keys, learning_rates, x) -> (params, opt_state)` makes one member for every key and rate
    (both `[members]`; `x` is like a batch of inputs), each leaf with the member axis first.
    `epoch(params, opt_state, x, y, keys) -> (params, opt_state, losses)` is `make_epoch`'s for every
    member, `losses: [members, steps]`, on the same `x` and `y`. `optimizer(learning_rate)` returns an
    Optax transformation. `params` and `opt_state` are donated unless `donate=False`.
    """
    tx = optax.inject_hyperparams(lambda learning_rate: optimizer(learning_rate))(learning_rate=0.0)

    def member(key: Any, learning_rate: Any, x: Any) -> tuple[PyTree, PyTree]:
        params = net.init(key, x)
        state: Any = tx.init(params)
        rate = learning_rate.astype(state.hyperparams["learning_rate"].dtype)
        return params, state._replace(hyperparams=state.hyperparams | {"learning_rate": rate})

    def start(keys: Any, learning_rates: Any, x: Any) -> tuple[PyTree, PyTree]:
        rates = jnp.asarray(learning_rates)
        if rates.shape != keys.shape:
            raise InputError(
                f"start: expected one learning rate a key, got {rates.shape} and {keys.shape}"
            )
        like = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x)
        return jax.jit(jax.vmap(member, (0, 0, None)))(keys, rates, like)

    one = epoch_function(net, loss, tx, batch_size, shuffle, augment=augment)
    mapped = jax.vmap(one, (0, 0, None, None, 0))
    return start, jax.jit(mapped, donate_argnums=(0, 1) if donate else ())


@dataclasses.dataclass
class SweepOutcome:
    """`history: [members, epochs, 3]` holds training loss, held-out loss and the metric there."""

    members: list[tuple[int, float]]
    history: np.ndarray
    params: PyTree
    reason: str
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
        return jax.tree.map(lambda leaf: leaf[index], self.params)


def run_sweep(
    config: Any, task: Any, on_epoch: Callable[[int, Any], None] = lambda e, r: None
) -> SweepOutcome:
    """Train all members that `config.sweep` asks for; a member that diverges does not stop the others."""
    from jaxbp.train.optimizers import make
    from jaxbp.train.task import keys, score_function, target_mean

    seeds = config.sweep.seeds or (config.train.seed,)
    rates = config.sweep.learning_rates or (config.optimizer.learning_rate,)
    members = [(seed, rate) for rate in rates for seed in seeds]
    init, training = map(jnp.stack, zip(*(keys(seed) for seed, _ in members), strict=True))
    start, run = make_sweep(
        task.net,
        task.loss,
        lambda learning_rate: make(config.optimizer, task.steps, config.train.epochs, learning_rate),
        task.batch_size,
        shuffle=config.train.shuffle,
        donate=False,
        augment=task.augment,
    )
    data = task.data
    x, y, test_x, test_y = map(jnp.asarray, (data.x, data.y, data.test_x, data.test_y))

    part = score_function(task.net, task.loss, data.kind)
    mean = target_mean(test_y, data.kind)

    @jax.jit
    @jax.vmap
    def score(params: PyTree) -> Any:
        value, (missed, every), _ = part(params, test_x, test_y, mean)
        return jnp.stack([value, 1 - missed / every])

    params, opt_state = start(init, jnp.asarray([rate for _, rate in members], jnp.float32), task.like())
    weights = np.asarray(batch_weights(len(x), task.batch_size))
    history, seconds, reason = [], 0.0, "epochs"
    fold = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
    try:
        epoch = run.lower(params, opt_state, x, y, training).compile()
        for number in range(1, config.train.epochs + 1):
            began = time.perf_counter()
            params, opt_state, losses = epoch(params, opt_state, x, y, fold(training, number))
            loss = np.asarray(losses) @ weights.astype(losses.dtype)
            seconds += time.perf_counter() - began
            history.append(np.column_stack([loss, np.asarray(score(params))]))
            on_epoch(number, history[-1])
            if np.all(loss < config.train.stop_below):
                reason = "loss below train.stop_below"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    if not history:
        raise InputError("interrupted before the end of the first epoch; nothing to keep")
    return SweepOutcome(members, np.stack(history, axis=1), params, reason, seconds)


def by_rate(outcome: SweepOutcome) -> list[tuple[float, float, float, int]]:
    """`(learning rate, mean metric, its standard deviation over seeds, seeds)`, best first."""
    score = outcome.history[:, -1, 2]
    rows = []
    for rate in dict.fromkeys(rate for _, rate in outcome.members):
        mine = score[[r == rate for _, r in outcome.members]]
        rows.append(
            (rate, float(mine.mean()), float(mine.std(ddof=1)) if len(mine) > 1 else 0.0, len(mine))
        )
    return sorted(rows, key=lambda row: -row[1])


def member_records(outcome: SweepOutcome, metric: str) -> list[dict[str, Any]]:
    """One plain record a member, with its metric under that name; `None` where a loss is not finite."""

    def finite(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    rows = zip(outcome.members, outcome.history[:, -1], strict=True)
    return [
        {
            "seed": s,
            "learning_rate": r,
            "loss": finite(a),
            "test_loss": finite(b),
            metric: float(c),
        }
        for (s, r), (a, b, c) in rows
    ]
