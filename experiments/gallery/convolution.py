"""Convolution and pooling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal


def conv(x: Any, k: Any) -> Any:
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_hand(x: Any, k: Any, dy: Any, flip: bool = True, turn: bool = True) -> Any:
    back = k[::-1, ::-1] if flip else k
    dx = conv(dy, jnp.swapaxes(back, 2, 3) if turn else back)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    taps = [
        jnp.einsum("nhwi,nhwo->io", padded[:, i : i + rows, j : j + columns], dy)
        for i in range(3)
        for j in range(3)
    ]
    return dx, jnp.stack(taps).reshape(k.shape)


def _conv() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "kernel not reversed": (lambda *a: conv_hand(*a, flip=False), ("flip",)),
        "channels not exchanged": (lambda *a: conv_hand(*a, turn=False), ("transpose",)),
        "dk reversed": (edit(conv_hand, lambda g, *a: (g[0], g[1][::-1, ::-1])), ("flip",)),
        "dk with its height and width exchanged": (
            edit(conv_hand, lambda g, *a: (g[0], jnp.swapaxes(g[1], 0, 1))),
            ("transpose",),
        ),
        "dk of the first image alone": (
            lambda x, k, dy: (conv_hand(x, k, dy)[0], conv_hand(x[:1], k, dy[:1])[1]),
            ("missing-sum", "missing-rows"),
        ),
    }
    return Exhibit("convolution", conv, (normal(3, 5, 4, 2), normal(3, 3, 2, 2)), conv_hand, faults)


def max_pool(x: Any) -> Any:
    return x.reshape(len(x), -1, 2).max(-1)


def max_pool_hand(x: Any, dy: Any) -> Any:
    pairs = x.reshape(len(x), -1, 2)
    return (jnp.where(pairs == pairs.max(-1, keepdims=True), dy[..., None], 0).reshape(x.shape),)


def _max_pool() -> Exhibit:
    def average(x: Any, dy: Any) -> Any:
        return (jnp.repeat(dy, 2, axis=-1) / 2,)

    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the average's gradient": (average, ("wrong-activation",)),
        "no mask": (lambda x, dy: (jnp.repeat(dy, 2, axis=-1),), ("wrong-activation",)),
        "order reversed": (edit(max_pool_hand, lambda g, *a: (g[0][:, ::-1],)), ("flip",)),
    }
    return Exhibit("max pool", max_pool, (normal(4, 6),), max_pool_hand, faults)


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_conv(), _max_pool()]
