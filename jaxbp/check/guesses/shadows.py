"""Values that a backward pass takes for others: saved under the wrong name, or overwritten by an update.

A value that is used in several places and replaced in all of them is no slip of one product or one slope.
Two kinds are tried. A *saved* value: wherever a derivative needs `v`, another value of its shape stands.
A value *after its update*: everything between a state and the next one is differentiated at the next one
(`u + k·L(u)` with the gradient of `k` from `L(u_new)`). Forward values stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.edits.edit import Shadow, loops
from jaxbp.check.edits.series import ways
from jaxbp.check.edits.sites import Sites
from jaxbp.check.guesses.chains import SPREAD
from jaxbp.check.guesses.stretches import Guess, Values
from jaxbp.check.operations import Constant, Op, Scope, is_float
from jaxbp.check.report import Finding

MOST_OTHERS = 10  # values tried in the place of one
MOST_UPDATES = 4
MOST_STEPS = 60  # operations between a state and the next one
LINEAR = {
    "add", "sub", "neg", "add_any", "reshape", "broadcast_in_dim", "squeeze", "transpose", "reduce_sum",
    "convert_element_type", "copy", "slice", "concatenate", "pad", "rev", "expand_dims", "gather",
    "cumsum", "dynamic_slice", "select_n", "stop_gradient",
}  # fmt: skip
UPDATING = (
    "add", "sub", "add_any", "select_n", "scatter-add", "scatter_add", "scatter", "dynamic_update_slice"
)  # fmt: skip


@dataclass(eq=False)
class Taken(Guess):
    """A guess that says itself what was taken for what."""

    after: bool = False

    def finding(self, case: Any, sites: Sites, names: str, places: int) -> Finding:
        slot = self.slot
        assert isinstance(slot, Shadow)
        right = sites.describe(slot.start)
        also = f" (in {places} places of that line)" if places > 1 else ""
        if self.after:
            before = "the value before it" if right == self.words else right
            step = f"the step that makes {self.words}"
            detail = f"{step} is differentiated at its result{also}, where {before} belongs"
        else:
            uses = len(slot.uses)
            detail = (
                f"{self.words} stands for {right} wherever the backward pass needs it{also}: in "
                f"{uses} operations, the first {at(self.op)}"
            )
        op = self.op
        evidence = {
            "source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name
        }  # fmt: skip
        return Finding(names, self.cause, f"{names}: {detail}", evidence)


def guesses(sites: Sites, known: Values) -> list[Taken]:
    """What may have been taken for what."""
    found: list[Taken] = []
    around = loops(sites.program.scope)
    for scope in sites.scopes:
        if scope.ops:
            lengths = turns_around(sites, scope, known, len(around[id(scope.ops[0])]))
            if lengths is not None:
                found += _saved(sites, scope, known, lengths)
                found += _updated(sites, scope, known, lengths)
    return found


def turns_around(sites: Sites, scope: Scope, known: Values, depth: int) -> tuple[int, ...] | None:
    """The turns of the loops around a scope; `None` where its values are not recorded."""
    seen = next((known[o] for op in scope.ops for o in op.outputs if o in known), None)
    return None if seen is None else tuple(np.shape(seen)[:depth])


def _values(sites: Sites, scope: Scope, known: Values) -> list[int]:
    made = [*scope.inputs, *(o for op in scope.ops for o in op.outputs)]
    return [v for v in made if v in known and v in sites.shape and sites.floating(v)]


def _guess(slot: Shadow, words: str, w: int, lengths: tuple[int, ...], way: Any, after: bool) -> Taken:
    def values(env: Values, slopes: Values) -> np.ndarray:
        assert slot.shape is not None
        return np.broadcast_to(env[w], slot.shape)

    return Taken(slot, "wrong-point", words, values, rank=1, ways=way, after=after)


def _saved(sites: Sites, scope: Scope, known: Values, lengths: tuple[int, ...]) -> Iterator[Taken]:
    """Another value of the same shape wherever a value is used in more than one derivative."""
    values = _values(sites, scope, known)
    for v in values:
        shape = sites.shape[v]
        uses = [op for op in scope.ops if v in op.inputs and editable(op)]
        bent = [op for op in uses if op.primitive.name not in LINEAR]
        if shape:
            yield from _complement(scope, v, known, lengths)
        if len(bent) < 2 or not shape:
            continue
        here = sites.rank[id(bent[0])]
        others = [w for w in values if w != v and sites.shape[w] == shape]
        others.sort(key=lambda w: abs(_rank(sites, w) - here))
        slot = Shadow(bent[0], -2, _nothing, shape=(*lengths, *shape), start=v, uses=tuple(uses))
        for w in others[:MOST_OTHERS]:
            name = sites.describe(w)
            yield _guess(slot, name, w, lengths, ways(sites, bent[0], w, name), after=False)


def _complement(scope: Scope, v: int, known: Values, lengths: tuple[int, ...]) -> Iterator[Taken]:
    """A gate for what is left of it to 1: `z` where `1 - z` belongs, and the other way round."""
    if not np.all((known[v] > 0) & (known[v] < 1)):
        return
    spreads, every, rests, seen = [], [], 0, {v}
    for op in scope.ops:
        if not any(isinstance(u, int) and u in seen for u in op.inputs) or not editable(op):
            continue
        every.append(op)
        rest = op.primitive.name == "sub" and _one(op.inputs[0])
        if rest or op.primitive.name in SPREAD:
            rests += rest
            spreads.append(op)
            seen.add(op.outputs[0])
    bent = [op for op in every if op.primitive.name not in LINEAR]
    if not rests or len(bent) < 2:
        return
    shape = (*lengths, *known[v].shape[len(lengths) :])
    slot = Shadow(
        bent[0], -2, _nothing, shape=shape, start=v, uses=tuple(every),
        through=frozenset(id(op) for op in spreads),
    )  # fmt: skip
    words = "what is left of it to 1"
    values = lambda env, s: np.broadcast_to(1 - env[v], shape)  # noqa: E731
    several = ("together", words, id(scope))
    yield Taken(slot, "wrong-point", words, values, rank=1, ways=(0, several))


def _one(v: Any) -> bool:
    return isinstance(v, Constant) and np.size(v.value) == 1 and float(np.ravel(v.value)[0]) == 1


def _updated(sites: Sites, scope: Scope, known: Values, lengths: tuple[int, ...]) -> Iterator[Taken]:
    """Everything between a state and the next one, differentiated at the next one."""
    for v in _values(sites, scope, known):
        shape = sites.shape[v]
        if sum(v in op.inputs for op in scope.ops) < 2:
            continue
        reached, path, count = {v}, [], 0
        for op in scope.ops:
            if not any(isinstance(u, int) and u in reached for u in op.inputs):
                continue
            if not editable(op) or len(path) >= MOST_STEPS or count >= MOST_UPDATES:
                break
            reached.update(op.outputs)
            path.append(op)
            w = op.outputs[0]
            if op.primitive.name in UPDATING and tuple(sites.shape[w]) == tuple(shape) and w in known:
                steps = _between(path, w)
                if any(o.primitive.name not in LINEAR for o in steps):
                    count += 1
                    slot = Shadow(
                        op, -2, _nothing, shape=(*lengths, *shape), start=v, uses=tuple(steps),
                        through=frozenset(id(o) for o in steps if o is not op),
                    )  # fmt: skip
                    yield _guess(slot, sites.describe(w), w, lengths, (len(steps),), after=True)
                    last = _last_like(sites, scope, w)
                    if last in known:
                        yield _guess(
                            slot, f"{sites.describe(w)}, at its last turn", last, lengths, (last,), True
                        )


def _last_like(sites: Sites, scope: Scope, v: int) -> int:
    """Of the values that the same expression makes in a loop of Python, the last."""
    maker = sites.producer[v]
    same = [o for o in scope.ops if (o.place, o.primitive) == (maker.place, maker.primitive)]
    return same[-1].outputs[0] if maker.place.file else v


def _between(path: list[Op], end: int) -> list[Op]:
    """Of the operations that a value reaches, those that lead to `end`."""
    wanted, needed = {end}, []
    for op in reversed(path):
        if op.outputs[0] in wanted:
            needed.append(op)
            wanted.update(u for u in op.inputs if isinstance(u, int))
    return needed[::-1]


def _rank(sites: Sites, v: int) -> int:
    maker = sites.producer.get(v)
    return sites.rank[id(maker)] if maker is not None else -1


def editable(op: Op) -> bool:
    """Whether an operation can be run on other operands beside the right ones."""
    return op.kind in ("plain", "rule") and len(op.outputs) == 1 and is_float(op.out_avals[0])


def _nothing(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
    return results[0]
