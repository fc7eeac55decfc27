"""How the loss curves, as far as the predictions curve it: the generalized Gauss-Newton matrix.

With `J_n` the derivative of example `n`'s predictions by the parameters, and `H_n = S_n S_nᵀ` the Hessian
of its loss by its predictions,

    G = Σ_n J_nᵀ H_n J_n = Σ_n Σ_c g_nc g_ncᵀ        g_nc = J_nᵀ s_nc,  s_nc a column of S_n

and `J_nᵀ s` is what a walk makes of an error `s`. So `G` is made of the same "gradients of examples" as
`book.py`, for every column once: as many walks as an example has predicted numbers. In place of all
columns, `S_n v` with random signs `v` will do: `E[v vᵀ] = I`, so that `E[(S_n v)(S_n v)ᵀ] = H_n`. (The
error of a label drawn from the model is another such vector. Of a class of small probability `p`, its
square has a variance of about `p`, that of random signs one of about `p²`.) `G` is the Hessian where the
predictions are linear in the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.book import (
    each_copy,
    mapped,
    parts_of,
    require_not_deferred,
    require_own_losses,
    require_separate,
    walk_back,
)
from jaxbp.beyond.outer import Factors, in_pieces, means, outer_products_of
from jaxbp.beyond.squares import by_group, products_of_rows, rows_of, summed_by_id
from jaxbp.layer import Eval, InputError, Layer, Mode, Part, PyTree, add_errors, rebuild, require_whole
from jaxbp.losses import Loss
from jaxbp.losses.base import share
from jaxbp.precision import wide

# how many columns a kind takes: so many random ones, all, or none but the targets' own
COLUMNS = {"sampled": lambda samples: samples, "exact": lambda _: None, "empirical": lambda _: 0}


def ggn_diagonal(net: Layer, loss: Loss, samples: int | None = None) -> Callable[..., PyTree]:
    """`fn(params, x, y, mode=Eval(), key=None) -> tree`: the diagonal of `G`, shaped like the parameters.

        diag G = Σ_n Σ_c g_nc²

    Exact, with one walk for every number that an example predicts (of a sequence: positions × classes;
    under a softmax one class less, for a shift of all logits changes nothing),
    or with `samples` walks from random signs of `key`: without bias, and with a variance that falls as
    `1/samples`. Squares are taken in float32 at least, and are 0 for what is not trainable. Of a layer
    that sees one row an example, `Σ_n x_ni² δ_no²` is one product; elsewhere a layer's gradients of
    examples are made, one layer at a time.

    Raises `InputError` as `record` does for a `BatchNorm` in training and a deferred head, for a loss
    without `hessian_root`, and for `samples` without a `key`. Sources: Schraudolph 2002; Dangel et al.
    2020 (BackPACK).
    """
    if samples is not None:
        require_whole("ggn_diagonal", samples=samples)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval(), key: Any = None) -> PyTree:
        require_separate(net, mode)
        diagonal = over_columns(net, loss, samples, _squares, params, x, y, mode, key)
        mask = net.trainable(params)
        return jax.tree.map(lambda d, yes: d if yes else jnp.zeros_like(d), diagonal, mask)

    def _squares(params: PyTree, parts: list[Part]) -> PyTree:
        return rebuild(net, params, [squares_of(part, parts) for part in parts])

    return fn


def kronecker_factors(
    net: Layer, loss: Loss, kind: str = "sampled", samples: int = 1
) -> Callable[..., dict[str, Factors]]:
    """`fn(params, x, y, mode=Eval(), key=None) -> {"layers[0].w": Factors, …}`, layer by layer.

    For every parameter whose gradient is one product, `Σ_rows x δᵀ` (`products`, or `rows` of a table,
    where `x` is 1 at one entry; the rows of the sum are examples and positions), its block of `G` as if
    what a row sees and the error there had nothing to do with each other, nor two rows with one another:

        Σ_n Σ_c (Σ_t x_nt ⊗ δ_ntc)(…)ᵀ  ≈  left ⊗ right
        left  = mean over rows of x xᵀ              right = Σ over columns and rows of δ δᵀ

    `kind` says which columns: `"sampled"` takes random signs of `key`, `samples` times (KFAC, unbiased),
    `"exact"` all (KFLR), and `"empirical"` the error of the targets themselves, which is no curvature.
    Weight and bias are blocks of their own; a shared weight has one in each of its places; copies in a
    `Stack` are leading axes. Exact for one row an example where the errors are the same for every
    example, as in a linear network with squared error. In float32 at least.

    Errors as in `ggn_diagonal`; `"empirical"` also refuses a mean over labels that are not ignored.
    Sources: Martens and Grosse 2015; Botev et al. 2017 (KFLR); Eschenhagen et al. 2023 ("expand").
    """
    require_kind("kronecker_factors", kind, samples)
    measured = in_pieces(outer_products_of) if single_column(kind, samples) else outer_products_of

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval(), key: Any = None) -> dict[str, Factors]:
        require_separate(net, mode)
        sums = over_columns(net, loss, COLUMNS[kind](samples), _products, params, x, y, mode, key)
        return {name: means(*found) for name, found in sums.items()}

    def _products(params: PyTree, parts: list[Part]) -> dict[str, Any]:
        found = {}
        for part in parts:
            for name, value in mapped(measured, part).items():
                found[f"{part.path}.{name}" if part.path else name] = value
        return found

    return fn


def require_kind(what: str, kind: str, samples: int) -> None:
    """Raise `InputError` for a kind that is not there, and for no samples."""
    if kind not in COLUMNS:
        raise InputError(f"{what}: expected a kind of {', '.join(COLUMNS)}, got {kind!r}")
    require_whole(what, samples=samples)


def single_column(kind: str, samples: int) -> bool:
    """Whether one walk is all there is."""
    return COLUMNS[kind](samples) in (0, 1)


def over_columns(
    net: Layer,
    loss: Loss,
    samples: int | None,
    measure: Callable[[PyTree, list[Part]], PyTree],
    params: PyTree,
    x: PyTree,
    y: Any,
    mode: Mode,
    key: Any,
) -> PyTree:
    """`measure(params, parts)` of the walk of every column, added up: of all columns, or of `samples`.

    With `samples = 0`, of the one column that the targets themselves make.
    """
    require_not_deferred(net)
    prediction, saved = net.forward(params, x, mode)
    if prediction.ndim < 2:
        raise InputError(
            f"expected predictions [examples, …, outputs], got shape {list(prediction.shape)}"
        )
    _, kept = loss.forward(prediction, y)

    def one(error: Array) -> PyTree:
        gathered = walk_back(net, params, saved, error.astype(prediction.dtype))
        return measure(params, parts_of(net, params, saved, gathered))

    if samples == 0:
        require_own_losses(loss)
        weight = share(getattr(loss, "reduction", "sum"), prediction.shape[:-1])
        return one(loss.backward(kept) / sqrt(weight))
    column, count = _columns(prediction, samples, key, loss.root_kernel(kept))

    def step(sums: PyTree, i: Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, one(loss.hessian_root(kept, column(i)))), None

    if count == 1:
        return one(loss.hessian_root(kept, column(jnp.int32(0))))
    turns = jnp.arange(count, dtype=jnp.int32)
    shapes = jax.eval_shape(lambda i: one(loss.hessian_root(kept, column(i))), turns[0])
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(step, zeros, turns)[0]


def _columns(
    prediction: Array, samples: int | None, key: Any, kernel: Array | None
) -> tuple[Callable[[Array], Array], int]:
    """`v` of `S v` by its number, and how many there are: a basis of what an entry is, or random signs.

    The basis is of unit vectors. Where `S u = 0` (`Loss.root_kernel`), it is turned so that `-u` takes
    the place of the last of each row, `e_L`, which then makes nothing and is left out:

        v_c = e_c - u_c (u + e_L) / (1 + u_L)        a mirror image, so orthonormal (Householder)
    """
    shape, dtype = prediction.shape, wide(prediction.dtype)
    if samples is None:
        size = prod(shape[1:])
        if kernel is None or shape[-1] == 1:
            return partial(_unit, shape=shape, dtype=dtype), size
        u, kept = kernel.astype(dtype), shape[-1] - 1
        mirror = u.at[..., -1].add(1)
        rows = size // shape[-1]

        def turned(i: Array) -> Array:
            unit = _unit(i // kept * shape[-1] + i % kept, shape, dtype)
            own = jnp.sum(unit * u, axis=-1, keepdims=True)  # u_c in its row, 0 in all others
            return unit - own * mirror / mirror[..., -1:]

        return turned, rows * kept
    if key is None:
        raise InputError("random signs need a key: fn(params, x, y, key=jax.random.key(0))")

    def signs(i: Array) -> Array:
        return jax.random.rademacher(jax.random.fold_in(key, i), shape, dtype) / sqrt(samples)

    return signs, samples


def _unit(i: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A 1 at entry `i` of every example's prediction."""
    one = jnp.zeros(prod(shape[1:]), dtype).at[i].set(1)
    return jnp.broadcast_to(one.reshape(1, *shape[1:]), shape)


