"""`explain_function`: the chain rule on a function of numbers, stage by stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array

from jaxbp import jaxprs
from jaxbp.explain.facts import Derivative, FunctionFacts, Route
from jaxbp.explain.graph import Block, Bundle, Web
from jaxbp.explain.paths import Pass, Start, largest
from jaxbp.explain.reader import Reader
from jaxbp.explain.stages import Stage
from jaxbp.explain.symbols import Expr, mul, name, neg, num, power, substitute
from jaxbp.layer import InputError
from jaxbp.oracle.autodiff import function_gradients


@dataclass(frozen=True)
class FunctionExplanation(FunctionFacts):
    """A function of numbers, its stages in order, and its derivative by each input.

    `stages` hold the inputs first. `value` is the result, and `derivatives[k].total` the derivative by
    the k-th number among the inputs; `derivatives[k].reference` is what `jax.grad` says.
    """

    def text(self) -> str:
        """The explanation in plain text."""
        from jaxbp.explain.chain_text import function_text

        return function_text(self)

    __str__ = text

    def latex(self) -> str:
        """Stages and derivatives as LaTeX `align*` blocks."""
        from jaxbp.explain.chain_text import function_latex

        return function_latex(self)

    def flow(self) -> str:
        """The path from the first input as one line, `x → ·w1 → σ → h1 → … → L`."""
        from jaxbp.explain.chain_text import flow

        return flow(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for `json.dumps`."""
        from jaxbp.explain.chain_text import function_dict

        return function_dict(self)


def explain_function(
    f: Callable[..., Any],
    *x: Any,
    names: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    k: int = 8,
) -> FunctionExplanation:
    """The derivative of `f(*x)` by each of `x`, as the chain rule gives it.

    Each operation in `f` is a stage with a name (`h1 = x²`, `h2 = e^{h1}`, `y = e^{h2}`), a value, and a
    derivative by each of its operands, from a table written by hand. Along a path the derivatives
    multiply; where a value is used twice, there are several paths, and they add.

    `x` are numbers or arrays (an array's entries are inputs `x1`, `x2`, …); `f` returns one number.
    `names` are the stages' names in order, instead of `h1, h2, …, y`; `inputs` are the inputs' names,
    instead of those of the function's own parameters. At most `k` paths an input are listed, all are
    counted. Computed in float64. Ties in a maximum share the derivative equally, as in JAX.

    Raises `InputError` where `f` does not return one number, or uses an operation without a row in the
    table, and names it.
    """
    pairs, reader = _inputs(f, x, inputs), Reader()
    with jax.enable_x64(True):
        wide = [jnp.asarray(value, jnp.float64) for _, value in pairs]
        closed = _traced(f, wide)
        starts = [reader.input(np.asarray(value)) for value in wide]
        results = reader.run(*jaxprs.opened(closed), starts)
        if len(results) != 1 or results[0].array.size != 1:
            shapes = ", ".join(str(list(r.array.shape)) for r in results)
            got = f"shapes {shapes}" if results else "nothing"
            raise InputError(f"explain_function: f must return one number, got {got}")
        if not jnp.issubdtype(results[0].array.dtype, jnp.floating):
            kind = results[0].array.dtype
            raise InputError(f"explain_function: f must return a real number, got one of dtype {kind}")
        end = int(results[0].stage.reshape(-1)[0])
        references = function_gradients(f, wide)
        value = float(results[0].array.reshape(-1)[0])
    labels = [label for label, value in pairs for label in _entries(label, np.asarray(value))]
    stages, end = _live(reader.stages, end, len(labels), value)
    _name(stages, end, labels, names)
    flat = np.concatenate([g.reshape(-1) for g in references]) if references else np.zeros(0)
    derivatives = _derivatives(stages, end, flat, k)
    return FunctionExplanation(tuple(stages), stages[end].name, value, derivatives)


def _traced(f: Callable[..., Any], wide: Sequence[Any]) -> Any:
    """The jaxpr of `f`; what only a traced function cannot do gets a word of its own."""
    try:
        return jax.make_jaxpr(f)(*wide)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise InputError(
            "explain_function: f asks for the value of a number (if, while, float, NumPy); use jnp.where "
            f"and jnp instead ({str(error).splitlines()[0]})"
        ) from None


def _inputs(
    f: Callable[..., Any], x: Sequence[Any], given: Sequence[str] | None
) -> list[tuple[str, Any]]:
    """Arguments with the names of the function's parameters."""
    if not x:
        raise InputError("explain_function: expected at least one number to differentiate at, got none")
    try:
        parameters = [
            p.name for p in inspect.signature(f).parameters.values() if p.kind is not p.VAR_POSITIONAL
        ]
    except (TypeError, ValueError):
        parameters = []
    if given is not None:
        if len(given) != len(x):
            raise InputError(f"inputs: expected {len(x)} names, got {len(given)}: {list(given)}")
        parameters = list(given)
    if len(parameters) < len(x):
        parameters = ["x"] if len(x) == 1 else [f"x{i + 1}" for i in range(len(x))]
    for label, value in zip(parameters, x, strict=False):
        if not np.issubdtype(np.asarray(value).dtype, np.number) or np.iscomplexobj(value):
            raise InputError(f"explain_function: {label}: expected real numbers, got {value!r}")
    return list(zip(parameters, x, strict=False))


