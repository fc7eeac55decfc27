"""Operations that choose (masks, maxima, look-ups, stops), and errors that do not choose alike."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites, is_elementwise
from jaxbp.check.edits.together import Together
from jaxbp.check.edits.windows import windows
from jaxbp.check.evaluate import again, ahead
from jaxbp.check.operations import Op

MOST_LOOKUPS = 512
MOST_OTHERS = 4
MOST_AXES = 3
LONGEST = 24  # steps in which places are computed ahead of their time


def selections(sites: Sites) -> Iterator[Instead]:
    """Masks left out, maxima whose error goes everywhere, sums overwritten, stops not looked at."""
    for op in sites.ops():
        name, live = op.primitive.name, [k for k in range(len(op.inputs)) if sites.is_live(op, k)]
        if name == "stop_gradient" and live:
            words = "let through, where the function stops it"
            yield Instead(op, 0, lambda x, y, env, given: x[0], "extra-path", words, about="error")
        if name == "select_n":
            for k in live:
                if op.in_avals[k].shape == op.out_avals[0].shape:
                    words = "left out of the backward pass"
                    yield Instead(op, k, lambda x, y, env, given, k=k: x[k], "mask", words)
            yield from _moved_mask(op, live)
        if name in ("max", "min") and live == [0, 1]:
            words = "not asked: the error goes to both operands"
            yield Instead(op, -1, lambda x, y, env, given: x[0] + x[1], "mask", words)
        yield from _only_inside(sites, op)
        if name in ("reduce_max", "reduce_min") and live:
            yield from _reductions(op)
        if name in ("reduce_window_max", "reduce_window_min", "reduce_window_sum") and live:
            yield from windows(op)
        if name == "gather" and 0 in live:
            yield from _overwritten(sites, op)
        if name in ("gather", "scatter-add"):
            yield from _other_indices(sites, op)
        if len(op.outputs) == 1:
            yield from _borders(sites, op)


def _moved_mask(op: Op, live: list[int]) -> Iterator[Instead]:
    """A selection whose error is chosen by its mask moved along an axis by one."""
    shape = op.out_avals[0].shape
    if op.in_avals[0].shape != shape or len(op.inputs) != 3:
        return
    for axis, size in enumerate(shape):
        for step in (1, -1) if size > 2 else ():

            def make(x: list[Any], y: Any, env: dict, given: Any, a: int = axis, s: int = step) -> Any:
                kept = [v if k in live else jax.lax.stop_gradient(v) for k, v in enumerate(x)]
                return again(op, [jnp.roll(x[0], s, a), *kept[1:]])

            words = f"chosen by its mask, moved by {step} along axis {axis}"
            yield Instead(op, -1, make, "missing-rows", words, about="result")


def _only_inside(sites: Sites, op: Op) -> Iterator[Instead]:
    """A value that is clipped in one of its uses, whose error is lost wherever that clip acts (PPO)."""
    live = [v for v in op.inputs if isinstance(v, int) and v in sites.live]
    if op.primitive.name not in ("clamp", "max", "min") or len(live) != 1:
        return
    maker = sites.producer.get(live[0])
    if maker is not None and maker.primitive.name in ("max", "min") and maker.place == op.place:
        live = [v for v in maker.inputs if isinstance(v, int) and v in sites.live]
    maker = sites.producer.get(live[0])
    uses = [o for o in sites.home[id(op)].ops if live[0] in o.inputs]
    if maker is None or maker.outputs != live or len(uses) < 2:
        return

    def make(x: list[Any], y: list[Any], env: dict, given: Any) -> Any:
        try:
            clipped = ahead(sites.producer, {**env, live[0]: y[0]}, op.outputs[0], LONGEST)
        except KeyError:
            return y[0]
        return again(maker, x) * (y[0] == clipped)

    words = f"lost in the entries in which {sites.describe(op.outputs[0])} is at a bound"
    yield Instead(maker, -1, make, "missing-rows", words, about="result")


def _reductions(op: Op) -> Iterator[Instead]:
    axes = tuple(op.params["axes"])
    for words, combine in (("of the sum", jnp.sum), ("of the mean", jnp.mean)):
        make = lambda x, y, env, given, f=combine: f(x[0], axis=axes)  # noqa: E731
        yield Instead(op, 0, make, "wrong-activation", words)


def _other_indices(sites: Sites, op: Op) -> Iterator[Instead]:
    """Errors looked up, or added up, at the places of another look-up."""
    k = 2 if op.primitive.name == "scatter-add" else 0
    shape = op.in_avals[1].shape
    others = [
        one.inputs[1]
        for one in sites.home[id(op)].ops
        if one.primitive.name in ("gather", "scatter-add")
        and one.in_avals[1].shape == shape
        and isinstance(one.inputs[1], int)
        and one.inputs[1] != op.inputs[1]
    ]
    for v in list(dict.fromkeys(others))[:MOST_OTHERS]:

        def make(x: Any, y: Any, env: dict, given: Any, v: int = v) -> Any:
            try:
                places = ahead(sites.producer, env, v, LONGEST)
            except KeyError:
                return y[0]
            return again(op, [x[0], places, *x[2:]])

        words = "taken at the places of another look-up"
        if sites.is_live(op, k):
            yield Instead(op, k, make, "wrong-point", words, tag=(op.inputs[1], v))


class Exchanged(Together):
    """Look-ups that trade their places: what goes along the edges of a graph goes against them."""

    @property
    def cause(self) -> str:
        return "transpose"


def exchanged_lookups(others: list[Instead]) -> list[Together]:
    """All look-ups at two lists of places, each at the other's: messages that go the wrong way."""
    pairs: dict[frozenset[Any], list[Instead]] = {}
    for other in others:
        if other.tag is not None:
            pairs.setdefault(frozenset(other.tag), []).append(other)
    text = "the look-ups at two lists of places"
    return [Exchanged(parts, text=text) for parts in pairs.values() if len({p.tag for p in parts}) == 2]


