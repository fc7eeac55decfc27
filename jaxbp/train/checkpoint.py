"""Checkpoints to go on from (Orbax: atomic, in the run's folder), and weights to hand on (safetensors).

The random key of an epoch follows from the seed and the epoch's number, so that parameters, optimizer
state and epoch are the whole state, and a resumed run ends with the same bits as one that was never
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
    """The checkpoints of a run, newest last; use as a context manager, or `close`."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        self._ocp = ocp
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
        if self._manager.latest_step() != state.epoch:
            self._manager.save(state.epoch, args=self._ocp.args.StandardSave(_tree(state)))

    def restore(self, like: State) -> State:
        """The newest state, in the shape of `like`."""
        step = self._manager.latest_step()
        if step is None:
            raise InputError(f"{self._manager.directory}: expected a checkpoint to resume, got none")
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _tree(like))
        leaves = self._manager.restore(step, args=self._ocp.args.StandardRestore(target))
        params = jax.tree.unflatten(jax.tree.structure(like.params), _ordered(leaves["params"]))
        opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), _ordered(leaves["opt_state"]))
        return State(params, opt_state, step)


def _tree(state: State) -> dict[str, dict[str, Any]]:
    """The leaves by number: Orbax then has no structure of ours to mistake."""

    def numbered(tree: PyTree) -> dict[str, Any]:
        return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}

    return {"params": numbered(state.params), "opt_state": numbered(state.opt_state)}


def _ordered(leaves: dict[str, Any]) -> list[Any]:
    return [leaves[key] for key in sorted(leaves)]
