"""What in a digit speaks for its class: one lenet, four rules, as pictures.

    python experiments/attributions.py [--epochs 20] [--image FILE]

The rules of `jaxbp.beyond.attributions`, of the logit of the true class: gradient × input, guided
backpropagation, relevance and integrated gradients (from a black image). Red speaks for it, blue against
it; each picture by its own largest entry. `--run.attributions` draws them for a run of your own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxbp as bp
from jaxbp import beyond
from jaxbp.app.data.images import Digits

LOSS = bp.SoftmaxCrossEntropy()
NET = bp.models.lenet(10)
MAPS = jax.jit(beyond.attributions(NET))


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
    black = jnp.zeros(x.shape[1:])
    maps = MAPS(params, x, y, black)
    pictures = {name: maps[name] for name in beyond.ATTRIBUTIONS}

    def logit(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(NET(params, x), y[:, None], axis=1)[:, 0]

    logits = logit(x)
    for name, aim in (("relevance", logits), ("integrated", logits - logit(jnp.zeros_like(x)))):
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
