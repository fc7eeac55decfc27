"""What a loop hands on to its next turn, whose error is dropped on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from jaxbp.check.edits.edit import Rewired
from jaxbp.check.edits.sites import Sites
from jaxbp.check.evaluate import again
from jaxbp.check.operations import Op

HERE, ON = 1, 2  # the value for what uses it in its turn, and for the next one


def dropped(sites: Sites) -> Iterator[Rewired]:
    """A state whose error counts in its own turn alone: a cell that looks at one of two cotangents."""
    for holder in sites.ops():
        if holder.kind != "scan":
            continue
        body, carry = holder.bodies[0], holder.loop.carry
        for v in body.outputs[:carry]:
            maker = sites.producer.get(v) if isinstance(v, int) else None
            uses = {
                id(op): [(k, HERE) for k, u in enumerate(op.inputs) if u == v]
                for op in body.ops
                if v in op.inputs and op.kind in ("plain", "rule")
            }
            if maker is None or v not in sites.live or not uses or v in body.outputs[carry:]:
                continue
            if maker.kind in ("plain", "rule") and len(maker.outputs) == 1:
                uses[id(maker)] = [(-1, ON)]
                yield Rewired(
                    maker, -1, _here_alone(maker), "missing-path",
                    "dropped where it comes from the next turn", uses=uses, about="result",
                )  # fmt: skip


def _here_alone(maker: Op) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> dict[int, Any]:
        return {HERE: again(maker, inputs), ON: jax.lax.stop_gradient(results[0])}

    return make
