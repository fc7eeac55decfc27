"""The explanation of a function as text, LaTeX and plain values."""

from __future__ import annotations

import math
from typing import Any

from jaxbp.explain.facts import Derivative, FunctionFacts, Route
from jaxbp.explain.render import agreement, big, figure, fine, plural
from jaxbp.explain.stages import Stage
from jaxbp.explain.symbols import Expr, latex, latex_name, mul, text

LONGEST = 100


def exact(value: float) -> str:
    """Every digit of a float64, without an empty fraction."""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return repr(int(value)) if whole else repr(float(value))


def _total(d: Derivative) -> str:
    """A product with every digit; a sum with those that do not hang on how it was rounded."""
    return exact(d.total) if d.count == 1 else fine(d.total, _terms(d))


def product_text(factors: list[Expr]) -> str:
    """Factors from the input outwards, with a leading minus in front: `-(1/u²) · 2x e^{x²}`."""
    first = [text(f) for f in factors if f.op == "neg"]
    rest = [f for f in factors if f.op != "neg"]
    product = mul(*rest)
    shown = f"({text(product)})" if product.op == "add" else text(product)
    return " · ".join([*first, *([shown] if rest and (shown != "1" or not first) else [])])


def _in_product(e: Expr) -> str:
    return f"({text(e)})" if e.op in ("add", "neg") else text(e)


def _d(e: FunctionFacts) -> str:
    return "d" if len(e.derivatives) == 1 else "∂"


def slope_name(e: FunctionFacts, of: str, by: str) -> str:
    """`dy/dh2`, or `∂y/∂h2` for a function of several numbers."""
    return f"{_d(e)}{of}/{_d(e)}{by}"


def chain(route: Route, start: str) -> list[tuple[str, str]]:
    """The pairs `(of, by)` of a route, from the result back to the input."""
    return list(zip(route.nodes, (start, *route.nodes), strict=False))[::-1]


def function_text(e: FunctionFacts) -> str:
    inputs = ", ".join(f"{d.input} = {figure(d.value, 8)}" for d in e.derivatives)
    lines = [*([e.title] if e.title else []), f"at {inputs}", "", "Stage by stage:"]
    lines += _stage_table(e)
    if not math.isfinite(e.value):
        why = "the function has no value at this point, or too large a one"
        lines += ["", f"{e.output} is {e.value} here: {why}."]
    for derivative in e.derivatives:
        lines += ["", *_derivative_lines(e, derivative)]
    return "\n".join(lines)


def _stage_table(e: FunctionFacts) -> list[str]:
    rows = []
    for stage in e.stages:
        if stage.formula is None:
            continue
        left = f"{stage.name} = {text(stage.formula)}"
        slopes = [
            f"{slope_name(e, stage.name, e.stages[o].name)} = {_both(text(f), figure(n))}"
            for o, (f, n) in zip(stage.operands, stage.slopes, strict=True)
        ]
        tie = ["(a tie: shared equally)"] if stage.tie else []
        rows.append((left, f"= {figure(stage.value)}", [*slopes, *tie]))
    wide = min(48, max((len(left) for left, *_ in rows), default=0))
    numbers = max((len(value) for _, value, _ in rows), default=0)
    return [f"  {a:<{wide}} {b:<{numbers}}   {',  '.join(c)}".rstrip() for a, b, c in rows]


def _both(formula: str, number: str) -> str:
    return formula if formula == number else f"{formula} = {number}"


def _derivative_lines(e: FunctionFacts, d: Derivative) -> list[str]:
    head = slope_name(e, e.output, d.input)
    if not d.count:
        return [f"{head} = 0: no path leads from {d.input} to {e.output}"]
    pad, terms = " " * len(head), _terms(d)
    if d.count == 1:
        (route,) = d.routes
        symbols = " · ".join(slope_name(e, *pair) for pair in chain(route, d.input))
        lines = [f"{head} = {symbols}"] if len(route.nodes) > 1 else []
        alone = len(route.formulas) == 1
        factors = route.formulas[::-1]
        written = text(factors[0]) if alone else " · ".join(map(_in_product, factors))
        lines.append(f"{pad if lines else head} = {written}")
        lines += [line for line in _in_inputs(e, d, pad) if line != f"{pad} = {written}"]
        if len(route.factors) > 1:
            lines.append(f"{pad} = " + " · ".join(_bracketed(n) for n in route.factors[::-1]))
    else:
        which = "" if d.count == len(d.routes) else f", the {len(d.routes)} largest"
        lines = [f"{head}: the sum over {plural(d.count, 'path')}{which}"]
        for route in d.routes:
            formulas = " · ".join(map(_in_product, route.formulas[::-1]))
            lines.append(f"  {' → '.join((d.input, *route.nodes))}")
            lines.append(f"     {formulas} = {fine(route.contribution)}")
        if d.count > len(d.routes):
            lines.append(f"  {big(d.count - len(d.routes))} others contribute {fine(d.remainder, terms)}")
        lines += _in_inputs(e, d, head)
        pad = pad if lines[-1].startswith(f"{head} = ") else head
    return [*lines, f"{pad} = {_total(d)}", agreement(d.total, d.reference, terms)]


