"""An explanation as text, LaTeX and plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jaxbp.explain.facts import Path, WeightFacts
from jaxbp.explain.symbols import Expr, latex, latex_name, text


def figure(value: float | int, digits: int = 6) -> str:
    """A number for reading: up to `digits` significant digits, without an empty fraction."""
    shown = f"{value:.{digits}g}"
    return "0" if shown in ("0", "-0") else shown


def fine(value: float | int, terms: Iterable[float] = ()) -> str:
    """A number to compare with another: 11 decimals, or 11 significant digits where it is small.

    A sum has no more digits than the largest of its `terms` leaves it: what cancels is rounding, which
    another version of a compiler rounds otherwise.
    """
    most = max((abs(t) for t in terms if math.isfinite(t) and t), default=0.0)
    if most and math.isfinite(value):
        value = round(value, 12 - math.floor(math.log10(most)))
    if not 1e-4 <= abs(value) < 1e6:
        return figure(value, 11)
    return f"{value:.11f}".rstrip("0").rstrip(".")


def agreement(total: float, reference: float, terms: Iterable[float]) -> str:
    """`jax.grad says …`, and whether that is the same but for the rounding of a sum of such terms."""
    largest = max(map(abs, (total, *terms)))
    same = abs(total - reference) <= 1e-12 * largest
    if same or total == reference or (math.isnan(total) and math.isnan(reference)):
        return f"jax.grad says {fine(reference, terms)}, the same"
    return f"jax.grad says {fine(reference)}, off by {abs(total - reference):.1e}"


def big(count: int) -> str:
    """An exact integer with thin groups of three; beyond 30 digits also its size."""
    shown = f"{count:,}"
    return shown if len(shown) <= 40 else f"{shown} (about 10^{len(str(count)) - 1})"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{big(count)} {one if count == 1 else many or one + 's'}"


def symbols(weight: str, path: Path) -> list[str]:
    """`∂a21/∂w212`, `∂ŷ1/∂a21`, `∂L/∂ŷ1`: the factors' names."""
    return [f"∂{b}/∂{a}" for a, b in zip((weight, *path.nodes), path.nodes, strict=False)]


def _factor(formula: Expr | None, symbol: str) -> str:
    """A formula fit to stand in a product, or the symbol where there is none."""
    if formula is None:
        return symbol
    return f"({text(formula)})" if formula.op in ("add", "neg") else text(formula)


def _number(value: float) -> str:
    return f"({figure(value)})" if value < 0 else figure(value)


def path_lines(weight: str, path: Path) -> list[str]:
    """One path: where it leads, its product in symbols, in formulas, in numbers."""
    names = symbols(weight, path)
    lines = [" → ".join((weight, *path.nodes)), " · ".join(names)]
    if any(path.formulas):
        known = zip(path.formulas, names, strict=True)
        lines.append("= " + " · ".join(_factor(formula, symbol) for formula, symbol in known))
    numbers = " · ".join(map(_number, path.factors))
    lines.append(f"= {numbers} = {fine(path.contribution)}")
    return lines


def weight_text(e: WeightFacts) -> str:
    where = f" ({e.path})" if e.path not in (e.weight, "x") else ""
    lines = [
        f"∂L/∂{e.weight} = {fine(e.gradient)}",
        f"    {e.weight} = {figure(e.value, 8)}{where}, L = {figure(e.loss, 12)}",
        "",
    ]
    verb = "leads" if e.count == 1 else "lead"
    lines.append(f"{plural(e.count, 'path')} {verb} from {e.weight} to L" + _which(e))
    width = len(str(len(e.paths)))
    for i, path in enumerate(e.paths, 1):
        first, *rest = path_lines(e.weight, path)
        lines.append(f"  {i:>{width}}. {first}")
        lines += [f"  {'':>{width}}  {line}" for line in rest]
    lines.append("")
    lines += _sum_lines(e)
    if e.error is not None and e.meets is not None:
        (symbol, delta), (met, value) = e.error, e.meets
        lines.append(f"The same as one product: {symbol} · {met} = {_number(delta)} · {_number(value)}")
    if e.reference is not None:
        lines.append(agreement(e.total, e.reference, _terms(e)))
    if e.path != "x":
        lines.append(
            f"One step: {e.weight} := {figure(e.value, 8)} - {figure(e.rate)} · {_number(e.gradient)} "
            f"= {fine(e.stepped)}"
        )
    lines += ["", savings_line(e)]
    return "\n".join(lines)


