"""Checkpoints to go on from: atomic, in the run's folder, written by Orbax.

Random keys follow from the seed, the epoch and the step, so that parameters, optimizer state and where
the run stands are the whole state, and a resumed run ends with the same bits as one that was never
interrupted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from jaxbp.app.loop import State
from jaxbp.layer import InputError, PyTree

KEPT = 2  # checkpoints on disk
ASIDE = "damaged"  # where those go that cannot be read


class Checkpoints:
    """The checkpoints of a run, newest last; use as a context manager, or `close`.

    They are numbered by steps from the start of the run, `steps` an epoch.
    """

    def __init__(self, folder: Path, steps: int):
        import orbax.checkpoint as ocp

        self._ocp, self._steps = ocp, steps
        self._folder, self._record = (folder / "checkpoints").absolute(), folder / "checkpoints.json"
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._manager.close()

    def save(self, state: State) -> None:
        """Write `state` unless it is there already, and hashes of its files into `checkpoints.json`."""
        number = state.epoch * self._steps + state.step
        if self._manager.latest_step() == number:
            return
        where: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "loss": state.loss}
        if state.curve:
            where["curve"] = list(state.curve)
        if state.best_epoch:
            where |= {"best_epoch": state.best_epoch, "best_loss": state.best_loss}
        args = self._ocp.args
        parts = {"state": args.StandardSave(_tree(state)), "where": args.JsonSave(where)}
        self._manager.save(number, args=args.Composite(**parts))
        kept = self._hashes() | {str(number): _hashes(self._folder / str(number))}
        there = set(map(str, self._manager.all_steps()))
        text = json.dumps({name: kept[name] for name in kept if name in there}, indent=1)
        partial = self._record.with_name(self._record.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self._record)

    def restore(self, like: State) -> tuple[State, list[str]]:
        """The newest whole state, in the shape of `like`, and a line for each newer one that is not.

        What is damaged is set aside in the run's folder, never removed.
        """
        known = self._hashes()
        numbers = sorted({*self._manager.all_steps(), *map(int, known)}, reverse=True)
        if not numbers:
            raise InputError(
                f"{self._folder}: expected a checkpoint to resume, got none (train anew with "
                "--run.overwrite)"
            )
        lines: list[str] = []
        for number in numbers:
            try:
                self._check(number, known.get(str(number), {}))
                state = self._read(number, like)
            except Exception as error:  # whatever the layers below make of bytes that are not theirs
                lines.append(f"checkpoint {number} cannot be used: {_first_line(error)}")
                continue
            for bad in numbers[: numbers.index(number)]:
                self._set_aside(bad)
            if lines:
                lines.append(f"going on from the older checkpoint {number}; the damaged is in {ASIDE}/")
            return state, lines
        raise InputError(
            f"{self._folder}: no checkpoint can be used: {'; '.join(lines)} "
            "(train anew with --run.overwrite or under another --run.name)"
        )

    def _hashes(self) -> dict[str, dict[str, str]]:
        """Of every checkpoint that was written, its files and their hashes."""
        try:
            return json.loads(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:  # a run from before there were any
            return {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{self._record}: truncated or not JSON: {error}; remove it to use checkpoints unchecked"
            ) from None

    def _check(self, number: int, expected: dict[str, str]) -> None:
        """Every byte is that which was written, before anything reads meaning into it."""
        found = _hashes(self._folder / str(number))
        for name, written in expected.items():
            if name not in found:
                raise InputError(f"its file {name} is missing")
            if found[name] != written:
                raise InputError(f"its file {name} is not what was written")

    def _set_aside(self, number: int) -> None:
        there, aside = self._folder / str(number), self._folder.parent / ASIDE
        if there.exists():
            aside.mkdir(exist_ok=True)
            count = sum(path.name.split("-")[0] == str(number) for path in aside.iterdir())
            there.rename(aside / (f"{number}-{count}" if count else str(number)))
            self._manager.reload()

    def _read(self, number: int, like: State) -> State:
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _tree(like))
        args = self._ocp.args
        parts = {"state": args.StandardRestore(target), "where": args.JsonRestore()}
        found = self._manager.restore(number, args=args.Composite(**parts))
        params = jax.tree.unflatten(jax.tree.structure(like.params), _ordered(found["state"]["params"]))
        opt_state = jax.tree.unflatten(
            jax.tree.structure(like.opt_state), _ordered(found["state"]["opt_state"])
        )
        best = jax.tree.unflatten(jax.tree.structure(like.best), _ordered(found["state"].get("best", {})))
        return State(params, opt_state, best=best, **found["where"])


def _hashes(folder: Path) -> dict[str, str]:
    """The files in a folder and their hashes."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _tree(state: State) -> dict[str, dict[str, Any]]:
    """The leaves by number: Orbax then has no structure of ours to mistake."""

    def numbered(tree: PyTree) -> dict[str, Any]:
        return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}

    best = {} if state.best is None else {"best": numbered(state.best)}
    return {"params": numbered(state.params), "opt_state": numbered(state.opt_state), **best}


def _ordered(leaves: dict[str, Any]) -> list[Any]:
    return [leaves[key] for key in sorted(leaves)]
