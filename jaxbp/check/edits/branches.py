"""A factor in front of a sum that one of its terms forgets.

`m·(a - b)` is differentiated term by term, with the mask, the weight or the gate in front of one of them
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.diagnosis.roles import role
from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites
from jaxbp.check.operations import Constant, Op

MOST = 40


def forgotten_in_one(sites: Sites) -> Iterator[Instead]:
    """The factor of a product, or its divisor, left out of the way to one term of what it multiplies."""
    count = 0
    for op in sites.ops():
        if op.primitive.name not in ("mul", "div") or count >= MOST:
            continue
        for k in (0, 1) if op.primitive.name == "mul" else (0,):
            factor, total = op.inputs[1 - k], op.inputs[k]
            made = sites.producer.get(total) if isinstance(total, int) else None
            alone = isinstance(factor, Constant) and np.size(factor.value) == 1
            if made is None or made.primitive.name not in ("add", "sub") or alone:
                continue
            live = [j for j in (0, 1) if sites.is_live(made, j)]
            for j in live if len(live) == 2 else ():
                count += 1
                words = f"left out of the way to {role(made, j)} that it multiplies"
                yield Instead(op, k, _make(op, made, k, j), "factor", words)


def _make(op: Op, made: Op, k: int, j: int) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        still = jax.lax.stop_gradient
        a, b = (
            jnp.asarray(v.value) if isinstance(v, Constant) else jnp.asarray(env[v]) for v in made.inputs
        )
        a, b = (a, -b) if made.primitive.name == "sub" else (a, b)
        kept, alone = (b, a) if j == 0 else (a, b)
        other = still(jnp.asarray(inputs[1 - k]))
        return (kept * other if op.primitive.name == "mul" else kept / other) + alone

    return make
