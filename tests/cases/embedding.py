import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import Chain, Dense, Embedding, Head, PositionEmbedding, Stack, Tanh, Tied
from tests.proof import Case, further, normal


def ids(*shape, size=7, dtype="int32"):
    def drawn(key, _):
        return jnp.asarray(np.random.default_rng(key).integers(0, size, shape, dtype=dtype))

    return drawn


def repeated(key, _):
    return jnp.full((2, 3), 4, jnp.int32)


def table(size=7, features=5, scale=1.0):
    """The table in the dtype of the case: ids have none, so `init` would make float32."""

    def params(key, dtype):
        return {"w": normal(key, (size, features), dtype, scale)}

    return params


EMBEDDING = [
    Case(Embedding(7, 5), ids(2, 3), params=table()),
    *further(
        Case(Embedding(7, 5), ids(2, 3), note="from-init"),
        Case(Embedding(7, 5), ids(), params=table(), note="one-id"),
        Case(Embedding(7, 5), ids(4), params=table(), note="no-time"),
        Case(Embedding(7, 5), ids(1, 3), params=table(), note="batch-1"),
        Case(Embedding(7, 5), ids(2, 1), params=table(), note="length-1"),
        Case(Embedding(7, 5), ids(2, 3, 4), params=table(), note="three-axes"),
        Case(Embedding(7, 5), ids(2, 3, dtype="uint8"), params=table(), note="uint8"),
        Case(Embedding(7, 5), ids(2, 3, dtype="int64"), params=table(), note="int64"),
        Case(Embedding(300, 5), ids(2, 3, dtype="int8"), params=table(300), note="more-rows-than-int8"),
        Case(Embedding(7, 5), repeated, params=table()),
        Case(Embedding(1, 5), ids(2, 3, size=1), params=table(1)),
        Case(Embedding(7, 1), ids(2, 3), params=table(7, 1)),
        Case(Embedding(3, 5), ids(64, 2, size=3), params=table(3), note="many-of-a-row"),
        Case(Embedding(7, 5), ids(2, 3), params=table(scale=1e-4), note="*1e-4"),
        Case(Embedding(7, 5), ids(2, 3), params=table(scale=1e4), note="*1e4"),
        Case(Embedding(7, 5), ids(0, 3), params=table(), note="empty-batch"),
    ),
]

POSITION = [
    case
    for kind in ("learned", "sinusoidal", "rotary")
    for case in (
        Case(PositionEmbedding(kind, 9), (2, 3, 4)),
        *further(
            Case(PositionEmbedding(kind, 9), (1, 3, 4), note="batch-1"),
            Case(PositionEmbedding(kind, 9), (2, 1, 4), note="length-1"),
            Case(PositionEmbedding(kind, 9), (3, 4), note="no-batch"),
            Case(PositionEmbedding(kind, 9), (2, 2, 3, 4), note="two-batch-axes"),
            Case(PositionEmbedding(kind, 9), (2, 9, 2), note="full-length"),
            Case(PositionEmbedding(kind, 9), (2, 3, 4), scale=1e-4),
            Case(PositionEmbedding(kind, 9), (2, 3, 4), scale=1e4),
            Case(Stack(PositionEmbedding(kind, 9), 2), (2, 3, 4), depth=2),
        ),
    )
]

HEAD = [
    case
    for deferred in (False, True)
    for case in (
        Case(Head(7, deferred), (2, 3, 4)),
        *further(
            Case(Head(7, deferred), (1, 4), note="batch-1"),
            Case(Head(7, deferred), (2, 1, 4), note="length-1"),
            Case(Head(1, deferred), (2, 3, 1), note="one-by-one"),
            Case(Head(7, deferred), (2, 3, 4), scale=1e-4),
            Case(Head(7, deferred), (2, 3, 4), scale=1e4),
            Case(Head(7, deferred), (4,), note="no-batch"),
            *([] if deferred else [Case(Stack(Head(4), 2), (2, 3, 4), depth=2)]),
        ),
    )
]


def tied_params(layer):
    """Parameters in the dtype of the case."""

    def params(key, dtype):
        shapes = jax.eval_shape(layer.init, jax.random.key(0), ids(2, 3)(key, dtype))
        leaves, structure = jax.tree.flatten(shapes)
        drawn = [normal(key + i, leaf.shape, dtype, 0.4) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, drawn)

    return params


def tied(layer, x=None, depth=4, note="", **fields):
    return Case(layer, x or ids(2, 3), params=tied_params(layer), depth=depth, note=note, **fields)


TIED = [
    tied(Tied(Embedding(7, 4), Head(7))),
    *further(
        tied(Tied(Embedding(7, 4), Head(7, deferred=True))),
        tied(Tied(Embedding(7, 4), Tanh(), Head(7))),
        tied(Tied(Embedding(7, 4), Dense(4), Tanh(), Head(7))),
        tied(Tied(Embedding(7, 4), Dense(4), Tanh(), Head(7, deferred=True))),
        tied(Tied(Embedding(7, 4), PositionEmbedding("learned", 5), Head(7))),
        tied(Tied(Embedding(7, 4), PositionEmbedding("rotary"), Head(7))),
        tied(Tied(Embedding(7, 4), Stack(Chain(Dense(4), Tanh()), 2), Head(7)), depth=8),
        tied(Tied(Embedding(7, 4), Tanh(), Head(7)), ids(1, 3), note="batch-1"),
        tied(Tied(Embedding(7, 4), Tanh(), Head(7)), ids(2, 1), note="length-1"),
        tied(Tied(Embedding(7, 4), Tanh(), Head(7)), ids(5), note="no-time"),
        tied(Tied(Embedding(1, 1), Head(1)), ids(2, 3, size=1)),
        tied(Tied(Embedding(7, 4), Tanh(), Head(7)), repeated),
        tied(Chain(Tied(Embedding(7, 4), Head(7)), Tanh())),
    ),
]
CASES = [*EMBEDDING, *POSITION, *HEAD, *TIED]
