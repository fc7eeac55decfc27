"""An operation in a sentence: what its operands are called, and where it stands."""

from __future__ import annotations

from jaxbp.check.operations import Op

ROLES: dict[str, tuple[str, ...]] = {
    "div": ("the numerator of the division", "the denominator of the division"),
    "sub": ("the first term of the subtraction", "the subtracted term"),
    "add": ("the first term of the sum", "the second term of the sum"),
    "add_any": ("the first term of the sum", "the second term of the sum"),
    "mul": ("the first factor of the product", "the second factor of the product"),
    "dot_general": ("the left factor of the matrix product", "the right factor of the matrix product"),
    "conv_general_dilated": ("the image in the convolution", "the kernel in the convolution"),
    "pow": ("the base of the power", "the exponent"),
    "max": ("the first operand of the maximum", "the second operand of the maximum"),
    "min": ("the first operand of the minimum", "the second operand of the minimum"),
    "reduce_sum": ("the sum",),
    "reduce_max": ("the maximum",),
    "reduce_min": ("the minimum",),
    "gather": ("the table that is looked up",),
    "concatenate": tuple(f"part {n} of the concatenation" for n in range(8)),
}


def role(op: Op, k: int) -> str:
    """`the denominator of the division`."""
    known = ROLES.get(op.primitive.name, ())
    if k < len(known):
        return known[k]
    return f"`{op.name}`" if len(op.inputs) == 1 else f"operand {k} of `{op.name}`"


def at(op: Op) -> str:
    """`at softmax.py:12: `e / s` in `return e / s``, with the library function it stands in."""
    within = f", inside `{op.within}`" if op.within and op.kind != "rule" else ""
    part = f" `{op.place.expression}` in" if op.place.expression else ""
    text = f":{part} `{op.place.text}`" if op.place.text else ""
    return f"at {op.place}{within}{text}"


def source(op: Op) -> str:
    return f"{op.place}: {op.place.text}" if op.place.text else str(op.place)
