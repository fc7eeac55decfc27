"""Sums, products and loops in order, whose error runs in the wrong direction or is off by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites
from jaxbp.check.evaluate import run
from jaxbp.check.operations import Editor, Op, is_float


def running(op: Op) -> Iterator[Instead]:
    """A running sum or product, the wrong way round or without each entry's own term."""
    reverse = op.params["reverse"]
    words = "run in the direction of the forward pass"
    yield Instead(op, 0, _summed(op, not reverse, own=True), "flip", words, about="walk")
    words = "run without each entry's own term: off by one"
    yield Instead(op, 0, _summed(op, reverse, own=False), "missing-rows", words, about="walk")
    words = "run over each entry's own term alone: what it does to later ones is forgotten"
    yield Instead(op, 0, _own_term(op), "missing-path", words, about="walk")


def running_before(sites: Sites, op: Op) -> Iterator[Instead]:
    """A running sum or product up to the entry before, whose error takes in the entry, or is turned.

    `T = concatenate([1, cumprod(e)[:-1]])`, as light is carried through what lies in front of a point.
    """
    for k, v in enumerate(op.inputs):
        cut = sites.producer.get(v) if isinstance(v, int) else None
        run = sites.producer.get(cut.inputs[0]) if cut is not None else None
        if cut is None or cut.primitive.name != "slice" or run is None:
            continue
        if (
            run.primitive.name in ("cumsum", "cumprod")
            and run.out_avals[0].shape == op.out_avals[0].shape
        ):
            reverse = run.params["reverse"]
            for words, back, own in (
                ("run with each entry's own term, where it ends before it: off by one", reverse, True),
                ("run in the direction of the forward pass", not reverse, False),
                (
                    "run in the direction of the forward pass, with each entry's own term",
                    not reverse,
                    True,
                ),
            ):
                cause = "missing-rows" if back == reverse else "flip"
                yield Instead(op, k, _summed(run, back, own), cause, words, about="walk")


def wrong_way(op: Op) -> Any:
    """The loop with its values as they are, and its state handed on in the other direction."""
    loop, still = op.loop, jax.lax.stop_gradient
    carry = loop.carry

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> list[Any]:
        fixed, init, xs = loop.divide([jnp.asarray(x) for x in inputs])

        def forward(state: list[Any], x: list[Any]) -> Any:
            return run(op.bodies[0], [*fixed, *state, *x], Editor(), True)[:carry], state

        def pinned(state: list[Any], x: Any) -> Any:
            values = [v + (s - still(s)) if is_float(v) else v for v, s in zip(x[0], state, strict=True)]
            outs = run(op.bodies[0], [*fixed, *values, *x[1]], Editor(), True)
            return outs[:carry], outs[carry:]

        _, kept = jax.lax.scan(forward, init, xs, loop.length, reverse=loop.reverse)
        state, ys = jax.lax.scan(pinned, init, (still(kept), xs), loop.length, reverse=not loop.reverse)
        return [*state, *ys]

    return make


def _own_term(op: Op) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        parts, beside = _terms(op, inputs[0], results[0])
        return beside * parts

    return make


def _terms(run: Op, x: Any, result: Any) -> tuple[Any, Any]:
    """`(terms, factor)`: the derivative of the result is the factor times that of the terms' sum."""
    still = jax.lax.stop_gradient
    if run.primitive.name == "cumprod":
        return x / still(x), still(result)
    if run.primitive.name == "cumlogsumexp":
        return still(jnp.exp(x)) * x, still(jnp.exp(-result))
    return x, 1.0


def _summed(run: Op, reverse: bool, own: bool) -> Any:
    """The value, with the derivative of another running sum or product; `own` counts the entry itself."""
    axis = run.params["axis"]

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        parts, beside = _terms(run, env[run.inputs[0]], results[0])
        return beside * (jax.lax.cumsum(parts, axis, reverse) - (0 if own else parts))

    return make
