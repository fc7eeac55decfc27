"""The optimizers that a config can name. Adding one: a struct with its fields and a `direction`, here.

`direction()` is what Optax makes of a gradient before the learning rate; `make` adds the rest, the same
for all: clipping in front, the schedule and `-η` behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxbp.app.schema import Count, NotNegative, Rate, Section, Share, Whole
from jaxbp.layer import InputError


class Optimizer(Section, frozen=True, kw_only=True):
    """What every optimizer has."""

    name: str = "sgd"
    """which optimizer"""
    learning_rate: Rate = 0.1
    """η: the size of a step"""
    schedule: Literal["constant", "cosine"] = "constant"
    """how η changes over the run: not at all, or down to 0 along a half cosine"""
    warmup: Whole = 0
    """epochs over which η first rises from 0"""
    clip: NotNegative = 0.0
    """largest norm of the whole gradient; 0 for no limit"""

    def direction(self) -> optax.GradientTransformation:
        raise InputError(f"optimizer.name: {self.name!r} cannot be built")

    def direction_of(self, task: Any) -> optax.GradientTransformation:
        """The same for one that has to know the task's network and loss."""
        return self.direction()


class SGD(Optimizer, frozen=True, kw_only=True):
    """Plain stochastic gradient descent: `w := w - η ∂L/∂w`."""

    momentum: Share = 0.0
    """share of the last update that is kept; 0 for none"""
    nesterov: bool = False
    """look ahead along the momentum"""

    def direction(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


class Adam(Optimizer, frozen=True, kw_only=True):
    """Adam: steps scaled by running moments of the gradient."""

    name: str = "adam"
    """which optimizer"""
    learning_rate: Rate = 1e-3
    """η: the size of a step"""
    b1: Share = 0.9
    """decay of the first moment"""
    b2: Share = 0.999
    """decay of the second moment"""
    epsilon: Rate = 1e-8
    """added to the root of the second moment"""

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


class AdamW(Adam, frozen=True, kw_only=True):
    """Adam with decoupled weight decay."""

    name: str = "adamw"
    """which optimizer"""
    weight_decay: NotNegative = 1e-4
    """share of each weight taken off a step, times η"""

    def direction(self) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(optax.scale_by_adam(self.b1, self.b2, self.epsilon), decay)


class RMSProp(Optimizer, frozen=True, kw_only=True):
    """RMSProp: steps scaled by a running mean of squares."""

    name: str = "rmsprop"
    """which optimizer"""
    learning_rate: Rate = 1e-3
    """η: the size of a step"""
    decay: Share = 0.9
    """decay of the mean of squares"""
    epsilon: Rate = 1e-8
    """added under the root"""

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.decay, self.epsilon)


class Lion(Optimizer, frozen=True, kw_only=True):
    """Lion: the sign of an interpolated momentum."""

    name: str = "lion"
    """which optimizer"""
    learning_rate: Rate = 1e-4
    """η: the size of a step"""
    b1: Share = 0.9
    """interpolation of gradient and momentum"""
    b2: Share = 0.99
    """decay of the momentum"""
    weight_decay: NotNegative = 1e-3
    """share of each weight taken off a step, times η"""

    def direction(self) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(optax.scale_by_lion(self.b1, self.b2), decay)


class KFAC(Optimizer, frozen=True, kw_only=True):
    """KFAC: the natural gradient, by Kronecker factors of every layer's curvature."""

    name: str = "kfac"
    """which optimizer"""
    learning_rate: Rate = 0.1
    """η: the size of a step"""
    momentum: Share = 0.9
    """share of the last update that is kept; 0 for none"""
    damping: Rate = 1e-2
    """λ: added to the curvature"""
    decay: Share = 0.95
    """decay of the mean of factors"""
    every: Count = 5
    """steps between two inverses of the factors"""
    max_change: NotNegative = 0.0
    """largest change of the predictions in a step, by the curvature; 0 for no limit"""

    def direction_of(self, task: Any) -> optax.GradientTransformation:
        from jaxbp.beyond import scale_by_kfac

        step = scale_by_kfac(
            task.net,
            task.loss,
            task.like(),
            damping=self.damping,
            decay=self.decay,
            every=self.every,
            max_change=self.max_change,
        )
        return optax.chain(step, optax.trace(self.momentum)) if self.momentum else step


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSProp,
    "lion": Lion,
    "kfac": KFAC,
}


def make(
    config: Optimizer, steps: int, epochs: int, learning_rate: Any = None, task: Any = None
) -> optax.GradientTransformation:
    """The Optax transformation for a run of `epochs` of `steps` each.

    `learning_rate` replaces the config's and may be a traced array: a sweep's members differ in it.
    `task` is for those that ask for the network and the loss.
    """
    rate = config.learning_rate if learning_rate is None else learning_rate
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts.append(config.direction_of(task))
    if config.schedule != "constant" or config.warmup:
        parts.append(optax.scale_by_schedule(schedule(config, steps, epochs)))
    return optax.chain(*parts, optax.scale(-rate))


def schedule(config: Optimizer, steps: int, epochs: int) -> Callable[[Any], Any]:
    """The factor on η at each step: up over the warm-up, then flat or down a half cosine."""
    warm, total = config.warmup * steps, epochs * steps

    def factor(count: Any) -> Any:
        step = jnp.asarray(count, jnp.float32)
        up = jnp.minimum((step + 1) / warm, 1.0) if warm else jnp.float32(1)
        if config.schedule == "constant":
            return up
        done = jnp.clip((step - warm) / max(total - warm, 1), 0.0, 1.0)
        return up * (0.5 + 0.5 * jnp.cos(jnp.pi * done))

    return factor