def _which(e: WeightFacts) -> str:
    return ":" if e.count == len(e.paths) else f"; the {len(e.paths)} largest:"


def _sum_lines(e: WeightFacts) -> list[str]:
    parts = [fine(p.contribution) for p in e.paths]
    rest = e.count - len(e.paths)
    written = " + ".join(f"({p})" if p.startswith("-") else p for p in parts)
    if len(parts) > 12:
        written = fine(e.total - e.remainder, _terms(e)) + f" from the {len(parts)} paths above"
    lines = [f"Sum: {written}"]
    if rest:
        lines.append(f"     + {fine(e.remainder, _terms(e))} from the {plural(rest, 'other path')}")
    lines.append(f"     = {fine(e.total, _terms(e))}")
    return lines


def _terms(e: WeightFacts) -> list[float]:
    return [p.contribution for p in e.paths]


def savings_line(e: WeightFacts) -> str:
    """What going backwards saves, in a sentence."""
    s = e.savings
    return (
        f"Path by path that takes {plural(s.one_by_one, 'multiplication')}; one backward pass takes "
        f"{big(s.one_pass)}, and has then met every weight from here on."
    )


# --- LaTeX ------------------------------------------------------------------------------------------


def _latex_number(value: float) -> str:
    mantissa, _, exponent = figure(value).partition("e")
    shown = rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa
    return rf"\left({shown}\right)" if value < 0 else shown


def _slope(b: str, a: str) -> str:
    return rf"\frac{{\partial {latex_name(b)}}}{{\partial {latex_name(a)}}}"


def weight_latex(e: WeightFacts) -> str:
    """`align*` with three right-hand sides: symbols, formulas (where known), numbers."""
    products, formulas, numbers = [], [], []
    for path in e.paths:
        pairs = list(zip((e.weight, *path.nodes), path.nodes, strict=False))
        products.append(" ".join(_slope(b, a) for a, b in pairs))
        written = path.formulas or (None,) * len(pairs)
        parts = []
        for formula, (a, b) in zip(written, pairs, strict=True):
            shown = _slope(b, a) if formula is None else latex(formula)
            loose = formula is not None and formula.op in ("add", "neg")
            parts.append(rf"\left({shown}\right)" if loose else shown)
        formulas.append(r" \cdot ".join(parts))
        numbers.append(r" \cdot ".join(map(_latex_number, path.factors)))
    rest = e.count - len(e.paths)
    left = rf"\frac{{\partial L}}{{\partial {latex_name(e.weight)}}}"
    dots = [rf"\underbrace{{\cdots}}_{{{rest:,}\ \text{{more}}}}".replace(",", "{,}")] if rest else []
    sums = [" + ".join(column + dots) for column in (products, formulas)]
    last = " + ".join(numbers + ([_latex_number(e.remainder)] if rest else []))
    result = _latex_number(e.total).replace(r"\left(", "").replace(r"\right)", "")
    rows = [f"{left} &= {sums[0]}"]
    rows += [rf"&= {sums[1]}"] if any(any(p.formulas) for p in e.paths) else []
    rows += [rf"&= {last}", rf"&= {result}"]
    return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"


# --- plain values -----------------------------------------------------------------------------------


def weight_dict(e: WeightFacts) -> dict[str, Any]:
    return {
        "weight": e.weight,
        "path": e.path,
        "value": e.value,
        "gradient": e.gradient,
        "total": e.total,
        "loss": e.loss,
        "stepped": e.stepped,
        "rate": e.rate,
        "count": e.count,
        "remainder": e.remainder,
        "paths": [
            {
                "nodes": list(p.nodes),
                "factors": list(p.factors),
                "symbols": symbols(e.weight, p),
                "formulas": [None if f is None else text(f) for f in p.formulas],
                "contribution": p.contribution,
            }
            for p in e.paths
        ],
        "savings": {
            "paths": e.savings.paths,
            "one_by_one": e.savings.one_by_one,
            "one_pass": e.savings.one_pass,
        },
        "error": None if e.error is None else {"name": e.error[0], "value": e.error[1]},
        "meets": None if e.meets is None else {"name": e.meets[0], "value": e.meets[1]},
        "reference": e.reference,
    }
