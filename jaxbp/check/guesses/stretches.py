"""Other derivatives of elementwise stretches: another function's, at another point, of some entries only.

A stretch is a run of operations whose result depends, entry by entry, on one value alone. Its derivative
is an array of slopes, and so is every guess at what somebody wrote in its place: guesses are computed in
numpy from the recorded values, and handed to one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.diagnosis.roles import role
from jaxbp.check.edits.edit import Instead, loops
from jaxbp.check.edits.series import turns_beside, ways
from jaxbp.check.edits.sites import UNARY, Sites, is_elementwise
from jaxbp.check.evaluate import again
from jaxbp.check.guesses import activations
from jaxbp.check.operations import Constant, Op, Scope, widen
from jaxbp.check.oracle import float64, quick_jit

Values = dict[int, Any]
MOST_OTHERS = 8
AT_ANGLE_0 = {"sin": 1.0, "cos": 0.0}
UNTURNED = "at the angle 0: what is not turned yet stands for what is"
KINKED = ("max", "min", "clamp", "abs")
KINKED_RULES = ("relu", "relu6", "leaky_relu", "hard_tanh", "hard_sigmoid")
SUMMING = ("reduce_sum", "mul", "div", "neg", "convert_element_type", "reshape", "add", "sub")
ACTIVATING = {
    "tanh", "logistic", "erf", "erfc", "sin", "cos", "max", "min", "select_n", "exp", "expm1", "log1p",
    "abs", "clamp", "log", "atan", "sqrt", "rsqrt", "integer_pow", "pow", "square",
}  # fmt: skip


@dataclass(eq=False)
class Guess:
    """What might stand in a slot: `values(recorded values, slopes)` is the array to give."""

    slot: Instead
    cause: str
    words: str
    values: Callable[[Values, Values], np.ndarray]
    rank: int = 0
    ways: tuple[Any, ...] = (0,)  # tells guesses with the same words apart, where several belong together

    @property
    def op(self) -> Op:
        return self.slot.op

    @property
    def operand(self) -> int:
        return self.slot.operand

    @property
    def about(self) -> str:
        return self.slot.about


@dataclass(eq=False)
class Stretch:
    """`start -> end.outputs[0]` through `ops`; `others` are values at which its slope may be taken."""

    start: int
    end: Op
    ops: list[Op]
    others: list[int] = field(default_factory=list)
    depth: int = 0

    def slope(self, u: Any, env: dict[int, Any]) -> Any:
        """The derivative at `u`, entry by entry."""
        return jax.jvp(lambda value: self._value(value, env), (u,), (jnp.ones_like(u),))[1]

    def _value(self, value: Any, env: dict[int, Any]) -> Any:
        inner = {**env, self.start: value}
        for op in self.ops:
            operands = [widen(v.value) if isinstance(v, Constant) else inner[v] for v in op.inputs]
            inner[op.outputs[0]] = again(op, operands)
        return inner[self.end.outputs[0]]


def find(sites: Sites, known: Values) -> list[Stretch]:
    """Every stretch that can be anything but linear, where its values are recorded."""
    around = loops(sites.program.scope)
    found = []
    for scope in sites.scopes:
        for start, end, ops in _in_scope(sites, scope):
            if start in known and end.outputs[0] in known:
                others = [v for v in _like(sites, scope, start, end) if v in known]
                found.append(Stretch(start, end, ops, others, len(around[id(end)])))
    return found


def slopes(stretches: list[Stretch], recorded: list[Values]) -> list[Values]:
    """For every point and stretch (by number): its slopes at its input, output, negated input, others."""

    def at_points(env: Values) -> Values:
        return {n: _slopes(stretch, env) for n, stretch in enumerate(stretches)}

    with float64():
        compiled = quick_jit(at_points)
        return [{n: np.asarray(s) for n, s in compiled(env).items()} for env in recorded]


def _slopes(stretch: Stretch, env: dict[int, Any]) -> Any:
    needed = {v for op in stretch.ops for v in op.inputs if isinstance(v, int)} & set(env)
    fn: Callable[..., Any] = lambda u, values: stretch.slope(u, values)  # noqa: E731
    for _ in range(stretch.depth):
        fn = jax.vmap(fn)
    u = env[stretch.start]
    points = [u, env[stretch.end.outputs[0]], -u, *(env[v] for v in stretch.others)]
    return jax.vmap(fn, (0, None))(jnp.stack(points), {v: env[v] for v in needed})


def guesses(sites: Sites, stretches: list[Stretch], known: Values) -> list[Guess]:
    """What may have been written in the place of every stretch's derivative."""
    found: list[Guess] = []
    for n, stretch in enumerate(stretches):
        start = stretch.start
        slot = Instead(
            stretch.end,
            -1,
            lambda x, y, env, given, start=start: jax.lax.stop_gradient(given) * env[start],
            shape=known[stretch.end.outputs[0]].shape,
        )
        found += _of_stretch(slot, stretch, n, sites)
    return found


