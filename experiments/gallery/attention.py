"""Causal attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, edit, normal, replace


def attention(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.T / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
    p = jax.nn.softmax(jnp.where(_causal(len(q)), s, -1e9), axis=-1)
    return p @ v


def _causal(n: int) -> Any:
    return jnp.arange(n)[:, None] >= jnp.arange(n)[None, :]


def attention_hand(q: Any, k: Any, v: Any, dy: Any, scaled: bool = True, coupled: float = 1.0) -> Any:
    root = jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
    p = jax.nn.softmax(jnp.where(_causal(len(q)), q @ k.T / root, -1e9), axis=-1)
    dp = dy @ v.T
    ds = p * (dp - coupled * (dp * p).sum(-1, keepdims=True))
    ds = ds / root if scaled else ds
    return ds @ k, ds.T @ q, p.T @ dy


def _attention() -> Exhibit:
    def no_transpose(q: Any, k: Any, v: Any, dy: Any) -> Any:
        dq, dk, _ = attention_hand(q, k, v, dy)
        p = jax.nn.softmax(
            jnp.where(_causal(len(q)), q @ k.T / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype)), -1e9),
            axis=-1,
        )
        return dq, dk, p @ dy

    faults = {
        "√d": (lambda *a: attention_hand(*a, scaled=False), ("scale",)),
        "the softmax's second term": (lambda *a: attention_hand(*a, coupled=0.0), ("missing-path",)),
        "dk and dv exchanged": (edit(attention_hand, lambda g, *a: (g[0], g[2], g[1])), ("swapped",)),
        "dv without a transpose": (no_transpose, ("transpose",)),
        "dq of half the heads": (
            edit(attention_hand, replace(0, lambda g, *a: g.at[:, 2:].set(0))),
            ("missing-rows",),
        ),
    }
    return Exhibit(
        "attention",
        attention,
        (normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2)),
        attention_hand,
        faults,
    )


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_attention()]
