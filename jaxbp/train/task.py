"""What a config stands for: data, network, loss and initial parameters; and how good parameters are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import InputError, Layer, PyTree
from jaxbp.losses import Loss
from jaxbp.train.config import LOSSES, Config
from jaxbp.train.data import Dataset

CHUNK = 1000  # examples that are evaluated at once


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and what it is to learn."""

    net: Layer
    loss: Loss
    data: Dataset
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.data.x) // self.batch_size)

    def like(self) -> jax.ShapeDtypeStruct:
        """A batch of inputs, without values."""
        return jax.ShapeDtypeStruct((self.batch_size, *self.data.shape), self.data.x.dtype)

    def init(self, key: Any, from_data: bool = False) -> PyTree:
        """Initial parameters: random, or those that come with the data."""
        params = self.net.init(key, self.like())
        if not from_data:
            return params
        start = self.data.start
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, start)]
        if shapes[0] != shapes[1]:
            raise InputError(
                'model.initializer: "data" needs the network of the data; expected parameters of shapes '
                f"{shapes[1]}, got {shapes[0]}"
            )
        return jax.tree.map(jnp.asarray, start)


def make_task(config: Config) -> Task:
    """Load the data and build the network that `config` names."""
    data = config.data.load()
    if config.model.takes == "vector":
        data = data.flat()
    if config.train.loss != "cross_entropy":
        data = data.one_hot()
    if config.train.batch_size > len(data.x):
        raise InputError(
            f"train.batch_size: expected at most the {len(data.x)} training examples, "
            f"got {config.train.batch_size}"
        )
    return Task(config.model.build(data), LOSSES[config.train.loss], data, config.train.batch_size)


def keys(seed: int) -> tuple[Any, Any]:
    """`(for initial parameters, for training)`; epoch `n` takes `fold_in(training, n)`."""
    init, training = jax.random.split(jax.random.key(seed))
    return init, training


def labels(y: Any) -> Any:
    """Integer labels of targets that may be distributions."""
    y = jnp.asarray(y)
    return y if jnp.issubdtype(y.dtype, jnp.integer) else jnp.argmax(y, axis=-1)


def make_score(net: Layer, loss: Loss) -> Callable[..., tuple[float, float, np.ndarray]]:
    """`score(params, x, y) -> (loss, accuracy, predicted classes)`, compiled, chunk by chunk.

    Both are means over predictions: examples, or positions where every example has several.
    """

    @jax.jit
    def part(params: PyTree, x: Any, y: Any) -> Any:
        prediction = net(params, x)
        predicted = jnp.argmax(prediction, axis=-1)
        return loss(prediction, y), jnp.mean(predicted == labels(y), dtype=jnp.float32), predicted

    def score(params: PyTree, x: Any, y: Any) -> tuple[float, float, np.ndarray]:
        parts = [
            (len(x[i : i + CHUNK]), *part(params, x[i : i + CHUNK], y[i : i + CHUNK]))
            for i in range(0, len(x), CHUNK)
        ]
        value, accuracy = (sum(n * float(p[k]) for n, *p in parts) / len(x) for k in (0, 1))
        return value, accuracy, np.concatenate([np.asarray(p[3]) for p in parts])

    return score


def count_parameters(params: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
