"""Derivatives that forget how entries are coupled.

A softmax or a norm divides by a sum over all entries. Who differentiates it "elementwise" follows every
entry to its own output only, and drops the off-diagonal of the Jacobian.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites, is_elementwise
from jaxbp.check.evaluate import again
from jaxbp.check.operations import Constant, Op, widen

LONGEST = 8


def own_entries(sites: Sites) -> list[Instead]:
    """Sums that reach every entry (softmax, norms), followed from each output's own entry only."""
    found = []
    for scope in sites.scopes:
        sums = {
            op.outputs[0]: op
            for op in scope.ops
            if op.primitive.name in ("reduce_sum", "reduce_prod") and sites.is_live(op, 0)
        }
        for op in scope.ops:
            for k, v in enumerate(op.inputs):
                if not sites.is_live(op, k) or not is_elementwise(op):
                    continue
                chain, start = _back_to(sites, v, sums)
                if start is not None and sums[start].in_avals[0].shape == op.out_avals[0].shape:
                    found.append(_own_entry(op, k, sums[start], chain))
    return found


def _back_to(sites: Sites, v: Any, sums: dict[int, Op]) -> tuple[list[Op], int | None]:
    """The chain of one-operand steps from a sum to the value `v`."""
    chain: list[Op] = []
    while isinstance(v, int) and v not in sums:
        op = sites.producer.get(v)
        if op is None or len(chain) > LONGEST:
            return [], None
        live = {u for k, u in enumerate(op.inputs) if sites.is_live(op, k)}
        if len(live) != 1 or not (
            is_elementwise(op) or op.primitive.name in ("broadcast_in_dim", "reshape")
        ):
            return [], None
        chain.append(op)
        v = live.pop()
    return chain[::-1], v if isinstance(v, int) else None


def _own_entry(op: Op, k: int, total: Op, chain: list[Op]) -> Instead:
    """The operation, with the sum behind operand `k` depending, at every entry, on that entry alone."""
    still = jax.lax.stop_gradient

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        try:
            return alone(inputs, env)
        except (TypeError, ValueError):  # values that do not line up with the entries: no such mistake
            return results[0]

    def alone(inputs: list[Any], env: dict) -> Any:
        entries = env[total.inputs[0]]
        axes = tuple(total.params["axes"])
        summed = jnp.broadcast_to(jnp.expand_dims(still(env[total.outputs[0]]), axes), entries.shape)
        own = still(summed) + entries - still(entries)
        if total.primitive.name == "reduce_prod":
            own = still(summed) + still(summed / entries) * (entries - still(entries))
        live = {total.outputs[0]: own}
        for step in chain:
            live[step.outputs[0]] = _step(step, live, env, own)
        operands = [still(x) for x in inputs]
        operands[k] = live[op.inputs[k]]
        return again(op, [_spread_out(x, own) for x in operands])

    return Instead(op, k, make, "missing-path", "from each output's own entry alone")


def _step(step: Op, live: dict[int, Any], env: dict, own: Any) -> Any:
    if not is_elementwise(step):
        return next(live[v] for v in step.inputs if v in live)
    operands = [
        live[v]
        if v in live
        else _spread_out(
            widen(v.value) if isinstance(v, Constant) else jax.lax.stop_gradient(env[v]), own
        )
        for v in step.inputs
    ]
    return again(step, operands)


def _spread_out(x: Any, like: Any) -> Any:
    """A constant in the shape of the entries: scalars as they are, sums along their lost axes."""
    x = jnp.asarray(x)
    if x.shape == like.shape:
        return x
    if x.ndim == like.ndim:
        return jnp.broadcast_to(x, like.shape)
    return jnp.broadcast_to(x.reshape((*x.shape, *(1,) * (like.ndim - x.ndim))), like.shape)
