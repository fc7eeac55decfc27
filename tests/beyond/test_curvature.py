"""The generalized Gauss-Newton matrix, its parts and products, against dense matrices by autodiff."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbp import (
    BatchNorm,
    Chain,
    Conv,
    Dense,
    Eval,
    Flatten,
    GlobalAvgPool,
    Head,
    InputError,
    LinearCrossEntropy,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    Train,
    beyond,
)
from jaxbp.beyond import squares
from tests.beyond.test_book import CE, NETS, N, close, ids, problem
from tests.proof import like, normal

KEY = jax.random.key(3)


def targets(loss, shape):
    if isinstance(loss, SoftmaxCrossEntropy):
        return ids(4, shape[:-1], shape[-1])
    y = normal(5, shape, "float64")
    return jax.nn.sigmoid(y) if isinstance(loss, SigmoidCrossEntropy) else y


def dense_ggn(net, loss, params, x, y, mode=Eval()):
    """`Jᵀ H J` by autodiff of the forward pass and of the loss's value, over what is trainable."""
    flat, back = ravel_pytree(params)
    prediction = net.forward(params, x, mode)[0]
    j = jax.jit(jax.jacrev(lambda w: net.forward(back(w), x, mode)[0].reshape(-1)))(flat)
    h = jax.hessian(lambda a: loss(a.reshape(prediction.shape), y))(prediction.reshape(-1))
    j = np.asarray(j) * trainable(net, params)
    return j.T @ np.asarray(h) @ j


def trainable(net, params):
    mask = jax.tree.map(lambda yes, p: jnp.full(p.shape, yes, p.dtype), net.trainable(params), params)
    return np.asarray(ravel_pytree(mask)[0])


@cache
def setting(name):
    net, loss, params, x, y = problem(name)
    return net, loss, params, x, y, dense_ggn(net, loss, params, x, y)


# --- the losses ---------------------------------------------------------------------------------------

LOSSES = [
    (SquaredError(), "values"),
    (SquaredError("sum"), "values"),
    (SigmoidCrossEntropy(), "shares"),
    (SoftmaxCrossEntropy(), "labels"),
    (SoftmaxCrossEntropy("sum", label_smoothing=0.2), "labels"),
    (SoftmaxCrossEntropy(ignore=2), "labels"),
    (SoftmaxCrossEntropy(), "shares"),  # a distribution that does not sum to 1
    (SoftmaxCrossEntropy(label_smoothing=0.3), "shares"),
]


@pytest.mark.parametrize(("loss", "kind"), LOSSES, ids=lambda v: str(v))
def test_hessian_and_its_root_are_those_of_the_value(loss, kind) -> None:
    shape = (3, 2, 4)
    a = 2 * normal(1, shape, "float64")
    y = {
        "values": normal(2, shape, "float64"),
        "shares": jax.nn.sigmoid(normal(2, shape, "float64")),
        "labels": jnp.asarray([[0, 3], [2, 1], [2, 2]], jnp.int32),
    }[kind]
    dense = jax.jit(jax.hessian(lambda a: loss(a.reshape(shape), y)))(a.reshape(-1))
    _, saved = loss.forward(a, y)
    units = jnp.eye(a.size, dtype=a.dtype).reshape(-1, *shape)
    root, hessian = (jnp.stack([f(saved, v).reshape(-1) for v in units], 1) for f in (
        loss.hessian_root, loss.hessian,
    ))  # fmt: skip
    close(hessian, dense, 1e-12)
    close(root @ root.T, dense, 1e-12)
    u = loss.root_kernel(saved)
    assert (u is None) == (not isinstance(loss, SoftmaxCrossEntropy))
    if u is not None:
        close(loss.hessian_root(saved, u), np.zeros(shape), 1e-12)
        close(jnp.square(u).sum(-1), np.ones(shape[:-1]), 1e-12)


def test_a_sure_prediction_has_no_curvature_and_no_nan() -> None:
    a = jnp.asarray([[800.0, -800.0, -jnp.inf], [0.0, 0.0, 0.0]])
    _, saved = CE.forward(a, jnp.asarray([0, 2], jnp.int32))
    v = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]])
    for found in (CE.hessian_root(saved, v), CE.hessian(saved, v)):
        assert np.isfinite(np.asarray(found)).all()
        close(found[0], np.zeros(3))


