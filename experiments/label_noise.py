"""A tenth of the digits' labels is wrong: what finds them; and a network's certainty, before and after.

    python experiments/label_noise.py [--epochs 300] [--image FILE]

An MLP learns the training digits, a tenth of whose labels were moved to another class, until it knows
most of them by heart. Four rankings of the training examples are compared: by self-influence `gᵀ (G + λ
I)⁻¹ g` with Kronecker factors, by loss, by gradient norm, and by what each does to the loss on the
clean test fifth (harmful first). Printed are the area under the ROC curve and the share of wrong labels
among as many examples as there are wrong ones. Then Laplace's approximation around the same network
trained on the right labels: negative log likelihood and calibration error on the test fifth, with the
prior's precision chosen on a third of the training part that the network did not see.
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

LOSS = bp.SoftmaxCrossEntropy()
NET = bp.Chain(bp.Dense(48), bp.Tanh(), bp.Dense(10))


def train(x: Any, y: Any, epochs: int, decay: float) -> Any:
    params = NET.init(jax.random.key(0), x)
    tx = optax.adamw(3e-3, weight_decay=decay)
    epoch, state = bp.make_epoch(NET, LOSS, tx, 64), tx.init(params)
    for i in range(epochs):
        params, state, _ = epoch(params, state, x, y, jax.random.key(i))
    return params


def area(score: np.ndarray, wrong: np.ndarray) -> float:
    """Under the ROC curve: the share of pairs of a wrong and a right one that are ranked so."""
    ranks, n = np.argsort(np.argsort(score)), int(wrong.sum())
    return float((ranks[wrong].sum() - n * (n - 1) / 2) / (n * (len(score) - n)))


def rankings(params: Any, x: Any, y: Any, test_x: Any, test_y: Any) -> dict[str, np.ndarray]:
    record = bp.beyond.record(NET, LOSS)
    book, test = (jax.jit(record)(params, *part) for part in ((x, y), (test_x, test_y)))
    factors = jax.jit(bp.beyond.kronecker_factors(NET, LOSS, kind="exact"))(params, x, y)
    ranked = jax.nn.log_softmax(NET(params, x))
    own = bp.beyond.influence(factors, book, book, 1e-3)
    on_test = bp.beyond.influence(factors, test, book, 1e-3)
    return {
        "self-influence": np.diagonal(np.asarray(own)),
        "loss": -np.asarray(jnp.take_along_axis(ranked, y[:, None], axis=1))[:, 0],
        "gradient norm": np.asarray(book.norms()),
        "harm to the test fifth": -np.asarray(on_test).mean(axis=0),
    }


def certainty(x: Any, y: Any, test_x: Any, test_y: Any, epochs: int) -> list[tuple[str, Any]]:
    """`[(what, probabilities on the test fifth)]`: as trained, and by Laplace."""
    held = slice(0, len(x) // 3)
    kept = slice(len(x) // 3, None)
    params = train(x[kept], y[kept], epochs, 0.0)
    factors = jax.jit(bp.beyond.kronecker_factors(NET, LOSS, kind="exact"))(params, x[kept], y[kept])
    found = []
    for precision in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0):
        posterior = bp.beyond.laplace(NET, params, factors, len(x) - len(x) // 3, precision)
        nll, _ = bp.beyond.calibration(posterior.probabilities(x[held]), y[held])
        found.append((float(nll), precision, posterior))
    _, precision, best = min(found, key=lambda f: f[0])
    return [
        ("as trained", jax.nn.softmax(NET(params, test_x))),
        (f"Laplace, τ = {precision:g}", best.probabilities(test_x)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    data = Digits().load().flat()
    x, y, test_x, test_y = map(jnp.asarray, (data.x, data.y, data.test_x, data.test_y))
    rng = np.random.default_rng(0)
    wrong = rng.random(len(x)) < 0.1
    other = (y + jnp.asarray(rng.integers(1, 10, len(x)), y.dtype)) % 10
    moved = jnp.where(jnp.asarray(wrong), other, y)
    params = train(x, moved, args.epochs, 1e-3)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for name, score in rankings(params, x, moved, test_x, test_y).items():
        first = wrong[np.argsort(-score)]
        precision = first[: int(wrong.sum())].mean()
        print(
            f"{name:<23} area {area(score, wrong):.3f}  among the first {precision:.1%} wrong", flush=True
        )
        left.plot(np.arange(1, len(first) + 1) / len(first), np.cumsum(first) / wrong.sum(), label=name)
    left.set_xlabel("share of the examples looked at")
    left.set_ylabel("share of the wrong labels found")
    left.legend(fontsize=8)
    for what, p in certainty(x, y, test_x, test_y, args.epochs):
        nll, ece = bp.beyond.calibration(p, test_y)
        accuracy = float(jnp.mean(jnp.argmax(p, axis=1) == test_y))
        print(f"{what:<23} NLL {nll:.4f}  ECE {ece:.4f}  accuracy {accuracy:.2%}", flush=True)
        confidence, right_ones = np.asarray(p.max(axis=1)), np.asarray(jnp.argmax(p, axis=1) == test_y)
        edges = np.quantile(confidence, np.linspace(0, 1, 7))
        which = np.clip(np.searchsorted(edges, confidence) - 1, 0, 5)
        means = [(confidence[which == k].mean(), right_ones[which == k].mean()) for k in range(6)]
        right.plot(*zip(*means, strict=True), marker="o", label=f"{what}: NLL {nll:.3f}")
    right.plot([0.5, 1], [0.5, 1], color="#bdc3c7", linewidth=0.8)
    right.set_xlabel("confidence")
    right.set_ylabel("accuracy")
    right.legend(fontsize=8)
    figure.tight_layout()
    if args.image:
        figure.savefig(args.image, dpi=110)
        print(args.image)


if __name__ == "__main__":
    main()
