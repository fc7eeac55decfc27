"""Other ways back: what each of them carries, against its formula written out with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    LSTM,
    Auto,
    Chain,
    Conv,
    Dense,
    Eval,
    Flatten,
    InputError,
    MaxPool,
    ReLU,
    Sigmoid,
    SoftmaxCrossEntropy,
    SquaredError,
    Stack,
    Tanh,
    beyond,
    value_and_grad,
)
from jaxbp.layer import map_leaves
from tests.beyond.test_book import close
from tests.proof import like, normal

KEY = jax.random.key(1)
X, DY = normal(1, (5, 4), "float64"), normal(2, (5, 3), "float64")


def drawn(net, x, scale=0.7):
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))
    moved = like(3, params, scale)
    return jax.tree.map(lambda p, d, yes: p + d.astype(p.dtype) if yes else p, params, moved,
                        net.trainable(params))  # fmt: skip


def affine(params):
    return np.asarray(X) @ np.asarray(params["w"]) + np.asarray(params["b"])


def test_feedback_alignment_sends_the_error_through_a_matrix_of_its_own() -> None:
    net = map_leaves(beyond.feedback_alignment, Chain(Dense(7), Tanh(), Dense(3, bias=False)))
    params = drawn(net, X)
    assert [sorted(p) for p in (params[0], params[2])] == [["b", "feedback", "w"], ["feedback", "w"]]
    assert params[2]["feedback"].shape == (3, 7)
    y, saved = net.forward(params, X)
    h = np.tanh(affine(params[0]))
    close(y, h @ params[2]["w"])
    grads, dx = jax.jit(net.backward)(params, saved, DY)
    delta = DY @ params[2]["feedback"] * (1 - h**2)
    close(dx, delta @ params[0]["feedback"])
    close(grads[2]["w"], h.T @ DY)
    close(grads[0]["w"], np.asarray(X).T @ delta)
    close(grads[0]["b"], delta.sum(0))
    close(grads[0]["feedback"], np.zeros((7, 4)))
    assert net.trainable(params)[0] == {"w": True, "b": True, "feedback": False}


def test_every_layer_has_feedback_of_its_own_and_weights_turn_towards_it() -> None:
    body = map_leaves(beyond.feedback_alignment, Chain(Dense(5), Tanh()))
    feedback = Stack(body, 3).init(KEY, normal(1, (2, 5), "float32"))[0]["feedback"]
    assert len({float(b[0, 0]) for b in feedback}) == 3
    net = map_leaves(beyond.feedback_alignment, Chain(Dense(8, bias=False), Dense(3, bias=False)))
    x = normal(5, (64, 4), "float64")
    y = x @ normal(6, (4, 3), "float64")
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))
    params = tuple({**p, "w": 0.1 * p["w"]} for p in params)  # or what they were at first remains
    step = jax.jit(value_and_grad(net, SquaredError()))

    def cosine(params):
        a, b = np.asarray(params[1]["w"]).T, np.asarray(params[1]["feedback"])
        return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)

    before, first = cosine(params), step(params, x, y)[0]
    assert abs(before) < 0.3
    for _ in range(300):
        value, grads = step(params, x, y)
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)
    assert value < 0.01 * first
    assert cosine(params) > 0.6


def test_norms_of_examples_follow_the_rule() -> None:
    net = map_leaves(beyond.feedback_alignment, Chain(Dense(7), Tanh(), Dense(3)))
    params = drawn(net, X)
    book = beyond.record(net, SquaredError("sum"))(params, X, DY)
    each = book.gradients()
    flat = np.concatenate([np.reshape(g, (5, -1)) for g in jax.tree.leaves(each)], axis=1)
    close(book.norms(), np.linalg.norm(flat, axis=1))


def test_guided_backpropagation_follows_paths_that_are_open_and_speak_for_the_output() -> None:
    net = map_leaves(beyond.guided, Chain(Dense(6), ReLU(), Dense(3)))
    assert repr(net) == "Chain(Dense(6), GuidedReLU(), Dense(3))"
    params = drawn(net, X)
    _, saved = net.forward(params, X)
    _, dx = net.backward(params, saved, DY)
    h = np.maximum(affine(params[0]), 0)
    d = np.asarray(DY @ params[2]["w"].T)
    assert ((d < 0) & (h > 0)).any()
    close(dx, np.where((h > 0) & (d > 0), d, 0) @ np.asarray(params[0]["w"]).T)


def rounded(params, x):
    return jnp.round(x)


def test_straight_through_a_function_or_a_layer() -> None:
    net = Chain(Dense(3), beyond.StraightThrough(Auto(rounded)))
    params = drawn(net, X)
    y, saved = net.forward(params, X)
    a = affine(params[0])
    close(y, np.round(a))
    grads, dx = jax.jit(net.backward)(params, saved, DY)
    close(dx, DY @ params[0]["w"].T)
    close(grads[0]["w"], X.T @ DY)
    inner = beyond.StraightThrough(Dense(4))  # the body's own weights still learn
    params = drawn(inner, X)
    _, saved = inner.forward(params, X)
    dy = normal(8, (5, 4), "float64")
    grads, dx = inner.backward(params, saved, dy)
    close(dx, dy)
    close(grads["w"], X.T @ dy)
    close(beyond.record(inner, SquaredError("sum"))(params, X, dy).weighted(jnp.ones(5))["w"],
          X.T @ (2 * (inner(params, X) - dy)))  # fmt: skip
    with pytest.raises(InputError, match="StraightThrough > the body must keep the shape"):
        beyond.StraightThrough(Dense(3)).init(KEY, X) and beyond.StraightThrough(Dense(3)).forward(
            drawn(Dense(3), X), X
        )


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        ("fast_sigmoid", lambda u: 1 / (1 + abs(u)) ** 2),
        ("triangle", lambda u: np.maximum(1 - abs(u), 0)),
        ("box", lambda u: (abs(u) < 0.5) * 1.0),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_step_with_a_hill_for_a_slope(slope, expected, dtype) -> None:
    a = jnp.asarray([[-2.0, -0.25, 0.0], [0.125, 0.5, 3.0]], dtype)
    dy = normal(1, a.shape, dtype)
    layer = beyond.Surrogate(slope, steepness=2.0)
    h, saved = layer.forward((), a)
    assert h.dtype == a.dtype
    np.testing.assert_array_equal(np.asarray(h, "float64"), [[0, 0, 0], [1, 1, 1]])
    da, _ = layer.pull((), saved, dy)
    assert da.dtype == dy.dtype
    close(np.asarray(da, "float64"), np.asarray(dy, "float64") * expected(2 * np.asarray(a, "float64")),
          1e-12 if dtype == "float64" else 2**-8)  # fmt: skip


# --- relevance ----------------------------------------------------------------------------------------


def relevance(net, params, x, r, epsilon):
    other = map_leaves(beyond.relevance(epsilon), net)
    y, saved = other.forward(params, x)
    close(y, net(params, x))
    return jax.jit(other.backward)(params, saved, r)[1]


def test_relevance_is_conserved() -> None:
    """Without biases, all of it, of every example; also through pooling."""
    net = Chain(Dense(6, bias=False), ReLU(), Dense(5, bias=False), Tanh(), Dense(3, bias=False))
    found = relevance(net, drawn(net, X), X, DY, 1e-12)
    close(found.sum(-1), DY.sum(-1), 1e-7)
    images = normal(3, (2, 4, 4, 3), "float64")
    net = Chain(MaxPool(2), Flatten(), Dense(5, bias=False), Sigmoid(), Dense(3, bias=False))
    r = normal(4, (2, 3), "float64")
    found = relevance(net, drawn(net, images), images, r, 1e-12)
    assert found.shape == images.shape
    close(found.sum((1, 2, 3)), r.sum(-1), 1e-7)


def test_relevance_of_one_layer_is_that_of_the_formula() -> None:
    """With a bias, which keeps its share, and an ε that is not small."""
    net, epsilon = Dense(3), 0.3
    params = drawn(net, X)
    found = relevance(net, params, X, DY, epsilon)
    x, w, b, r = (np.asarray(a) for a in (X, params["w"], params["b"], DY))
    a = x @ w + b
    stable = a + epsilon * np.where(a >= 0, 1, -1)
    close(found, np.einsum("nj,ji,ni->nj", x, w, r / stable))
    kept = (r * (b + epsilon * np.where(a >= 0, 1, -1)) / stable).sum(-1)
    close(found.sum(-1) + kept, r.sum(-1))


@pytest.mark.parametrize("gamma", [0.0, 0.4, float("inf")])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_shares_are_those_of_the_contributions(gamma: float, kind: str) -> None:
    """Every contribution by itself, of one layer with a bias; a convolution on its only patch."""
    x = X if kind == "dense" else normal(3, (5, 2, 1, 2), "float64")
    net = Dense(3) if kind == "dense" else Chain(Conv(3, (2, 1), padding="VALID"), Flatten())
    params = drawn(net, x)
    found = jax.jit(
        lambda p: map_leaves(beyond.relevance(0.3, gamma), net).backward(
            p, map_leaves(beyond.relevance(0.3, gamma), net).forward(p, x)[1], DY
        )[1]
    )(params)
    own = params if kind == "dense" else params[0]
    w, b, r = np.asarray(own["w"]).reshape(4, 3), np.asarray(own["b"]), np.asarray(DY)
    z = np.asarray(x).reshape(5, 4, 1) * w
    once, more = (0.0, 1.0) if gamma == float("inf") else (1.0, gamma)
    z, b = once * z + more * np.maximum(z, 0), once * b + more * np.maximum(b, 0)
    a = z.sum(1) + b
    close(found.reshape(5, 4), (z * (r / (a + 0.3 * np.where(a >= 0, 1, -1)))[:, None]).sum(2))


def test_relevance_is_conserved_by_convolutions() -> None:
    layers = Conv(5, 3, bias=False), ReLU(), MaxPool(2), Conv(4, 2, bias=False), Tanh(), Flatten()
    net = Chain(*layers, Dense(3, bias=False))
    x, r = normal(3, (2, 5, 4, 3), "float64"), normal(4, (2, 3), "float64")
    params = drawn(net, x)
    for gamma in (0.0, 0.5):
        other = map_leaves(beyond.relevance(1e-12, gamma), net)
        _, saved = other.forward(params, x)
        close(jax.jit(other.backward)(params, saved, r)[1].sum((1, 2, 3)), r.sum(-1), 1e-7)


def test_direct_feedback_takes_the_last_error_to_every_layer() -> None:
    net = Chain(Chain(Dense(6), Tanh()), Dense(5), Tanh(), Dense(3))
    other = beyond.direct_feedback(net, seed=4)
    params = drawn(net, X)
    _, saved = other.forward(params, X)
    grads, _ = jax.jit(other.backward)(params, saved, DY)
    h1 = np.tanh(affine(params[0][0]))
    h2 = np.tanh(h1 @ np.asarray(params[1]["w"]) + np.asarray(params[1]["b"]))
    close(grads[3]["w"], h2.T @ DY)
    key = jax.random.key(4)
    errors = []
    for row, size in ((4, 5), (2, 6)):
        b = jax.random.normal(jax.random.fold_in(key, row), (3, size), "float64") / np.sqrt(3)
        errors.append(np.asarray(DY @ b))
    close(grads[1]["w"], h1.T @ (errors[0] * (1 - h2**2)))
    close(grads[0][0]["w"], np.asarray(X).T @ (errors[1] * (1 - h1**2)))


def test_networks_learn_by_direct_feedback() -> None:
    net = Chain(Conv(4, 3), ReLU(), MaxPool(2), Flatten(), Dense(8), Tanh(), Dense(3))
    x, y = normal(1, (20, 4, 4, 2), "float32"), jnp.arange(20, dtype=jnp.int32) % 3
    params = net.init(KEY, x)
    step = jax.jit(value_and_grad(beyond.direct_feedback(net), SoftmaxCrossEntropy()))
    first = step(params, x, y)[0]
    for _ in range(100):
        value, grads = step(params, x, y)
        params = jax.tree.map(lambda p, g: p - 0.2 * g, params, grads)
    assert value < 0.3 * first


def test_an_output_of_zero_has_relevance_without_nan() -> None:
    net, x = Dense(2, bias=False), jnp.asarray([[0.0, 0.0, 0.0], [1.0, -1.0, 2.0]])
    params = {"w": jnp.asarray([[1.0, 0.5], [1.0, 2.0], [0.0, -3.0]])}
    found = relevance(net, params, x, jnp.ones((2, 2)), 1e-6)
    assert np.isfinite(np.asarray(found)).all()


def test_errors_of_rules() -> None:
    with pytest.raises(InputError, match="no rule is written for LSTM"):
        map_leaves(beyond.relevance(), Chain(LSTM(3), Dense(2)))
    with pytest.raises(InputError, match="gamma must be at least 0"):
        beyond.relevance(gamma=-1.0)(Dense(2))
    with pytest.raises(InputError, match="expected a Chain, got Dense"):
        beyond.direct_feedback(Dense(2))
    with pytest.raises(InputError, match="outputs"):
        beyond.direct_feedback(Chain(Dense(3))).backward(({},), (None,), jnp.ones((2, 3, 3)))
    with pytest.raises(InputError, match="fast_sigmoid, triangle, box"):
        beyond.Surrogate("steep")
    with pytest.raises(InputError, match="steepness must be positive"):
        beyond.Surrogate(steepness=-1.0)
    with pytest.raises(InputError, match="epsilon must be positive"):
        beyond.relevance(0.0)(Dense(2))
    with pytest.raises(InputError, match="feedback"):
        beyond.FeedbackAlignment(3).pull({"w": jnp.ones((4, 3))}, (X, None), DY)
    swapped = map_leaves(beyond.in_place_of(Tanh, beyond.StraightThrough), Chain(Dense(2), Tanh()))
    assert repr(swapped) == "Chain(Dense(2), StraightThrough(Tanh()))"
    assert swapped.forward(drawn(swapped, X), X, Eval())[0].shape == (5, 2)