# --- the diagonal -------------------------------------------------------------------------------------

DIAGONAL = [
    "mlp", "one row", "rows", "stack", "branch", "convolution", "running", "lstm", "gru", "text",
    "tied", "tied layers", "gpt", "patches", "recomputed",
]  # fmt: skip
SMALL = ["mlp", "recomputed", "stack", "branch", "running", "lstm", "text", "tied", "tied layers"]


@pytest.mark.parametrize("name", DIAGONAL)
def test_the_exact_diagonal_is_that_of_the_dense_matrix(name: str) -> None:
    net, loss, params, x, y, dense = setting(name)
    diagonal = jax.jit(beyond.ggn_diagonal(net, loss))(params, x, y)
    assert jax.tree.structure(diagonal) == jax.tree.structure(params)
    got, expected = ravel_pytree(diagonal)[0], np.diag(dense)
    assert (expected > 0).mean() > 0.3
    close(got, expected)


@pytest.mark.parametrize("name", ["mlp", "tied", "lstm"])
def test_the_sampled_diagonal_tends_to_the_exact_one(name: str) -> None:
    """Within five standard errors, taken from twenty independent estimates; and without a bias."""
    net, loss, params, x, y, dense = setting(name)
    fn = jax.jit(beyond.ggn_diagonal(net, loss, samples=50))
    each = [ravel_pytree(fn(params, x, y, key=jax.random.key(i)))[0] for i in range(20)]
    mean, error = np.mean(each, axis=0), np.std(each, axis=0, ddof=1) / np.sqrt(len(each))
    exact = np.diag(dense)
    assert (np.abs(mean - exact) <= 5.5 * error + 1e-12).mean() > 0.99
    assert abs(mean.sum() / exact.sum() - 1) < 0.1
    assert error.sum() / exact.sum() < 0.1


def test_bfloat16_sums_wide() -> None:
    net, loss, params, x, y, dense = setting("mlp")
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), (params, x))
    got = ravel_pytree(jax.jit(beyond.ggn_diagonal(net, loss))(*narrow, y))[0]
    assert got.dtype == jnp.float32
    close(got.astype("float64"), np.diag(dense), 0.05)


# --- Kronecker factors --------------------------------------------------------------------------------


def block(factors):
    return np.kron(np.asarray(factors.left), np.asarray(factors.right))


def linear(bias=True):
    net = Chain(Dense(3, bias=bias), Dense(4, bias=bias), Dense(2, bias=bias))
    x = normal(1, (N, 5), "float64")
    params = like(2, jax.eval_shape(net.init, KEY, x), 0.7)
    return net, jax.tree.map(lambda p: p.astype("float64"), params), x, normal(3, (N, 2), "float64")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_factors_are_exact_for_deep_linear_networks(reduction: str) -> None:
    net, params, x, y = linear()
    loss = SquaredError(reduction)
    found = jax.jit(beyond.kronecker_factors(net, loss, kind="exact"))(params, x, y)
    assert set(found) == {f"layers[{i}].{p}" for i in range(3) for p in "wb"}
    dense, at = dense_ggn(net, loss, params, x, y), 0
    for i in range(3):
        for p in "bw":  # a dict's leaves are in the order of their names
            size = params[i][p].size
            close(block(found[f"layers[{i}].{p}"]), dense[at : at + size, at : at + size])
            at += size


def test_factors_of_a_convolution_are_those_of_a_dense_layer_on_patches() -> None:
    """Exact where the network is linear and a kernel has one place to be."""
    net, loss = Chain(Conv(3, 2, padding="VALID"), Flatten(), Dense(2, bias=False)), SquaredError()
    x, y = normal(1, (N, 2, 2, 2), "float64"), normal(3, (N, 2), "float64")
    params = like(2, jax.eval_shape(net.init, KEY, x), 0.7)
    params = jax.tree.map(lambda p: p.astype("float64"), params)
    found = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
    dense = dense_ggn(net, loss, params, x, y)
    close(block(found["layers[0].b"]), dense[:3, :3])
    close(block(found["layers[0].w"]), dense[3:27, 3:27])
    several = Chain(Conv(3, 2, padding="VALID"), GlobalAvgPool())
    x, y = normal(1, (N, 3, 4, 2), "float64"), normal(3, (N, 3), "float64")
    found = beyond.kronecker_factors(several, loss, kind="exact")((params[0], ()), x, y)
    patches = [x[:, i : i + 2, j : j + 2].reshape(N, -1) for i in range(2) for j in range(3)]
    close(found["layers[0].w"].left, sum(p.T @ p for p in patches) / (6 * N))
    close(found["layers[0].w"].right, np.eye(3) * 2 / 6)


