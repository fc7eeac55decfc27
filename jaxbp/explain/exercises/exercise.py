"""What one exercise is, and the file that a learner begins with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Exercise:
    """One step of the ladder. `shapes` are those of the forward pass's arguments, by name.

    The learner writes `backward(*arguments, dy)`, which returns the error of each argument that is not
    in `fixed`; for the last exercise `step(*arguments, rate)`, which returns new parameters. `task` says
    in the notes' notation what is asked, and `hints` lead there, each saying more than the one before.
    """

    name: str
    title: str
    forward: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    task: str
    hints: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    function: str = "backward"

    @property
    def is_step(self) -> bool:
        """Whether a training step is asked for, not a backward pass."""
        return self.function == "step"

    @property
    def asked(self) -> list[str]:
        """The arguments whose errors are asked for."""
        return [name for name in self.shapes if name not in self.fixed]

    @property
    def results(self) -> list[str]:
        """What the learner's function returns, by name: `dx`, `dw`, `db`."""
        return [name if self.is_step else f"d{name}" for name in self.asked]

    def starter(self) -> str:
        """The file that a learner begins with."""
        last = "rate" if self.is_step else "dy"
        return (
            f'"""{self.title}\n\n{self.task}\n\n'
            f"Write `{self.function}` by hand, without jax.grad; then run\n\n"
            f'    jaxbp exercises check .\n"""\n\nimport jax\nimport jax.numpy as jnp\n\n\n'
            f"{inspect.getsource(self.forward)}\n\n"
            f'def {self.function}({", ".join(self.shapes)}, {last}):\n    """{self._ask()}"""\n'
            "    return ...\n"
        )

    def _ask(self) -> str:
        """What to return, and the shapes with which it is tried."""
        shapes = {name: shape for name, shape in self.shapes.items() if shape}
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes.values()]
        out = jax.eval_shape(self.forward, *arguments).shape
        shapes |= {"dy": out} if out and not self.is_step else {}
        each = ", ".join(f"{name}: {list(shape)}" for name, shape in shapes.items())
        tried = f"\n\n    It is tried with {each}.\n    " if each else ""
        returns = ", ".join(self.results)
        if self.is_step:
            return f"Return the new {returns} after one step, each moved by rate.{tried}"
        own = "in the shape of x" if len(self.asked) == 1 else "each in the shape of its argument"
        own = own.replace("of x", f"of {self.asked[0]}")
        return f"dy is ∂L/∂y, the error that arrives. Return {returns}, {own}.{tried}"
