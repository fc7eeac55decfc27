"""`explain_weight`: one derivative as the sum over its paths."""

from __future__ import annotations

from typing import Any

from jaxbp.explain.example import Example
from jaxbp.explain.explanation import Explanation
from jaxbp.layer import Layer, Mode, PyTree
from jaxbp.losses import Loss


class Explainer(Example):
    """A network at work on one example, ready to be asked about any of its weights.

    `explain_weight` makes one and asks once; use this where many weights of one example are asked for.
    """

    def weight(
        self, asked: str, k: int = 8, reference: bool = False, formulas: bool = True
    ) -> Explanation:
        """The `Explanation` of one weight; `reference` also asks `jax.grad` for the same number."""
        return Explanation(**vars(self.why(asked, k, reference, formulas)), explainer=self)


def explain_weight(
    net: Layer,
    params: PyTree,
    x: Any,
    y: Any,
    loss: Loss,
    weight: str,
    *,
    k: int = 8,
    mode: Mode | None = None,
) -> Explanation:
    """Why `∂L/∂weight` is what it is, for `loss(net(params, x), y)` on one example.

    A derivative is a sum over paths of products along each:

        ∂L/∂w = Σ over paths w → n_1 → … → n_m → L of  ∂n_1/∂w · ∂n_2/∂n_1 ⋯ ∂L/∂n_m

    The `k` largest paths are returned, with the exact count of all and the sum of the others
    (`remainder`). Every factor comes from a layer's own `pull` (or `gradient`), in float64. A recurrence
    is followed from step to step, so a weight of it has paths that begin at every step.

    `x` is one example without a batch axis, `y` its target. `weight` is a name as in the notes
    (`w212`: layer 2, to neuron 1, from neuron 2; `w2_13_4`; `b21`; `x3` for an input), where layers are
    the parts with parameters, counted in forward order, and a kernel's window comes last (`w1_4_2_3_1`:
    to channel 4, from channel 2, in row 3 and column 1); or a pytree path with an index, from 0 as in
    Python (`[1]['w'][0, 3]`, `1.w[0,3]`).

    Raises `InputError` where there is no such weight, and where a layer has more local derivatives than
    can be listed. A path is counted even where its product happens to be 0 (a unit that is off).
    """
    return Explainer(net, params, x, y, loss, mode).weight(weight, k)
