"""Rounds in turns, and what is made of them: medians, spreads and ratios of the same round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.bench.contestants import AbsentError, Contestant, Prepared, exact, largest_error
from jaxbp.bench.rows import Row

# A wrong gradient is off by far more, in one leaf at least: some tens of roundings of the dtype.
LIMITS = {"float32": 1e-5, "bfloat16": 16 * 2**-8}


@dataclass
class Figure:
    """One contestant in one row. `ratio` is by hand over this one; `note` says why there is no time."""

    row: str
    contestant: str
    median_ms: float | None = None
    spread_ms: tuple[float, float] | None = None
    ratio: float | None = None
    compile_s: float | None = None
    temp_mb: float | None = None
    error: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def measure_row(
    row: Row,
    platform: str,
    contestants: Sequence[Contestant],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[Figure]:
    """Verify every contestant at the row's small size, then time them all at its size in turns."""
    figures = {c.name: Figure(row.name, c.name) for c in contestants}
    _verify(row, platform, contestants, figures, say)
    problem = row.build(row.size(platform) or {}).started()
    ready: dict[str, Prepared] = {}
    for contestant in contestants:
        figure = figures[contestant.name]
        if figure.note:
            continue
        say(f"{row.name}: {contestant.name} is prepared")
        try:
            prepared = contestant.prepare(row, problem)
            prepared.run()
        except AbsentError as reason:
            figure.note = str(reason)
        except Exception as error:  # out of memory is a result, and the others go on
            figure.note = _short(error)
        else:
            ready[contestant.name] = prepared
            figure.compile_s = prepared.compile_seconds
            figure.temp_mb = None if prepared.temp_bytes is None else prepared.temp_bytes / 1e6
    times = in_turns({name: p.run for name, p in ready.items()}, rounds, seconds, say)
    ours = times.get("by hand")
    for name, values in times.items():
        figure, ordered = figures[name], sorted(values)
        figure.median_ms = statistics.median(values)
        figure.spread_ms = (ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4])
        if ours and name != "by hand":
            figure.ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
    return list(figures.values())


def _verify(
    row: Row, platform: str, contestants: Sequence[Contestant], figures: dict[str, Figure], say: Any
) -> None:
    dtype = (row.size(platform) or {}).get("dtype", "float32")
    small = row.build({**row.check, "dtype": dtype}).started()
    say(f"{row.name}: gradients in float64")
    expected = exact(row, small)
    for contestant in contestants:
        figure = figures[contestant.name]
        try:
            with jax.default_matmul_precision("highest"):
                found = contestant.gradients(row, small)
            there = contestant.expected(row, small, expected)
            name, figure.error = largest_error(found, there)
        except AbsentError as reason:
            figure.note = str(reason)
        except Exception as error:
            figure.note = _short(error)
        else:
            if not figure.error <= LIMITS[dtype]:
                figure.note = f"wrong: error {figure.error:.1e} at {name}; not timed"


def in_turns(
    runs: dict[str, Callable[[], None]], rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Milliseconds a call, one entry a round; the order rotates, each has about `seconds` a round."""
    counts: dict[str, int] = {}
    for name, run in runs.items():
        began = time.perf_counter()
        run()
        counts[name] = max(1, min(200, int(seconds / max(time.perf_counter() - began, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for name in names[turn % len(names) :] + names[: turn % len(names)] if names else []:
            began = time.perf_counter()
            for _ in range(counts[name]):
                runs[name]()
            times[name].append(1e3 * (time.perf_counter() - began) / counts[name])
    return times


def product_peak(dtype: str) -> float:
    """TFLOP/s of a large square product on this device: the ceiling that the rows are held against."""
    side = 8192 if jax.default_backend() != "cpu" else 1024
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, a))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12


def _short(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:120]
