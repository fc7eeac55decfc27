"""Selections whose error is chosen by the mask of another turn: lengths that are off by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.edits.edit import Instead, loops
from jaxbp.check.edits.series import series_of
from jaxbp.check.edits.sites import Sites
from jaxbp.check.evaluate import again
from jaxbp.check.guesses.products import shift
from jaxbp.check.guesses.stretches import Guess, Values
from jaxbp.check.operations import Op


def guesses(sites: Sites, known: Values) -> Iterator[Guess]:
    """For every selection in a loop, of a `scan` or of Python: the mask of the turn before, and after."""
    around = loops(sites.program.scope)
    for op in sites.ops():
        pred = op.inputs[0] if op.primitive.name == "select_n" and len(op.inputs) == 3 else None
        live = [k for k in (1, 2) if pred is not None and sites.is_live(op, k)]
        if not isinstance(pred, int) or pred not in known or not live:
            continue
        depth = len(around[id(op)])
        turns = series_of(sites, pred)
        if not depth and len(turns) < 2:
            continue
        lengths = np.shape(known[pred])[:depth]
        shape = (*lengths, *op.in_avals[0].shape)
        slot = Instead(op, -1, _make(op), shape=shape, about="result")
        for step, which in ((-1, "before"), (1, "after")):
            words = f"chosen by the mask of the turn {which}"
            if depth:
                moved = lambda env, s, p=pred, k=-step, a=depth - 1: shift(1.0 * env[p], k, a)  # noqa: E731
            else:
                moved = _of_turn(turns, turns.index(pred) + step, shape)
            yield Guess(slot, "missing-rows", words, moved, ways=((words, op.place),))


def _of_turn(turns: list[int], n: int, shape: tuple[int, ...]) -> Any:
    """The mask of a turn, and none beyond the ends."""
    if not 0 <= n < len(turns):
        return lambda env, s: np.zeros(shape)
    return lambda env, s: np.broadcast_to(1.0 * env[turns[n]], shape)


def _make(op: Op) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        chosen = jnp.asarray(jax.lax.stop_gradient(given) > 0.5)
        return again(op, [chosen, *inputs[1:]])

    return make
