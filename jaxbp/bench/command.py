"""`jaxbp bench [ROW …]`: every row by hand and by its rivals, in turns in one process."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform as machine
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxbp.bench.contestants import ByHand, Contestant, Jax, Plain
from jaxbp.bench.jax_rivals import flax_layers, fused_attention
from jaxbp.bench.measure import Figure, measure_row, product_peak
from jaxbp.bench.rows import ROWS, choose
from jaxbp.bench.torch_rivals import Torch
from jaxbp.layer import InputError

RIVALS: dict[str, Callable[[], Contestant]] = {
    "jax.grad": Jax,
    "jax.nn": lambda: Jax("jax.nn", fused_attention),
    "flax": lambda: Jax("flax", flax_layers),
    "torch": Torch,
    "torch.compile": lambda: Torch(compiled=True),
}
HEAD = ("row", "contestant", "median ms", "spread", "by hand / it", "compile s", "temp MB", "error")
WIDTHS = (18, 14, 10, 17, 12, 10, 9, 8)


def bench(argv: Sequence[str]) -> int:
    """The subcommand."""
    options = _parser().parse_args(argv)
    cached = getattr(jax.config, "jax_enable_compilation_cache", True)
    jax.config.update("jax_enable_compilation_cache", False)  # seconds of compilation are a figure here
    try:
        return _bench(options)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _bench(options: argparse.Namespace) -> int:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the card
    against = [name for name in options.against.split(",") if name]
    for name in against:
        if name not in RIVALS:
            raise InputError(f"--against: expected some of {', '.join(RIVALS)}, got {name!r}")
    if options.json and not Path(options.json).resolve().parent.is_dir():
        raise InputError(f"--json {options.json}: no such folder")
    if options.list:
        print("\n".join(f"{row.name:<18} {row.note}".rstrip() for row in ROWS))
        return 0
    where = jax.devices()[0].platform
    rows, without = choose(options.row, where)
    rounds, seconds = (3, 0.02) if options.quick else (9, 0.2)
    about = describe(where)
    print(f"{about['device']}, jax {about['versions']['jax']}, {rounds} rounds in turns")
    for name in without:
        print(f"{name}: has no size for {where}, left out")
    print(_line(HEAD))
    figures: list[Figure] = []
    for row in rows:
        unit = [Plain()] if row.quantity else []
        contestants = [ByHand(), *unit, *(RIVALS[name]() for name in against)]
        found = measure_row(row, where, contestants, rounds, seconds, _say)
        _say("")
        figures += found
        print("\n".join(_line(_cells(figure)) for figure in found), flush=True)
        if options.json:  # after every row, so that an interrupted run keeps what it has
            result = {**about, "rounds": rounds, "figures": [figure.to_json() for figure in figures]}
            Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    wrong = [f"{f.row}: {f.contestant}" for f in figures if f.note.startswith("wrong")]
    if wrong:
        print("wrong gradients, not timed: " + "; ".join(wrong), file=sys.stderr)
    return 1 if any(name.endswith("by hand") for name in wrong) else 0


def describe(where: str) -> dict[str, Any]:
    """The machine, by name, with the versions that matter and the ceiling of a product on it."""
    versions = {}
    for package in ("jax", "jaxlib", "optax", "numpy", "torch", "flax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = f"{machine.processor() or machine.machine()}, {cores} cores" if where == "cpu" else ""
    dtype = "float32" if where == "cpu" else "bfloat16"
    return {
        "device": name or device.device_kind,
        "platform": where,
        "python": machine.python_version(),
        "versions": versions,
        "peak_tflops": round(product_peak(dtype), 3),
        "peak_dtype": dtype,
        "date": time.strftime("%Y-%m-%d"),
    }


def _cells(figure: Figure) -> tuple[str, ...]:
    def show(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    if figure.median_ms is None:
        return figure.row, figure.contestant, figure.note
    low, high = figure.spread_ms or (0.0, 0.0)
    return (
        figure.row,
        figure.contestant,
        show(figure.median_ms, ".2f"),
        f"{low:.2f}–{high:.2f}",
        show(figure.ratio, ".2f"),
        show(figure.compile_s, ".1f"),
        show(figure.temp_mb, ".1f"),
        show(figure.error, ".0e"),
    )


def _line(cells: Sequence[str]) -> str:
    if len(cells) == 3:
        return f"{cells[0]:<{WIDTHS[0]}} {cells[1]:<{WIDTHS[1]}} {cells[2]}"
    left = [f"{cell:<{width}}" for cell, width in zip(cells[:2], WIDTHS, strict=False)]
    return " ".join([*left, *(f"{c:>{w}}" for c, w in zip(cells[2:], WIDTHS[2:], strict=True))])


def _say(text: str) -> None:
    """One line of progress on a terminal, overwritten by the next."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "jaxbp bench",
        description="Time the backward passes by hand beside their rivals, in turns in one process. "
        "Every contestant's gradients are verified against float64 first.",
    )
    parser.add_argument(
        "row", nargs="*", help="rows or patterns such as 'conv_*' (default: all but the series)"
    )
    parser.add_argument("--against", default="jax.grad,torch", help=f"some of {', '.join(RIVALS)}")
    parser.add_argument("--json", metavar="FILE", help="write the figures, with the machine and versions")
    parser.add_argument("--quick", action="store_true", help="three short rounds")
    parser.add_argument("--list", action="store_true", help="the names of the rows")
    return parser
