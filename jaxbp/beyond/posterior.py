"""How sure a trained network may be of its weights: a Gaussian around them (Laplace's approximation).

With a prior `w ~ N(0, 1/τ)` and `N` examples, the negative log posterior curves at its minimum by
`N G + τ I`, `G` the curvature of the mean loss. So, block by block, with `G ≈ A ⊗ B`:

    w ~ N(w*, (N A ⊗ B + τ I)⁻¹)

The predictions are taken as linear in the weights, `f(w) ≈ f(w*) + J (w - w*)`, which makes them Gaussian
with covariance `J Σ Jᵀ`; and a softmax of Gaussian logits is about that of `f / √(1 + π/8 var f)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbp.beyond.book import Book, require_separate, walk_back
from jaxbp.beyond.influences import (
    Curvature,
    is_kronecker,
    named,
    spectra,
    turned,
    unmatrix,
    whitening,
)
from jaxbp.layer import Eval, InputError, Layer, PyTree, rebuild, require_positive, require_whole, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the parameters; see `laplace`."""

    params: PyTree
    factors: Curvature
    net: Layer = field(metadata={"static": True})
    ridge: float = field(metadata={"static": True})
    examples: int = field(metadata={"static": True})

    def sample(self, key: Any) -> PyTree:
        """Parameters drawn from it: `w* + V (ε / √(N a ⊗ b + τ)) Wᵀ`; those without factors stay."""
        count = self.examples**0.5
        if not is_kronecker(self.factors):
            leaves, structure = jax.tree.flatten(self.params)
            scales = [jnp.sqrt(d + self.ridge) for d in jax.tree.leaves(self.factors)]
            drawn = [
                p + jax.random.normal(jax.random.fold_in(key, i), p.shape, p.dtype) / (s * count)
                for i, (p, s) in enumerate(zip(leaves, scales, strict=True))
            ]
            return jax.tree.unflatten(structure, drawn)
        moves, arrays = {}, {name: (a, copies) for name, a, copies in named(self.net, self.params)}
        for i, (name, (v, w, root)) in enumerate(spectra(self.factors, self.ridge)):
            noise = jax.random.normal(jax.random.fold_in(key, i), root.shape, root.dtype)
            move = turned(v, noise / root) @ jnp.swapaxes(w, -1, -2) / count
            array, copies = arrays[name]
            groups = root.ndim - 2 > copies
            moves[name] = unmatrix(move, array.shape, groups)

        def moved(part: Any) -> PyTree:
            if part.shared or not isinstance(part.params, dict):
                return part.params
            names = {k: f"{part.path}.{k}" if part.path else k for k in part.params}
            return {
                k: p + moves[names[k]].astype(p.dtype) if names[k] in moves else p
                for k, p in part.params.items()
            }

        return rebuild(self.net, self.params, [moved(part) for part in walk(self.net, self.params)])

    def predict(self, x: PyTree) -> tuple[Float[Array, "n c"], Float[Array, "n c c"]]:
        """`(f, J Σ Jᵀ)` of every example: predictions and their covariance, by a walk an output."""
        prediction, saved = self.net.forward(self.params, x, Eval())
        if prediction.ndim != 2:
            raise InputError(
                f"laplace: expected predictions [examples, outputs], got {list(prediction.shape)}"
            )
        n, outputs = prediction.shape
        spread = whitening(self.net, self.factors, self.ridge)

        def column(c: Array) -> Array:
            error = jnp.zeros_like(prediction).at[:, c].set(1)
            deltas = walk_back(self.net, self.params, saved, error)
            value = jnp.zeros((), prediction.dtype)
            book = Book(self.params, saved, deltas, value, self.net, n, 1)
            return jnp.concatenate(spread(book.gradients()), axis=1)

        u = jax.lax.map(column, jnp.arange(outputs, dtype=jnp.int32))
        return prediction, jnp.einsum("cnk,dnk->ncd", u, u) / self.examples

    def probabilities(self, x: PyTree) -> Float[Array, "n c"]:
        """Of the classes, by the probit approximation: `softmax(f / √(1 + π/8 var f))` (MacKay 1992)."""
        f, covariance = self.predict(x)
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1).astype(f.dtype)
        return jax.nn.softmax(f / jnp.sqrt(1 + jnp.pi / 8 * variance), axis=-1)


def laplace(
    net: Layer, params: PyTree, factors: Curvature, examples: int, precision: float = 1.0
) -> Posterior:
    """The posterior over the parameters of a trained `net`, `N(w*, (N G + τ I)⁻¹)`.

    `factors` are `kronecker_factors(net, loss)` of a mean over the training data (or its `ggn_diagonal`),
    `examples` is `N`, `precision` is the prior's `τ`: `N` times the weight decay of a mean loss. For a
    loss that is a sum, give `examples=1`. A parameter without factors is taken as known.

    Sources: MacKay 1992; Ritter et al. 2018 (KFAC); Immer et al. 2021 (linearised predictions).
    """
    require_positive(precision, "laplace: precision")
    require_whole("laplace", examples=examples)
    require_separate(net, Eval())
    return Posterior(params, factors, net, precision / examples, examples)


def calibration(
    probabilities: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 15
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`(NLL, ECE)`: the mean `-log p` of the true labels, and how far confidence is from accuracy.

    Predictions fall into `bins` of equal width by their largest probability; `ECE` is the mean over
    predictions of `|accuracy - mean confidence|` of their bin. Source: Guo et al. 2017.
    """
    require_whole("calibration", bins=bins)
    p = probabilities
    own = jnp.take_along_axis(p, labels[:, None].astype(jnp.int32), axis=1)[:, 0]
    confidence, right = (
        jnp.max(p, axis=1),
        (jnp.argmax(p, axis=1).astype(jnp.int32) == labels.astype(jnp.int32)).astype(p.dtype),
    )
    which = jnp.clip((confidence * bins).astype(jnp.int32), 0, bins - 1)
    gaps = jnp.zeros(bins, p.dtype).at[which].add(right - confidence)
    return -jnp.mean(jnp.log(jnp.maximum(own, jnp.finfo(p.dtype).tiny))), jnp.sum(jnp.abs(gaps)) / len(p)
