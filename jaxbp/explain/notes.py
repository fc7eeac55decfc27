"""The lecture notes' worked example, every number of it, and where the notes' own print slips."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxbp.compose import Chain
from jaxbp.explain.render import figure, fine
from jaxbp.explain.report import decimals, network_report
from jaxbp.explain.weight import Explainer
from jaxbp.losses import SoftmaxCrossEntropy, SquaredError
from jaxbp.models import notes_network

WEIGHTS = ["w212", "w131", "w222"]


def notes_explainer() -> Explainer:
    """The 4-4-2 network with its numbers, ready to be asked."""
    with jax.enable_x64(True):
        net, params, x, y = notes_network()
    return Explainer(net, params, _one(x, 1), _one(y, 1), SquaredError("sum"))


def _one(values: Any, axes: int) -> np.ndarray:
    """The example without batch axes."""
    values = np.asarray(values, np.float64)
    return values.reshape(values.shape[-axes:])


def notes_report(k: int) -> str:
    """Everything about the worked example, in the order of the notes."""
    explainer = notes_explainer()
    parts = [given(explainer), network_report(explainer, WEIGHTS, k), printed(explainer)]
    return "\n\n".join([*parts, cross_entropy(explainer), slips(explainer)])


def given(explainer: Explainer) -> str:
    """The network and the example, as the notes write them: rows to, columns from."""
    w1, w2 = (np.asarray(explainer.params[k]["w"]).T for k in (0, 2))
    x, y = (decimals(np.ravel(v)) for v in (explainer.x, explainer.y))
    left, right = ([" ".join(f"{v:>5.1f}" for v in row) for row in w] for w in (w1, w2))
    right += [f"x = {x}", f"y = {y}, all biases 0, η = 1"]
    rows = [
        f"{'W1 =' if not i else '':<5}{a}    {'W2 =' if not i else '':<{5 if i < 2 else 0}}{b}"
        for i, (a, b) in enumerate(zip(left, right, strict=True))
    ]
    return "\n".join(["The worked example (rows: to, columns: from)", *(f"  {row}" for row in rows)])


def printed(explainer: Explainer) -> str:
    """The forward pass to two decimals, which is what the notes print."""
    values = {block.name: block.value for block in explainer.graph.blocks}
    shown = [f"{n} = {', '.join(f'{v:.2f}' for v in values[n])}" for n in ("h1", "a2", "ŷ")]
    return "Rounded, as the notes print them: " + "; ".join(shown)


def cross_entropy(explainer: Explainer) -> str:
    """The same network with cross-entropy, taken from the logits `a2`."""
    net = Chain(*explainer.net.layers[:-1])  # pyright: ignore[reportAttributeAccessIssue]
    example = (np.asarray(explainer.x)[0], np.asarray(explainer.y)[0])
    other = Explainer(net, explainer.params[:-1], *example, SoftmaxCrossEntropy("sum"))
    dw = np.asarray(other.grads[-1]["w"]).T
    rows = [
        f"  ∂L/∂w2{i}j, j = 1 … 4:  " + ", ".join(f"{v:.6f}" for v in row) for i, row in enumerate(dw, 1)
    ]
    return "\n".join([f"With cross-entropy instead: L = {figure(other.graph.value, 11)}", *rows])


def slips(explainer: Explainer) -> str:
    """Where the notes' printed figures differ, and why."""
    e, bias = explainer.weight("w212"), explainer.weight("b21")
    first = next(p for p in e.paths if "ŷ1" in p.nodes)
    w131 = explainer.weight("w131")
    values = {block.name: block.value for block in explainer.graph.blocks}
    own, a22, h13 = first.factors[1], float(values["a2"][1]), float(values["h1"][2])
    stray = first.contribution * -a22
    return "\n".join(
        [
            "Where the notes' print slips:",
            f"  1. ∂ŷ1/∂a21 = ŷ1(1 - ŷ1) = {figure(own)}. The notes multiply it by a stray (-a22) = "
            f"{figure(-a22)}, a misread exponent e^{{-(a21 - a22)}}.",
            f"  2. Softmax couples its outputs: ∂ŷ2/∂a21 = -ŷ1ŷ2. Without that second path ∂L/∂w212 is "
            f"{fine(first.contribution)} (-0.065 in the notes) instead of {fine(e.gradient)}, and "
            f"w212 becomes {figure(e.value - first.contribution)} (0.865) instead of {fine(e.stepped)}.",
            f"     ∂L/∂w131 is {fine(w131.gradient)}; the notes have -6.4e-3.",
            "  3. A bias moves against its gradient as a weight does: b21 := b21 - η ∂L/∂b21 = "
            f"{figure(bias.stepped)}.",
            f"  4. With the stray factor the product would be {figure(stray, 3)}; the notes print "
            "-0.029, with the wrong sign, and then take -0.065 for the step.",
            f"  5. h13(1 - h13) = {h13 * (1 - h13):.4f}, not 0.0979.",
        ]
    )
