"""What a config stands for: data, network, loss and initial parameters; and how good parameters are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbp.app.augment import make_augment
from jaxbp.app.compiled import compiled
from jaxbp.app.config import LOSSES, Config
from jaxbp.app.data import Dataset
from jaxbp.app.data.dataset import Kind
from jaxbp.app.networks import Own
from jaxbp.layer import InputError, Layer, PyTree
from jaxbp.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from jaxbp.precision import wide, with_precision
from jaxbp.train.batches import Batches
from jaxbp.train.private import Private

CHUNK = 1000  # examples that are evaluated at once


@dataclasses.dataclass(frozen=True)
class Metric:
    """How good predictions are, in one number that is better when it is larger.

    `key` is its name in records and summaries (`test_key` on the held-out part), `title` that for
    people, `digits` and `few` say how they read its number.
    """

    key: str
    title: str
    digits: str
    few: str

    def text(self, value: float | None) -> str:
        """The number, or a dash where there is none."""
        return "–" if value is None or not np.isfinite(value) else format(value, self.digits)

    def short(self, value: float | None) -> str:
        """The same with fewer digits."""
        return "–" if value is None or not np.isfinite(value) else format(value, self.few)


METRICS: dict[Kind, Metric] = {
    "classes": Metric("accuracy", "accuracy", ".2%", ".1%"),
    "values": Metric("r2", "R²", ".4f", ".3f"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and what it is to learn."""

    net: Layer
    loss: Loss
    data: Dataset
    batch_size: int
    augment: Callable[[Any, Any], Any] | None = None  # of a batch of training inputs
    drop_last: bool = False
    private: Private | None = None  # how much an example may change a step
    poisson: bool = False

    @property
    def batches(self) -> Batches:
        """How an epoch is shared out among its steps."""
        return Batches.of(self.net, len(self.data.x), self.batch_size, self.drop_last, self.poisson)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.batches.steps

    @property
    def metric(self) -> Metric:
        return METRICS[self.data.kind]

    def like(self) -> jax.ShapeDtypeStruct:
        """A batch of inputs, without values."""
        return jax.ShapeDtypeStruct((self.batch_size, *self.data.shape), self.data.x.dtype)

    def init(self, key: Any, from_data: bool = False) -> PyTree:
        """Initial parameters: random, or those that come with the data."""

        def init(key: Any) -> PyTree:
            return self.net.init(key, self.like())

        if not from_data:
            return (init if isinstance(key, Tracer) else compiled(init))(key)
        params = jax.eval_shape(init, key)
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
    if config.model.takes == "image":
        data = data.as_image()
    data = data.reproduced() if config.model.reproduces else data
    data = _targets(config, data)
    if config.train.validation_share:
        data = data.with_validation(config.train.validation_share, config.train.seed)
    if config.train.batch_size > len(data.x):
        raise InputError(
            f"train.batch_size: expected at most the {len(data.x)} training examples, "
            f"got {config.train.batch_size}"
        )
    task = task_of(config, data)
    if isinstance(config.model, Own):
        _check_outputs(config, task)
    return dataclasses.replace(task, augment=make_augment(config, data))


def _check_outputs(config: Config, task: Task) -> None:
    """One's own network gives what the data's targets are compared with."""
    like, data = task.like(), task.data
    try:
        params = jax.eval_shape(task.net.init, jax.random.key(0), like)
        y = jax.eval_shape(task.net, params, like)
    except InputError as error:
        raise InputError(
            f'model.name: "{config.model.name}" on inputs of shape {list(data.shape)}: {error}'
        ) from None
    inner = data.shape if data.labelled and data.y.ndim > 1 else ()
    wanted = (task.batch_size, *inner, data.outputs)
    if getattr(y, "shape", None) != wanted:
        got = list(y.shape) if hasattr(y, "shape") else type(y).__name__
        raise InputError(
            f'model.name: "{config.model.name}": expected an output of shape {list(wanted)} for a batch '
            f"of {task.batch_size} (data.outputs = {data.outputs}), got {got}"
        )


def task_of(config: Config, data: Dataset) -> Task:
    """The task on data that is as `config` wants it already; its examples are not looked at."""
    net, loss = config.model.build(data), LOSSES[config.train.loss]
    if config.train.precision != "float32":
        net = with_precision(net, config.train.precision)
    if config.train.label_smoothing:
        loss = SoftmaxCrossEntropy(label_smoothing=config.train.label_smoothing)
    return Task(net, loss, data, config.train.batch_size, drop_last=config.train.drop_last)


