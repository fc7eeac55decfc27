"""What the checker and `explain_function` say of the gallery, to compare versions of JAX and Python.

    python -m experiments.gallery.texts FOLDER [--only NAME …]

writes `check.txt` and `explain.txt`; run on two versions, `diff -r` of the folders shows nothing.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxbp
from experiments.gallery import exhibits
from experiments.gallery.common import Exhibit
from experiments.gallery.correct import cases


def checked(fn: Any, args: tuple[Any, ...], hand: Any) -> str:
    """The report, without the time that it took."""
    text = str(jaxbp.check_gradients(fn, *args, gradient=hand))
    return re.sub(r", [0-9.]+ s\)$", ")", text)


def explained(exhibit: Exhibit, k: int = 2) -> str:
    """One number, made of every output with a weight of its own, explained; or why it is not."""

    def number(*args: Any) -> Any:
        total = jnp.zeros((), jnp.float64)
        for y in jax.tree.leaves(exhibit.fn(*args)):
            if jnp.issubdtype(y.dtype, jnp.floating):
                weights = jnp.cos(jnp.arange(1.0, y.size + 1)).reshape(y.shape)
                total += jnp.sum(y.astype(jnp.float64) * weights)
        return total

    names = [f"x{i + 1}" for i in range(len(exhibit.args))]
    try:
        return jaxbp.explain_function(number, *exhibit.args, inputs=names, k=k).text()
    except jaxbp.InputError as error:
        return str(error)


def reports(only: list[str]) -> Iterator[tuple[str, str]]:
    """`(name, text)` of every planted fault, and of every right gradient."""
    for exhibit in exhibits():
        jax.clear_caches()
        for label, (hand, _) in exhibit.faults.items():
            if not only or exhibit.name in only:
                yield f"{exhibit.name}: {label}", checked(exhibit.fn, exhibit.args, hand)
    for name, case in cases().items():
        if not only or name.startswith(tuple(only)):
            yield name, checked(*case)


def explanations(only: list[str]) -> Iterator[tuple[str, str]]:
    """`(name, text)` of every function."""
    for exhibit in exhibits():
        if not only or exhibit.name in only:
            yield exhibit.name, explained(exhibit)


def main(argv: list[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of exhibits")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("explain", explanations), ("check", reports)):
        with (options.folder / f"{name}.txt").open("w", encoding="utf-8") as file:
            for title, text in texts(options.only):
                file.write(f"##### {title}\n{text}\n\n")


if __name__ == "__main__":
    main()