def test_factors_of_one_example_are_exact_whatever_the_network() -> None:
    net, loss, params, x, y = problem("mlp")
    x, y = x[:1], y[:1]
    dense = dense_ggn(net, loss, params, x, y)
    found = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
    size = params[0]["b"].size, params[0]["w"].size
    close(block(found["layers[0].b"]), dense[: size[0], : size[0]])
    close(block(found["layers[0].w"]), dense[size[0] : sum(size), size[0] : sum(size)])


def test_sampled_factors_tend_to_the_exact_ones() -> None:
    net, loss, params, x, y = problem("mlp")
    exact = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
    fn = jax.jit(beyond.kronecker_factors(net, loss, samples=50))
    each = [fn(params, x, y, key=jax.random.key(i)) for i in range(20)]
    for name, factors in exact.items():
        close(each[0][name].left, factors.left)
        draws = np.stack([f[name].right for f in each])
        error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
        assert (np.abs(draws.mean(axis=0) - factors.right) <= 5.5 * error + 1e-12).mean() > 0.99
        assert error.sum() < 0.3 * np.abs(factors.right).sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empirical_factors_are_those_of_the_examples_own_gradients(reduction: str) -> None:
    net, _, params, x, y = problem("mlp")
    loss = SoftmaxCrossEntropy(reduction)
    found = beyond.kronecker_factors(net, loss, kind="empirical")(params, x, y)
    each = beyond.record(net, loss)(params, x, y).gradients()  # each one's own: without the mean's 1/N
    share = 1 / N if reduction == "mean" else 1
    close(found["layers[2].b"].right, share * each[2]["b"].T @ each[2]["b"])
    close(found["layers[0].w"].left, x.T @ x / N)


def test_factors_of_sequences_tied_tables_and_stacks() -> None:
    """Rows are positions too; a shared weight has factors in each place where it is a product."""
    net, loss, params, x, y = problem("tied")
    found = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
    h = np.tanh(np.asarray(params[0]["w"])[np.asarray(x)]).reshape(-1, 4)
    p = np.asarray(jax.nn.softmax(net(params, x))).reshape(-1, 11)
    errors = np.diag(p.sum(0)) - p.T @ p
    close(block(found["layers[2].w"]), np.kron(errors, h.T @ h) / len(h))
    net, loss, params, x, y = problem("stacks")
    stacked = jax.jit(beyond.kronecker_factors(net, loss, kind="exact"))(params, x, y)
    w = stacked["layers[1].body.body.body.layers[0].w"]
    assert (w.left.shape, w.right.shape) == ((3, 2, 5, 5), (3, 2, 5, 5))
    seen = Dense(5)(params[0], x)
    close(w.left[0, 0], seen.T @ seen / N)


# --- products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_products_with_a_vector_are_those_of_the_dense_matrices(name: str) -> None:
    net, loss, params, x, y, ggn = setting(name)
    v = jax.tree.map(lambda p: p.astype("float64"), like(11, params, 0.6))
    flat, back = ravel_pytree(params)
    direction = np.asarray(ravel_pytree(v)[0])
    hvp, ggnvp = beyond.products(net, loss)
    way = jax.jit(jax.hessian(lambda w: loss(net(back(w), x), y)))(flat) @ direction
    close(ravel_pytree(jax.jit(hvp)(params, x, y, v))[0], way, 1e-10)
    masked = jax.tree.map(lambda d, yes: d if yes else 0 * d, v, net.trainable(params))
    got = np.asarray(ravel_pytree(jax.jit(ggnvp)(params, x, y, masked))[0])
    close(got * trainable(net, params), ggn @ direction, 1e-10)


