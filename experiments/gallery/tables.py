"""Looking things up in a table, and masks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal

TOKENS = jnp.asarray([[0, 3, 3], [1, 0, 3]])


def embedding(table: Any) -> Any:
    return table[TOKENS]


def embedding_hand(table: Any, dy: Any) -> Any:
    return (jnp.zeros_like(table).at[TOKENS].add(dy),)


def _embedding() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "repeated tokens overwrite": (
            lambda t, dy: (jnp.zeros_like(t).at[TOKENS].set(dy),),
            ("missing-rows",),
        ),
        "token 0 taken as padding": (
            edit(embedding_hand, lambda g, *a: (g[0].at[0].set(0),)),
            ("missing-rows",),
        ),
        "averaged": (edit(embedding_hand, lambda g, *a: (g[0] / 6,)), ("scale",)),
    }
    return Exhibit("embedding", embedding, (normal(5, 4),), embedding_hand, faults)


MASK = jnp.asarray([[1, 1, 0], [1, 0, 0], [1, 1, 1]])


def masked_mean(x: Any, s: Any) -> Any:
    mask = MASK.astype(x.dtype)[..., None]
    return (jnp.tanh(x * s) * mask).sum(1) / mask.sum(1)


def masked_mean_hand(x: Any, s: Any, dy: Any, mask_on: bool = True, divide: int = 1) -> Any:
    mask = MASK.astype(x.dtype)[..., None]
    h = jnp.tanh(x * s)
    d = (dy / mask.sum(1) ** divide)[:, None, :] * (mask if mask_on else 1) * (1 - h * h)
    return d * s, jnp.sum(d * x)


def _masked_mean() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the mask": (lambda *a: masked_mean_hand(*a, mask_on=False), ("missing-rows",)),
        "division by the count": (lambda *a: masked_mean_hand(*a, divide=0), ("scale", "missing-rows")),
        "division by the count, twice": (
            lambda *a: masked_mean_hand(*a, divide=2),
            ("scale", "missing-rows"),
        ),
    }
    return Exhibit(
        "masked mean", masked_mean, (normal(3, 3, 2), jnp.float32(0.8)), masked_mean_hand, faults
    )


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_embedding(), _masked_mean()]