Slips = list[tuple[str, str, Callable[[Values, np.ndarray], np.ndarray]]]


def _own_formula(sites: Sites, stretch: Stretch, kinked: bool) -> Slips:
    """The right derivative at the wrong place, or with a factor too many or too few."""
    u, h = stretch.start, stretch.end.outputs[0]
    first, last = (stretch.ops[n].primitive.name for n in (0, -1))
    array, maker = bool(sites.shape[h]), sites.producer.get(u)
    norm = array and first == "sqrt" and maker is not None and maker.primitive.name == "reduce_sum"
    by_output = "wrong-point" if norm else "scale"  # of a norm: a vector not divided by its length
    negated: Slips = [("wrong-point", "at the negated input", lambda env, s: s[2])]
    slips: Slips = [
        ("wrong-activation", "twice over", lambda env, s: s[0] ** 2),
        ("missing-rows", "only where its input is positive, else 0", lambda e, s: s[0] * (e[u] > 0)),
        ("missing-rows", "only where its input is negative, else 0", lambda e, s: s[0] * (e[u] < 0)),
        ("sign", "without its sign", lambda env, s: np.abs(s[0])),
        *negated,
        ("scale", "times its own input, once too often", lambda e, s: s[0] * e[u]),
        ("scale", "divided by its own input", lambda e, s: s[0] / e[u]),
        (by_output, "times its own output, once too often", lambda e, s: s[0] * e[h]),
        ("wrong-activation", "with 0 and not 0 exchanged", lambda env, s: np.where(s[0] == 0, 1.0, 0.0)),
    ]  # fmt: skip
    if not (array and last in ("exp", "exp2")):  # there it is the derivative of the identity
        slips.append((by_output, "divided by its own output", lambda e, s: s[0] / e[h]))
    if not kinked:  # its output may be on the kink, where its input is beyond
        at_output = ("wrong-point", "at the output instead of the input", lambda env, s: s[1])
        slips.insert(0, at_output)
    return negated + slips if last == "abs" else slips  # at |x| and at -x its slopes differ by a sign


def _of_stretch(slot: Instead, stretch: Stretch, n: int, sites: Sites) -> Iterator[Guess]:
    u, h = stretch.start, stretch.end.outputs[0]
    bent = [op for op in stretch.ops if _curved(op)]
    kinked = all(op.primitive.name in KINKED or op.name in KINKED_RULES for op in bent)
    for cause, words, make in _own_formula(sites, stretch, kinked):
        yield Guess(slot, cause, words, lambda env, s, f=make: f(env, s[n]))
    if len(stretch.ops) == 1 and stretch.ops[0].primitive.name in AT_ANGLE_0:
        slope = AT_ANGLE_0[stretch.ops[0].primitive.name]
        still = lambda env, s, k=slope: np.full_like(s[n][0], k)  # noqa: E731
        several = ("together", "angle", u), ("together", "angle")
        yield Guess(slot, "wrong-point", UNTURNED, still, rank=1, ways=several)
    likely = any(op.kind == "rule" or op.primitive.name in ACTIVATING for op in stretch.ops)
    bounds = sum(op.primitive.name in ("max", "min") for op in stretch.ops)
    clipped = bounds > 0 or any(op.primitive.name == "clamp" for op in stretch.ops)
    clipped = clipped or (kinked and _only_summed(sites, h))
    for words, cause, make in activations.alternatives():
        if likely or words == "of the identity":
            cause = "missing-rows" if clipped and words == "of the identity" else cause
            yield Guess(slot, cause, words, lambda env, s, f=make: f(env[u], env[h]))
    formula = activations.OF_ITS_OUTPUT.get(stretch.ops[-1].primitive.name)
    if formula is not None and len(stretch.ops) == 1:
        for v in stretch.others:
            words = f"by the formula {formula} for the output, at another value, {sites.describe(v)}"
            make = activations.IN_THE_OUTPUT[formula]
            yield Guess(slot, "wrong-point", words, lambda env, s, v=v, f=make: f(env[v]), rank=1)
    for k, v in enumerate(stretch.others):
        maker = sites.producer.get(u)
        if maker is not None and v in maker.inputs:
            words = f"at {role(maker, maker.inputs.index(v))} that makes its input"
            make = lambda env, s, k=k: s[n][3 + k]  # noqa: E731
            also = ways(sites, stretch.end, v, sites.describe(v))
            yield Guess(slot, "wrong-point", words, make, rank=1, ways=(0, *also))
            continue
        words = f"at another value, {sites.describe(v)}"
        make = lambda env, s, k=k: s[n][3 + k]  # noqa: E731
        yield Guess(slot, "wrong-point", words, make, rank=1, ways=ways(sites, stretch.end, v, words))


