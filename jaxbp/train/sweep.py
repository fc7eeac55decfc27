"""A sweep: many members (seeds × learning rates) trained by one compiled step, mapped over them.

The members share the data and differ in their initial parameters, their random key and their learning
rate, which `optax.inject_hyperparams` keeps in the optimizer's state. `jax.vmap` of the whole epoch
turns every product with a weight matrix into a batched one; nothing in a layer knows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxbp.layer import InputError, Layer, PyTree
from jaxbp.losses import Loss
from jaxbp.train.step import epoch_function
from jaxbp.train.update import Donating


def make_sweep(
    net: Layer,
    loss: Loss,
    optimizer: Callable[..., optax.GradientTransformation] = optax.sgd,
    batch_size: int = 32,
    *,
    shuffle: bool = True,
    donate: bool = False,
    augment: Callable[[Any, Any], Any] | None = None,
    drop_last: bool = False,
    accumulate: int = 1,
) -> tuple[Callable[..., Any], Any]:
    """`(start, epoch)` for an ensemble that trains in one compiled call an epoch.

    `start(keys, learning_rates, x) -> (params, opt_state)` makes one member for every key and rate
    (both `[members]`; `x` is like a batch of inputs), each leaf with the member axis first.
    `epoch(params, opt_state, x, y, keys) -> (params, opt_state, losses)` is `make_epoch`'s for every
    member, `losses: [members, steps]`, on the same `x` and `y`. `optimizer(learning_rate)` returns an
    Optax transformation. `drop_last`, `accumulate` and `donate` are `make_epoch`'s.
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

    one = epoch_function(
        net,
        loss,
        tx,
        batch_size,
        shuffle,
        augment=augment,
        drop_last=drop_last,
        accumulate=accumulate,
    )
    mapped = jax.vmap(one, (0, 0, None, None, 0))
    return start, Donating(mapped) if donate else jax.jit(mapped)
