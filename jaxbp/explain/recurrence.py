"""A recurrent layer as what it is: one layer, applied at every step to an input and to its own state.

Nothing here knows a cell. A layer that takes `{"x": [..., T, I], "state": …}` and, with `return_state`,
hands its final state out can be run one step at a time; the local derivatives of a step are then what the
layer's own `pull` says about a sequence of length 1. So the paths through time are real paths, from the
state of one step to the next, and a weight has one path more for every step in which it stands.

Where that cannot be done (a mask, several sequences at once) the layer stays one part, and its paths go
from every input of the sequence straight to every output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.explain import jacobian
from jaxbp.explain.graph import Wires, cut
from jaxbp.layer import Layer, Mode, PyTree


@dataclasses.dataclass
class Steps:
    """A recurrent layer that is run one step at a time over `x: [..., T, I]` from `state`."""

    layer: Any
    params: PyTree
    x: Any
    state: PyTree
    given: bool
    mode: Mode
    reverse: bool
    returns_state: bool
    pattern: Any = None

    @property
    def state_size(self) -> int:
        return jacobian.size(self.state)

    def cut(self, wires: Wires) -> tuple[Wires, list[Wires]]:
        """The wires of the initial state (none where it is not given), and of every step's input."""
        time, features = self.x.shape[-2:]
        state, *steps = cut(wires, [self.state_size if self.given else 0, *[features] * time])
        return state, steps

    def turns(self) -> Iterator[tuple[int, PyTree, PyTree, PyTree]]:
        """`(t, x, y, saved)` of every step, in the order in which they are taken."""
        time, state = self.x.shape[-2], self.state
        for t in reversed(range(time)) if self.reverse else range(time):
            x = {"x": self.x[..., t : t + 1, :], "state": state}
            y, saved = jacobian.forward(self.layer, self.params, x, self.mode)
            if self.pattern is None:
                self.pattern = jacobian.Pattern(self.layer, self.params, x, self.mode)
            yield t, x, y, saved
            state = y[1]


def as_steps(layer: Layer, params: PyTree, x: PyTree, y: PyTree, mode: Mode) -> Steps | None:
    """The layer one step at a time, or `None` where it is no recurrence or cannot be taken apart."""
    fields = {field.name for field in dataclasses.fields(layer)}  # pyright: ignore[reportArgumentType]
    if not {"return_state", "reverse"} <= fields:
        return None
    parts = x if isinstance(x, dict) else {"x": x}
    inputs, state = parts["x"], parts.get("state")
    if set(parts) - {"x", "state"} or int(np.prod(inputs.shape[:-2])) != 1:
        return None
    one = dataclasses.replace(layer, return_state=True, reverse=False)  # pyright: ignore[reportArgumentType]
    like = jax.eval_shape(lambda v: one.forward(params, v, mode)[0][1], inputs[..., :1, :])
    given = state is not None
    state = state if given else jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    whole: Any = layer
    made = Steps(one, params, inputs, state, given, mode, bool(whole.reverse), bool(whole.return_state))
    return made if _agree(made, y) else None


def _agree(steps: Steps, y: PyTree) -> bool:
    """Whether the steps give what the layer gives: only then are they a way to explain it."""
    taken = {t: step[0] for t, _, step, _ in steps.turns()}
    together = np.concatenate([np.asarray(taken[t]) for t in range(len(taken))], axis=-2)
    whole = np.asarray(y[0] if steps.returns_state else y)
    return bool(np.allclose(together, whole, rtol=1e-9, atol=1e-12))