def _borders(sites: Sites, op: Op) -> Iterator[Instead]:
    """A grid that is cut or padded, whose error is lost at its ends, as if they were held."""
    cut = {"slice", "pad", "concatenate", "dynamic_slice", "gather"}
    users = [o for o in sites.home[id(op)].ops if op.outputs[0] in o.inputs]
    shape = op.out_avals[0].shape
    if op.outputs[0] not in sites.live or not is_elementwise(op) or not 0 < len(shape) <= MOST_AXES:
        return
    if not any(o.primitive.name in cut for o in users):
        return
    for axis, size in enumerate(shape):
        ends = {"first and last": (0, size - 1), "first": (0,), "last": (size - 1,)}
        for which, gone in ends.items() if size > 2 else ():
            mask = jnp.ones(size, bool).at[jnp.asarray(gone)].set(False)
            kept = mask.reshape([size if a == axis else 1 for a in range(len(shape))])
            make = lambda x, y, env, given, kept=kept: again(op, x) * kept  # noqa: E731
            words = f"lost in the {which} entries along axis {axis}"
            yield Instead(op, -1, make, "missing-rows", words, about="result")


def _overwritten(sites: Sites, op: Op) -> Iterator[Instead]:
    """What is looked up more than once, with one error in the place of the sum of all.

    The same entry may also be looked up by other operations of the kind, as at the corners of a pixel.
    """
    spread = _one_flag_each(op)
    if not spread:
        return
    same = [one for one in sites.home[id(op)].ops if _alike(one, op) and _one_flag_each(one)]
    for some, which in ([op], ""), (same, ", in all look-ups"):
        for words, later in (("last", True), ("first", False)) if len(some) > 1 or not which else ():
            make = _alone(sites, op, some, later, spread)
            said = f"that of the {words} of several that look up the same entry{which}"
            yield Instead(op, 0, make, "missing-rows", f"{said}: overwritten, not added up")


def _alike(one: Op, op: Op) -> bool:
    """Whether two look-ups are of the same table, an entry at a time in the same way."""
    if one.primitive.name != "gather" or one.inputs[0] != op.inputs[0]:
        return False
    return one.in_avals[1].shape[-1:] == op.in_avals[1].shape[-1:]


def _one_flag_each(op: Op) -> list[int]:
    """The shape of a flag for every look-up, as it stands beside the result; none where it has none."""
    count = prod(op.in_avals[1].shape[:-1])
    across = op.params["dimension_numbers"].offset_dims
    shape = [1 if a in across else n for a, n in enumerate(op.out_avals[0].shape)]
    return shape if 1 < count <= MOST_LOOKUPS and prod(shape) == count else []


def _alone(sites: Sites, op: Op, some: list[Op], later: bool, spread: list[int]) -> Any:
    """The look-up, of which each entry of the table keeps the last (or first) place alone."""

    def make(x: Any, y: Any, env: dict, given: Any) -> Any:
        try:
            places = [
                x[1] if one is op else ahead(sites.producer, env, one.inputs[1], LONGEST) for one in some
            ]
        except KeyError:
            return y[0]
        lists = [jnp.asarray(p).reshape(-1, p.shape[-1]) for p in places]
        ids = jnp.concatenate(lists)
        start = sum(len(part) for part in lists[: some.index(op)])
        own = slice(start, start + prod(spread))
        same = jnp.all(ids[:, None] == ids[None], -1)
        other = jnp.triu(same, 1) if later else jnp.tril(same, -1)
        return again(op, x) * ~jnp.any(other, 1)[own].reshape(spread)

    return make
