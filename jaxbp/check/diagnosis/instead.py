"""Another derivative in the place of the right one, as a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis.roles import at, role, source
from jaxbp.check.diagnosis.table import recorded
from jaxbp.check.diagnosis.words import origin_of
from jaxbp.check.edits.edit import Change, Rewired
from jaxbp.check.edits.sites import Sites
from jaxbp.check.guesses.chains import SPREAD, factors_of
from jaxbp.check.guesses.factors import lost
from jaxbp.check.operations import Constant, Op
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case


def instead(case: Case, sites: Sites, choice: Any, names: str) -> Finding:
    """Another derivative in the place of the right one."""
    op, cause = choice.op, choice.cause
    evidence = {"source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name}
    if "overwritten" in choice.words:
        evidence["advice"] = "Add up the errors that fall on one entry: `.at[i].add`, not `.at[i].set`."
    if getattr(choice, "text", ""):
        place = "in reverse order" if cause == "flip" else "in each other's place"
        detail = f"{names}: the errors of {choice.text} are {place}"
        return Finding(names, cause, detail, evidence)
    detail = _about(op, choice, getattr(choice, "about", ""))
    if detail:
        return Finding(names, cause, f"{names}: {detail} is {choice.words}", evidence)
    if cause in ("factor", "mask"):
        return _factor(case, sites, choice, names, evidence)
    if cause == "missing-path" and choice.operand >= 0:
        origin = origin_of(case, sites, op, choice.operand)
        through = role(op, choice.operand)
        detail = (
            f"{names}: the contributions of the other outputs are missing. Every entry stands "
            f"in {through} "
            f"{at(op)} (made by {origin}) of every output along the axis; only the path to "
            f"its own output is "
            "followed back, the off-diagonal of the Jacobian is dropped"
        )
        return Finding(names, cause, detail, evidence)
    if isinstance(choice, Change):
        what = f"computes `{op.name}` {at(op)} {choice.words} where it computes the forward pass again"
        return Finding(names, cause, f"{names}: the backward pass {what}", evidence)
    if choice.operand >= 0 and op.primitive.name in ("mul", "div"):
        detail = (
            f"{names}: the derivative of {role(op, choice.operand)} {at(op)} is taken with {choice.words}"
        )
        return Finding(names, cause, detail, evidence)
    if choice.operand < 0 or op.primitive.name.startswith(("reduce_max", "reduce_min", "reduce_window")):
        name = op.within or op.name
        verb = (
            "left out (as if of the identity)"
            if choice.words == "of the identity"
            else f"taken {choice.words}"
        )
        detail = f"{names}: the derivative of `{name}` {at(op)} is {verb}"
    elif len(op.inputs) != 2 or op.primitive.name == "gather":
        detail = f"{names}: the error that comes back through `{op.name}` {at(op)} is {choice.words}"
    else:
        other = origin_of(case, sites, op, 1 - choice.operand)
        detail = (
            f"{names}: the product {at(op)} is differentiated with {choice.words}, where its "
            f"other factor, "
            f"{other}, belongs"
        )
    return Finding(names, cause, detail, evidence)


def _about(op: Op, choice: Any, about: str) -> str:
    """What an edit's words speak of."""
    if about == "error":
        return f"the error that comes back through {role(op, choice.operand)} {at(op)}"
    if about == "result":
        return f"the error that comes back to the result of `{op.name}` {at(op)}"
    if about == "walk":
        plain = op.primitive.name in ("cumsum", "cumprod", "cumlogsumexp")
        what = f"`{op.name}`" if plain else "the running sum or product"
        what = "the loop" if op.kind == "scan" or isinstance(choice, Rewired) else what
        return f"the backward pass of {what} {at(op)}"
    return ""


def _factor(case: Case, sites: Sites, choice: Any, names: str, evidence: dict) -> Finding:
    op, k = choice.op, choice.operand
    if choice.cause == "mask":
        detail = f"{names}: the selection {at(op)} is {choice.words}"
        return Finding(names, "missing-rows", detail, evidence)
    values = _value(case, op, 1 - k)
    of_array = "scale" if op.primitive.name == "div" else "missing-path"
    of_array = "wrong-point" if _one_of_several(case, sites, op.inputs[k], names) else of_array
    cause = "scale" if values is None else lost(values, of_array)
    cause = "scale" if "twice" in choice.words and cause != "missing-rows" else cause
    origin = origin_of(case, sites, op, 1 - k)
    detail = f"{names}: the factor {origin}, in the product {at(op)}, is {choice.words}"
    return Finding(names, cause, detail, evidence)


def _one_of_several(case: Case, sites: Sites, v: Any, names: str) -> bool:
    """Whether the leaf is itself a factor beside others: what stands beside it is then another value."""
    parts = [_spread_from(sites, p) for p in factors_of(sites, v, recorded(case)[0])]
    inputs = case.oracle.program.scope.inputs
    return len(parts) > 1 and any(p in inputs and case.paths[inputs.index(p)] == names for p in parts)


def _spread_from(sites: Sites, v: Any) -> Any:
    op = sites.producer.get(v) if isinstance(v, int) else None
    return _spread_from(sites, op.inputs[0]) if op is not None and op.primitive.name in SPREAD else v


def _value(case: Case, op: Op, k: int) -> np.ndarray | None:
    """The value of an operand at the given point, with the turns of loops in front of its axes."""
    v = op.inputs[k]
    if isinstance(v, Constant):
        return np.asarray(v.value, np.float64)
    known = recorded(case)
    return known[0].get(v) if known else None
