"""A learner's file, judged in a process of its own and within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxbp.explain.exercises.exercise import Exercise
from jaxbp.explain.exercises.worker import plain


def attempt(exercise: Exercise, file: Path, limit: float | int) -> dict[str, Any]:
    """The verdict on `file` (`worker.work`); whatever it does, it cannot take this process along."""
    if not file.is_file():
        return plain(f"there is no file {file}")
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        arguments = [exercise.name, str(file.resolve()), str(result)]
        path = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxbp.explain.exercises.worker", *arguments],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return plain(f"it did not finish within {limit:g} seconds (a loop without an end?)")
        finally:
            _end(process)
        if not result.is_file():
            return plain(f"it ended without an answer (exit code {process.returncode})")
        return json.loads(result.read_text("utf-8"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, and what it may have started, where it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