def _entries(label: str, value: np.ndarray) -> list[str]:
    if not value.shape:
        return [label]
    separator = "_" if label[-1].isdigit() or value.ndim > 1 or value.size > 9 else ""
    indices = np.ndindex(*value.shape)
    return [label + separator + "_".join(str(k + 1) for k in index) for index in indices]


# --- tidying the stages -----------------------------------------------------------------------------


def _live(stages: list[Stage], end: int, inputs: int, value: float) -> tuple[list[Stage], int]:
    """The inputs and the stages that the result needs, renumbered; squared differences as one stage."""
    if end < inputs:  # a constant, or an input itself: make the result a stage of its own
        formula = num(value) if end < 0 else name(f"@{end}")
        slopes = () if end < 0 else ((num(1), 1.0),)
        stages.append(
            Stage(len(stages), formula, value, () if end < 0 else (end,), slopes, kind="identity")
        )
        end = len(stages) - 1
    needed = {end}
    for stage in reversed(stages):
        if stage.number in needed:
            needed.update(stage.operands)
    uses = [operand for stage in stages if stage.number in needed for operand in stage.operands]
    for stage in stages:
        if stage.number in needed and stage.kind == "square":
            _fuse(stage, stages[stage.operands[0]], uses, needed)
    kept = [s for s in stages if s.number < inputs or s.number in needed]
    new = {s.number: i for i, s in enumerate(kept)}
    known = {f"@{old}": name(f"@{i}") for old, i in new.items()}
    for stage in kept:
        stage.number = new[stage.number]
        stage.operands = tuple(new[o] for o in stage.operands)
        _rename(stage, known)
    return kept, new[end]


def _fuse(square: Stage, inner: Stage, uses: list[int], needed: set[int]) -> None:
    """`(a - b)²` as one stage with slopes `±2(a - b)`, as a squared error is read."""
    if inner.kind != "sub" or uses.count(inner.number) != 1 or inner.formula is None:
        return
    needed.discard(inner.number)
    twice = mul(num(2), inner.formula)
    square.formula = power(inner.formula, num(2))
    square.operands = inner.operands
    square.slopes = tuple(
        (twice if sign > 0 else neg(twice), 2 * inner.value * sign) for _, sign in inner.slopes
    )


def _rename(stage: Stage, known: dict[str, Expr]) -> None:
    if stage.formula is not None:
        stage.formula = substitute(stage.formula, known)
    stage.slopes = tuple((substitute(formula, known), number) for formula, number in stage.slopes)


def _name(stages: list[Stage], end: int, labels: list[str], names: Sequence[str] | None) -> None:
    """The inputs' own names, then `h1, h2, …`, and `y` (or `L`) for the result."""
    made = stages[len(labels) :]
    if names is not None:
        if len(names) != len(made) or len({*names, *labels}) != len(names) + len(labels):
            raise InputError(
                f"names: expected {len(made)} different names, one a stage, "
                f"got {len(names)}: {list(names)}"
            )
        own = list(names)
    else:
        result = next(label for label in ("y", "L", "result") if label not in labels)
        letter = next(c for c in "hgs" if not any(label.startswith(c) for label in labels))
        own = [f"{letter}{i + 1}" for i in range(len(made) - 1)] + [result]
    for stage, label in zip(stages, [*labels, *own], strict=True):
        stage.name = label
    known = {f"@{stage.number}": name(stage.name) for stage in stages}
    for stage in stages:
        _rename(stage, known)


# --- paths ------------------------------------------------------------------------------------------


def _derivatives(stages: list[Stage], end: int, references: np.ndarray, k: int) -> tuple[Derivative, ...]:
    web = Web()
    blocks = [Block(s.name, None, (), np.asarray([s.value]), i) for i, s in enumerate(stages)]
    web.blocks = blocks[: end + 1]
    formulas: dict[int, Expr] = {}
    for stage in stages:
        for operand, (formula, number) in zip(stage.operands, stage.slopes, strict=True):
            bundle = Bundle(blocks[operand], blocks[stage.number], None, found=_single(number))
            formulas[id(bundle)] = formula
            web.connect(bundle)
    walk = Pass(web)
    return tuple(
        _derivative(walk, stage, formulas, float(references[i]), k)
        for i, stage in enumerate(s for s in stages if s.formula is None)
    )


def _single(number: float) -> csr_array:
    """A matrix with one edge, which is there even where its number is 0."""
    return csr_array((np.asarray([number]), np.asarray([0]), np.asarray([0, 1])), shape=(1, 1))


def _derivative(
    walk: Pass, stage: Stage, formulas: dict[int, Expr], reference: float, k: int
) -> Derivative:
    block = next(b for b in walk.graph.blocks if b.number == stage.number)
    ahead = walk.ahead(block)
    start: list[Start] = [(b.target, b.jacobian, b) for b in walk.graph.leaving(block)]
    routes = []
    for steps in largest(walk, start, k):
        factors = tuple(s.factor for s in steps)
        routes.append(
            Route(
                tuple(s.block.name for s in steps),
                tuple(formulas[id(s.bundle)] for s in steps),
                factors,
                float(np.prod(factors)),
            )
        )
    total, count = float(ahead.error[0]), ahead.count[0]
    rest = total - sum(r.contribution for r in routes) if count > len(routes) else 0.0
    return Derivative(stage.name, stage.value, tuple(routes), count, total, rest, reference)
