"""Learning without the way back: backpropagation, feedback alignment and direct feedback on the digits.

    python experiments/feedback_alignment.py [--epochs 30] [--image FILE]

An MLP and lenet learn scikit-learn's digits three times, with the same optimizer. Feedback alignment
sends the error of every dense layer back through a fixed random matrix (convolutions keep their own),
direct feedback takes the error at the end to every layer. Drawn are the accuracy on the test fifth, and
the angle between what the layers would learn and the gradient there, over all layers but the last.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxbp as bp
from jaxbp.app.data.images import Digits
from jaxbp.layer import map_leaves

LOSS = bp.SoftmaxCrossEntropy()
NETWORKS = {
    "mlp": (bp.Chain(bp.Dense(64), bp.Tanh(), bp.Dense(64), bp.Tanh(), bp.Dense(10)), True),
    "lenet": (bp.models.lenet(10), False),
}
RULES = {
    "backpropagation": lambda net: net,
    "feedback alignment": lambda net: map_leaves(bp.beyond.feedback_alignment, net),
    "direct feedback": bp.beyond.direct_feedback,
}
COLORS = {"backpropagation": "#7f8c8d", "feedback alignment": "#1b6ca8", "direct feedback": "#c0392b"}


def angle(a: Any, b: Any) -> Any:
    """Degrees between two gradients: of all layers but the last, and of what both of them have."""
    pairs = [(p[k], q[k]) for p, q in zip(a[:-1], b[:-1], strict=True) for k in (q or ())]
    dot, p, q = (sum(jnp.vdot(x[i], x[j]) for x in pairs) for i, j in ((0, 1), (0, 0), (1, 1)))
    return jnp.degrees(jnp.arccos(jnp.clip(dot / jnp.sqrt(p * q), -1, 1)))


def learn(net: Any, rule: Any, data: Any, epochs: int) -> tuple[list[float], list[float]]:
    """`(accuracy, angle)` after every epoch, the first before any."""
    x, y, test_x, test_y = data
    other = rule(net)
    params = other.init(jax.random.key(0), x[:2])
    tx = optax.adam(1e-3)
    state, epoch = tx.init(params), bp.make_epoch(other, LOSS, tx, 64)
    plain = jax.jit(
        lambda p: tuple(
            {k: v for k, v in part.items() if k != "feedback"} if part else part for part in p
        )
    )

    @jax.jit
    def look(params: Any) -> Any:
        true = bp.value_and_grad(net, LOSS)(plain(params), x[:256], y[:256])[1]
        found = bp.value_and_grad(other, LOSS)(params, x[:256], y[:256])[1]
        right = jnp.argmax(net(plain(params), test_x), axis=1) == test_y
        return jnp.mean(right), angle(found, true)

    seen = [look(params)]
    for i in range(epochs):
        params, state, _ = epoch(params, state, x, y, jax.random.key(i + 1))
        seen.append(look(params))
    return [float(a) for a, _ in seen], [float(d) for _, d in seen]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    figure, panels = plt.subplots(2, 2, figsize=(9, 5.4), sharex=True, sharey="row")
    for (name, (net, flat)), (upper, lower) in zip(NETWORKS.items(), panels.T, strict=True):
        images = Digits().load()
        images = images.flat() if flat else images
        data = tuple(map(jnp.asarray, (images.x, images.y, images.test_x, images.test_y)))
        for rule, make in RULES.items():
            accuracy, degrees = learn(net, make, data, args.epochs)
            upper.plot(accuracy, color=COLORS[rule], label=rule)
            lower.plot(degrees, color=COLORS[rule])
            ends = f"{degrees[0]:.0f}° -> {np.nanmin(degrees):.0f}° (least) -> {degrees[-1]:.0f}°"
            print(f"{name:<6} {rule:<19} accuracy {accuracy[-1]:.1%}  angle {ends}", flush=True)
        upper.set_title(name)
        lower.axhline(90, color="#bdc3c7", linewidth=0.8)
        lower.set_xlabel("epoch")
    panels[0][0].set_ylabel("accuracy, test fifth")
    panels[1][0].set_ylabel("degrees from the gradient")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    if args.image:
        figure.savefig(args.image, dpi=110)
        print(args.image)


if __name__ == "__main__":
    main()