def _terms(d: Derivative) -> list[float]:
    return [r.contribution for r in d.routes]


def _bracketed(value: float) -> str:
    return f"({figure(value)})" if value < 0 else figure(value)


def symbolic(e: FunctionFacts, d: Derivative) -> str | None:
    """The derivative written in the inputs alone, or `None` where that would be too long to read."""
    if not d.routes or d.count > len(d.routes) or len(e.stages) > 40:
        return None
    parts = [product_text([e.in_inputs(f) for f in route.formulas]) for route in d.routes]
    shown = " + ".join(parts)
    return shown if len(shown) <= LONGEST else None


def _in_inputs(e: FunctionFacts, d: Derivative, pad: str) -> list[str]:
    shown = symbolic(e, d)
    return [] if shown is None else [f"{pad} = {shown}"]


# --- the one-line diagram ---------------------------------------------------------------------------

SIGNS = {"mul": "·", "add": "+", "sub": "-", "div": "/", "logistic": "σ", "neg": "-"}


def flow(e: FunctionFacts) -> str:
    """`x → ·w1 → σ → h1 → … → ŷ → L`: what happens to the first of the varying data on its way.

    It starts at the deepest input (the one with the longest path); operations with another operand show
    it (`·w1`), and a name is shown after every operation that is not a sum or product.
    """
    deepest = max(e.derivatives, key=lambda d: max((len(r.nodes) for r in d.routes), default=0))
    ends = [d for d in e.derivatives if d.routes and _depth(d) == _depth(deepest)]
    start = next((d for d in ends if not d.input[-1].isdigit()), ends[0])
    route = max(start.routes, key=lambda r: len(r.nodes))
    by_name = {stage.name: stage for stage in e.stages}
    shown, last = [start.input], start.input
    for label in route.nodes:
        stage = by_name[label]
        shown += _operation(e, stage, last)
        if stage.kind not in ("mul", "add", "sub", "dot") or label == e.output:
            shown.append(label)
        last = label
    return " → ".join(shown)


def _depth(d: Derivative) -> int:
    return max(len(r.nodes) for r in d.routes)


def _operation(e: FunctionFacts, stage: Stage, last: str) -> list[str]:
    others = [e.stages[o].name for o in stage.operands if e.stages[o].name != last]
    if stage.kind in ("mul", "add", "sub") and others:
        return [SIGNS[stage.kind] + others[0]]
    if stage.name == e.output:
        return []
    return [SIGNS.get(stage.kind, stage.kind)]


# --- LaTeX and plain values -------------------------------------------------------------------------


def _latex_slope(e: FunctionFacts, of: str, by: str) -> str:
    d = "d" if len(e.derivatives) == 1 else r"\partial "
    return rf"\frac{{{d}{latex_name(of)}}}{{{d}{latex_name(by)}}}"


def function_latex(e: FunctionFacts) -> str:
    """Stages first, then one block for each derivative."""
    stages = [
        f"{latex_name(s.name)} &= {latex(s.formula)} = {figure(s.value)}"
        for s in e.stages
        if s.formula is not None
    ]
    blocks = [stages]
    for d in e.derivatives:
        products, formulas = [], []
        for route in d.routes:
            products.append(" ".join(_latex_slope(e, *pair) for pair in chain(route, d.input)))
            loose = [(latex(f), f.op in ("add", "neg")) for f in route.formulas[::-1]]
            formulas.append(r" \cdot ".join(rf"\left({f}\right)" if w else f for f, w in loose))
        more = [r"\cdots"] if d.count > len(d.routes) else []
        head = _latex_slope(e, e.output, d.input)
        rows = [f"{head} &= {' + '.join(products + more)}", f"&= {' + '.join(formulas + more)}"]
        blocks.append([*rows, f"&= {_total(d)}"] if d.count else [f"{head} &= 0"])
    return "\n\n".join("\\begin{align*}\n" + " \\\\\n".join(b) + "\n\\end{align*}" for b in blocks if b)


def function_dict(e: FunctionFacts) -> dict[str, Any]:
    return {
        "output": e.output,
        "value": e.value,
        "stages": [
            {
                "name": s.name,
                "formula": None if s.formula is None else text(s.formula),
                "value": s.value,
                "derivatives": {
                    f"{s.name}/{e.stages[o].name}#{i}": {"formula": text(f), "value": n}
                    for i, (o, (f, n)) in enumerate(zip(s.operands, s.slopes, strict=True))
                },
            }
            for s in e.stages
        ],
        "derivatives": {
            d.input: {
                "value": d.total,
                "jax.grad": d.reference,
                "formula": symbolic(e, d),
                "count": d.count,
                "remainder": d.remainder,
                "paths": [
                    {
                        "nodes": list(r.nodes),
                        "formulas": [text(f) for f in r.formulas],
                        "factors": list(r.factors),
                        "contribution": r.contribution,
                    }
                    for r in d.routes
                ],
            }
            for d in e.derivatives
        },
    }
