"""A program as data: operations with their source lines, in scopes (straight lists of operations).

Also `Editor`, what is asked on the way when a program is run, and the two questions that every file here
asks of a value: is it floating, and what is it in float64.
"""

from __future__ import annotations

import linecache
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp import jaxprs


@dataclass(frozen=True)
class Place:
    """A line of the user's source, and where in it the expression stands."""

    file: str = ""
    line: int = 0
    column: int = 0
    end: int = 0

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else "a line inside a library"

    @property
    def text(self) -> str:
        """The line itself, as far as the file can be read."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""

    @property
    def expression(self) -> str:
        """The part of the line that makes the operation, where it is only a part and does not go on."""
        line = linecache.getline(self.file, self.line).encode() if self.file else b""
        part = line[self.column : self.end].decode(errors="replace").strip()
        return part if part and part != self.text else ""


@dataclass(eq=False)
class Op:
    """One operation. Operands are `int` (a value's number) or `Constant`; `bodies` are scopes."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Any]
    outputs: list[int]
    in_avals: list[Any]
    out_avals: list[Any]
    place: Place
    within: str
    kind: str
    bodies: list[Scope] = field(default_factory=list)
    stack: str = ""  # of the named scopes around it
    origin: Op | None = None  # of the forward pass, for one of a backward pass

    @property
    def name(self) -> str:
        return self.within if self.kind == "rule" else self.primitive.name

    @property
    def loop(self) -> jaxprs.Loop:
        """How the operands of a `scan` divide."""
        return jaxprs.loop(self.params, self.in_avals, self.out_avals)


@dataclass(eq=False)
class Constant:
    """A literal or a captured array."""

    value: Any


@dataclass(eq=False)
class Scope:
    """A straight list of operations: the program, or the body of a loop or branch."""

    inputs: list[int]
    ops: list[Op]
    outputs: list[Any]


class Editor:
    """What is asked while a program runs. This one changes nothing and keeps nothing."""

    def enter(self, scope: Scope, values: list[Any]) -> None:
        """Called with the values that enter a scope."""

    def around(self, op: Op) -> AbstractContextManager[Any]:
        """The context in which an operation is run."""
        return nullcontext()

    def begin(self) -> None:
        """Called before the body of a loop or branch."""

    def end(self) -> Any:
        """Called after it; what it returns comes out of a scan stacked, and is handed to `keep`."""
        return ()

    def keep(self, left: Any) -> None:
        """Called after a scan with what its turns left."""

    def turn(self, op: Op, index: Any) -> None:
        """Called in every turn of the scan `op`, with the number of the turn."""

    def operands(self, op: Op, values: list[Any]) -> list[Any]:
        """The operands to use."""
        return values

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        """The results to go on with; `env` holds the values of the scope so far."""
        return results


def is_float(x: Any) -> bool:
    """Whether `x` (an array or an aval) has a floating dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def is_inexact(x: Any) -> bool:
    """Whether `x` carries a derivative: floating or complex."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def widen(x: Any) -> Any:
    """`x` in float64 where it is floating, in complex128 where it is complex."""
    if not is_inexact(x) or x.dtype in (np.float64, np.complex128):
        return x
    return jnp.asarray(x).astype(np.float64 if is_float(x) else np.complex128)
