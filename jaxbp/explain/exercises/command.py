"""`jaxbp exercises list | start NAME DIR | check DIR`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxbp.explain.exercises.attempt import attempt
from jaxbp.explain.exercises.exercise import Exercise
from jaxbp.explain.exercises.ladder import LADDER
from jaxbp.explain.exercises.progress import State, digest, read, remember
from jaxbp.layer import InputError

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


def _list(folder: Path) -> int:
    progress = read(folder)
    for number, exercise in enumerate(LADDER.values(), 1):
        state, there = progress.get(exercise.name), _file(folder, exercise).is_file()
        mark = "done" if state and state.done else "started" if there else ""
        print(f"{number:>3}  {exercise.name:<14} {mark:<7}  {exercise.title}")
    done = sum(state.done for state in progress.values())
    print(f"\n{done} of {len(LADDER)} done. Begin one with: jaxbp exercises start NAME DIR")
    return 0


def _start(name: str, folder: Path) -> int:
    exercise = _find(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _file(folder, exercise)
        if path.exists():
            raise InputError(f"{path} is there already; remove it to begin again")
        path.write_text(exercise.starter(), "utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot write there: {error.strerror}") from None
    print(f"{exercise.title}\nWrite {exercise.function} in {path}, then: jaxbp exercises check {folder}")
    return 0


def _check(folder: Path, only: str | None, limit: float | int) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (jaxbp exercises start NAME {folder})")
    if not limit > 0:
        raise InputError(f"--limit: expected a positive number of seconds, got {limit:g}")
    progress = read(folder)
    chosen = [_find(only)] if only else [e for e in LADDER.values() if _file(folder, e).is_file()]
    if not chosen:
        raise InputError(
            f"{folder}: no exercise in it (jaxbp exercises start {next(iter(LADDER))} {folder})"
        )
    good = True
    for exercise in chosen:
        state = progress.setdefault(exercise.name, State())
        good &= _one(exercise, _file(folder, exercise), state, limit)
        remember(folder, progress)
    waiting = [name for name in LADDER if name not in progress or not progress[name].done]
    if good:
        print(
            f"Next: jaxbp exercises start {waiting[0]} {folder}" if waiting else "All of them are done."
        )
    return 0 if good else 1


def _one(exercise: Exercise, file: Path, state: State, limit: float | int) -> bool:
    """Check one file, say what was found, and note it in `state`."""
    now = digest(file)
    if state.done and state.digest == now:
        print(f"{exercise.name}: right (as before)")
        return True
    found = attempt(exercise, file, limit)
    state.done, state.digest = found["wrong"] is None, now
    if state.done:
        print(f"{exercise.name}: right" + (f" ({found['note']})" if found["note"] else ""))
        return True
    place = f"{found['where']}: " if found["where"] else ""
    print(f"{exercise.name}: {place}{found['wrong']}")
    if found["hints"]:
        hint = state.hint(found["key"], found["hints"])
        print(textwrap.fill(f"hint: {hint}", 100, initial_indent="    ", subsequent_indent="          "))
    return False
