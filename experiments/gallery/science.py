"""A kernel in interpret mode, a step of an ODE, and physics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal


def blocked_sum(x: Any) -> Any:
    """A blocked sum of squares as a Pallas kernel in interpret mode."""
    from jax.experimental import pallas as pl

    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = jnp.sum(x_ref[...] ** 2, axis=1, keepdims=True)

    rows, columns = x.shape
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows, columns // 4), x.dtype),
        grid=(rows, columns // 4),
        in_specs=[pl.BlockSpec((1, 4), lambda i, j: (i, j))],
        out_specs=pl.BlockSpec((1, 1), lambda i, j: (i, j)),
        interpret=True,
    )(x)


def blocked_sum_hand(x: Any, dy: Any) -> Any:
    return (2 * x * jnp.repeat(dy, 4, axis=1),)


def _blocked_sum() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the 2": (lambda x, dy: (x * jnp.repeat(dy, 4, axis=1),), ("scale",)),
        "the last block": (
            edit(blocked_sum_hand, lambda g, *a: (g[0].at[:, 4:].set(0),)),
            ("missing-rows",),
        ),
        "blocks interleaved": (
            lambda x, dy: (2 * x * jnp.tile(dy, (1, 4)),),
            ("transpose", "missing-rows"),
        ),
    }
    return Exhibit("blocked sum kernel", blocked_sum, (normal(3, 8),), blocked_sum_hand, faults)


def ode_step(y: Any, w: Any, dt: Any) -> Any:
    middle = y + 0.5 * dt * jnp.sin(y @ w)
    return y + dt * jnp.sin(middle @ w)


def ode_hand(
    y: Any, w: Any, dt: Any, g: Any, direct: float = 1.0, inner: float = 1.0, half: float = 0.5
) -> Any:
    a = y @ w
    m = y + 0.5 * dt * jnp.sin(a)
    b = m @ w
    db = g * dt * jnp.cos(b)
    dm = db @ w.T
    da = half * dt * dm * jnp.cos(a)
    ddt = jnp.sum(g * jnp.sin(b)) + inner * jnp.sum(0.5 * dm * jnp.sin(a))
    return direct * g + dm + da @ w.T, m.T @ db + y.T @ da, ddt


def _ode() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the direct path": (lambda *a: ode_hand(*a, direct=0.0), ("missing-path",)),
        "the midpoint's step in ddt": (lambda *a: ode_hand(*a, inner=0.0), ("missing-path",)),
        "the half of the first stage": (lambda *a: ode_hand(*a, half=1.0), ("scale", "extra-path")),
        "ddt negated": (edit(ode_hand, lambda g, *a: (g[0], g[1], -g[2])), ("sign",)),
    }
    return Exhibit("ode step", ode_step, (normal(4, 3), normal(3, 3), jnp.float32(0.3)), ode_hand, faults)


def lennard_jones(r: Any, e: Any) -> Any:
    s = (1.1 / r) ** 6
    return 4 * e * (s * s - s)


def lennard_jones_hand(r: Any, e: Any, dy: Any, attraction: float = 1.0, power: float = 1.0) -> Any:
    s = (1.1 / r) ** 6
    return dy * 4 * e * (-12 * s * s + attraction * 6 * s) / r**power, jnp.sum(dy * 4 * (s * s - s))


def _physics() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the attraction": (lambda *a: lennard_jones_hand(*a, attraction=0.0), ("missing-path",)),
        "the attraction's sign": (lambda *a: lennard_jones_hand(*a, attraction=-1.0), ("sign",)),
        "the force negated": (edit(lennard_jones_hand, lambda g, *a: (-g[0], g[1])), ("sign",)),
        "de not summed": (
            lambda r, e, dy: (
                lennard_jones_hand(r, e, dy)[0],
                dy * 4 * ((1.1 / r) ** 12 - (1.1 / r) ** 6),
            ),
            ("missing-sum",),
        ),
    }
    distances = jnp.asarray([0.95, 1.2, 1.5, 1.1, 2.0], jnp.float32)
    return Exhibit(
        "lennard-jones", lennard_jones, (distances, jnp.float32(0.7)), lennard_jones_hand, faults
    )


def rendered(density: Any, colour: Any, length: Any) -> Any:
    """Light along a ray, as volume rendering adds it up."""
    through = jnp.exp(-density * length)
    before = jnp.concatenate([jnp.ones_like(through[:1]), jnp.cumprod(through)[:-1]])
    return (before * (1 - through)) @ colour


def rendered_hand(
    density: Any, colour: Any, length: Any, dy: Any, own: int = 0, front: bool = False
) -> Any:
    through = jnp.exp(-density * length)
    before = jnp.concatenate([jnp.ones_like(through[:1]), jnp.cumprod(through)[:-1]])
    seen = colour @ dy
    part = before * (1 - through) * seen
    hidden = jnp.cumsum(part) if front else jnp.cumsum(part[::-1])[::-1] - (1 - own) * part
    d = before * through * seen - hidden
    return d * length, jnp.outer(before * (1 - through), dy), d * density


def _rendered() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "each point hides itself": (lambda *a: rendered_hand(*a, own=1), ("missing-rows", "extra-path")),
        "what lies in front, not behind": (lambda *a: rendered_hand(*a, front=True), ("flip",)),
    }
    args = jnp.abs(normal(6)), normal(6, 3), 0.1 + 0.5 * jnp.abs(normal(6, seed=1))
    return Exhibit("volume rendering", rendered, args, rendered_hand, faults)


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_blocked_sum(), _ode(), _physics(), _rendered()]
