"""How far a learner is: what is done, and which hints were given, in a file beside the exercises."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jaxbp.explain.exercises.ladder import LADDER
from jaxbp.layer import InputError

FILE = "progress.json"


@dataclass
class State:
    """One exercise. `told` counts the hints that were given for each mistake, by its key."""

    done: bool = False
    tries: int = 0
    digest: str = ""
    told: dict[str, int] = field(default_factory=dict)

    def hint(self, key: str, hints: Sequence[str]) -> str:
        """The next hint for this mistake: a mistake of another kind begins with a gentle one again."""
        given = self.told.get(key, 0)
        self.told[key] = given + 1
        self.tries += 1
        return hints[min(given, len(hints) - 1)]


def read(folder: Path) -> dict[str, State]:
    """`{exercise: State}`, empty where there is no progress yet."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text("utf-8"))
        return {str(name): _state(kept) for name, kept in known.items() if name in LADDER}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: not a progress file; remove it to begin again") from None


def _state(kept: dict) -> State:
    told = {str(key): int(count) for key, count in kept.get("told", {}).items()}
    return State(bool(kept["done"]), int(kept["tries"]), str(kept.get("digest", "")), told)


def remember(folder: Path, progress: dict[str, State]) -> None:
    """Write it whole or not at all."""
    partial = folder / f"{FILE}.partial"
    known = {name: asdict(state) for name, state in progress.items()}
    try:
        partial.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, folder / FILE)
    except OSError as error:
        raise InputError(f"{folder / FILE}: cannot keep progress there: {error.strerror}") from None


def digest(file: Path) -> str:
    """What tells one version of a file from another."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
