"""`jaxbp exercises list | start NAME DIR | check DIR`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxbp.explain.exercises.ladder import LADDER, Exercise
from jaxbp.layer import InputError

PROGRESS = "progress.json"
SECONDS = 60.0


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"exercises: {message}")


def run(argv: Sequence[str]) -> int:
    """The command; exit code 0 where everything that was checked is right, 1 where it is not."""
    parser = _Arguments(prog="jaxbp exercises", description="Write backward passes by hand, with hints.")
    commands = parser.add_subparsers(dest="action", required=True, parser_class=_Arguments)
    listing = commands.add_parser("list", help="the ladder, and how far you are")
    listing.add_argument("folder", nargs="?", metavar="DIR", default=".", help="where your files are")
    starting = commands.add_parser("start", help="write the file of an exercise")
    starting.add_argument("name", metavar="NAME")
    starting.add_argument("folder", metavar="DIR")
    checking = commands.add_parser("check", help="check what is in a folder")
    checking.add_argument("folder", metavar="DIR")
    checking.add_argument("--only", metavar="NAME", help="this exercise alone")
    checking.add_argument("--limit", type=float, default=SECONDS, help="seconds a file may take (60)")
    given = parser.parse_args(list(argv))
    folder = Path(given.folder)
    if given.action == "list":
        return _list(folder)
    if given.action == "start":
        return _start(given.name, folder)
    return _check(folder, given.only, given.limit)


def _file(folder: Path, exercise: Exercise) -> Path:
    return folder / f"{exercise.name.replace('-', '_')}.py"


def _find(name: str) -> Exercise:
    if name not in LADDER:
        raise InputError(f"exercises: no exercise {name!r}; expected one of {', '.join(LADDER)}")
    return LADDER[name]


# --- progress ---------------------------------------------------------------------------------------


def _progress(folder: Path) -> dict[str, dict[str, Any]]:
    """`{name: {"done": bool, "tries": int}}`, empty where there is none yet."""
    path = folder / PROGRESS
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text("utf-8"))
        return {
            str(k): {"done": bool(v["done"]), "tries": int(v["tries"])}
            for k, v in known.items()
            if k in LADDER
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: not a progress file; remove it to begin again") from None


def _remember(folder: Path, progress: dict[str, dict[str, Any]]) -> None:
    partial = folder / f"{PROGRESS}.partial"
    partial.write_text(json.dumps(progress, indent=2) + "\n", "utf-8")
    os.replace(partial, folder / PROGRESS)


# --- the three actions ------------------------------------------------------------------------------


def _list(folder: Path) -> int:
    progress = _progress(folder)
    for number, exercise in enumerate(LADDER.values(), 1):
        state = progress.get(exercise.name)
        mark = (
            "done   "
            if state and state["done"]
            else "started"
            if _file(folder, exercise).is_file()
            else "       "
        )
        print(f"{number:>3}  {exercise.name:<14} {mark}  {exercise.title}")
    done = sum(state["done"] for state in progress.values())
    print(f"\n{done} of {len(LADDER)} done. Begin one with: jaxbp exercises start NAME DIR")
    return 0


def _start(name: str, folder: Path) -> int:
    exercise = _find(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}") from None
    path = _file(folder, exercise)
    if path.exists():
        raise InputError(f"{path} is there already; remove it to begin again")
    path.write_text(exercise.starter(), "utf-8")
    print(f"{exercise.title}\nWrite {exercise.function} in {path}, then: jaxbp exercises check {folder}")
    return 0


def _check(folder: Path, only: str | None, limit: float) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (jaxbp exercises start NAME {folder})")
    if not limit > 0:
        raise InputError(f"--limit: expected a positive number of seconds, got {limit:g}")
    progress = _progress(folder)
    chosen = [_find(only)] if only else [e for e in LADDER.values() if _file(folder, e).is_file()]
    if not chosen:
        raise InputError(
            f"{folder}: no exercise in it (jaxbp exercises start {next(iter(LADDER))} {folder})"
        )
    good = True
    for exercise in chosen:
        state = progress.setdefault(exercise.name, {"done": False, "tries": 0})
        found = attempt(exercise, _file(folder, exercise), limit)
        right = found["wrong"] is None
        good &= right
        if right:
            state["done"] = True
            print(f"{exercise.name}: right")
        else:
            state["done"] = False
            print(f"{exercise.name}: {found['where'] + ': ' if found['where'] else ''}{found['wrong']}")
            print(f"    hint: {exercise.hints[min(state['tries'], len(exercise.hints) - 1)]}")
            state["tries"] += "returns nothing yet" not in found["wrong"]  # no try was made
        _remember(folder, progress)
    waiting = [e.name for e in LADDER.values() if not progress.get(e.name, {}).get("done")]
    if good:
        print(
            f"Next: jaxbp exercises start {waiting[0]} {folder}" if waiting else "All of them are done."
        )
    return 0 if good else 1


def attempt(exercise: Exercise, file: Path, limit: float | int) -> dict[str, Any]:
    """Judge `file` in a process of its own, within `limit` seconds."""
    if not file.is_file():
        return {"wrong": f"there is no file {file}", "where": ""}
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        arguments = [exercise.name, str(file.resolve()), str(result)]
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxbp.explain.exercises.worker", *arguments],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return {
                "wrong": f"it did not finish within {limit:g} seconds (a loop without an end?)",
                "where": "",
            }
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if not result.is_file():
            return {"wrong": f"it ended without an answer (exit code {process.returncode})", "where": ""}
        return json.loads(result.read_text("utf-8"))
