"""What single examples contribute to a gradient that is a sum over them: norms, and sums of squares.

Letters: `n` example, `t` and `s` rows of one example (positions; one row where there are none), `i`
entries seen, `o` entries of the error. A matrix gradient is `g_n = Σ_t x_nt δ_ntᵀ`, a bias's `Σ_t δ_nt`.
"""

from __future__ import annotations

from math import prod

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.precision import wide


def rows(a: Array) -> Array:
    """`[n, *positions, features] -> [n, t, features]`."""
    return a.reshape(a.shape[0], prod(a.shape[1:-1]), a.shape[-1])


def product_square_norms(
    seen: Float[Array, "n *positions i"], error: Float[Array, "n *positions o"]
) -> Float[Array, "n"]:
    """`‖Σ_t x_nt δ_ntᵀ‖²` without the gradients themselves, where that is cheaper.

    One row: `‖x δᵀ‖² = ‖x‖² ‖δ‖²`. Several: the square of a sum is the sum over all pairs of rows,

        ‖Σ_t x_t δ_tᵀ‖² = Σ_ts ⟨x_t, x_s⟩ ⟨δ_t, δ_s⟩        t² (i + o) products instead of t i o

    so the pairs are taken where `t (i + o) ≤ i o`, else the product. Sums run in float32 at least.
    """
    x, d = rows(seen), rows(error)
    dtype = wide(x.dtype)
    t, i, o = x.shape[1], x.shape[2], d.shape[2]
    if t == 1:
        return _squares(x, dtype) * _squares(d, dtype)
    if t * (i + o) <= i * o:
        near = jnp.einsum("nti,nsi->nts", x, x, preferred_element_type=dtype)
        far = jnp.einsum("nto,nso->nts", d, d, preferred_element_type=dtype)
        return jnp.sum(near * far, axis=(1, 2))
    return _squares(jnp.einsum("nti,nto->nio", x, d, preferred_element_type=dtype), dtype)


def sum_square_norms(error: Float[Array, "n *positions o"]) -> Float[Array, "n"]:
    """`‖Σ_t δ_nt‖²`: a bias meets a 1 at every row."""
    dtype = wide(error.dtype)
    return _squares(jnp.sum(rows(error), axis=1, dtype=dtype), dtype)


def row_square_norms(ids: Array, error: Float[Array, "n *positions o"]) -> Float[Array, "n"]:
    """`‖g_n‖²` of a table whose row `id_nt` gets `δ_nt`: `Σ_ts [id_t = id_s] ⟨δ_t, δ_s⟩`.

    The rows are sorted by id, and those of one id added up: `t o` of memory, whatever the table's size.
    """
    d, names = rows(error), ids.reshape(ids.shape[0], -1)
    dtype = wide(d.dtype)
    order = jnp.argsort(names, axis=1, stable=True)
    sorted_ids = jnp.take_along_axis(names, order, axis=1)
    sorted_rows = jnp.take_along_axis(d.astype(dtype), order[..., None], axis=1)
    new = jnp.concatenate(
        [jnp.zeros_like(sorted_ids[:, :1], bool), sorted_ids[:, 1:] != sorted_ids[:, :-1]], axis=1
    )
    place = jnp.cumsum(new.astype(jnp.int32), axis=1)  # the how-manieth different id a row has
    example = jnp.broadcast_to(jnp.arange(d.shape[0])[:, None], place.shape)
    sums = jnp.zeros(sorted_rows.shape, dtype).at[example, place].add(sorted_rows)
    return _squares(sums, dtype)


def _squares(a: Array, dtype: object) -> Array:
    a = a.astype(dtype)
    return jnp.sum(a * a, axis=tuple(range(1, a.ndim)))
