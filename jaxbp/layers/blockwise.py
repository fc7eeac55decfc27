"""Attention's core, tile by tile: nothing as large as queries × keys is ever held.

Letters as in `attention.py`: `K` key and value heads, `G` query heads a group, `T` queries, `S` keys, `D`
features of a head. A tile is `t` queries against `s` keys. With the scores `s_ij = Σ_d q_id k_jd / √D`,

    lse_i = log Σ_j e^{s_ij},     p_ij = e^{s_ij - lse_i},     o_i = Σ_j p̃_ij v_j

over the keys that `i` sees (`p̃`: p after dropout, `p̃_ij = p_ij m_ij` with `m_ij` 0 or `1 / (1 - rate)`).

**Forward.** A tile knows only some keys of a row, so it hands on the row's maximum `m`, its sum
`l = Σ_j e^{s_ij - m}` and `a = Σ_j e^{s_ij - m} m_ij v_j`. Two tiles of a row become one when both are
brought to the larger maximum: `l = l₁ e^{m₁ - m} + l₂ e^{m₂ - m}`, and `a` likewise. At the end
`o = a / l` and `lse = m + log l`; a row that saw nothing has `l = 0`, and gets `o = 0` and `lse = +∞`,
so that `p` is 0.

**Backward.** `s` and `p` of a tile are computed again from `q`, `k` and `lse`. The softmax needs one
number of the whole row, `D_i = Σ_j ∂L/∂p_ij p_ij`, and that one is known before any tile is: with
`∂L/∂p_ij = m_ij Σ_d ∂L/∂o_id v_jd`,

    D_i = Σ_j p_ij m_ij Σ_d ∂L/∂o_id v_jd = Σ_d ∂L/∂o_id Σ_j p̃_ij v_jd = Σ_d ∂L/∂o_id o_id

so that `∂L/∂s_ij = p_ij (∂L/∂p_ij - D_i)` is the tile's own business, and the three sums

    ∂L/∂v_j = Σ_i p̃_ij ∂L/∂o_i,   ∂L/∂k_j = Σ_i ∂L/∂s_ij q_i / √D,   ∂L/∂q_i = Σ_j ∂L/∂s_ij k_j / √D

are added up as the tiles go by. Tiles that `causal` or `window` hides whole are not in the list at all.
Sources: Rabe and Staats 2021; Dao et al. 2022 (FlashAttention), and 2023 for the walk over tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxbp.precision import wide

Carry = tuple[Array, ...]


@dataclass(frozen=True)
class Sight:
    """Who sees whom by place (`causal`, `window`), and which share of what is read is dropped."""

    causal: bool = False
    window: int | None = None
    dropout: float = 0.0

    def span(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """For every query, the first key that it sees and the one after the last."""
        at, window = np.arange(queries), self.window or keys + queries
        last = at + 1 if self.causal else at + window
        return np.clip(at - window + 1, 0, keys), np.clip(last, 0, keys)

    def seen(self, queries: Array, keys: Array) -> Bool[Array, "queries keys"] | None:
        """Which of the places `queries` sees which of the places `keys`; `None` for all of them."""
        ahead = keys[None, :] - queries[:, None]
        seen = ahead <= 0 if self.causal else None
        if self.window is not None:
            near = jnp.abs(ahead) < self.window
            seen = near if seen is None else seen & near
        return seen

    def any_seen(self, keys: Bool[Array, "*batch keys"], queries: int, mask: Array | None) -> Array:
        """Which query sees one of these `keys` at least, `[..., T]`."""
        if mask is not None and mask.shape[-2] > 1:
            keys = jnp.expand_dims(keys, -2)
            seen = self.seen(jnp.arange(queries), jnp.arange(keys.shape[-1]))
            seen = mask if seen is None else mask & jnp.broadcast_to(seen, mask.shape)
            return jnp.any(seen & jnp.broadcast_to(keys, seen.shape), axis=-1)
        keys = keys if mask is None else keys & mask[..., 0, :]
        before = jnp.cumsum(keys, axis=-1, dtype=jnp.int32)
        before = jnp.concatenate([jnp.zeros((*keys.shape[:-1], 1), jnp.int32), before], axis=-1)
        first, end = self.span(queries, keys.shape[-1])
        return before[..., np.maximum(first, end)] > before[..., first]


@dataclass(frozen=True)
class Tiles:
    """`T × S` cut into tiles of `rows × columns`, and where those begin that anything is seen in."""

    queries: int
    keys: int
    rows: int
    columns: int
    starts: tuple[tuple[int, int], ...]

    @classmethod
    def cut(cls, sight: Sight, queries: int, keys: int, block: int | None) -> Tiles:
        """Tiles of about `block × block`; one tile if `block` is `None`."""
        block = block if queries and keys else None
        rows, columns = _even(queries, block), _even(keys, block)
        if (rows, columns) == (queries, keys):
            return cls(queries, keys, rows, columns, ((0, 0),))
        first, end = sight.span(queries, keys)
        starts = [
            (i, j)
            for i in range(0, queries, rows)
            for j in range(0, keys, columns)
            if np.any(np.maximum(first[i : i + rows], j) < np.minimum(end[i : i + rows], j + columns))
        ]
        return cls(queries, keys, rows, columns, tuple(starts))

    @property
    def one(self) -> bool:
        return (self.rows, self.columns) == (self.queries, self.keys)

    def pad_queries(self, a: Array, axis: int = -2, value: float = 0.0) -> Array:
        return _pad(a, -(-self.queries // self.rows) * self.rows, axis, value)

    def pad_keys(self, a: Array, axis: int = -2) -> Array:
        return _pad(a, -(-self.keys // self.columns) * self.columns, axis, 0.0)

    def over(self, step: Callable[[Carry, Array, Array], Carry], carry: Carry) -> Carry:
        """The carry after all tiles, `step(carry, i, j)` each; the order is row by row."""

        def body(carry: Carry, start: Array) -> tuple[Carry, None]:
            return step(carry, start[0], start[1]), None

        if not self.starts:
            return carry
        return jax.lax.scan(body, carry, jnp.asarray(self.starts, jnp.int32))[0]


def attend(
    sight: Sight,
    block: int | None,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, "*batch K G T D"], Float[Array, "*batch K G T"]]:
    """`(o, lse)`, both wide, of `q: [..., K, G, T, D]` and `k, v: [..., K, S, D]`.

    `mask: [..., 1 or T, S]` hides where it is `False`; `key: [...]`, a key an example, drops.
    """
    tiles = Tiles.cut(sight, q.shape[-2], k.shape[-2], block)
    look = _Look(sight, tiles, mask, key, q.shape[:-2])
    if tiles.one:
        e, m, l = _exponentials(q, k, look.seen(0, 0))
        p = e / _total(l)[..., None]
        o = _read(sight, p, v, look.drawn(0, 0))
    else:
        q, k, v = tiles.pad_queries(q), tiles.pad_keys(k), tiles.pad_keys(v)

        def step(carry: Carry, i: Array | int, j: Array | int) -> Carry:
            at = look.rows(q, i), look.columns(k, j), look.columns(v, j)
            e, *rest = _exponentials(*at[:2], look.seen(i, j))
            new = _read(sight, e, at[2], look.drawn(i, j)), *rest
            a, m, l = carry
            old = look.rows(a, i), look.rows(m, i, -1), look.rows(l, i, -1)
            a_, m_, l_ = _merge(old, new)
            return look.put(a, a_, i), look.put(m, m_, i, -1), look.put(l, l_, i, -1)

        a = jnp.zeros(q.shape, wide(q.dtype))
        row = jnp.zeros(q.shape[:-1], a.dtype)
        a, m, l = tiles.over(step, (a, row - jnp.inf, row))
        a, m, l = a[..., : tiles.queries, :], m[..., : tiles.queries], l[..., : tiles.queries]
        o = a / _total(l)[..., None]
    return o, jnp.where(l == 0, jnp.inf, _finite(m) + jnp.log(_total(l)))


def attend_pull(
    sight: Sight,
    block: int | None,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    do: Array,
    mask: Array | None = None,
    key: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`(dq, dk, dv)`, wide, from the error `do` of `o`; `q` … `key` as in `attend`."""
    tiles = Tiles.cut(sight, q.shape[-2], k.shape[-2], block)
    look = _Look(sight, tiles, mask, key, q.shape[:-2])
    if tiles.one:
        return _errors(sight, q, k, v, do, lse, None, look.seen(0, 0), look.drawn(0, 0))
    dtype = wide(q.dtype)
    d = jnp.sum(do.astype(dtype) * o.astype(dtype), axis=-1)  # D_i
    q, do, k, v = tiles.pad_queries(q), tiles.pad_queries(do), tiles.pad_keys(k), tiles.pad_keys(v)
    lse, d = tiles.pad_queries(lse, -1, jnp.inf), tiles.pad_queries(d, -1)

    def step(carry: Carry, i: Array | int, j: Array | int) -> Carry:
        at = look.rows(q, i), look.columns(k, j), look.columns(v, j)
        errors = look.rows(do, i), look.rows(lse, i, -1), look.rows(d, i, -1)
        dq, dk, dv = _errors(sight, *at, *errors, look.seen(i, j), look.drawn(i, j))
        return (
            look.put(carry[0], look.rows(carry[0], i) + dq, i),
            look.put(carry[1], look.columns(carry[1], j) + dk, j),
            look.put(carry[2], look.columns(carry[2], j) + dv, j),
        )

    dq, dk, dv = tiles.over(step, tuple(jnp.zeros(a.shape, dtype) for a in (q, k, v)))
    return dq[..., : tiles.queries, :], dk[..., : tiles.keys, :], dv[..., : tiles.keys, :]


