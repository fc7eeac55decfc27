"""Does a network beat a trigram model with back-off on the standard library's sources?

    python experiments/text.py gpt         (or: char_lstm)

trains for `--steps` steps on the training files and then measures both on the same held-out bytes: every
`n`-th window of the held-out files, `--windows` in all. The trigram model always sees the two bytes
before; the network sees none before the start of its window. Losses are nats a character. The CPU time
is that of the process over all cores, so that it means the same on a shared machine.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.trigram import trigram_probabilities
from jaxbp import Layer, LinearCrossEntropy, make_step
from jaxbp.app.text import VOCABULARY, read_parts, windows
from jaxbp.models import char_lstm, gpt

LENGTH = 128
NETS: dict[str, tuple[Layer, float, int, int]] = {
    #             network                                    learning rate, batch, steps
    "gpt": (gpt(VOCABULARY, length=LENGTH, deferred=True), 3e-3, 16, 1600),
    "char_lstm": (char_lstm(VOCABULARY, deferred=True), 5e-3, 16, 1600),
}


def evaluate(net: Layer, params: Any, x: np.ndarray, y: np.ndarray, chunk: int = 50) -> float:
    """The mean loss over `x`, `y`, chunk by chunk."""
    loss = jax.jit(lambda p, x, y: LinearCrossEntropy()(net(p, x), y))
    parts = [loss(params, x[i : i + chunk], y[i : i + chunk]) for i in range(0, len(x), chunk)]
    return float(np.average(parts, weights=[len(x[i : i + chunk]) for i in range(0, len(x), chunk)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="A network against a trigram model.")
    parser.add_argument("net", choices=NETS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--windows", type=int, default=1000)
    arguments = parser.parse_args()
    net, rate, batch, steps = NETS[arguments.net]
    steps = arguments.steps or steps

    train, held_out = read_parts()
    x, y = windows(train, LENGTH)
    stride = max(1, (held_out.size // LENGTH) // arguments.windows)
    held_x, held_y = (a[::stride][: arguments.windows] for a in windows(held_out, LENGTH))
    # The byte at position t has its trigram probability at t - 2; y[i, j] is at i·LENGTH + j + 1.
    likely = trigram_probabilities(train, held_out)
    position = np.arange(len(windows(held_out, LENGTH)[0]))[::stride][: arguments.windows]
    targets = (position[:, None] * LENGTH + np.arange(LENGTH)[None, :] + 1 - 2).reshape(-1)
    trigram = float(-np.log(likely[targets[targets >= 0]]).mean())

    warm_up = min(100, steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(rate / 20, rate, warm_up, steps, rate / 20)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    params = net.init(jax.random.key(0), x[:batch])
    state, step = tx.init(params), make_step(net, LinearCrossEntropy(), tx, donate=True)
    order = np.random.default_rng(0)
    start, start_cpu = time.perf_counter(), time.process_time()
    recent: list[Any] = []
    for i in range(1, steps + 1):
        rows = order.integers(0, len(x), batch)
        params, state, value = step(params, state, jnp.asarray(x[rows]), jnp.asarray(y[rows]))
        recent.append(value)
        if i % 100 == 0 or i == steps:
            spent, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            mean, recent = float(np.mean(recent)), []
            print(f"step {i:5d}  loss {mean:.4f}  {spent:6.0f} s, {cpu:6.0f} s CPU", flush=True)
    held = evaluate(net, params, held_x, held_y)
    print(
        f"held out, {held_y.size:,} bytes: {arguments.net} {held:.4f}, trigram {trigram:.4f} nats a byte"
    )


if __name__ == "__main__":
    main()
