"""Linear systems differentiated with the wrong matrix, or with another vector.

For `A x = b` the error `g` at `x` becomes `λ = A⁻ᵀ g`, which is the cotangent of `b`; that of `A` is
`-λ xᵀ`. The slips: solving with `A` once more where its transpose belongs (or not at all), `b` where `x`
belongs, the product transposed, the other triangle of a triangular `A` let in. The inverse is the
solution for `b = 1`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites
from jaxbp.check.operations import Op

System = tuple[Callable[[Any], Any], Any, Any, Callable[[Any], Any]]
AS_IT_IS, AGAIN, NOT_AT_ALL = "A⁻ᵀ", "A⁻¹", "1"
MATRICES: dict[str, Callable[[Any, Any], Any]] = {  # the transpose of what is applied to the error
    AS_IT_IS: lambda a, v: jnp.linalg.solve(a, v),
    AGAIN: lambda a, v: jnp.linalg.solve(a.T, v),
    NOT_AT_ALL: lambda a, v: v,
}
SAID = {
    AGAIN: "solved with the matrix once more, where its transpose belongs",
    NOT_AT_ALL: "not solved for: the error itself stands where the solution for the transpose belongs",
}


def solves(sites: Sites) -> Iterator[Instead]:
    """Other derivatives of every solution of one linear system."""
    for op in sites.ops():
        if op.primitive.name == "cholesky" and sites.is_live(op, 0) and op.in_avals[0].ndim == 2:
            yield from _of_cholesky(op)
        if op.primitive.name not in ("custom_linear_solve", "triangular_solve"):
            continue
        if op.in_avals[0].ndim != 2 or len(op.outputs) != 1 or op.out_avals[0].ndim > 2:
            continue
        if (
            op.primitive.name == "custom_linear_solve"
            and op.in_avals[0].shape[0] != op.in_avals[0].shape[1]
        ):
            continue
        yield from _of_both(op)
        if sites.is_live(op, 0):
            yield from _of_the_matrix(op)


def _of_cholesky(op: Op) -> Iterator[Instead]:
    """`dL = L Φ(L⁻¹ dA L⁻ᵀ)`, with another `Φ` than the lower triangle with half its diagonal."""
    still = jax.lax.stop_gradient
    for cause, words, cut in (
        ("scale", "taken without halving the diagonal of Φ", jnp.tril),
        ("missing-rows", "taken without cutting Φ down to the lower triangle", lambda k: k / 2),
        ("missing-rows", "taken with the diagonal of Φ left out", lambda k: jnp.tril(k, -1)),
    ):

        def make(inputs: list[Any], results: list[Any], env: dict, given: Any, cut: Any = cut) -> Any:
            a, lower = inputs[0], still(jnp.tril(results[0]))
            half = jax.scipy.linalg.solve_triangular(lower, a, lower=True)
            inner = jax.scipy.linalg.solve_triangular(lower, half.T, lower=True).T
            return lower @ cut(inner)

        yield Instead(op, 0, make, cause, words)


def _of_both(op: Op) -> Iterator[Instead]:
    """The wrong `λ`, used for both."""
    for which in (AGAIN, NOT_AT_ALL):
        cause = "transpose" if which == AGAIN else "missing-path"
        for vector in ("x", "b"):
            more = "" if vector == "x" else ", and with the right-hand side in the place of the solution"
            yield Instead(op, -1, _make(op, which, which, vector, False), cause, SAID[which] + more)


def _of_the_matrix(op: Op) -> Iterator[Instead]:
    """`λ` is right for `b`, and the cotangent of `A` is not `-λ xᵀ`."""
    vectors = {
        "x": "",
        "b": "with the right-hand side in the place of the solution",
        "xᵀ": "with the solution transposed",
    }
    for which, vector, turned in itertools.product(MATRICES, vectors, (False, True)):
        parts = [
            f"in the cotangent of the matrix {SAID[which]}" if which in SAID else "",
            vectors[vector],
        ]
        parts.append("with the product for the matrix transposed" if turned else "")
        said = ", ".join(part for part in parts if part)
        if not said:
            continue
        cause = "transpose" if turned or vector == "xᵀ" or which == AGAIN else "wrong-point"
        cause = "missing-path" if which == NOT_AT_ALL and vector == "x" and not turned else cause
        yield Instead(op, -1, _make(op, AS_IT_IS, which, vector, turned), cause, said)
    if op.primitive.name == "triangular_solve":
        words = "with the cotangent of the whole matrix, of which only a triangle is used"
        yield Instead(op, -1, _make(op, AS_IT_IS, AS_IT_IS, "x", False, whole=True), "extra-path", words)


def _make(op: Op, for_b: str, for_a: str, vector: str, turned: bool, whole: bool = False) -> Any:
    still = jax.lax.stop_gradient

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        matrix, b, x, back = _system(op, inputs, results[0], whole)
        e = still(_system(op, inputs, results[0], False)[0](inputs[0]))
        v = still({"x": x, "b": b, "xᵀ": x.T if x.shape[0] == x.shape[1] else x}[vector])
        moving = matrix(inputs[0])
        moved = (moving.T if turned else moving) @ v
        made = MATRICES[for_b](e, b) - MATRICES[for_a](e, moved)
        return back(made)

    return make


def _system(op: Op, inputs: list[Any], result: Any, whole: bool) -> System:
    """`(matrix of the first operand, b, x, back)` with `b` and `x` as columns of `matrix @ x = b`."""
    if op.primitive.name == "custom_linear_solve":
        b = inputs[-1]
        columns = (lambda v: v.T) if b.ndim == 2 else (lambda v: v[:, None])
        back = (lambda v: v.T) if b.ndim == 2 else (lambda v: v[:, 0])
        return (lambda a: a), columns(b), columns(result), back
    p = op.params

    def matrix(a: Any) -> Any:
        if not whole:
            a = jnp.tril(a) if p["lower"] else jnp.triu(a)
        if p["unit_diagonal"]:
            a = a - jnp.diag(jnp.diag(a)) + jnp.eye(a.shape[0], dtype=a.dtype)
        flip = bool(p["transpose_a"]) == bool(p["left_side"])
        return a.T if flip else a

    turn = (lambda v: v) if p["left_side"] else (lambda v: v.T)
    return matrix, turn(inputs[1]), turn(result), turn
