"""What privacy costs: accuracy on digits, and loss on text, against the budget ε at δ = 1e-5.

    python experiments/private_curves.py [--seeds 3] [--image experiments/images/private_curves.png]

The network of configs/digits_private.toml, and one block of a transformer on windows of the interpreter's
own standard library, each trained by Poisson batches with the noise that keeps it within ε. At ε = ∞
examples are clipped all the same, without noise; "plain" is without either, by the same optimizer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxbp import SoftmaxCrossEntropy, Tanh, make_epoch, models
from jaxbp.app.data.images import Digits
from jaxbp.app.data.text import Text
from jaxbp.beyond.privacy import noise_for

LOSS, DELTA = SoftmaxCrossEntropy(), 1e-5
BUDGETS = (0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))


@dataclass(frozen=True)
class Problem:
    """What is trained, how, and which number says how well."""

    net: Any
    data: Any
    tx: optax.GradientTransformation
    batch: int
    epochs: int
    clip: float
    seeds: int

    @property
    def rate(self) -> float:
        return self.batch / len(self.data.x)

    @property
    def steps(self) -> int:
        return self.epochs * (len(self.data.x) // self.batch)

    def score(self, params: Any) -> float:
        prediction = self.net(params, jnp.asarray(self.data.test_x))
        if self.data.name == "digits":
            return float(jnp.mean(jnp.argmax(prediction, -1) == jnp.asarray(self.data.test_y)))
        return float(LOSS(prediction, jnp.asarray(self.data.test_y)))


def problems(seeds: int) -> dict[str, Problem]:
    digits = models.mlp(64, 10, activation=Tanh())
    block = models.gpt(256, depth=1, heads=2, features=32, length=32, positions="rotary")
    text = Text(length=32, train_bytes=32 * 12_000, test_bytes=32 * 500).load()
    return {
        "digits: held-out accuracy": Problem(
            digits, Digits().load().flat(), optax.sgd(0.5, 0.9), 256, 40, 0.3, seeds
        ),
        "text: held-out nats a byte": Problem(block, text, optax.adam(1e-2), 256, 2, 0.3, 1),
    }


def trained(problem: Problem, budget: float | None) -> list[float]:
    """The score of every seed within `budget`; `None` for plain training."""
    given: dict[str, Any] = {}
    if budget is not None:
        noise = noise_for(budget, problem.rate, problem.steps, DELTA) if np.isfinite(budget) else 0.0
        given = {"clip_examples": problem.clip, "noise": noise, "poisson": True}
    epoch = make_epoch(problem.net, LOSS, problem.tx, problem.batch, **given)
    x, y = jnp.asarray(problem.data.x), jnp.asarray(problem.data.y)
    scores = []
    for seed in range(problem.seeds):
        key, start = jax.random.split(jax.random.key(seed))
        params = problem.net.init(start, x[: problem.batch])
        state = problem.tx.init(params)
        for i in range(problem.epochs):
            params, state, losses = epoch(params, state, x, y, jax.random.fold_in(key, i))
            assert np.isfinite(losses).all(), "diverged, or a batch without room"
        scores.append(problem.score(params))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for (title, problem), axes in zip(problems(args.seeds).items(), panels, strict=True):
        print(f"{title}; {len(problem.data.x)} examples, {problem.steps} steps of {problem.batch}")
        plain = np.mean(trained(problem, None))
        rows = {budget: trained(problem, budget) for budget in BUDGETS}
        for budget, scores in {**rows, "plain": [plain]}.items():
            text = ", ".join(f"{score:.4f}" for score in scores)
            print(f"  ε = {budget:<5} {np.mean(scores):.4f}  ({text})", flush=True)
        finite = [budget for budget in BUDGETS if np.isfinite(budget)]
        means = [np.mean(rows[budget]) for budget in finite]
        ends = np.asarray([[np.min(rows[b]), np.max(rows[b])] for b in finite]).T
        axes.errorbar(finite, means, np.abs(ends - means), color="#1b6ca8", marker="o", capsize=3)
        axes.axhline(np.mean(rows[float("inf")]), color="#1b6ca8", linestyle=":", label="clipped, ε = ∞")
        axes.axhline(plain, color="#c0392b", linestyle="--", label="plain")
        axes.set_xscale("log", base=2)
        axes.set_xticks(finite, [f"{budget:g}" for budget in finite])
        axes.set_xlabel("ε at δ = 1e-5")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=8)
    figure.tight_layout()
    if args.image:
        figure.savefig(args.image, dpi=110)
        print(args.image)


if __name__ == "__main__":
    main()
