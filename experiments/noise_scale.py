"""The noise scale over a run predicts the batch size that pays; a sweep shows whether it was right.

    python experiments/noise_scale.py [--seeds 5] [--image FILE]

An MLP on the digits, by plain SGD from examples drawn with replacement. In a run in batches of 64, the
noise scale `tr Σ / ‖G‖²` is taken from every batch (`gradient_statistics`, its two parts averaged over
windows of ten steps before dividing), and at every tenth step from all examples; there also with the
curvature `C` (the Gauss-Newton matrix) in it, `tr(C Σ) / Gᵀ C G`: the batch size at which a step of the
best length makes half the progress that it would without noise (McCandlish et al. 2018). For `tr(C Σ)` no
example's gradient is made: with random signs `c`, `v = Σ c_n g_n / √n` (`Book.weighted`) has
`E[vᵀ C v] = Σ_n g_nᵀ C g_n / n`.

A step in a batch of `B` makes `1 / (1 + B_s / B)` of the progress of one without noise, where `B_s` is
the noise scale at that step. So the way of the run takes

    S_min = Σ_s 1 / (1 + B_s / B)   steps at best,   E_min = Σ_s B_s / (1 + B_s / B)   examples at best,

and `E_min / S_min` is the predicted critical batch size. The sweep finds it: for every batch size the
steps until the loss over all examples is at a target, at the best learning rate (in factors of √2), mean
of some seeds; then `S = S_min (1 + B_crit / B)` is fitted. The measured runs are at the best rate of
their batch size, from other seeds.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import jaxbp as bp
from jaxbp.app.data.images import Digits
from jaxbp.layer import Layer

LOSS = bp.SoftmaxCrossEntropy()
NET = bp.Chain(bp.Dense(64), bp.ReLU(), bp.Dense(10))
TARGETS, BATCHES = (0.4, 0.1), tuple(2**k for k in range(1, 11))
NEVER = np.iinfo(np.int32).max
COLORS = {"batches": "#b9770e", "all": "#1b6ca8", "curved": "#c0392b"}
KINDS = {"batches": "from the run's batches", "all": "from all examples", "curved": "with curvature"}


def drawn(x: Any, y: Any, batch: int, key: Any) -> tuple[Any, Any]:
    rows = jax.random.randint(key, (batch,), 0, len(x))
    return x[rows], y[rows]


def descended(params: Any, grads: Any, rate: Any) -> Any:
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


@partial(jax.jit, static_argnums=(0, 1))
def steps_to(
    net: Layer, batch: int, x: Any, y: Any, rate: Any, seeds: Any, targets: Any, cap: Any
) -> Any:
    """`[seed, target]`: the step after which the loss over all examples first is at a target."""
    gradient = bp.value_and_grad(net, LOSS)

    def one(seed: Any) -> Any:
        start, key = jax.random.split(jax.random.key(seed))

        def on(carry: Any) -> Any:
            _, step, reached, loss = carry
            return jnp.any(reached == NEVER) & (step < cap) & (loss < 10)  # nor where it blew up

        def body(carry: Any) -> Any:
            params, step, reached, _ = carry
            _, grads = gradient(params, *drawn(x, y, batch, jax.random.fold_in(key, step)))
            params, step = descended(params, grads, rate), step + 1
            loss = LOSS(net(params, x), y)
            first = (loss <= targets) & (reached == NEVER)
            return params, step, jnp.where(first, step, reached), loss

        never, zero = jnp.full(len(targets), NEVER, jnp.int32), jnp.zeros(())
        return jax.lax.while_loop(on, body, (net.init(start, x[:2]), jnp.int32(0), never, zero))[2]

    return jax.vmap(one)(seeds)


def sweep(
    net: Layer, x: Any, y: Any, batches: tuple[int, ...], targets: tuple[float, ...], seeds: int
) -> dict[int, list[tuple[float, float]]]:
    """`{batch: [(mean steps, the rate that takes the fewest), …a target]}`, from large to small."""
    found: dict[int, list[tuple[float, float]]] = {}
    top = 2**0.5
    for batch in sorted(batches, reverse=True):
        best, rate, cap = [(float("inf"), 0.0)] * len(targets), top, 4000
        while rate > top / 64:
            taken = steps_to(net, batch, x, y, rate, jnp.arange(seeds), jnp.asarray(targets), cap)
            taken = np.asarray(taken, float)
            means = np.where((taken == NEVER).any(axis=0), np.inf, taken.mean(axis=0))
            best = [min(b, (float(m), rate)) for b, m in zip(best, means, strict=True)]
            if np.isfinite(best[-1][0]):
                cap = int(2 * best[-1][0])
            if rate < 0.6 * min(
                r or rate for _, r in best
            ):  # two factors past the best: it only gets slower
                break
            rate /= 2**0.5
        found[batch] = best
        top = 2**0.5 * max(rate for _, rate in best)
    return found


def fitted(batches: Any, steps: Any) -> tuple[float, float]:
    """`(S_min, B_crit)` of `S = S_min (1 + B_crit / B)`, by least squares of relative errors."""
    batches, steps = np.asarray(batches, float), np.asarray(steps, float)
    columns = np.stack([1 / steps, 1 / (batches * steps)], axis=1)
    least, slope = np.linalg.lstsq(columns, np.ones(len(steps)), rcond=None)[0]
    return float(least), float(slope / least)


def scales_of_all(net: Layer, params: Any, x: Any, y: Any, key: Any, samples: int = 16) -> Any:
    """`(tr Σ / ‖G‖², tr(C Σ) / Gᵀ C G)` of all examples there are."""
    n, book = len(x), bp.beyond.record(net, LOSS)(params, x, y)
    mean = book.weighted(jnp.full(n, 1 / n))
    _, along = bp.beyond.products(net, LOSS)

    def dot(a: Any, b: Any) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))

    def curved(v: Any) -> Any:
        return dot(v, along(params, x, y, v))

    signs = jax.random.rademacher(key, (samples, n), jnp.float32) / n**0.5
    second = jax.lax.map(lambda c: curved(book.weighted(c)), signs).mean()
    length, bend = dot(mean, mean), curved(mean)
    return (jnp.mean(book.square_norms()) - length) / length, (second - bend) / bend


def measured(
    net: Layer, x: Any, y: Any, rate: float, batch: int, target: float, seed: int = 0, window: int = 10
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`(loss, {"batches", "all", "curved": noise scale})` at every window of a run until `target`."""
    statistics, whole = bp.beyond.gradient_statistics(net, LOSS), jax.jit(partial(scales_of_all, net))

    @jax.jit
    def steps(params: Any, key: Any) -> Any:
        def one(params: Any, key: Any) -> Any:
            found = statistics(params, *drawn(x, y, batch, key))
            length = sum(jnp.vdot(g, g) for g in jax.tree.leaves(found.gradient))
            parts = found.variance, length - found.variance / batch
            return descended(params, found.gradient, rate), parts

        params, (variance, signal) = jax.lax.scan(one, params, jax.random.split(key, window))
        return params, variance.mean(), signal.mean(), LOSS(net(params, x), y)

    start = jax.random.key(1000 + seed)
    params, losses, rows = net.init(start, x[:2]), [], []
    while not losses or losses[-1] > target:
        key = jax.random.fold_in(start, len(losses))
        exact = whole(params, x, y, key)
        params, variance, signal, loss = steps(params, key)
        losses.append(float(loss))
        rows.append((float(variance / max(signal, 1e-12)), *map(float, exact)))
    return np.asarray(losses), dict(zip(KINDS, np.asarray(rows).T, strict=True))


