"""Functions that choose, look up and add up along a line: a graph's messages, clips, arms, filters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, normal

Faults = dict[str, tuple[Hand, tuple[str, ...]]]
SENDERS, RECEIVERS = jnp.array([0, 1, 2, 3, 5, 4, 0, 2]), jnp.array([1, 2, 0, 1, 4, 0, 3, 3])


def messages(h: Any, w: Any) -> Any:
    """What every node gets from its neighbours, weighted edge by edge."""
    return jax.ops.segment_sum(h[SENDERS] * w[:, None], RECEIVERS, num_segments=h.shape[0])


def messages_hand(h: Any, w: Any, dy: Any, along: bool = False) -> Any:
    origin, goal = (RECEIVERS, SENDERS) if along else (SENDERS, RECEIVERS)
    dm = dy[goal]
    dh = jax.ops.segment_sum(dm * w[:, None], origin, num_segments=h.shape[0])
    return dh, (dm * h[SENDERS]).sum(-1)


def surrogate(r: Any, a: Any) -> Any:
    """The clipped objective of proximal policy optimisation, entry by entry."""
    return jnp.minimum(r * a, jnp.clip(r, 0.8, 1.2) * a)


def surrogate_hand(r: Any, a: Any, dy: Any, clipped: bool = True) -> Any:
    first = r * a <= jnp.clip(r, 0.8, 1.2) * a
    dr = jnp.where(first | (not clipped), a, jnp.where((r > 0.8) & (r < 1.2), a, 0.0))
    return dy * dr, dy * jnp.where(first | (not clipped), r, jnp.clip(r, 0.8, 1.2))


def arm(q: Any, lengths: Any) -> Any:
    """Where the joints of a planar arm are, from the angles between its links."""
    a = jnp.cumsum(q)
    return jnp.cumsum(lengths[:, None] * jnp.stack([jnp.cos(a), jnp.sin(a)], 1), 0)


def arm_hand(q: Any, lengths: Any, dy: Any, own: bool = False) -> Any:
    a = jnp.cumsum(q)
    d = jnp.cumsum(dy[::-1], 0)[::-1]
    da = lengths * (jnp.cos(a) * d[:, 1] - jnp.sin(a) * d[:, 0])
    dq = da if own else jnp.cumsum(da[::-1])[::-1]
    return dq, jnp.cos(a) * d[:, 0] + jnp.sin(a) * d[:, 1]


def filtered(x: Any, h: Any) -> Any:
    """A circular convolution by way of the spectrum."""
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(h), n=x.shape[-1])


def filtered_hand(x: Any, h: Any, dy: Any, conjugate: bool = True) -> Any:
    turn = jnp.conj if conjugate else (lambda s: s)
    back = jnp.fft.rfft(dy)
    n = x.shape[-1]
    return (
        jnp.fft.irfft(back * turn(jnp.fft.rfft(h)), n=n),
        jnp.fft.irfft(back * jnp.conj(jnp.fft.rfft(x)), n=n),
    )


def exhibits() -> list[Exhibit]:
    """All of this family."""
    along: Faults = {
        "along the edges": (lambda *a: messages_hand(*a, along=True), ("transpose", "swapped"))
    }
    unclipped: Faults = {
        "not clipped": (lambda *a: surrogate_hand(*a, clipped=False), ("missing-rows",)),
    }
    own: Faults = {"each angle its own link": (lambda *a: arm_hand(*a, own=True), ("missing-path",))}
    folded: Faults = {
        "convolved, not correlated": (lambda *a: filtered_hand(*a, conjugate=False), ("flip",))
    }
    ratios = jnp.array([0.5, 0.9, 1.1, 1.4, 0.6, 1.3, 1.05], jnp.float32)
    return [
        Exhibit("messages on a graph", messages, (normal(6, 3), normal(8)), messages_hand, along),
        Exhibit("clipped surrogate", surrogate, (ratios, normal(7)), surrogate_hand, unclipped),
        Exhibit("planar arm", arm, (normal(4), 0.5 + jnp.abs(normal(4, seed=2))), arm_hand, own),
        Exhibit(
            "filter by its spectrum", filtered, (normal(8), normal(8, seed=1)), filtered_hand, folded
        ),
    ]
