"""One update of the parameters that are trained, by any Optax optimizer.

An optimizer sees the trainable parameters alone: running statistics count in no norm, no distance and no
average, whatever it computes. They are cut out of what it is given (`optax.MaskedNode()` in their place,
which holds no array) and put back afterwards. Its state may have been made from all parameters, as
`tx.init(params)`: what belongs to a statistic there is as `tx.init` would make it from the statistics of
now, so that averages which Optax computes from the state (`schedule_free_eval_params`) leave them be.

Besides the gradients an optimizer may ask for `value` and `grad` (`reduce_on_plateau`, `polyak_sgd`,
`momo`), for `value_fn`, the loss of these examples as a function of the parameters (`lbfgs`), or for what
`sophia` and `sam` call `obj_fn` and `grad_fn`, or (`jaxbp.beyond.kfac`) for the `batch`, `(params, x, y,
mode)`; all are there. Whatever it differentiates is
differentiated by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxbp.bridge import with_gradient
from jaxbp.layer import InputError, Layer, PyTree

Optimizer = optax.GradientTransformation | optax.MultiSteps
Gradients = Callable[[PyTree], tuple[Any, PyTree]]

UNABLE: dict[type, str] = {
    optax.contrib.DifferentiallyPrivateAggregateState: (
        "optax.contrib.differentially_private_aggregate (and dpsgd) wants a gradient for every example, "
        "and a step has their mean; take them with value_and_grad(net, loss, gather), and update by hand"
    ),
    optax.LookaheadState: (
        "optax.lookahead keeps two copies of the parameters (optax.LookaheadParams), and a step has one; "
        "update by hand, with gradients by value_and_grad(net, loss) of the fast ones"
    ),
}

ALONE = (
    "noise: this optimizer asks for the loss, or for a second gradient of the same batch, and a private "
    "step has one noisy gradient to show; take one that needs no more (sgd, adam, adamw, rmsprop, lion)"
)


def update(
    net: Layer,
    tx: optax.GradientTransformationExtraArgs,
    params: PyTree,
    opt_state: PyTree,
    gradients: Gradients | None,
    value: Any,
    grads: PyTree,
    batch: tuple[Any, ...] | None,
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """`(params after the update, finish)`; `finish(params) -> opt_state`, once the statistics moved too.

    `gradients(params) -> (value, grads)` is the loss of the step's examples; `value` and `grads` are
    what it gave for `params`, and `batch` all that it did so with, `(params, x, y, mode)`. Where
    `gradients` is `None`, an optimizer may see these `grads` alone.
    """
    _require_able(opt_state)
    trained = net.trainable(params)

    def part(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda yes, leaf: leaf if yes else optax.MaskedNode(), trained, tree)

    def whole(own: PyTree) -> PyTree:
        return jax.tree.map(lambda yes, leaf, new: new if yes else leaf, trained, params, own)

    def gradients_of_part(own: PyTree) -> tuple[Any, PyTree]:
        if gradients is None:
            raise InputError(ALONE)
        value, grads = gradients(whole(own))
        return value, part(grads)

    own = part(params)
    state, absent = _narrowed(opt_state, tx, params, own)
    updates, state = _ask(tx, part(grads), state, own, value, gradients_of_part, batch)

    def finish(params: PyTree) -> PyTree:
        return _widened(state, tx.init(params), absent) if absent else state

    return whole(optax.apply_updates(own, updates)), finish


def _ask(
    tx: optax.GradientTransformationExtraArgs,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    value: Any,
    gradients: Gradients,
    batch: tuple[Any, ...] | None,
) -> tuple[PyTree, PyTree]:
    """`tx.update` with all that an optimizer may ask for."""
    loss = with_gradient(gradients)

    def value_fn(params: PyTree, obj_fn: Any = None, grad_fn: Any = None, batch: Any = None) -> Any:
        return loss(params)  # a line search refuses what its `value_fn` does not take

    for_sam = {"grad_fn": lambda params, _: gradients(params)[1]}
    given = {"value": value, "grad": grads, "value_fn": value_fn, "obj_fn": loss, "batch": batch}
    if value is None:
        del given["value"]
    try:
        return tx.update(grads, state, params, **given, **for_sam)
    except TypeError as error:  # `sam` takes nothing else, even in a chain
        if value is None and "required keyword-only argument: 'value'" in str(error):
            raise InputError(ALONE) from None
        if "unexpected keyword argument" not in str(error):
            raise
        return tx.update(grads, state, params, **for_sam)


def _narrowed(state: PyTree, tx: Optimizer, params: PyTree, own: PyTree) -> tuple[PyTree, set[Any]]:
    """`(state, absent)`: without what it holds of the statistics, and where that was."""
    everything, trained = (jax.eval_shape(tx.init, tree) for tree in (params, own))
    absent = _masked(trained) - _masked(everything) - _masked(state)
    state = _replaced(state, dict.fromkeys(absent, optax.MaskedNode()))
    held = dict(jax.tree_util.tree_leaves_with_path(state))
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        if path not in held or jnp.shape(held[path]) != leaf.shape:
            got = f"{list(jnp.shape(held[path]))}" if path in held else "none"
            raise InputError(
                f"opt_state{jax.tree_util.keystr(path)}: expected an array of shape {list(leaf.shape)}, "
                f"got {got}; start with tx.init(params), and where an optimizer joins all parameters "
                "(optax.flatten), with tx = optax.masked(tx, net.trainable)"
            )
    return state, absent


def _widened(state: PyTree, fresh: PyTree, absent: set[Any]) -> PyTree:
    """The state with what `fresh` holds of the statistics, where they were: an array, or several."""
    found = jax.tree_util.tree_leaves_with_path(
        fresh, is_leaf=lambda path, _: path in absent, is_leaf_takes_path=True
    )
    return _replaced(state, {path: node for path, node in found if path in absent})


def _masked(tree: PyTree) -> set[Any]:
    """The places in `tree` that nothing stands in."""
    nodes = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
    )
    return {path for path, node in nodes if isinstance(node, optax.MaskedNode)}


def _replaced(tree: PyTree, new: dict[Any, Any]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, node: new.get(path, node),
        tree,
        is_leaf=lambda path, _: path in new,
        is_leaf_takes_path=True,
    )


def _require_able(opt_state: PyTree) -> None:
    kinds = tuple(UNABLE)
    for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, kinds):
            raise InputError(f"opt_state: {UNABLE[type(node)]}")


class Donating:
    """`fn(params, opt_state, ...)` compiled, with the buffers of both re-used for the result.

    A buffer can be given away once: of an array that occurs twice (in the state of `prodigy`, `dog`,
    `cocob` and `sam` the parameters do), the later ones are copied first. Otherwise as `jax.jit(fn)`.
    """

    def __init__(self, fn: Callable[..., Any]):
        self._fn = jax.jit(fn, donate_argnums=(0, 1))

    def __call__(self, params: PyTree, opt_state: PyTree, *rest: Any, **named: Any) -> Any:
        seen: set[int] = set()

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
                return leaf
            if leaf.is_deleted():
                raise InputError(
                    "params or opt_state: their buffers went to the result of an earlier call "
                    "(donate=True); go on with what that call returned, or leave donate out"
                )
            if id(leaf) in seen:
                return leaf.copy()
            seen.add(id(leaf))
            return leaf

        return self._fn(*jax.tree.map(own, (params, opt_state)), *rest, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fn, name)
