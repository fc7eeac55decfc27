"""What a private run may spend and has spent: from its config and data to `ε` at `δ`."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxbp.app.config import Config
from jaxbp.app.loop import State
from jaxbp.app.task import Task
from jaxbp.layer import InputError, Train
from jaxbp.train.private import Private


@dataclasses.dataclass(frozen=True)
class Budget:
    """`ε` is that of the parameters, by the steps which made them, whatever was interrupted between."""

    private: Private
    delta: float
    rate: float  # the probability with which an example joins a step
    steps: int  # an epoch
    poisson: bool

    def spent(self, state: State) -> float:
        """`ε` up to `state`, infinite without noise.

        Of shuffled batches every example stands in one an epoch, so an epoch counts as one look at it,
        as soon as it begins.
        """
        from jaxbp.beyond.privacy import epsilon

        looks = state.epoch * self.steps + state.step
        if not self.poisson:
            looks = state.epoch + bool(state.step)
        return epsilon(self.private.noise, self.rate, looks, self.delta)

    def to_json(self, state: State) -> dict[str, Any]:
        """For a run's summary."""
        return {
            "epsilon": self.spent(state),
            "delta": self.delta,
            "noise": self.private.noise,
            "clip_examples": self.private.clip_examples,
            "sampling": "poisson" if self.poisson else "shuffle",
            "rate": self.rate,
            "steps": state.epoch * self.steps + state.step,
        }

    def text(self, state: State) -> str:
        """What the parameters of `state` have cost."""
        if not self.private.noise:
            return f"nothing is: examples are clipped to {self.private.clip_examples:g}, without noise"
        return f"ε = {self.spent(state):.4g} at δ = {self.delta:g}: of the parameters, not of metrics"

    def plan(self, epochs: int) -> str:
        """What all epochs will."""
        size, cost = self.private.clip_examples, self.text(State(None, None, epochs))
        if not self.private.noise:
            return cost
        return f"{cost}; after {epochs} epochs, with noise of {self.private.noise:.4g} × {size:g}"


def with_budget(config: Config, task: Task) -> tuple[Task, Budget | None]:
    """The task with its private step, and the budget; as it is, and `None`, where there is none."""
    wanted = config.private
    if not wanted.clip_examples:
        return task, None
    from jaxbp.beyond.book import require_separate
    from jaxbp.beyond.privacy import noise_for

    require_separate(task.net, Train())
    poisson, count = wanted.sampling == "poisson", len(task.data.x)
    if wanted.delta >= 1 / count:
        raise InputError(
            f"private.delta: expected below 1/{count}, one over the number of training examples (else "
            f"to publish an example now and then would count as private), got {wanted.delta:g}"
        )
    task = dataclasses.replace(task, poisson=poisson)
    rate, epochs = (task.batches.rate if poisson else 1.0), config.train.epochs
    noise = wanted.noise
    if wanted.epsilon:
        noise = noise_for(wanted.epsilon, rate, epochs * (task.steps if poisson else 1), wanted.delta)
    private = Private(wanted.clip_examples, noise, task.batch_size if poisson else None)
    task = dataclasses.replace(task, private=private)
    budget = Budget(private, wanted.delta, rate, task.steps, poisson)
    if noise:
        budget.spent(State(None, None, 1))  # so that a missing package is missed before any work
    return task, budget
