"""The exercises in order: what is asked, with which shapes it is tried, and the hints."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxbp.explain.exercises import forwards


@dataclass(frozen=True)
class Exercise:
    """One step of the ladder. `shapes` are those of the forward pass's arguments, by name.

    The learner writes `backward(*arguments, dy)`, which returns the error of each argument that is not
    in `fixed`; for the last exercise `step(*arguments, rate)`, which returns new parameters.
    """

    name: str
    title: str
    forward: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    hints: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    function: str = "backward"

    @property
    def asked(self) -> list[str]:
        """The arguments whose errors are asked for."""
        return [name for name in self.shapes if name not in self.fixed]

    def starter(self) -> str:
        """The file that a learner begins with."""
        names = ", ".join(self.shapes)
        last, what = ("rate", "step") if self.function == "step" else ("dy", "backward")
        returns = ", ".join((n if what == "step" else f"d{n}") for n in self.asked)
        ask = (
            f"Take one step of gradient descent: return the new {returns}, each w - rate ∂L/∂w."
            if what == "step"
            else f"dy is ∂L/∂(what forward returned). Return {returns}: the error of each, in its shape."
        )
        return (
            f'"""{self.title}\n\nWrite `{what}` by hand, without jax.grad; then run\n\n'
            f'    jaxbp exercises check .\n"""\n\nimport jax\nimport jax.numpy as jnp\n\n\n'
            f"{inspect.getsource(self.forward)}\n\n"
            f'def {what}({names}, {last}):\n    """{ask}"""\n    return ...\n'
        )


LADDER: dict[str, Exercise] = {
    e.name: e
    for e in [
        Exercise(
            "chain", "The chain rule along one path: e^{x²}", forwards.chain, {"x": ()},
            ("Name the stages: h1 = x², y = e^{h1}. What is dy/dh1, and what is dh1/dx?",
             "The error of x is dy times every derivative on its way: dy · dy/dh1 · dh1/dx.",
             "dh1/dx is 2x, and dy/dh1 is y itself."),
        ),
        Exercise(
            "tower", "One stage more: e^{e^{x²}}", forwards.tower, {"x": ()},
            ("There are three stages now, h1, h2 and y, and so three factors besides dy.",
             "The derivative of e^u is e^u: at the second stage u is h1, at the third it is h2.",
             "Compute h1, h2 and y first, as forward does, then multiply from the back."),
        ),
        Exercise(
            "reciprocal", "A quotient: 1/e^{x²}", forwards.reciprocal, {"x": ()},
            ("The last stage is y = 1/h2. What is its derivative by h2?",
             "d(1/u)/du = -1/u²; mind the sign and the square.",
             "The other two factors are those of the first exercise."),
        ),
        Exercise(
            "sigmoid", "The sigmoid", forwards.sigmoid, {"a": (5,)},
            ("Each entry has its own path, so dy meets the derivative entry by entry (no sum).",
             "By the quotient rule σ' = e^{-a}/(1 + e^{-a})². Can you write that in h alone?",
             "1 - h is e^{-a}/(1 + e^{-a}); so σ' is h times something."),
        ),
        Exercise(
            "softmax", "Softmax: outputs that are coupled", forwards.softmax, {"a": (3, 4)},
            ("How many outputs does one a_i change? Every one of them has a path back to it.",
             "∂ŷ_i/∂a_i = ŷ_i(1 - ŷ_i), and ∂ŷ_k/∂a_i = -ŷ_k ŷ_i for k ≠ i: leaving the second out "
             "is the slip in the notes.",
             "Sum over k: da_i = ŷ_i (dy_i - Σ_k dy_k ŷ_k), row by row of the batch."),
        ),
        Exercise(
            "cross-entropy", "Softmax and cross-entropy in one", forwards.cross_entropy,
            {"a": (3, 4), "y": (3, 4)},
            ("log softmax(a)_i = a_i - log Σ_k e^{a_k}. One path to a_i is through its own term, "
             "one through the sum.",
             "The derivative of log Σ_k e^{a_k} by a_i is softmax(a)_i.",
             "Where Σ_i y_i = 1 the two paths add to softmax(a) - y; do not forget dy, a single number."),
            fixed=("y",),
        ),
        Exercise(
            "dense", "A dense layer", forwards.dense, {"x": (5, 3), "w": (3, 4), "b": (4,)},
            ("The shapes tell almost everything: dx is [batch, in], dw is [in, out], db is [out].",
             "w_ij stands in the output j of every example: its error is a sum over the batch.",
             "One of x and w is transposed in each of the two products; db is dy summed over an axis."),
        ),
        Exercise(
            "two-layer", "A network of two layers", forwards.two_layer,
            {"x": (5, 3), "w1": (3, 4), "b1": (4,), "w2": (4, 2), "b2": (2,)},
            ("Go backwards layer by layer: dense, sigmoid, dense. You have written each of them.",
             "The error at h is dy w2ᵀ; the error at the pre-activation is that times h(1 - h).",
             "With δ for the error at a pre-activation, every weight gradient is (what the layer "
             "saw)ᵀ δ."),
        ),
        Exercise(
            "layer-norm", "Layer normalisation", forwards.layer_norm,
            {"x": (3, 5), "scale": (5,), "offset": (5,)},
            ("x reaches y along three ways: directly, through the mean, and through the variance.",
             "Write dn = dy · scale for the error of the normalised values n, and r = 1/√(variance + ε).",
             "All three together: dx = r (dn - mean(dn) - n · mean(dn · n)), means over the last axis."),
        ),
        Exercise(
            "convolution", "A convolution", forwards.convolution, {"x": (7, 2), "w": (3, 2, 4)},
            ("Output t sees x_t … x_{t+width-1}. Which outputs does one x_s reach?",
             "Each k is a dense layer on a shifted slice of x: dw_k is (that slice)ᵀ dy.",
             "dx gets dy w_kᵀ added at the slice k … k + steps, for each k: the additions overlap."),
        ),
        Exercise(
            "attention", "Attention", forwards.attention, {"q": (4, 3), "k": (4, 3), "v": (4, 3)},
            ("Name the stages: scores s, weights p = softmax(s), y = p v. Go back through them.",
             "From y = p v come dv = pᵀ dy and dp = dy vᵀ; ds from dp is your softmax exercise, "
             "row by row.",
             "q and k are met by ds and dsᵀ; both carry the factor 1/√d."),
        ),
        Exercise(
            "bptt", "Backpropagation through time", forwards.recurrence,
            {"x": (5, 2), "w_x": (2, 3), "w_h": (3, 3), "b": (3,)},
            ("h_t is used twice: as an output, and in the next step. Its error is the sum of both.",
             "Walk t from the last to the first, carrying the error that step t + 1 handed to h_t.",
             "δ_t = (dy_t + carried)(1 - h_t²); then carried = δ_t w_hᵀ, and the weights add up over t."),
        ),
        Exercise(
            "training-step", "A whole training step of the notes' network", forwards.training_loss,
            {"w1": (4, 3), "b1": (3,), "w2": (3, 2), "b2": (2,), "x": (4,), "y": (2,)},
            ("Forward first, keeping h and ŷ; then backward: loss, softmax, dense, sigmoid, dense.",
             "∂L/∂ŷ = -2(y - ŷ); the softmax couples the outputs; δ meets what the layer saw.",
             "Every parameter moves against its gradient, biases too: b := b - rate ∂L/∂b."),
            fixed=("x", "y"), function="step",
        ),
    ]
}  # fmt: skip
