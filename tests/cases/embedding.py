import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import Chain, Dense, Embedding, Head, PositionEmbedding, Stack, Tanh, Tied
from tests.proof import Case


def ids(*shape, size=7, dtype="int32"):
    def drawn(key, _):
        return jnp.asarray(np.random.default_rng(key).integers(0, size, shape, dtype=dtype))

    return drawn


def repeated(key, _):
    return jnp.full((2, 3), 4, jnp.int32)


def table(size=7, features=5):
    """The table in the dtype of the case: ids have none, so `init` would make float32."""

    def params(key, dtype):
        return {"w": jax.random.normal(jax.random.key(key), (size, features), jnp.dtype(dtype))}

    return params


EMBEDDING = [
    Case(Embedding(7, 5), ids(2, 3), params=table()),
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
]

POSITION = [
    case
    for kind in ("learned", "sinusoidal", "rotary")
    for case in (
        Case(PositionEmbedding(kind, 9), (2, 3, 4)),
        Case(PositionEmbedding(kind, 9), (1, 3, 4), note="batch-1"),
        Case(PositionEmbedding(kind, 9), (2, 1, 4), note="length-1"),
        Case(PositionEmbedding(kind, 9), (3, 4), note="no-batch"),
        Case(PositionEmbedding(kind, 9), (2, 2, 3, 4), note="two-batch-axes"),
        Case(PositionEmbedding(kind, 9), (2, 9, 2), note="full-length"),
        Case(PositionEmbedding(kind, 9), (2, 3, 4), scale=1e-4),
        Case(PositionEmbedding(kind, 9), (2, 3, 4), scale=1e4),
    )
]

HEAD = [
    case
    for deferred in (False, True)
    for case in (
        Case(Head(7, deferred), (2, 3, 4)),
        Case(Head(7, deferred), (1, 4), note="batch-1"),
        Case(Head(7, deferred), (2, 1, 4), note="length-1"),
        Case(Head(1, deferred), (2, 3, 1), note="one-by-one"),
        Case(Head(7, deferred), (2, 3, 4), scale=1e-4),
        Case(Head(7, deferred), (2, 3, 4), scale=1e4),
    )
]


def tied_params(layer):
    """`init`'s parameters in the dtype of the case."""

    def params(key, dtype):
        made = layer.init(jax.random.key(key), ids(2, 3)(key, dtype))
        return jax.tree.map(lambda p: (p + 0.1).astype(dtype), made)

    return params


def tied(layer, x=None, depth=4, note="", **fields):
    return Case(layer, x or ids(2, 3), params=tied_params(layer), depth=depth, note=note, **fields)


TIED = [
    tied(Tied(Embedding(7, 4), Head(7))),
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
    tied(Chain(Tied(Embedding(7, 4), Head(7)), Tanh())),
]
CASES = [*EMBEDDING, *POSITION, *HEAD, *TIED]
