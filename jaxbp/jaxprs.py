"""How a traced program is written down, whichever JAX wrote it: 0.10, 0.11 or 0.12.

Whoever reads a jaxpr asks here for what differs between them, so that one program reads the same:

- `opened`: a jaxpr and the arrays it captured. JAX 0.10 has an open and a closed kind, later ones one.
- `loop`: how the operands of a `scan` divide. 0.10 counts them (`num_consts`, `num_carry`), later ones
  keep a tree of their own. What goes through in slices has one axis more outside the body than inside:
  that tells them apart without either, in every version.
- `called`: what stands in the place of an equation that only calls something. The names of the calls
  changed (`closed_call`, `eval_jaxpr`), and some functions that were written out became primitives
  (`log2`, `one_minus_square`, `polynomial`): those are written out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp

CALLS = {
    "jit", "pjit", "call", "core_call", "closed_call", "core_closed_call", "eval_jaxpr", "remat",
    "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
}  # fmt: skip

WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "log2": lambda x: jnp.log(x) / jnp.log(jnp.asarray(2, x.dtype)),
    "one_minus_square": lambda x: 1 - jnp.square(x),
    "polynomial": lambda x, *rising: reduce(lambda y, c: y * x + c, rising[::-1]),
}


@dataclass(frozen=True)
class Loop:
    """A `scan`: `body(*fixed, *carry, *slices) -> (*carry, *slices)`, run `length` times.

    Of the operands, the first `consts` are the same in every turn, the next `carry` are handed on, and
    of the others each turn sees one slice, the last first if `reverse`. Of the results, the first
    `carry` are the last state, and the others are stacked.
    """

    body: Any
    consts: int
    carry: int
    length: int
    reverse: bool

    def divide(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """`(fixed, carry, sequences)` of the operands."""
        at = self.consts + self.carry
        return list(operands[: self.consts]), list(operands[self.consts : at]), list(operands[at:])

    def turns(self) -> range:
        """The numbers of the turns, in the order in which they are run."""
        return range(self.length)[::-1] if self.reverse else range(self.length)


def loop(params: dict[str, Any], given: Sequence[Any], made: Sequence[Any]) -> Loop:
    """A `scan` by its parameters and the avals of its operands and of its results."""
    body, _ = opened(params["jaxpr"])
    sequences = _longer(given, body.invars)
    carry = len(made) - _longer(made, body.outvars)
    consts = len(given) - carry - sequences
    return Loop(params["jaxpr"], consts, carry, params["length"], params["reverse"])


def _longer(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many values have an axis outside the body that they don't have inside."""
    return sum(len(a.shape) > len(v.aval.shape) for a, v in zip(outside, inside, strict=True))


def loop_of(equation: Any) -> Loop:
    """A `scan` by its equation."""
    return loop(equation.params, [v.aval for v in equation.invars], [v.aval for v in equation.outvars])


def opened(program: Any) -> tuple[Any, Sequence[Any]]:
    """`(jaxpr, consts)` of an open or a closed jaxpr."""
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


def called(equation: Any) -> Any:
    """The jaxpr that stands in the place of an equation; `None` for an operation of its own."""
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        return params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    if name in WRITTEN_OUT:
        return _written_out(name, *((v.aval.shape, v.aval.dtype) for v in equation.invars))
    return None


@lru_cache
def _written_out(name: str, *shapes: Any) -> Any:
    return jax.make_jaxpr(WRITTEN_OUT[name])(*(jax.ShapeDtypeStruct(*s) for s in shapes))


def programs(equation: Any) -> Iterator[Any]:
    """Every jaxpr in the parameters of an equation, opened."""
    for param in equation.params.values():
        for part in param if isinstance(param, tuple | list) else (param,):
            jaxpr, _ = opened(part)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def file_of(program: Any) -> str:
    """The file of the function that was traced; empty where that is not known."""
    return getattr(getattr(program, "debug_info", None), "func_filename", None) or ""


def name_of(program: Any) -> str:
    """The name of the function that was traced; empty where that is not known."""
    return (getattr(getattr(program, "debug_info", None), "func_src_info", None) or "").split(" ")[0]
