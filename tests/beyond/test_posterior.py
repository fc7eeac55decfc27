"""Influence against leaving an example out and training again; Laplace against the dense inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxbp import (
    Chain,
    Conv,
    Dense,
    Flatten,
    InputError,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    beyond,
)
from tests.beyond.test_book import close, ids, problem
from tests.beyond.test_curvature import KEY, dense_ggn, linear
from tests.proof import like, normal

N, DECAY = 120, 0.02


def logistic():
    """Overlapping classes, and the minimum of the mean loss with weight decay, by Newton's method."""
    net, loss = Dense(1), SigmoidCrossEntropy()
    x = normal(1, (N, 3), "float64")
    y = (x @ jnp.asarray([1.0, -2.0, 0.5]) + 1.5 * normal(2, (N,), "float64") > 0)[:, None]
    return net, loss, x, y.astype("float64")


def fitted(net, loss, x, y, weight):
    """`argmin Σ_n weight_n L_n / N + λ/2 ‖w‖²`."""
    flat, back = ravel_pytree(net.init(KEY, x))
    flat = flat.astype("float64")

    def value(w):
        each = jax.vmap(lambda a, b: loss(net(back(w), a[None]), b[None]))(x, y)
        return jnp.sum(weight * each) / N + DECAY / 2 * w @ w

    def newton(w):
        return w - jnp.linalg.solve(jax.hessian(value)(w), jax.grad(value)(w))

    return back(jax.lax.fori_loop(0, 12, lambda _, w: newton(w), flat))


def test_influence_is_what_leaving_out_and_training_again_does() -> None:
    net, loss, x, y = logistic()
    train = jax.jit(lambda weight: fitted(net, loss, x, y, weight))
    params = train(jnp.ones(N))
    query_x, query_y = normal(5, (3, 3), "float64"), jnp.asarray([[1.0], [0.0], [1.0]])
    book = beyond.record(net, loss)(params, x, y)
    queries = beyond.record(net, loss)(params, query_x, query_y)

    pairs = list(zip(query_x, query_y, strict=True))

    def losses(params):
        return np.asarray([loss(net(params, a[None]), b[None]) for a, b in pairs])

    before = losses(params)
    without = jax.jit(jax.vmap(lambda w: fitted(net, loss, x, y, w)))(1 - jnp.eye(N))
    each = [losses(jax.tree.map(lambda p, n=n: p[n], without)) for n in range(N)]
    true = np.stack(each, axis=1) - before[:, None]
    _, ggnvp = beyond.products(net, loss)

    def exact(v):
        flat, back = ravel_pytree(v)
        eye = jnp.eye(flat.size, dtype=flat.dtype)
        g = jax.vmap(lambda e: ravel_pytree(ggnvp(params, x, y, back(e)))[0])(eye) + DECAY * eye
        return back(jnp.linalg.solve(g, flat))

    found = np.asarray(beyond.influence(exact, queries, book)) / N
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.995
    assert abs(np.linalg.norm(found) / np.linalg.norm(true) - 1) < 0.1
    factors = jax.jit(beyond.kronecker_factors(net, loss, kind="exact"))(params, x, y)
    close_to = np.asarray(beyond.influence(factors, queries, book, DECAY)) / N
    assert np.corrcoef(close_to.ravel(), true.ravel())[0, 1] > 0.9
    assert 0.5 < np.linalg.norm(close_to) / np.linalg.norm(true) < 2


def block_diagonal(factors, net, params):
    """The dense matrix that factors stand for, in the order of the flattened parameters."""
    blocks = []
    for i, part in enumerate(params):
        for p in sorted(part):
            f = factors[f"layers[{i}].{p}"]
            left = np.asarray(f.left)
            blocks.append(np.kron(np.diag(left) if left.ndim == 1 else left, np.asarray(f.right)))
    size = sum(len(b) for b in blocks)
    dense, at = np.zeros((size, size)), 0
    for b in blocks:
        dense[at : at + len(b), at : at + len(b)] = b
        at += len(b)
    return dense


@pytest.mark.parametrize("kind", ["factors", "diagonal"])
def test_influence_with_factors_is_that_of_the_dense_inverse(kind: str) -> None:
    net, loss, params, x, y = problem("mlp")
    book = beyond.record(net, loss)(params, x, y)
    flat = np.stack(
        [ravel_pytree(jax.tree.map(lambda g, n=n: g[n], book.gradients()))[0] for n in range(5)]
    )
    if kind == "factors":
        given = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
        dense = block_diagonal(given, net, params)
    else:
        given = beyond.ggn_diagonal(net, loss)(params, x, y)
        dense = np.diag(ravel_pytree(given)[0])
    expected = flat @ np.linalg.solve(dense + 0.1 * np.eye(len(dense)), flat.T)
    close(beyond.influence(given, book, book, 0.1), expected)


