"""Small formulas: enough algebra to print a stage, its derivative, and their product.

An `Expr` is an operation with parts, and is rendered as text (`2h1 e^{h1}`), LaTeX or MathML. It is
never simplified beyond what the constructors below do, so that a formula keeps the form it was given.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
GREEK = {"ŷ": r"\hat{y}", "δ": r"\delta", "η": r"\eta", "σ": r"\sigma"}


@dataclass(frozen=True)
class Expr:
    """`op` with `args`: num and name (text), add, mul, div, pow, neg, step, call (name, …)."""

    op: str
    args: tuple[object, ...]

    def __str__(self) -> str:
        return text(self)


def num(value: float | int | str) -> Expr:
    """A number: integers without a point, others with up to 6 significant digits."""
    if isinstance(value, str):
        return Expr("num", (value,))
    value = float(value)
    if not math.isfinite(value):
        return name("∞") if value > 0 else neg(name("∞")) if value < 0 else name("NaN")
    shown = str(int(value)) if value == int(value) and abs(value) < 1e6 else f"{value:.6g}"
    return Expr("neg", (num(shown[1:]),)) if shown.startswith("-") else Expr("num", (shown,))


def name(label: str) -> Expr:
    """A name such as `h1`."""
    return Expr("name", (label,))


ONE = num(1)


def add(*parts: Expr) -> Expr:
    return Expr("add", parts)


def mul(*parts: Expr) -> Expr:
    """A product; factors of 1 are dropped."""
    kept = tuple(p for p in parts if p != ONE)
    return kept[0] if len(kept) == 1 else Expr("mul", kept) if kept else ONE


def div(a: Expr, b: Expr) -> Expr:
    return Expr("div", (a, b))


def power(base: Expr, exponent: Expr) -> Expr:
    """`baseᵉ`; an exponent of 1 is dropped."""
    return base if exponent == ONE else Expr("pow", (base, exponent))


def neg(a: Expr) -> Expr:
    return Expr("neg", (a,))


def sub(a: Expr, b: Expr) -> Expr:
    return add(a, neg(b))


def call(function: str, *args: Expr) -> Expr:
    return Expr("call", (function, *args))


def step(a: Expr) -> Expr:
    """`[a > 0]`, 1 or 0."""
    return Expr("step", (a,))


def exp(a: Expr) -> Expr:
    return Expr("pow", (name("e"), a))


def substitute(e: Expr, known: dict[str, Expr]) -> Expr:
    """`e` with names replaced by what they stand for."""
    if e.op == "name":
        return known.get(str(e.args[0]), e)
    return Expr(e.op, tuple(substitute(a, known) if isinstance(a, Expr) else a for a in e.args))


def _is_atom(e: Expr) -> bool:
    return e.op in ("num", "name", "call", "step") or _is_exp(e)


def _is_exp(e: Expr) -> bool:
    return e.op == "pow" and e.args[0] == name("e")


def _simple(e: Expr) -> bool:
    """A name or number, or a power of one: what may stand under a minus or beside others bare."""
    return e.op in ("num", "name") or (e.op == "pow" and e.args[0] != name("e") and _simple(_arg(e, 0)))


def _arg(e: Expr, i: int) -> Expr:
    part = e.args[i]
    assert isinstance(part, Expr)
    return part


def _parts(e: Expr) -> list[Expr]:
    return [a for a in e.args if isinstance(a, Expr)]


# --- text -------------------------------------------------------------------------------------------


def text(e: Expr) -> str:
    """Plain text: `x²`, `e^{h1}`, `-1/h2²`, `h1(1 - h1)`."""
    return _TEXT[e.op](e)


def _wrap(e: Expr, loose: tuple[str, ...]) -> str:
    shown = text(e)
    return f"({shown})" if e.op in loose else shown


def _text_add(e: Expr) -> str:
    first, *rest = _parts(e)
    out = text(first)
    for part in rest:
        minus = part.op == "neg"
        out += (" - " if minus else " + ") + _wrap(_arg(part, 0) if minus else part, ("add", "neg"))
    return out


def _text_mul(e: Expr) -> str:
    out, last = "", None
    for part in _parts(e):
        shown = _wrap(part, ("add", "neg", "div") if last is not None else ("add", "div"))
        number_first = last is not None and last.op == "num" and part.op != "num"
        tight = number_first and (shown[0].isalpha() or shown[0] == "(") and not _is_exp(part)
        tight = tight or (shown[0] == "(" and last is not None and last.op != "mul")
        dot = last is not None and (
            part.op == "num" or (last.op == "num" and not tight and _is_atom(part))
        )
        dot = dot or part == last
        out += ("" if last is None or tight else " · " if dot and not _is_exp(part) else " ") + shown
        last = part
    return out


def _text_div(e: Expr) -> str:
    above, below = (_wrap(part, ("add", "neg", "div", "mul")) for part in _parts(e))
    return f"{above}/{below}"


def _text_pow(e: Expr) -> str:
    base, exponent = _parts(e)
    if _is_exp(e):
        return f"e^{{{text(exponent)}}}"
    shown = text(base) if base.op in ("num", "name") else f"({text(base)})"
    small = text(exponent)
    if re.fullmatch(r"-?\d+", small):
        return shown + small.translate(SUPERSCRIPTS)
    return f"{shown}^{{{small}}}"


def _text_neg(e: Expr) -> str:
    inner = _arg(e, 0)
    bare = _simple(inner) or inner.op in ("call", "mul") or _is_exp(inner)
    bare = bare or (inner.op == "div" and all(map(_simple, _parts(inner))))
    return f"-{text(inner)}" if bare else f"-({text(inner)})"


_TEXT = {
    "num": lambda e: str(e.args[0]),
    "name": lambda e: str(e.args[0]),
    "add": _text_add,
    "mul": _text_mul,
    "div": _text_div,
    "pow": _text_pow,
    "neg": _text_neg,
    "step": lambda e: f"[{text(_arg(e, 0))} > 0]",
    "call": lambda e: f"{e.args[0]}({', '.join(map(text, _parts(e)))})",
}


# --- LaTeX ------------------------------------------------------------------------------------------

FUNCTIONS = {"log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "max", "min"}


def split_name(label: str) -> tuple[str, str]:
    """`w2_13_4 -> ("w", "2,13,4")`, `a21 -> ("a", "21")`, `h1' -> ("h'", "1")`."""
    match = re.fullmatch(r"([^\W\d_]+\u0302?)_?([\d_]*)('*)(?:_([\d_]+))?", label)
    if not match:
        return label, ""
    letters, index, primes, more = match.groups()
    joined = "_".join(part for part in (index, more) if part)
    return letters + primes, joined.replace("_", ",")


def latex_name(label: str) -> str:
    """`w212 -> w_{212}`, `ŷ1 -> \\hat{y}_{1}`."""
    letters, index = split_name(label)
    stem = letters.rstrip("'")
    shown = GREEK.get(stem, stem if len(stem) == 1 else rf"\mathrm{{{stem}}}")
    return shown + letters[len(stem) :] + (f"_{{{index}}}" if index else "")


def latex(e: Expr) -> str:
    """The formula in LaTeX."""
    parts = [latex(p) for p in _parts(e)]

    def wrapped(i: int, *loose: str) -> str:
        return rf"\left({parts[i]}\right)" if _parts(e)[i].op in loose else parts[i]

    match e.op:
        case "num":
            return re.sub(r"e([+-]?)0*(\d+)", r" \\cdot 10^{\1\2}", str(e.args[0])).replace("{+", "{")
        case "name":
            return latex_name(str(e.args[0]))
        case "add":
            return re.sub(r"\+ -", "- ", " + ".join(wrapped(i) for i in range(len(parts))))
        case "mul":
            return r" \cdot ".join(wrapped(i, "add", *(["neg"] if i else [])) for i in range(len(parts)))
        case "div":
            return rf"\frac{{{parts[0]}}}{{{parts[1]}}}"
        case "pow":
            base = parts[0] if _parts(e)[0].op in ("num", "name") else wrapped(0, _parts(e)[0].op)
            return f"{base}^{{{parts[1]}}}"
        case "neg":
            return "-" + wrapped(0, "add", "neg")
        case "step":
            return f"[{parts[0]} > 0]"
    function = str(e.args[0])
    shown = (
        rf"\{function}" if function in FUNCTIONS else GREEK.get(function, rf"\operatorname{{{function}}}")
    )
    return rf"{shown}\left({', '.join(parts)}\right)"


# --- MathML -----------------------------------------------------------------------------------------


_MINUS = '<mo form="prefix" lspace="0" rspace="0">−</mo>'


def mathml_name(label: str) -> str:
    """`ŷ1` as `<msub>`; plain `<mi>` where there is no index."""
    letters, index = split_name(label)
    return (
        f"<msub><mi>{escape(letters)}</mi><mn>{index}</mn></msub>"
        if index
        else f"<mi>{escape(letters)}</mi>"
    )


def mathml(e: Expr) -> str:
    """The formula as MathML elements, without the outer `<math>`."""
    parts = [mathml(p) for p in _parts(e)]

    def wrapped(i: int, *loose: str) -> str:
        inner = parts[i]
        return f"<mrow><mo>(</mo>{inner}<mo>)</mo></mrow>" if _parts(e)[i].op in loose else inner

    match e.op:
        case "num":
            return f"<mn>{e.args[0]}</mn>"
        case "name":
            return mathml_name(str(e.args[0]))
        case "add":
            out = parts[0]
            for i, part in enumerate(_parts(e)[1:], 1):
                minus = part.op == "neg"
                inner = mathml(_arg(part, 0)) if minus else wrapped(i, "add")
                out += f"<mo>{'−' if minus else '+'}</mo>{inner}"
            return f"<mrow>{out}</mrow>"
        case "mul":
            factors = [wrapped(i, "add", *(["neg"] if i else [])) for i in range(len(parts))]
            return f"<mrow>{'<mo>⋅</mo>'.join(factors)}</mrow>"
        case "div":
            return f"<mfrac>{parts[0]}{parts[1]}</mfrac>"
        case "pow":
            return f"<msup>{wrapped(0, 'add', 'mul', 'div', 'neg', 'pow', 'call')}{parts[1]}</msup>"
        case "neg":
            return f"<mrow>{_MINUS}{wrapped(0, 'add', 'neg')}</mrow>"
        case "step":
            return f"<mrow><mo>[</mo>{parts[0]}<mo>&gt;</mo><mn>0</mn><mo>]</mo></mrow>"
    return f"<mrow><mi>{e.args[0]}</mi><mo>(</mo>{'<mo>,</mo>'.join(parts)}<mo>)</mo></mrow>"
