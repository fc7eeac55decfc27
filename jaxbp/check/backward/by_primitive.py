"""Slips in the backward pass of one kind of operation; a row of `BY_PRIMITIVE` for each kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.backward.edit import Edit, Values, changed_at, fixed
from jaxbp.check.backward.in_numpy import WITH_PARAMETERS
from jaxbp.check.backward.program import Change, Env
from jaxbp.check.diagnosis.patterns import turns
from jaxbp.check.operations import Op
from jaxbp.check.oracle import float64


def _masks(values: Values, op: Op) -> Iterator[Edit]:
    """`select_n`: inverted, left out, moved."""
    if values.backward.linear[id(op)][0] or len(op.inputs) != 3:
        return
    yield fixed(op, changed_at(0, np.logical_not), "missing-rows", "masked the other way round", 2)
    for k in (1, 2):
        if values.backward.linear[id(op)][k]:
            yield fixed(op, lambda run, x, env, k=k: [x[k]], "missing-rows", "not masked", 2)
    for cause, words, turn in turns(values.shape(op, 0)):
        cause = cause if cause == "transpose" else "missing-rows"
        yield fixed(op, changed_at(0, turn), cause, f"masked by a mask that {words}", 3)


def _sums(values: Values, op: Op) -> Iterator[Edit]:
    """`reduce_sum`: a mean, one entry, over other axes."""
    axes, shape = tuple(op.params["axes"]), values.shape(op, 0)

    def along(some: tuple[int, ...]) -> Change:
        def change(run: Any, x: list[Any], env: Env) -> list[Any]:
            made, like = np.sum(x[0], some), np.sum(x[0], axes)
            return [made.reshape(like.shape) if made.size == like.size else like]

        return change

    yield fixed(op, lambda run, x, env: [np.mean(x[0], axes)], "scale", "averaged where it is summed", 2)
    for at in (0, -1) if len(axes) == 1 else ():
        entry = lambda run, x, env, at=at: [np.take(x[0], at, axes[0])]  # noqa: E731
        yield fixed(
            op, entry, "missing-sum", f"that of entry {at % shape[axes[0]]} alone, not the sum", 2
        )
    for other in itertools.combinations(range(len(shape)), len(axes)):
        if other != axes:
            words = f"summed over axes {list(other)} where it is summed over {list(axes)}"
            yield fixed(op, along(other), "transpose", words, 2)


def _running(values: Values, op: Op) -> Iterator[Edit]:
    """A running sum the other way, without its own term, or with that alone."""
    axis, reverse = op.params["axis"], op.params["reverse"]

    def run_along(x: Any, back: bool) -> Any:
        return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if back else np.cumsum(x, axis)

    slips: tuple[tuple[str, str, Change], ...] = (
        ("flip", "summed up from the other end", lambda run, x, env: [run_along(x[0], not reverse)]),
        ("missing-rows", "summed without each entry itself", lambda run, x, env: [run(x)[0] - x[0]]),
        ("missing-path", "not summed up: each entry alone", lambda run, x, env: [x[0]]),
    )
    for cause, words, change in slips:
        yield fixed(op, change, cause, words, 2)


def _loops(values: Values, op: Op) -> Iterator[Edit]:
    """A loop run the other way."""

    def backwards(run: Any, x: list[Any], env: Env) -> list[Any]:
        loop = op.loop
        fixed, state, slices = loop.divide(x)
        made = run([*fixed, *state, *(np.flip(s, 0) for s in slices)])
        return [*made[: loop.carry], *(np.flip(s, 0) for s in made[loop.carry :])]

    yield fixed(op, backwards, "flip", "carried through the loop in the wrong direction", 2)


def _overwritten(values: Values, op: Op) -> Iterator[Edit]:
    """`scatter-add`: what falls on the same entry is overwritten."""

    def change(run: Any, x: list[Any], env: Env) -> list[Any]:
        p = op.params
        with float64():
            into, where, what = map(jnp.asarray, x)
            made = jax.lax.scatter(into, where, what, p["dimension_numbers"], mode=p["mode"])
        return [np.asarray(made)]

    yield fixed(op, change, "missing-rows", OVERWRITTEN, 2)


OVERWRITTEN = "written in the place of what is there already, where it is added to it"


def _stores(values: Values, op: Op) -> Iterator[Edit]:
    """A sum of errors that lie in windows: stored one after the other, where they overlap overwritten."""
    users = values.uses.get(op.outputs[0], [])
    if any(u.primitive.name == "add_any" for u, _ in users) or op.outputs[0] not in values.env:
        return
    terms, made = list(op.inputs), values.backward.producer
    while any(isinstance(v, int) and v in made and made[v].primitive.name == "add_any" for v in terms):
        terms = [
            u
            for v in terms
            for u in (made[v].inputs if v in made and made[v].primitive.name == "add_any" else [v])
        ]
    windows = [_window(values, v) for v in terms]
    if sum(w is not None for w in windows) < 2 or len(terms) > 8:
        return
    every = range(len(terms))
    orders = itertools.permutations(every) if len(terms) <= 4 else (list(every), list(every)[::-1])
    for order in orders:

        def change(run: Any, x: list[Any], env: Env, order: Any = tuple(order)) -> list[Any]:
            total: Any = 0.0
            for n in order:
                term = env[terms[n]]
                window = windows[n]
                total = total + term if window is None else np.where(window, term, total)
            return [total]

        yield fixed(op, change, "missing-rows", OVERWRITTEN, 3)


def _window(values: Values, v: Any) -> Any:
    """Where a padded error lies."""
    maker = values.backward.producer.get(v)
    if maker is None or maker.primitive.name != "pad":
        return None
    inside = WITH_PARAMETERS["pad"](maker.params, np.ones(values.shape(maker, 0)), 0.0)
    return None if np.all(inside) else inside > 0


BY_PRIMITIVE: dict[str, Callable[[Values, Op], Iterator[Edit]]] = {
    "select_n": _masks, "reduce_sum": _sums, "cumsum": _running, "scan": _loops,
    "scatter-add": _overwritten, "scatter_add": _overwritten, "add_any": _stores,
}  # fmt: skip
