"""`jaxbp explain`: a function, the notes' network, or a trained one."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxbp.explain.weight import Explainer
from jaxbp.layer import InputError


class _Arguments(argparse.ArgumentParser):
    """Wrong arguments are an `InputError`, one line, like any other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"explain: {message}")


def _arguments() -> argparse.ArgumentParser:
    parser = _Arguments(
        prog="jaxbp explain",
        description="Why does this weight have this gradient? The chain rule, path by path.",
        epilog="Without a source, the 4-4-2 network of the lecture notes is explained.",
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="CONFIG | RUN", help="a config file (trained first) or a run folder")
    add("--weight", help="w212 (layer 2, to 1, from 2), b21, x3, or a path such as 0.w[3,1]")
    add("--example", type=int, default=0, help="which example of the held-out data, from 0 (default 0)")
    add("--length", type=int, metavar="N", help="how many tokens of a sequence to take (default 8)")
    add("--paths", type=int, default=8, metavar="K", help="how many paths to show (default 8)")
    add("--html", metavar="FILE", help="write the interactive page")
    add("--png", metavar="FILE", help="write a picture of the paths")
    add("--latex", action="store_true", help="print LaTeX instead of text")
    add("--json", action="store_true", help="print JSON instead of text")
    add("--expr", metavar="FORMULA", help='explain a function instead, such as "1/exp(x**2)"')
    add("--at", action="append", default=[], metavar="x=1", help="where; repeat it for several variables")
    return parser


def explain(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    given = _arguments().parse_args(list(argv))
    if given.paths < 1:
        raise InputError(f"--paths: expected a positive number, got {given.paths}")
    if given.expr is not None:
        return _function(given)
    if given.at:
        raise InputError("--at: expected together with --expr")
    return _network(given)


# --- a function -------------------------------------------------------------------------------------


def _function(given: argparse.Namespace) -> int:
    from jaxbp.explain.expression import parse
    from jaxbp.explain.function import explain_function

    for option in ("source", "weight", "html", "png"):
        if getattr(given, option) is not None:
            raise InputError(f"--expr: cannot be used with {option}")
    labels, f = parse(given.expr)
    values = _values(given.at)
    if not labels:
        raise InputError(f"--expr: expected a variable in {given.expr!r}, got none")
    missing = [label for label in labels if label not in values]
    unknown = [label for label in values if label not in labels]
    if missing or unknown:
        wrong = f"no value for {', '.join(missing)}" if missing else f"no variable {', '.join(unknown)}"
        raise InputError(f"--at: {wrong}; expected " + " ".join(f"--at {label}=…" for label in labels))
    found = explain_function(f, *(values[label] for label in labels), inputs=labels, k=given.paths)
    if given.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        print(found.latex() if given.latex else f"{given.expr}, {found.text()}")
    return 0


def _values(at: list[str]) -> dict[str, float]:
    values = {}
    for part in (piece for given in at for piece in given.split(",") if piece.strip()):
        match = re.fullmatch(r"\s*([^\W\d]\w*)\s*=\s*(\S+)\s*", part)
        if match and match[1] in values:
            raise InputError(f"--at: {match[1]} is given twice")
        try:
            values[match[1]] = float(match[2])  # pyright: ignore[reportOptionalSubscript]
        except (TypeError, ValueError):
            raise InputError(f"--at: expected NAME=NUMBER, got {part!r}") from None
    return values


# --- a network --------------------------------------------------------------------------------------


def _network(given: argparse.Namespace) -> int:
    from jaxbp.explain.notes import notes_explainer, notes_report
    from jaxbp.explain.page import write_page
    from jaxbp.explain.report import network_report

    frames, extra = None, {}
    for file in filter(None, (given.html, given.png)):
        if not Path(file).parent.is_dir():
            raise InputError(f"{file}: the folder {Path(file).parent} does not exist")
    if given.source is None:
        if given.example != 0:
            raise InputError(f"--example: the notes' network has one example, 0, got {given.example}")
        if given.length is not None:
            raise InputError("--length: expected together with a run or config of sequences")
        explainer = notes_explainer()
    else:
        explainer, frames, extra = _load(given)
    if given.weight is None and given.source is None and not (given.latex or given.json):
        print(notes_report(given.paths))
    else:
        chosen = given.weight or ("w212" if given.source is None else _strongest(explainer))
        if given.latex or given.json:
            found = explainer.weight(chosen, given.paths, reference=True)
            shown = json.dumps(found.to_dict(), ensure_ascii=False, indent=2)
            print(found.latex() if given.latex else shown)
        else:
            print(network_report(explainer, [chosen], given.paths))
    chosen = given.weight or ("w212" if given.source is None else _strongest(explainer))
    if given.html:
        _say(f"computing the page {given.html} …")
        write_page(given.html, explainer, chosen, frames=frames, say=_say, **extra)
        print(f"\nwritten to {given.html}")
    if given.png:
        explainer.weight(chosen, given.paths).png(given.png)
        print(f"\nwritten to {given.png}")
    return 0


def _say(words: str) -> None:
    """Progress: not part of the answer, so that `--json` can be piped."""
    print(words, file=sys.stderr, flush=True)


def _strongest(explainer: Explainer) -> str:
    """The weight with the largest gradient in the first matrix: something to look at first."""
    import jax
    import numpy as np

    from jaxbp.explain import names

    best: tuple[float, str] | None = None
    with jax.enable_x64(True):
        for part, leaf, key, prefix, array in names.arrays(explainer.graph):
            if np.ndim(array) < 2 or best is not None:
                continue
            found = np.abs(explainer.gradient_array(prefix, part.slices))
            place = tuple(int(k) for k in np.unravel_index(int(np.argmax(found)), found.shape))
            best = (float(found[place]), names.make(part, leaf, key, prefix, array, place).name)
    if best is None:
        raise InputError("explain: the network has no weight matrix; name a parameter with --weight")
    return best[1]


def _load(given: argparse.Namespace) -> Any:
    """`(explainer, frames, page options)` from a run folder, or from a config that is trained now."""
    from jaxbp.explain.trained import from_config, from_run

    path = Path(given.source)
    if (path / "config.toml").is_file():
        _say(f"laying out the network of {path} …")
        return from_run(path, given.example, given.length)
    if path.is_dir():
        raise InputError(f"{path}: expected a run folder, with a config.toml in it")
    return from_config(given.source, given.example, bool(given.html), given.length, _say)


def exercises(argv: Sequence[str]) -> int:
    """`jaxbp exercises list | start NAME DIR | check DIR`."""
    from jaxbp.explain.exercises.command import run

    return run(argv)
