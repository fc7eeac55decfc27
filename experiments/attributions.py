"""What in a digit speaks for its class: one lenet, four rules, as pictures.

    python experiments/attributions.py [--epochs 20] [--image FILE]

Gradient × input, guided backpropagation, relevance (LRP-ε in the dense layers, z⁺ in the convolutions)
and integrated gradients (from a black image, 32 steps), of the logit of the true class. Red speaks for
it, blue against it; each picture by its own largest entry.
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
from jaxbp.layer import Layer, map_leaves

LOSS = bp.SoftmaxCrossEntropy()
NET = bp.models.lenet(10)


def back(net: Layer, params: Any, x: Any, labels: Any, of_logit: bool = False) -> Any:
    """What a walk carries to the input, of a 1 (or the logit itself) at the true class."""
    y, saved = net.forward(params, x)
    one = jax.nn.one_hot(labels, y.shape[-1], dtype=y.dtype)
    return net.backward(params, saved, y * one if of_logit else one)[1]


def relevance(leaf: Layer) -> Layer:
    gamma = float("inf") if isinstance(leaf, bp.Conv) else 0.0
    return bp.beyond.relevance(epsilon=1e-3, gamma=gamma)(leaf)


def integrated(params: Any, x: Any, labels: Any, steps: int = 32) -> Any:
    """`x ⊙ ∫₀¹ ∂logit/∂x(s x) ds`: adds up to the logit less that of a black image."""
    black = jnp.full_like(x, x.min())
    shares = (jnp.arange(steps, dtype=x.dtype) + 0.5) / steps
    each = jax.lax.map(lambda s: back(NET, params, black + s * (x - black), labels), shares)
    return (x - black) * each.mean(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    data = Digits().load()
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    params, tx = NET.init(jax.random.key(0), x[:2]), optax.adam(1e-3)
    epoch, state = bp.make_epoch(NET, LOSS, tx, 64), tx.init(params)
    losses = jnp.full(1, jnp.nan)
    for i in range(args.epochs):
        params, state, losses = epoch(params, state, x, y, jax.random.key(i))
    print(f"lenet: loss {float(losses.mean()):.4f} after {args.epochs} epochs", flush=True)
    labels = np.asarray(data.test_y)
    rows = [int(np.flatnonzero(labels == digit)[0]) for digit in range(8)]
    x, y = jnp.asarray(data.test_x)[jnp.asarray(rows)], jnp.asarray(labels[rows])
    lrp = map_leaves(relevance, NET)
    pictures = {
        "gradient × input": x * back(NET, params, x, y),
        "guided": back(map_leaves(bp.beyond.guided, NET), params, x, y),
        "relevance": back(lrp, params, x, y, of_logit=True),
        "integrated": integrated(params, x, y),
    }
    logits = jnp.take_along_axis(NET(params, x), y[:, None], axis=1)[:, 0]
    start = jnp.take_along_axis(NET(params, jnp.full_like(x, x.min())), y[:, None], axis=1)[:, 0]
    for name, aim in (("relevance", logits), ("integrated", logits - start)):
        share = np.asarray(pictures[name].sum((1, 2, 3)) / aim)
        print(
            f"{name}: adds up to {share.min():.2f} to {share.max():.2f} of what is explained", flush=True
        )
    figure, panels = plt.subplots(len(pictures) + 1, len(rows), figsize=(len(rows), len(pictures) + 1.3))
    for row, (name, images) in zip(panels, {"digit": x, **pictures}.items(), strict=True):
        row[0].set_title(name, fontsize=9, loc="left")
        for axes, image in zip(row, np.asarray(images)[..., 0], strict=True):
            limit = np.abs(image).max()
            colors = (
                {"cmap": "gray_r"}
                if name == "digit"
                else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            )
            axes.imshow(image, **colors)
            axes.axis("off")
    figure.tight_layout(h_pad=0.3, w_pad=0.2)
    if args.image:
        figure.savefig(args.image, dpi=110)
        print(args.image)


if __name__ == "__main__":
    main()
