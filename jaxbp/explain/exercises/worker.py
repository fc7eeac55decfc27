"""Runs a learner's file in a process of its own: `python -m … NAME FILE RESULT`.

What was found is written to the file RESULT as JSON, so that whatever the learner prints stays apart.
"""

from __future__ import annotations

import json
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def load(file: Path) -> Any:
    """The module in `file`."""
    spec = spec_from_file_location("exercise", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(name: str, file: Path) -> dict[str, Any]:
    """`{"wrong": None or a sentence, "where": the learner's line or ""}`."""
    from jaxbp.explain.exercises.judge import judge
    from jaxbp.explain.exercises.ladder import LADDER

    exercise = LADDER[name]
    try:
        written = getattr(load(file), exercise.function, None)
        if not callable(written):
            return {"wrong": f"there is no function called {exercise.function} in it", "where": ""}
        return {"wrong": judge(exercise, written), "where": ""}
    except SystemExit:
        return {"wrong": "it stopped the program (exit)", "where": ""}
    except Exception as error:  # whatever the learner's code raises is what there is to say
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        where = f"line {line or own[-1].lineno}" if line or own else ""
        return {
            "wrong": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "where": where,
        }


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(work(sys.argv[1], Path(sys.argv[2]))), "utf-8")
