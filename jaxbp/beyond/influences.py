"""What one example of the training data did to the loss of another.

At a minimum of `Σ_n L_n + λ/2 ‖w‖²`, leaving example `n` out moves the weights by about `H⁻¹ g_n`, and
the loss of a query `q` by `g_qᵀ H⁻¹ g_n`. For `H` stands `G + λ I`, `G` by its Kronecker factors (or its
diagonal). With eigenvectors and values, `A = V a Vᵀ` and `B = W b Wᵀ`, a gradient is made white:

    u = (Vᵀ g W) / √(a ⊗ b + λ)        g_qᵀ (A ⊗ B + λ I)⁻¹ g_n = ⟨u_q, u_n⟩
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.book import Book
from jaxbp.beyond.curvature import Factors
from jaxbp.beyond.squares import added
from jaxbp.layer import InputError, Layer, PyTree, require_positive, walk

Curvature = dict[str, Factors] | PyTree
"""What `kronecker_factors` returns, or `ggn_diagonal`."""


def influence(
    factors: Curvature | Callable[[PyTree], PyTree], queries: Book, train: Book, damping: float = 1e-3
) -> Float[Array, "queries examples"]:
    """`g_qᵀ (G + λ I)⁻¹ g_n`: by how much the loss of query `q` rises when example `n` is left out.

    `factors` are those of `kronecker_factors(net, loss)` over the training data (a parameter without
    factors counts nothing), or its `ggn_diagonal`; or a function `v -> (G + λ I)⁻¹ v` of trees like the
    parameters, such as conjugate gradients with `ggnvp`. `queries` and `train` are books (`record`) of
    losses at the same parameters, of which every `g` is that of an example's own loss. Where `G` is that
    of a *mean* over `N` examples, divide by `N`. `λ` is in units of `G`, a weight decay among it.

    `influence(factors, book, book).diagonal()` is self-influence: large for what only its own label
    explains, as a wrong one. Sources: Koh and Liang 2017; Grosse et al. 2023.
    """
    if queries.net != train.net:
        raise InputError("influence: expected two books of one network")
    if callable(factors):
        solved = jax.vmap(factors)(queries.gradients())
        trees = (solved, train.gradients())
        pairs = zip(*(train.trainable(tree) for tree in trees), strict=True)
        return added([a.reshape(len(a), -1) @ b.reshape(len(b), -1).T for a, b in pairs])
    require_positive(damping, "influence: damping")
    spread = whitening(train.net, factors, damping)
    u = spread(queries.gradients())
    v = u if queries is train else spread(train.gradients())
    return added([a @ b.T for a, b in zip(u, v, strict=True)])


def whitening(net: Layer, factors: Curvature, damping: Any) -> Callable[[PyTree], list[Array]]:
    """`fn(grads) -> [[n, size], …]`: gradients of `n` examples as `u`, block by block."""
    scales = dict(spectra(factors, damping))

    def one(grads: PyTree) -> list[Array]:
        if not is_kronecker(factors):
            pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(factors), strict=True)
            return [(g / jnp.sqrt(d + damping)).reshape(-1) for g, d in pairs]
        found = []
        for name, g, copies in named(net, grads):
            if name in scales:
                v, w, root = scales[name]
                inside = matrix(g, factors[name], copies).astype(w.dtype) @ w
                found.append((turned(v, inside, back=True) / root).reshape(-1))
        return found

    return jax.vmap(one)


def spectra(factors: Curvature, damping: Any) -> Iterator[tuple[str, tuple[Any, Array, Array]]]:
    """`(name, (V, W, √(a ⊗ b + λ)))` of every block; `V` is `None` where `A` is a diagonal."""
    if not is_kronecker(factors):
        return
    for name, f in factors.items():
        b, w = jnp.linalg.eigh(f.right)
        a, v = (f.left, None) if f.left.ndim < f.right.ndim else jnp.linalg.eigh(f.left)
        values = jnp.maximum(a, 0)[..., :, None] * jnp.maximum(b, 0)[..., None, :]
        yield name, (v, w, jnp.sqrt(values + damping))


def is_kronecker(factors: Any) -> bool:
    return isinstance(factors, dict) and all(isinstance(f, Factors) for f in factors.values())


def turned(v: Array | None, g: Array, back: bool = False) -> Array:
    """`V g`, or `Vᵀ g`; `g` where there is no `V`."""
    return g if v is None else (jnp.swapaxes(v, -1, -2) if back else v) @ g


def matrix(g: Array, f: Factors, copies: int) -> Array:
    """A parameter's array `[*copies, …]` as `[*copies, *groups, i, o]`."""
    blocks, i, o = f.right.shape[:-2], f.left.shape[-1], f.right.shape[-1]
    groups = blocks[copies:]  # of a convolution, in the columns of its kernel
    m = g.reshape(*blocks[:copies], i, *groups, o)
    return jnp.moveaxis(m, -3, -2) if groups else m


def unmatrix(m: Array, shape: tuple[int, ...], groups: bool) -> Array:
    """The inverse of `matrix`, for an array of `shape`."""
    return (jnp.moveaxis(m, -2, -3) if groups else m).reshape(shape)


def named(net: Layer, tree: PyTree) -> Iterator[tuple[str, Array, int]]:
    """`(name, array, depth of its copies)` of every parameter, named as by `kronecker_factors`.

    A shared one stands under its owner's name, alone.
    """
    for part in walk(net, tree):
        if not part.shared and isinstance(part.params, dict):
            for name, g in part.params.items():
                yield (f"{part.path}.{name}" if part.path else name), g, len(part.copies)
