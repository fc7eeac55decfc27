"""Checkpoints to go on from: atomic, in the run's folder, written by Orbax.

Random keys follow from the seed, the epoch and the step, so that parameters, optimizer state and where
the run stands are the whole state, and a resumed run ends with the same bits as one that was never
interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxbp.layer import InputError, PyTree
from jaxbp.train.loop import State

KEPT = 2  # checkpoints on disk


class Checkpoints:
    """The checkpoints of a run, newest last; use as a context manager, or `close`.

    They are numbered by steps from the start of the run, `steps` an epoch.
    """

    def __init__(self, folder: Path, steps: int):
        import orbax.checkpoint as ocp

        self._ocp, self._steps = ocp, steps
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._manager.close()

    def save(self, state: State) -> None:
        """Write `state` unless it is there already."""
        number = state.epoch * self._steps + state.step
        if self._manager.latest_step() == number:
            return
        where = {"epoch": state.epoch, "step": state.step, "loss": state.loss}
        args = self._ocp.args
        parts = {"state": args.StandardSave(_tree(state)), "where": args.JsonSave(where)}
        self._manager.save(number, args=args.Composite(**parts))

    def restore(self, like: State) -> State:
        """The newest state, in the shape of `like`."""
        number = self._manager.latest_step()
        if number is None:
            raise InputError(f"{self._manager.directory}: expected a checkpoint to resume, got none")
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _tree(like))
        args = self._ocp.args
        parts = {"state": args.StandardRestore(target), "where": args.JsonRestore()}
        found = self._manager.restore(number, args=args.Composite(**parts))
        params = jax.tree.unflatten(jax.tree.structure(like.params), _ordered(found["state"]["params"]))
        opt_state = jax.tree.unflatten(
            jax.tree.structure(like.opt_state), _ordered(found["state"]["opt_state"])
        )
        return State(params, opt_state, **found["where"])


def _tree(state: State) -> dict[str, dict[str, Any]]:
    """The leaves by number: Orbax then has no structure of ours to mistake."""

    def numbered(tree: PyTree) -> dict[str, Any]:
        return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}

    return {"params": numbered(state.params), "opt_state": numbered(state.opt_state)}


def _ordered(leaves: dict[str, Any]) -> list[Any]:
    return [leaves[key] for key in sorted(leaves)]