# --- one tile ---------------------------------------------------------------------------------------


def _exponentials(q: Array, k: Array, seen: Array | None) -> Carry:
    """Pass 2 of one tile and half of pass 3: `(e^{s - m}, m, l)`, with maximum and sum of every row."""
    s = _einsum("...kgtd,...ksd->...kgts", q, k) / math.sqrt(q.shape[-1])
    s = s if seen is None else jnp.where(seen, s, -jnp.inf)
    # o and lse do not depend on m: to a derivative it is a constant
    m = jax.lax.stop_gradient(jnp.max(s, axis=-1, initial=-jnp.inf))
    e = jnp.exp(s - _finite(m)[..., None])
    return e, m, jnp.sum(e, axis=-1)


def _read(sight: Sight, p: Array, v: Array, drawn: Array | None) -> Array:
    """Pass 4 of one tile: what shares (or exponentials) read from `v`."""
    p = p if drawn is None else _drop(sight, p, drawn)
    return _einsum("...kgts,...ksd->...kgtd", p.astype(v.dtype), v)


def _total(l: Array) -> Array:
    """What to divide by: 1 for a row that saw nothing."""
    return jnp.where(l == 0, 1, l)


def _merge(one: Carry, two: Carry) -> Carry:
    """Two tiles of the same rows as one."""
    m = jnp.maximum(one[1], two[1])
    r1, r2 = jnp.exp(one[1] - _finite(m)), jnp.exp(two[1] - _finite(m))
    return one[0] * r1[..., None] + two[0] * r2[..., None], m, one[2] * r1 + two[2] * r2


