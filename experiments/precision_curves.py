"""Do networks train in bfloat16 as they do in float32? Four loss curves of each, and how far they part.

    python experiments/precision_curves.py [--steps 120] [--image experiments/images/precision_curves.png]

lenet and resnet learn scikit-learn's digits, char_lstm and gpt the interpreter's own standard library,
all small, each twice from the same parameters on the same batches: once in float32, once under
`with_precision(net, "bfloat16")`, where products and activations are narrow and parameters, optimizer and
loss are not. What is compared is the loss averaged over windows of a tenth of the steps, each relative to
that of float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxbp import SoftmaxCrossEntropy, Train, make_step, models, with_precision
from jaxbp.app.data.images import Digits
from jaxbp.app.data.text import Text

LOSS = SoftmaxCrossEntropy()


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = Digits().load()
    return np.asarray(data.x), np.asarray(data.y)


def text() -> tuple[np.ndarray, np.ndarray]:
    data = Text(length=48, train_bytes=48 * 2000, test_bytes=4800).load()
    return np.asarray(data.x), np.asarray(data.y)


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Any, int]] = {
    "lenet": (lambda: models.lenet(10), digits, optax.sgd(0.02), 32),
    "resnet": (lambda: models.resnet(10, widths=(8, 16)), digits, optax.sgd(0.05), 32),
    "char_lstm": (lambda: models.char_lstm(features=64, embedding=32), text, optax.adam(3e-3), 16),
    "gpt": (
        lambda: models.gpt(256, depth=2, heads=2, features=64, length=48),
        text,
        optax.adam(1e-3),
        16,
    ),
}


def curve(name: str, dtype: str, steps: int) -> np.ndarray:
    """The loss of every step, in `dtype`, from the same start over the same batches."""
    make, load, tx, batch = NETWORKS[name]
    net = make()
    x, y = load()
    params = jax.jit(net.init)(jax.random.key(0), jnp.asarray(x[:batch]))
    state = tx.init(params)
    step = make_step(net if dtype == "float32" else with_precision(net, dtype), LOSS, tx)
    rng, losses = np.random.default_rng(0), []
    for i in range(steps):
        rows = rng.integers(0, len(x), batch)
        mode = Train(jax.random.fold_in(jax.random.key(1), i))
        params, state, value = step(params, state, jnp.asarray(x[rows]), jnp.asarray(y[rows]), mode)
        losses.append(value)
    return np.asarray(jnp.stack(losses), np.float64)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """The mean over windows of a tenth of the steps."""
    width = max(len(losses) // 10, 1)
    return losses[: len(losses) // width * width].reshape(-1, width).mean(axis=1)


def apart(wide: np.ndarray, narrow: np.ndarray) -> float:
    """The largest distance of the smoothed curves, as a share of the wide one."""
    return float(np.max(np.abs(smoothed(narrow) / smoothed(wide) - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    figure, panels = plt.subplots(1, len(args.only), figsize=(3.4 * len(args.only), 3), squeeze=False)
    for name, axes in zip(args.only, panels[0], strict=True):
        wide, narrow = (curve(name, dtype, args.steps) for dtype in ("float32", "bfloat16"))
        far = apart(wide, narrow)
        ends = f"{smoothed(wide)[-1]:.4f} (float32), {smoothed(narrow)[-1]:.4f} (bfloat16)"
        print(f"{name:<10} loss {wide[0]:.3f} -> {ends}; apart by {100 * far:.2f} %", flush=True)
        axes.plot(wide, color="#1b6ca8", linewidth=1, label="float32")
        axes.plot(narrow, color="#c0392b", linewidth=1, linestyle="--", label="bfloat16")
        axes.set_title(f"{name}: {100 * far:.2f} % apart", fontsize=9)
        axes.set_xlabel("step")
    panels[0][0].set_ylabel("loss")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    if args.image:
        figure.savefig(args.image, dpi=110)
        print(args.image)


if __name__ == "__main__":
    main()
