"""KFAC beside SGD and Adam: how many steps an autoencoder of the digits takes to a loss.

    python experiments/kfac_autoencoder.py [--epochs 200] [--tune] [--image FILE]

The network and the data of configs/digits_autoencoder.toml, all optimizers from the same parameters over
the same batches of 256. SGD has momentum, and the best of several learning rates, each with and without
clipping (`--tune`, else the best of them as found that way). What counts is the step at which the mean
loss of an epoch first is below the lowest that SGD reaches. Seconds are processor time, no compilation.
OPENBLAS_NUM_THREADS=1 keeps small inverses off several threads, which cost more than they save.
"""

from __future__ import annotations

import argparse
import time
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
from jaxbp.app.config import read_config
from jaxbp.app.task import Task, keys, make_task

CONFIG = Path(__file__).parents[1] / "configs" / "digits_autoencoder.toml"
BATCH = 256
OPTIONS: dict[str, Any] = {"damping": 0.03, "max_change": 3.0, "every": 1}
COLORS = {"SGD": "#7f8c8d", "Adam": "#1b6ca8", "KFAC": "#c0392b"}


def train(task: Task, tx: Any, epochs: int) -> tuple[np.ndarray, float]:
    """`(the mean loss of every epoch, processor seconds an epoch)`."""
    params, x = task.net.init(keys(0)[0], task.like()), jnp.asarray(task.data.x)
    state, epoch = tx.init(params), bp.make_epoch(task.net, task.loss, tx, BATCH)
    losses, began = [], 0.0
    for i in range(epochs):
        params, state, values = epoch(params, state, x, x, jax.random.key(i + 1))
        losses.append(float(values.mean()))
        began = time.process_time() if i == 0 else began
    return np.asarray(losses), (time.process_time() - began) / max(epochs - 1, 1)


def sgd(rate: float, limit: float) -> optax.GradientTransformation:
    plain = optax.sgd(rate, 0.9, nesterov=True)
    return optax.chain(optax.clip_by_global_norm(limit), plain) if limit else plain


def first_below(losses: np.ndarray, bar: float) -> int | None:
    """The number of epochs until a loss is at or below `bar`."""
    found = np.flatnonzero(losses <= bar)
    return int(found[0]) + 1 if len(found) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--tune", action="store_true", help="try SGD's and Adam's learning rates")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    task = make_task(read_config(CONFIG))
    rates = [(r, c) for c in (0.0, 10.0, 30.0) for r in (5e-4, 1e-3, 1e-2, 3e-2, 6e-2, 1e-1)]
    tried = {
        "SGD": [(f"{r:g}, clip {c:g}", sgd(r, c)) for r, c in (rates if args.tune else [(3e-2, 10.0)])],
        "Adam": [(f"{r:g}", optax.adam(r)) for r in ((1e-3, 3e-3, 1e-2) if args.tune else (1e-2,))],
        "KFAC": [
            ("0.3, momentum ½", bp.beyond.kfac(task.net, task.loss, task.like(), 0.3, 0.5, **OPTIONS))
        ],
    }
    found: dict[str, tuple[np.ndarray, float]] = {}
    for name, choices in tried.items():
        for what, tx in choices:
            losses, seconds = train(task, tx, args.epochs)
            print(
                f"{name:<5} η {what:<15} loss {losses[-1]:8.4f}  {1e3 * seconds:.1f} ms/epoch", flush=True
            )
            if name not in found or losses[-1] < found[name][0][-1]:
                found[name] = losses, seconds
    bar, steps = float(np.nanmin(found["SGD"][0])), -(-len(task.data.x) // BATCH)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for name, (losses, seconds) in found.items():
        epochs = first_below(losses, bar)
        when = f"{epochs * steps} steps, {epochs * seconds:.2f} s" if epochs else "not reached"
        print(f"{name:<5} a loss of {bar:.3f} after {when}; at the end {losses[-1]:.3f}", flush=True)
        count = np.arange(1, len(losses) + 1)
        left.semilogy(count * steps, losses, color=COLORS[name], label=name)
        right.semilogy(count * seconds, losses, color=COLORS[name], label=name)
    for axes, what in ((left, "steps"), (right, "processor seconds")):
        axes.axhline(bar, color="#bdc3c7", linewidth=0.8)
        axes.set_xlabel(what)
    left.set_ylabel("loss")
    left.legend()
    figure.tight_layout()
    if args.image:
        figure.savefig(args.image, dpi=110)
        print(args.image)


if __name__ == "__main__":
    main()
