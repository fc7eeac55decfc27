"""Runs a learner's file in a process of its own: `python -m … NAME FILE RESULT`.

What was found is written to the file RESULT as JSON, so that whatever the learner prints stays apart.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
import warnings
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

AUTODIFF = {"grad", "value_and_grad", "vjp", "jvp", "linearize", "jacobian", "jacrev", "jacfwd"}


def load(file: Path) -> Any:
    """The module in `file`."""
    spec = spec_from_file_location("exercise", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(name: str, file: Path) -> dict[str, Any]:
    """A `Verdict` as plain values, and `where`: the learner's line, or ""."""
    try:
        return {"where": "", **asdict(_verdict(name, file))}
    except SystemExit:
        return plain("it stopped the program (exit)")
    except Exception as error:  # whatever the learner's code raises is what there is to say
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        where = f"line {line or own[-1].lineno}" if line or own else ""
        return plain(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", where)


def plain(wrong: str, where: str = "") -> dict[str, Any]:
    """A verdict about the file itself: no try was judged, so no hint is due."""
    return {"wrong": wrong, "where": where, "key": "file", "hints": [], "note": ""}


def _verdict(name: str, file: Path) -> Any:
    from jaxbp.explain.exercises.hints import Verdict
    from jaxbp.explain.exercises.judge import judge
    from jaxbp.explain.exercises.ladder import LADDER

    exercise = LADDER[name]
    written = getattr(load(file), exercise.function, None)
    if not callable(written):
        return Verdict(f"there is no function called {exercise.function} in it", "file")
    found = judge(exercise, written)
    if found.wrong is None and (used := differentiated(file.read_text("utf-8"))):
        return Verdict(f"the numbers are right, but {used} made them: write it by hand", "file")
    return found


def differentiated(source: str) -> str:
    """The first use of JAX's autodiff in a file, such as `jax.grad`, or ""."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in AUTODIFF:
            return ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
            for alias in node.names:
                if alias.name in AUTODIFF:
                    return f"{node.module}.{alias.name}"
    return ""


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"jaxbp\.check")  # a learner is told about their own code
    Path(sys.argv[3]).write_text(json.dumps(work(sys.argv[1], Path(sys.argv[2]))), "utf-8")