def test_laplace_of_a_linear_network_is_the_dense_posterior() -> None:
    """Of a single layer, whose factors are its curvature: `(N G + τ I)⁻¹`, and its predictions'."""
    net, loss = Chain(Dense(3, bias=False)), SquaredError()
    x, y = normal(1, (7, 4), "float64"), normal(2, (7, 3), "float64")
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(KEY, x))
    factors = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
    posterior = beyond.laplace(net, params, factors, examples=7, precision=2.0)
    covariance = np.linalg.inv(7 * dense_ggn(net, loss, params, x, y) + 2 * np.eye(12))
    query = normal(3, (2, 4), "float64")
    f, found = jax.jit(lambda p, x: p.predict(x))(posterior, query)
    close(f, net(params, query))
    j = np.stack([np.kron(np.asarray(q)[None], np.eye(3)) for q in query])
    close(found, j @ covariance @ np.swapaxes(j, 1, 2))
    draws = jax.jit(jax.vmap(lambda k: ravel_pytree(posterior.sample(k))[0]))(jax.random.split(KEY, 4000))
    close(np.cov(np.asarray(draws).T), covariance, 0.12)
    close(np.asarray(draws).mean(0), ravel_pytree(params)[0], 0.05)


def test_predictions_of_a_deep_network_have_the_covariance_of_their_jacobian() -> None:
    net = Chain(Conv(4, 2, groups=2, padding="VALID"), Tanh(), Flatten(), Dense(3))
    x, y, loss = normal(1, (6, 2, 2, 4), "float64"), ids(2, (6,), 3), SoftmaxCrossEntropy()
    params = like(2, jax.eval_shape(net.init, KEY, x), 0.7)
    params = jax.tree.map(lambda p: p.astype("float64"), params)
    flat, back = ravel_pytree(params)
    j = np.asarray(jax.jacrev(lambda w: net(back(w), x))(flat))
    for given in (beyond.ggn_diagonal(net, loss)(params, x, y),):
        _, found = jax.jit(beyond.Posterior.predict)(beyond.laplace(net, params, given, 6, 0.5), x)
        inverse = 1 / (6 * np.asarray(ravel_pytree(given)[0]) + 0.5)
        close(found, np.einsum("nck,k,ndk->ncd", j, inverse, j))
    factors = jax.jit(beyond.kronecker_factors(net, loss, kind="exact"))(params, x, y)
    posterior = beyond.laplace(net, params, factors, 6, 0.5)
    assert jax.tree.map(jnp.shape, posterior.sample(KEY)) == jax.tree.map(jnp.shape, params)
    _, found = jax.jit(beyond.Posterior.predict)(posterior, x)
    parts, at = [], 0
    for i in (0, 3):
        for name in ("b", "w"):
            f, p = factors[f"layers[{i}].{name}"], params[i][name]
            own = j[..., at : at + p.size].reshape(6, 3, -1, *f.right.shape[:-2], f.right.shape[-1])
            own = np.moveaxis(own, -2, 2) if f.right.ndim > 2 else own[:, :, None]
            lefts, rights = np.asarray(f.left), np.asarray(f.right)
            for g in range(own.shape[2]):
                left, right = (a[g] if f.right.ndim > 2 else a for a in (lefts, rights))
                inverse = np.linalg.inv(6 * np.kron(left, right) + 0.5 * np.eye(len(left) * len(right)))
                u = own[:, :, g].reshape(6, 3, -1)
                parts.append(np.einsum("nck,kl,ndl->ncd", u, inverse, u))
            at += p.size
    close(found, sum(parts))
    p = jax.jit(beyond.Posterior.probabilities)(posterior, x)
    close(p.sum(1), np.ones(6), 1e-6)
    assert (p.max(1) < jax.nn.softmax(net(params, x)).max(1)).all()  # less sure than before


def test_calibration_of_a_case_counted_by_hand() -> None:
    p = jnp.asarray([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
    nll, ece = beyond.calibration(p, jnp.asarray([0, 1, 1, 1], jnp.int32), bins=5)
    np.testing.assert_allclose(nll, -np.log([0.9, 0.2, 0.7, 0.55]).mean(), rtol=1e-6)
    np.testing.assert_allclose(ece, (abs(1 - 1.7) + abs(1 - 0.7) + abs(1 - 0.55)) / 4, rtol=1e-5)


def test_errors() -> None:
    net, params, x, y = linear()
    book = beyond.record(net, SquaredError())(params, x, y)
    other = beyond.record(net.layers[0], SquaredError())(params[0], x, normal(1, (len(x), 3), "float64"))
    with pytest.raises(InputError, match="two books of one network"):
        beyond.influence({}, book, other)
    with pytest.raises(InputError, match="precision must be positive"):
        beyond.laplace(net, params, {}, 3, 0.0)
    with pytest.raises(InputError, match="examples must be a positive integer"):
        beyond.laplace(net, params, {}, 0)
    with pytest.raises(InputError, match=r"\[examples, outputs\]"):
        beyond.laplace(net, params, {}, 3).predict(x[:, None])