def predicted(scales: Any, batch: int) -> float:
    """`E_min / S_min` of a run in batches of `batch` with these noise scales."""
    shares = 1 / (1 + np.asarray(scales) / batch)
    return float(np.sum(scales * shares) / np.sum(shares))


def draw(path: Path, losses: Any, scales: Any, found: Any, fits: Any, guesses: Any) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    ends = 10 * (1 + np.arange(len(losses)))
    for kind, color in COLORS.items():
        left.semilogy(ends, scales[kind], color=color, label=f"noise scale {KINDS[kind]}")
    loss = left.twinx()
    loss.semilogy(ends, losses, color="#95a5a6", linestyle=":")
    loss.set_ylabel("loss over all examples (dotted)")
    left.set_xlabel("steps in batches of 64")
    left.set_ylabel("examples")
    left.legend(fontsize=8)
    batches = np.asarray(sorted(found))
    for k, (target, color) in enumerate(zip(TARGETS, ("#7f8c8d", "#222222"), strict=True)):
        least, critical = fits[k]
        right.loglog(batches, [found[b][k][0] for b in batches], "o", color=color, markersize=4)
        right.loglog(
            batches, least * (1 + critical / batches), color=color, label=f"to a loss of {target}"
        )
        right.plot(critical, 2 * least, "|", color=color, markersize=22, markeredgewidth=2)
        for kind, size in guesses[k].items():
            said = f"critical size, predicted {KINDS[kind]}" if k == len(TARGETS) - 1 else None
            right.plot(size, 2 * least, "D", color=COLORS[kind], markersize=6, label=said)
    right.set_ylim(top=8000)  # room for the names
    right.set_xlabel("batch size")
    right.set_ylabel("steps, best learning rate")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    data = Digits().load().flat()
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    found = sweep(NET, x, y, BATCHES, TARGETS, args.seeds)
    for batch in sorted(found):
        cells = [
            f"to {t}: {steps:7.1f} steps, {batch * steps:8.0f} examples, η {rate:.3f}"
            for t, (steps, rate) in zip(TARGETS, found[batch], strict=True)
        ]
        print(f"batch {batch:>4}  " + "   ".join(cells), flush=True)
    rate = found[64][-1][1]
    runs = [measured(NET, x, y, rate, 64, min(TARGETS), seed) for seed in range(args.seeds)]
    fits, guesses = [], []
    for k, target in enumerate(TARGETS):
        least, critical = fitted(list(found), [found[b][k][0] for b in found])
        made = {
            kind: [
                predicted(scales[kind][: int(np.argmax(losses <= target)) + 1], 64)
                for losses, scales in runs
            ]
            for kind in KINDS
        }
        fits.append((least, critical))
        guesses.append({kind: float(np.mean(sizes)) for kind, sizes in made.items()})
        print(
            f"to {target}: critical batch size {critical:.1f} "
            f"(at least {least:.0f} steps, at least {least * critical:.0f} examples)"
        )
        for kind, sizes in made.items():
            spread = f"({min(sizes):.0f} to {max(sizes):.0f})"
            print(f"  predicted {KINDS[kind]:<24} {np.mean(sizes):4.0f} {spread}")
    if args.image:
        draw(args.image, *runs[0], found, fits, guesses)
        print(args.image)


if __name__ == "__main__":
    main()
