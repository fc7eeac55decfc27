"""Quantity by layer: every layer with parameters, every quantity, and the table in the README.

Each layer alone, with an activation in front of the loss so that nothing is linear by accident. One
program makes all quantities; the references come from the Jacobian of the forward pass by autodiff.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxbp
from jaxbp import (
    GRU,
    LSTM,
    RNN,
    Attention,
    BatchNorm,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Embedding,
    GroupNorm,
    Head,
    LayerNorm,
    PositionEmbedding,
    RMSNorm,
    SquaredError,
    Tanh,
    beyond,
)
from jaxbp.layer import Layer
from tests.beyond.test_book import close, ids
from tests.proof import like, normal

LAYERS: dict[Layer, tuple[int, ...]] = {
    Dense(3): (5,),
    Conv(4, 2): (3, 3, 2),
    Conv(4, 2, groups=2): (3, 3, 2),
    ConvTranspose(2, 2, stride=2): (2, 2, 3),
    BatchNorm(): (5,),
    LayerNorm(): (3, 5),
    RMSNorm(): (3, 5),
    GroupNorm(2): (3, 4),
    Embedding(6, 3): (4,),
    PositionEmbedding("learned", 5): (4, 3),
    Head(7): (3, 4),
    Attention(2): (3, 4),
    RNN(3): (4, 2),
    GRU(3): (4, 2),
    LSTM(3): (4, 2),
}
N = 4
README = Path(jaxbp.__file__).parent / "beyond" / "README.md"


def problem(layer, shape):
    x = ids(1, (N, *shape), 6) if isinstance(layer, Embedding) else normal(1, (N, *shape), "float64")
    net = Chain(layer, Tanh())
    params = net.init(jax.random.key(0), x)

    def moved(path, p, d):
        p = p.astype("float64") + d.astype("float64")
        return jnp.abs(p) if path[-1] == jax.tree_util.DictKey("var") else p

    params = jax.tree_util.tree_map_with_path(moved, params, like(2, params, 0.4))
    y = jax.eval_shape(net, params, x)
    return net, params, x, normal(3, y.shape, "float64")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_quantity_of_every_layer(layer: Layer) -> None:
    loss = SquaredError("sum")
    net, params, x, y = problem(layer, LAYERS[layer])
    flat, back = ravel_pytree(params)
    v = like(5, params, 0.5)
    v = jax.tree.map(lambda d, yes: d.astype("float64") * float(yes), v, net.trainable(params))
    hvp, ggnvp = beyond.products(net, loss)

    def everything(params, x, y, v):
        norms = beyond.record(net, loss)(params, x, y).norms()
        diagonal = beyond.ggn_diagonal(net, loss)(params, x, y)
        return norms, ravel_pytree((diagonal, hvp(params, x, y, v), ggnvp(params, x, y, v)))[0]

    def reference(w, way):
        def f(w):
            return net.forward(back(w), x)[0].reshape(N, -1)

        j, prediction = jax.jacrev(f)(w), f(w)
        _, along = jax.jvp(jax.grad(lambda w: loss(f(w), y.reshape(N, -1))), (w,), (way,))
        return j, prediction, along

    norms, others = jax.jit(everything)(params, x, y, v)
    diagonal, second, curvature = np.asarray(others).reshape(3, -1)
    way = ravel_pytree(v)[0]
    j, prediction, along = (np.asarray(a) for a in jax.jit(reference)(flat, way))
    mask = ravel_pytree(
        jax.tree.map(lambda yes, p: jnp.full(p.shape, yes, p.dtype), net.trainable(params), params)
    )[0]
    mask = np.asarray(mask)
    each = np.einsum("nci,nc->ni", j, 2 * (prediction - np.asarray(y).reshape(N, -1)))
    close(norms, np.linalg.norm(each * mask, axis=1))
    close(diagonal, 2 * (j**2).sum((0, 1)) * mask)
    close(second * mask, along * mask)
    rows = j.reshape(-1, flat.size)
    close(curvature * mask, 2 * rows.T @ (rows @ np.asarray(way)) * mask)


def said(layer: Layer) -> list[str]:
    """A row of the table: what a layer says of its gradient, and what follows from it."""
    net, params, x, y = problem(layer, LAYERS[layer])
    book = beyond.record(net, SquaredError("sum"))(params, x, y)
    part = book.parts()[0]
    arrays = part.params, part.saved, part.gathered
    products, rows = layer.products(*arrays), layer.rows(*arrays)
    mask = layer.trainable(part.params)
    rest = [name for name in part.params if mask[name] and name not in {*products, *rows}]
    ways = {"products": products, "rows of a table": rows, "each example's gradient": rest}
    how = ", ".join(f"{way} ({', '.join(sorted(names))})" for way, names in ways.items() if names)
    factors = ", ".join(sorted({*products, *rows})) or "–"
    name = type(layer).__name__ + (", in groups" if layer == Conv(4, 2, groups=2) else "")
    return [name, how, "yes", factors, "yes"]


def test_the_table_in_the_readme() -> None:
    head = [
        "layer",
        "norms, weighted sums, clipping: from",
        "GGN diagonal",
        "Kronecker factors",
        "products",
    ]
    table = [head, ["---"] * 5, *(said(layer) for layer in LAYERS)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    assert text in README.read_text(), f"beyond/README.md should hold\n{text}"


def test_every_layer_with_parameters_is_in_the_table() -> None:
    public = (getattr(jaxbp, name) for name in jaxbp.__all__)
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, Layer) and k is not Layer}
    writes = {k for k in kinds if k.gradient is not Layer.gradient and k is not jaxbp.Auto}
    assert writes == {type(layer) for layer in LAYERS}