def _targets(config: Config, data: Dataset) -> Dataset:
    """The targets as the loss takes them."""
    loss = config.train.loss
    if data.kind == "values":
        between = all(a.min() >= 0 and a.max() <= 1 for a in (data.y, data.test_y))
        if loss != "squared_error" and not (loss == "sigmoid_cross_entropy" and between):
            what = "its own inputs" if config.model.reproduces else "real numbers"
            raise InputError(
                f'train.loss: expected "squared_error", since the targets are {what} '
                f'(data.name "{data.name}", model.name "{config.model.name}"), got "{loss}"'
            )
        return data
    if loss == "cross_entropy":
        return data
    if loss == "sigmoid_cross_entropy" and data.labelled and data.outputs == 2:
        return data.binary()
    return data.one_hot()


@partial(jax.jit, static_argnums=0)
def keys(seed: int) -> tuple[Any, Any]:
    """`(for initial parameters, for training)`; epoch `n` takes `fold_in(training, n)`."""
    init, training = jax.random.split(jax.random.key(seed))
    return init, training


def labels(y: Any) -> Any:
    """Integer labels of targets, which may be distributions or one number that is 0 or 1."""
    y = jnp.asarray(y)
    return y if jnp.issubdtype(y.dtype, jnp.integer) else decide(y - 0.5)


def decide(prediction: Any) -> Any:
    """The class with the largest entry; of a single logit, 1 where it is positive."""
    if prediction.shape[-1] == 1:
        return (prediction[..., 0] > 0).astype(jnp.int32)
    return jnp.argmax(prediction, axis=-1)


def as_values(loss: Loss, prediction: Any) -> Any:
    """What a prediction says of the target's values, where the loss takes logits."""
    return jax.nn.sigmoid(prediction) if isinstance(loss, SigmoidCrossEntropy) else prediction


def score_function(net: Layer, loss: Loss, kind: Kind) -> Callable[..., Any]:
    """`(params, x, y) -> (loss, prediction)`, not compiled: the prediction is the class or the values."""

    def part(params: PyTree, x: Any, y: Any) -> Any:
        prediction = net(params, x)
        prediction = prediction.astype(wide(prediction.dtype))
        says = decide if kind == "classes" else partial(as_values, loss)
        return loss(prediction, y), says(prediction)

    return part


@lru_cache(maxsize=8)
def _compiled_score(net: Layer, loss: Loss, kind: Kind) -> Callable[..., Any]:
    """One function for all who ask, so that it is compiled once."""
    return compiled(score_function(net, loss, kind))


def make_score(net: Layer, loss: Loss, kind: Kind = "classes") -> Callable[..., Any]:
    """`score(params, x, y) -> (loss, metric, predictions)`, the network compiled, chunk by chunk.

    The loss is the mean over predictions: examples, or positions where every example has several. For the
    metric see `measure`.
    """
    part = _compiled_score(net, loss, kind)

    def score(params: PyTree, x: Any, y: Any) -> tuple[float, float | None, np.ndarray]:
        parts = [part(params, x[i : i + CHUNK], y[i : i + CHUNK]) for i in range(0, len(x), CHUNK)]
        values, predicted = zip(*parts, strict=True)
        sizes = [len(p) for p in predicted]
        value = float(np.average([float(v) for v in values], weights=sizes))
        predicted = np.concatenate([np.asarray(p) for p in predicted])
        return value, measure(kind, y, predicted), predicted

    return score


def measure(kind: Kind, y: Any, predicted: np.ndarray) -> float | None:
    """How good predictions are: 1 less the share that is missed, summed in float64.

    Of classes, that is the accuracy. Of values it is `R² = 1 - Σ(y - ŷ)² / Σ(y - ȳ)²` with the mean `ȳ`
    of each output: 1 for perfect predictions, 0 for always predicting the mean. `None` where it says
    nothing: the targets do not differ (a single one never does), or a prediction is not finite.
    """
    if kind == "classes":
        return float(np.mean(predicted == np.asarray(labels(y))))
    y, missed, every = np.asarray(y), 0.0, 0.0
    mean = y.mean(axis=0, dtype=np.float64)
    for i in range(0, len(y), CHUNK):
        true, guess = (a[i : i + CHUNK].astype(np.float64) for a in (y, predicted))
        missed, every = missed + np.sum((true - guess) ** 2), every + np.sum((true - mean) ** 2)
    return float(1 - missed / every) if every > 0 and np.isfinite(missed) else None


def count_parameters(params: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
