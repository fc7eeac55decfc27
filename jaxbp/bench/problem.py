"""What a row of the bench measures: a network, a loss, an input, and the work to be done with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.layer import Eval, Gather, Layer, Mode, PyTree
from jaxbp.losses import Loss
from jaxbp.precision import wide

Work = Literal["gradient", "step", "epoch"]
Size = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """`work` on `loss(net(params, x), y)`.

    `"gradient"` is one value and the gradients of the parameters and, where `x` is floating, of `x`, or
    the `quantity` (`quantities.py`) in their place; `"step"` is a gradient and an update by `tx`;
    `"epoch"` is a pass over all of `x` in batches of `batch`. `plain` is the network and loss that
    autodiff is given, where the library's own forward pass is arranged for a backward pass by hand;
    parameters are the same. `rate` is the learning rate.
    """

    net: Layer
    loss: Loss
    x: Any
    y: Any
    work: Work = "gradient"
    plain: tuple[Layer, Loss] | None = None
    tx: Callable[[float], optax.GradientTransformation] = optax.sgd
    rate: float = 1e-3
    batch: int = 0
    params: PyTree = None
    quantity: str = ""

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return self.tx(self.rate)

    @property
    def has_dx(self) -> bool:
        """Whether the gradient of `x` is wanted: a step or an epoch has no use for it."""
        return (
            self.work == "gradient" and not self.quantity and jnp.issubdtype(self.x.dtype, jnp.floating)
        )

    def started(self, seed: int = 0) -> Problem:
        """The same with fresh parameters, floating ones nudged so that none starts at zero."""
        shape = jax.ShapeDtypeStruct(self.x.shape, self.x.dtype)
        params = jax.jit(lambda key: self.net.init(key, shape))(jax.random.key(seed))
        leaves, structure = jax.tree.flatten(params)
        rng = np.random.default_rng(seed)
        nudged = [
            leaf + jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves
        ]
        return replace(self, params=jax.tree.unflatten(structure, nudged))


@dataclass(frozen=True, repr=False)
class WithInput(Layer):
    """`body` of an input that counts among its parameters: `(params, x)`, so that `dx` is a gradient."""

    body: Layer

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        return self.body.forward(params[0], params[1], mode)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        return self.body.backward(params[0], saved, dy, gather), None


@dataclass(frozen=True, repr=False)
class Projection(Loss):
    """`L = Σ_i t_i ŷ_i`, so that `∂L/∂ŷ = t`: any error that one likes arrives at a layer."""

    def forward(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        dtype = wide(prediction.dtype)
        value = jnp.sum(prediction.astype(dtype) * target.astype(dtype))
        return value, target.astype(prediction.dtype)

    def backward(self, saved: Any) -> Any:
        return saved


def normal(seed: int, shape: tuple[int, ...], dtype: Any = "float32") -> Any:
    """Signed values, the same for every contestant."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def whole(seed: int, shape: tuple[int, ...], below: int) -> Any:
    """Integers of `[0, below)`."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, shape), jnp.int32)