def _errors(
    sight: Sight,
    q: Array,
    k: Array,
    v: Array,
    do: Array,
    lse: Array,
    d: Array | None,
    seen: Array | None,
    drawn: Array | None,
) -> tuple[Array, Array, Array]:
    """Passes 4 to 2 of one tile, backwards: what it adds to `(dq, dk, dv)`.

    Scores lie keys first here, `[..., K, s, G, t]`: then two of the three products that come back read
    their rows in order, and only one has to be turned. An entry that is not seen is cut off after `p`
    and after `ds`: neither a lost row (`lse` NaN) nor a large `v_j` gets through where nothing is seen.
    `s - lse` is at most 0, which rounding forgets where scores are huge. A tile that is all there is has
    no `d`: there `D_i` is the sum over its keys, which is 0 to the last digit where one `p` is 1.
    """
    scale, dtype = 1 / math.sqrt(q.shape[-1]), q.dtype
    s = _einsum("...ksd,...kgtd->...ksgt", k, q) * scale
    seen = None if seen is None else jnp.broadcast_to(_keys_first(seen), s.shape)
    drawn = None if drawn is None else _keys_first(drawn)
    p = jnp.exp(jnp.minimum(s - jnp.expand_dims(lse, -3), 0))
    p = p if seen is None else jnp.where(seen, p, 0)
    # 4: o = p̃ v
    dp = _einsum("...ksd,...kgtd->...ksgt", v, do)
    dp = dp if drawn is None else _drop(sight, dp, drawn)
    read = (p if drawn is None else _drop(sight, p, drawn)).astype(dtype)
    dv = _einsum("...ksgt,...kgtd->...ksd", read, do)
    # 3: p = softmax(s)
    d = jnp.sum(dp * p, axis=-3, keepdims=True) if d is None else jnp.expand_dims(d, -3)
    ds = p * (dp - d) * scale
    ds = (ds if seen is None else jnp.where(seen, ds, 0)).astype(dtype)
    # 2: s = q kᵀ / √D
    dq = _einsum("...ksgt,...ksd->...kgtd", ds, k)
    dk = _einsum("...ksgt,...kgtd->...ksd", ds, q)
    return dq, dk, dv