def test_products_of_examples_that_depend_on_each_other() -> None:
    net, loss = Chain(Dense(3), BatchNorm(), Tanh(), Dense(2)), SquaredError()
    x, y = normal(1, (N, 4), "float64"), normal(2, (N, 2), "float64")
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))
    v = jax.tree.map(lambda p: p.astype("float64"), like(3, params))
    flat, back = ravel_pytree(params)
    direction = np.asarray(ravel_pytree(v)[0])
    hvp, ggnvp = beyond.products(net, loss)
    dense = jax.hessian(lambda w: loss(net.forward(back(w), x, Train())[0], y))(flat)
    close(ravel_pytree(hvp(params, x, y, v, Train()))[0], dense @ direction, 1e-10)
    ggn = dense_ggn(net, loss, params, x, y, Train())
    close(ravel_pytree(ggnvp(params, x, y, v, Train()))[0], ggn @ direction, 1e-10)


def test_the_two_products_agree_where_the_network_is_linear_in_its_weights() -> None:
    net, x, y = Dense(3), normal(1, (N, 4), "float64"), ids(2, (N,), 3)
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))
    v = jax.tree.map(lambda p: p.astype("float64"), like(3, params))
    hvp, ggnvp = beyond.products(net, CE)
    jax.tree.map(close, hvp(params, x, y, v), ggnvp(params, x, y, v))


# --- bad input ----------------------------------------------------------------------------------------


def test_errors_say_what_is_missing() -> None:
    net, loss, params, x, y = problem("mlp")
    with pytest.raises(InputError, match="key="):
        beyond.ggn_diagonal(net, loss, samples=2)(params, x, y)
    with pytest.raises(InputError, match="samples must be a positive integer"):
        beyond.ggn_diagonal(net, loss, samples=0)
    with pytest.raises(InputError, match="kind of sampled, exact, empirical"):
        beyond.kronecker_factors(net, loss, kind="all")
    with pytest.raises(InputError, match="reduction='sum'"):
        beyond.kronecker_factors(net, SoftmaxCrossEntropy(ignore=0), kind="empirical")(params, x, y)
    with pytest.raises(InputError, match="BatchNorm"):
        beyond.ggn_diagonal(Chain(Dense(3), BatchNorm()), SquaredError())((), x, y, Train())
    with pytest.raises(InputError, match="deferred=False"):
        beyond.ggn_diagonal(Head(3, deferred=True), LinearCrossEntropy())((), x, y)
    hvp, _ = beyond.products(net, loss)
    with pytest.raises(InputError, match="structure"):
        hvp(params, x, y, params[0])
    with pytest.raises(InputError, match=r"v\[0\]\['b'\]"):
        hvp(params, x, y, jax.tree.map(lambda p: p[None], params))


def test_which_networks_are_tried() -> None:
    assert set(DIAGONAL) | {"stacks"} == set(NETS)


def test_factors_and_norms_in_pieces_are_those_of_all_examples_at_once(monkeypatch) -> None:
    """Of a convolution whose rows see more than it saved; 6 examples, in pieces of 2."""
    net, loss = Chain(Conv(3, 3), Tanh(), GlobalAvgPool()), SoftmaxCrossEntropy()
    x, y = normal(0, (6, 5, 4, 2), "float64"), ids(1, (6,), 3)
    params = like(2, net.init(jax.random.key(0), x))
    whole = beyond.kronecker_factors(net, loss)(params, x, y, key=KEY)
    norms = beyond.record(net, loss)(params, x, y).norms()
    monkeypatch.setattr(squares, "PIECE", 2 * 5 * 4 * 18 * 8)
    program = jax.make_jaxpr(beyond.kronecker_factors(net, loss))(params, x, y, key=KEY)
    assert "length=3" in str(program)
    found = beyond.kronecker_factors(net, loss)(params, x, y, key=KEY)
    assert "length=3" in str(jax.make_jaxpr(beyond.record(net, loss)(params, x, y).norms)())
    close(beyond.record(net, loss)(params, x, y).norms(), norms)
    assert found.keys() == whole.keys()
    for got, expected in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
        close(got, expected)
