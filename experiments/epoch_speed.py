"""How long an epoch of the digits network takes: by hand, by `jax.grad`, and in torch.

    python experiments/epoch_speed.py [--rounds 15]

1,437 examples of 64 features, batch 32, 64-128-10, plain SGD. All contestants run in one process, in
turns (A B C A B C …), each round a few epochs of each; the figures are medians over the rounds, and
ratios of the same round. Both JAX programs are the same scan with donated state and differ in the
gradient alone; torch runs its usual eager loop with all its threads, and is left out where it is not
installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp import SoftmaxCrossEntropy, make_epoch
from jaxbp.models import mlp
from jaxbp.oracle import reference_value_and_grad

COUNT, FEATURES, HIDDEN, CLASSES, BATCH, RATE = 1437, 64, 128, 10, 32, 0.1


def data() -> tuple[np.ndarray, np.ndarray]:
    """Made data of the digits' shape: the time does not depend on the values."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(COUNT, FEATURES)).astype(np.float32)
    return x, rng.integers(0, CLASSES, COUNT).astype(np.int32)


def autodiff_epoch(net: Any, loss: Any, tx: Any) -> Callable[..., Any]:
    """The scan of `make_epoch`, line by line, with `jax.grad` for the backward pass."""
    gradients = reference_value_and_grad(net, loss)

    def update(params: Any, state: Any, x: Any, y: Any) -> Any:
        value, grads = gradients(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def epoch(params: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
        order = jax.random.permutation(jax.random.split(key)[0], x.shape[0])
        steps, rest = divmod(x.shape[0], BATCH)

        def step(carry: Any, rows: Any) -> Any:
            batch_x, batch_y = jnp.take(x, rows, axis=0), jnp.take(y, rows, axis=0)
            *new, value = update(carry[0], carry[1], batch_x, batch_y)
            return tuple(new), value

        carry, losses = jax.lax.scan(step, (params, state), order[: steps * BATCH].reshape(steps, BATCH))
        if rest:
            carry, last = step(carry, order[steps * BATCH :])
            losses = jnp.append(losses, last)
        return *carry, losses

    return jax.jit(epoch, donate_argnums=(0, 1))


def jax_runner(make: Callable[..., Any]) -> Callable[[], None]:
    """A function that runs one epoch to its end."""
    net, loss, tx = mlp(HIDDEN, CLASSES), SoftmaxCrossEntropy(), optax.sgd(RATE)
    x, y = map(jnp.asarray, data())
    params = net.init(jax.random.key(0), x)
    held = [params, tx.init(params)]
    epoch, key = make(net, loss, tx), jax.random.key(1)

    def run() -> None:
        *held[:], losses = epoch(*held, x, y, key)
        losses.block_until_ready()

    return run


def torch_runner() -> Callable[[], None] | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    x, y = (torch.tensor(a) for a in data())
    y = y.long()
    model = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> None:
        order = torch.randperm(COUNT)
        for start in range(0, COUNT, BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    return run


def measure(runners: dict[str, Callable[[], None]], rounds: int, epochs: int) -> dict[str, list[float]]:
    """Milliseconds an epoch, one entry a round; the order within a round rotates."""
    for run in runners.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for _ in range(epochs):
                runners[name]()
            times[name].append(1e3 * (time.perf_counter() - start) / epochs)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each contestant a round")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()

    runners = {
        "by hand": jax_runner(lambda net, loss, tx: make_epoch(net, loss, tx, BATCH)),
        "jax.grad": jax_runner(autodiff_epoch),
    }
    torch_run = torch_runner()
    if torch_run is None:
        print("torch is not installed: left out")
    else:
        runners["torch eager"] = torch_run
    times = measure(runners, args.rounds, args.epochs)

    device = jax.devices()[0]
    print(
        f"jax {jax.__version__} on {device.device_kind} ({platform.machine()}), medians of {args.rounds}"
    )
    figures = {}
    for name, values in times.items():
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(times["by hand"], values, strict=True)
        )
        figures[name] = {"ms_per_epoch": statistics.median(values), "by_hand_over_this": ratio}
        print(f"{name:<12} {statistics.median(values):8.2f} ms an epoch   by hand / this: {ratio:.3f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"jax": jax.__version__, "device": device.device_kind, **figures}, file, indent=1)


if __name__ == "__main__":
    main()