def _only_summed(sites: Sites, v: int, steps: int = 6) -> bool:
    """Whether a value is a term of a loss: it is summed, and goes into nothing else."""
    ops = sites.home[id(sites.producer[v])].ops
    for _ in range(steps):
        users = [op for op in ops if v in op.inputs]
        if len(users) != 1 or users[0].primitive.name not in SUMMING:
            return False
        if users[0].primitive.name == "reduce_sum":
            return True
        others = [u for u in users[0].inputs if u != v and isinstance(u, int) and u in sites.live]
        if others and users[0].primitive.name in ("mul", "div"):
            return False
        v = users[0].outputs[0]
    return False


# --- finding them -------------------------------------------------------------------------------------


def _like(sites: Sites, scope: Scope, start: int, end: Op) -> list[int]:
    """Other values of the same shape at which a derivative might be taken by mistake, nearest first."""
    here = sites.rank[id(end)]
    ops = sorted(scope.ops, key=lambda op: abs(sites.rank[id(op)] - here))
    made = [o for op in ops if not is_elementwise(op) for o in op.outputs]
    near = [o for op in ops if is_elementwise(op) for o in op.outputs]
    few = MOST_OTHERS // 2
    made = [*made[:few], *near[:few], *made[few:], *near[few:]]
    same = [
        v
        for v in dict.fromkeys((*turns_beside(sites, start), *scope.inputs, *made))
        if v not in (start, end.outputs[0])
        and sites.shape.get(v) == sites.shape[start]
        and sites.floating(v)
    ]
    maker = sites.producer.get(start)
    shape = sites.shape[start]
    before = [
        v for v in (maker.inputs if maker is not None and is_elementwise(maker) else ())
        if isinstance(v, int) and v in sites.live and sites.shape.get(v) == shape and sites.floating(v)
    ]  # fmt: skip
    return list(dict.fromkeys([*before, *same]))[:MOST_OTHERS] if sites.shape[start] else before


def _in_scope(sites: Sites, scope: Scope) -> Iterator[tuple[int, Op, list[Op]]]:
    """`(value, operation, operations between)`: the result is elementwise in that value alone."""
    roots = _roots(sites, scope)
    for out, starts in roots.items():
        op = sites.producer[out]
        within = [o for o in scope.ops if sites.rank[id(o)] <= sites.rank[id(op)]]
        for start in dict.fromkeys((*_clipped(sites, op), starts[0], starts[-1])):
            alone = op.primitive.name in UNARY or op.kind == "rule" or len(starts) < 2
            if start == starts[-1] and not alone:
                continue
            if start == starts[0] != starts[-1] and _continues(out, roots, start, scope):
                continue
            needed = _between(start, out, within)
            if any(_curved(o) for o in needed):
                yield start, op, needed


def _clipped(sites: Sites, op: Op) -> list[int]:
    """What goes into a clip, where the operation is the second of its two bounds."""
    before = [sites.producer.get(v) for v in op.inputs if isinstance(v, int) and v in sites.live]
    names = [op.primitive.name, *(o.primitive.name for o in before if o is not None)]
    if set(names) != {"max", "min"} or len(names) != 2 or before[0] is None:
        return []
    return [v for v in before[0].inputs if isinstance(v, int) and v in sites.live]


def _roots(sites: Sites, scope: Scope) -> dict[int, list[int]]:
    """For every result: the values on each of which alone it depends, entry by entry."""
    roots: dict[int, list[int]] = {}
    for op in scope.ops:
        live = [v for k, v in enumerate(op.inputs) if sites.is_live(op, k)]
        if not is_elementwise(op) or not live or op.outputs[0] not in sites.live:
            continue
        if any(sites.shape[v] != op.out_avals[0].shape for v in live):
            continue
        chains = [[*roots.get(v, []), v] for v in live]
        common = [v for v in chains[0] if all(v in chain for chain in chains)]
        if common:
            roots[op.outputs[0]] = common
    return roots


def _continues(out: int, roots: dict[int, list[int]], start: int, scope: Scope) -> bool:
    """Whether the stretch from `start` goes on after `out` in every use of it."""
    users = [o for o in scope.ops if out in o.inputs]
    further = [o for o in users if o.outputs and start in roots.get(o.outputs[0], [])]
    return bool(users) and len(further) == len(users) and out not in scope.outputs


def _between(start: int, end: int, ops: list[Op]) -> list[Op]:
    """The operations that lead from `start` to `end`."""
    reached, used = {start}, []
    for op in ops:
        if any(isinstance(v, int) and v in reached for v in op.inputs) and is_elementwise(op):
            reached.update(op.outputs)
            used.append(op)
    wanted, needed = {end}, []
    for op in reversed(used):
        if any(o in wanted for o in op.outputs):
            needed.append(op)
            wanted.update(v for v in op.inputs if isinstance(v, int) and v in reached)
    return needed[::-1]


def _curved(op: Op) -> bool:
    """Whether the operation can be anything but linear in what comes in."""
    straight = ("neg", "convert_element_type", "copy", "add", "sub", "add_any", "stop_gradient")
    if op.primitive.name in ("mul", "div"):
        return all(isinstance(v, int) for v in op.inputs)
    return op.primitive.name not in straight