class _Look:
    """What a tile at `(i, j)` looks at: rows and columns of arrays, the mask and the drawn pattern."""

    def __init__(
        self, sight: Sight, tiles: Tiles, mask: Array | None, key: Array | None, lead: tuple[int, ...]
    ):
        self.sight, self.tiles, self.key, self.lead = sight, tiles, key, lead
        if mask is not None and not tiles.one:
            mask = tiles.pad_keys(mask, -1)
            mask = tiles.pad_queries(mask) if mask.shape[-2] > 1 else mask
        self.mask = mask

    def rows(self, a: Array, i: Array | int, axis: int = -2) -> Array:
        return jax.lax.dynamic_slice_in_dim(a, i, self.tiles.rows, a.ndim + axis)

    def columns(self, a: Array, j: Array | int, axis: int = -2) -> Array:
        return jax.lax.dynamic_slice_in_dim(a, j, self.tiles.columns, a.ndim + axis)

    def put(self, a: Array, part: Array, at: Array | int, axis: int = -2) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(a, part, at, a.ndim + axis)

    def seen(self, i: Array | int, j: Array | int) -> Array | None:
        """`[..., 1, 1, 1 or t, s]` → broadcast to the scores' shape; `None` if all is seen."""
        tiles, mask = self.tiles, self.mask
        shape = (*self.lead, tiles.rows, tiles.columns)
        keys = j + jnp.arange(tiles.columns, dtype=jnp.int32)
        seen = self.sight.seen(i + jnp.arange(tiles.rows, dtype=jnp.int32), keys)
        if not tiles.one and tiles.keys % tiles.columns and mask is None:  # a mask was padded with False
            exists = jnp.broadcast_to(keys < tiles.keys, shape[-2:])
            seen = exists if seen is None else seen & exists
        seen = None if seen is None else jnp.broadcast_to(seen, shape)
        if mask is None:
            return seen
        if not tiles.one:
            mask = self.columns(mask, j, -1)
            mask = self.rows(mask, i) if mask.shape[-2] > 1 else mask
        mask = jnp.broadcast_to(jnp.expand_dims(mask, (-3, -4)), shape)
        return mask if seen is None else mask & seen

    def drawn(self, i: Array | int, j: Array | int) -> Array | None:
        """Which entries of the tile dropout keeps: a function of the key and of where the tile is."""
        if self.key is None:
            return None
        tiles = self.tiles
        number = (i // tiles.rows) * -(-tiles.keys // tiles.columns) + j // tiles.columns
        shape = (*self.lead[-2:], tiles.rows, tiles.columns)

        def draw(key: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, number), 1 - self.sight.dropout, shape)

        for _ in self.lead[:-2]:
            draw = jax.vmap(draw)
        return draw(self.key)


def _drop(sight: Sight, p: Array, drawn: Array) -> Array:
    return jnp.where(drawn, p / (1 - sight.dropout), 0)


def _keys_first(a: Array) -> Array:
    """`[..., G, t, s] -> [..., s, G, t]`."""
    return jnp.moveaxis(a, -1, -3)


def _finite(m: Array) -> Array:
    """The maximum, or 0 where there was nothing to take one of."""
    return jnp.where(jnp.isfinite(m), m, 0)


def _einsum(formula: str, a: Array, b: Array) -> Array:
    return jnp.einsum(formula, a, b, preferred_element_type=wide(a.dtype))


def _even(length: int, block: int | None) -> int:
    """The length of a block if `length` is cut evenly into blocks of `block` at most."""
    if block is None or length <= block:
        return length
    size = -(-length // -(-length // block))
    return min(size + -size % 8, block)


def _pad(a: Array, length: int, axis: int, value: float) -> Array:
    missing = length - a.shape[axis]
    if not missing:
        return a
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, missing)
    return jnp.pad(a, widths, constant_values=value)