def squares_of(part: Part, parts: list[Part]) -> PyTree:
    """`Σ_n g_n²` of one part, shaped like its parameters; of a shared weight all its places together."""
    if part.shared:
        return ()
    places = [part, *(p for p in parts if p.shared and p.at == part.at)]
    arrays = [(p.params, p.saved, p.gathered) for p in places]
    return each_copy(
        lambda own: _sum_of_squares([p.layer for p in places], own), arrays, len(part.copies)
    )


def _sum_of_squares(layers: list[Layer], arrays: list[Any]) -> PyTree:
    params = arrays[0][0]
    if not jax.tree.leaves(params):
        return params
    known = {}
    if len(layers) == 1:
        found = layers[0].products(*arrays[0])
        known = {k: _product_squares(*v).reshape(params[k].shape) for k, v in found.items()}
        known |= {k: _row_squares(*v, len(params[k])) for k, v in layers[0].rows(*arrays[0]).items()}
        if known.keys() == (params.keys() if isinstance(params, dict) else None):
            return known
    each = add_errors(*(layer.gradient_of_each(*own) for layer, own in zip(layers, arrays, strict=True)))
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g.astype(wide(g.dtype))), axis=0), each)
    return {**squares, **known} if known else squares


def _product_squares(
    seen: Float[Array, "n *positions i"] | None, error: Float[Array, "n *positions o"], groups: int = 1
) -> Array:
    """`Σ_n (Σ_t x_nt δ_ntᵀ)²` entry by entry; with one row, `Σ_n x_ni² δ_no²` is one product."""
    if seen is not None and groups > 1:
        return jnp.moveaxis(by_group(_product_squares, seen, error, groups), 0, -2)
    d = rows_of(error).astype(wide(error.dtype))
    if seen is None:
        return jnp.sum(jnp.square(jnp.sum(d, axis=1)), axis=0)
    x = rows_of(seen).astype(d.dtype)
    if x.shape[1] == 1:
        return jnp.square(x[:, 0]).T @ jnp.square(d[:, 0])
    squares = jnp.sum(jnp.square(products_of_rows(x, d)), axis=0)
    return squares.T if d.shape[2] < x.shape[2] else squares


def _row_squares(ids: Array, error: Array, size: int) -> Array:
    """`Σ_n (Σ_t [id_nt = k] δ_nt)²` of a table of `size` rows."""
    names, sums = summed_by_id(ids, error)
    table = jnp.zeros((size, sums.shape[-1]), sums.dtype)
    return table.at[names.reshape(-1)].add(jnp.square(sums).reshape(-1, sums.shape[-1]), mode="drop")
