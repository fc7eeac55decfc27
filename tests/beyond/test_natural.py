"""KFAC: its step against dense solves, what it is invariant to, and as an optimizer of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxbp import (
    BatchNorm,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Embedding,
    Flatten,
    Head,
    InputError,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    Train,
    beyond,
    make_step,
    value_and_grad,
)
from tests.beyond.test_book import close, ids, problem
from tests.beyond.test_curvature import KEY, dense_ggn, linear
from tests.proof import like, normal

SQUARES = SquaredError()
LAMBDA = 0.03


def drawn(net, x):
    params = like(2, jax.eval_shape(net.init, KEY, x), 0.7)
    return jax.tree.map(lambda p: p.astype("float64"), params)


def wide(state):
    return jax.tree.map(lambda a: a.astype("float64") if a.dtype == "float32" else a, state)


def single(layer, x):
    """A layer that has one row an example, and is linear: its factors are its curvature."""
    net = Chain(layer, Flatten())
    y = jax.eval_shape(net, drawn(net, x), x)
    return net, drawn(net, x), x, normal(3, y.shape, "float64")


LINEAR = {
    "three layers": linear,
    "a convolution in groups": lambda: single(
        Conv(6, 2, groups=3, padding="VALID", bias=False), normal(1, (7, 2, 2, 6), "float64")
    ),
    "a transposed one in groups": lambda: single(
        ConvTranspose(4, 1, groups=2, bias=False), normal(1, (7, 1, 1, 6), "float64")
    ),
    "a table": lambda: single(Embedding(5, 3), ids(1, (7, 1), 5)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_step_of_a_linear_network_is_gauss_newtons(name: str) -> None:
    """Layer by layer, weight and bias together, damping and all."""
    net, params, x, y = LINEAR[name]()
    tx = beyond.scale_by_kfac(net, SQUARES, x, damping=LAMBDA, kind="exact", inverse="exact")
    _, grads = value_and_grad(net, SQUARES)(params, x, y)
    state = wide(tx.init(params))
    step, _ = jax.jit(tx.update)(grads, state, params, batch=(params, x, y))
    dense, at = dense_ggn(net, SQUARES, params, x, y), 0
    for own, found in zip(grads, step, strict=True):
        if n := ravel_pytree(own)[0].size:
            matrix = dense[at : at + n, at : at + n] + LAMBDA * np.eye(n)
            close(ravel_pytree(found)[0], np.linalg.solve(matrix, np.asarray(ravel_pytree(own)[0])), 1e-9)
            at += n
    assert at == len(dense)


def test_damping_is_shared_out_between_the_factors() -> None:
    net, loss, params, x, y = problem("mlp")
    exact = beyond.kronecker_factors(net, loss, kind="exact")(params, x, y)
    tx = beyond.scale_by_kfac(net, loss, x, damping=LAMBDA, kind="exact")
    _, grads = value_and_grad(net, loss)(params, x, y)
    step, state = jax.jit(tx.update)(grads, tx.init(params), params, batch=(params, x, y))
    a = np.asarray(state.curvature[0]["w+b"].left)
    close(a[:-1, :-1], exact["layers[0].w"].left)
    close(a[-1], [*np.asarray(x).mean(0), 1.0])
    b = np.asarray(exact["layers[0].w"].right)
    pi = np.sqrt(np.trace(a) / len(a) / (np.trace(b) / len(b)))
    a, b = a + pi * np.sqrt(LAMBDA) * np.eye(len(a)), b + np.sqrt(LAMBDA) / pi * np.eye(len(b))
    g = np.concatenate([grads[0]["w"], grads[0]["b"][None]])
    expected = np.linalg.solve(a, g) @ np.linalg.inv(b)
    close(step[0]["w"], expected[:-1], 1e-9)
    close(step[0]["b"], expected[-1], 1e-9)


def test_a_step_does_not_depend_on_the_units_of_inputs_and_layers() -> None:
    """`x → x M` with `w → M⁻¹ w`: the same function, also after a step. Not so by SGD."""
    net, x, y = Chain(Dense(3), Tanh(), Dense(2)), normal(1, (40, 4), "float64"), ids(2, (40,), 2)
    loss, m = SoftmaxCrossEntropy(), np.eye(4) + 0.6 * np.asarray(normal(4, (4, 4), "float64"))
    params = drawn(net, x)
    turned = ({**params[0], "w": jnp.asarray(np.linalg.inv(m) @ params[0]["w"])}, *params[1:])

    def after(tx, params, x):
        state = jax.tree.map(
            lambda a: a.astype("float64") if a.dtype == "float32" else a, tx.init(params)
        )
        _, grads = value_and_grad(net, loss)(params, x, y)
        step, _ = tx.update(grads, state, params, batch=(params, x, y))
        return net(jax.tree.map(lambda p, d: p - 0.3 * d, params, step), x)

    tx = beyond.scale_by_kfac(net, loss, x, damping=1e-13, kind="exact", inverse="exact")
    moved = after(tx, params, x)
    assert np.abs(moved - net(params, x)).max() > 0.05
    close(after(tx, turned, x @ m), moved, 1e-4)
    plain = optax.with_extra_args_support(optax.identity())
    assert np.abs(after(plain, turned, x @ m) - after(plain, params, x)).max() > 1e-2


def test_factors_are_averaged_and_inverted_every_so_often() -> None:
    net, loss, params, x, y = problem("tied")  # a diagonal, for two places
    tx = beyond.scale_by_kfac(net, loss, x, decay=0.5, every=2, kind="exact", damping=0.1)
    state = wide(tx.init(params))
    diagonal = beyond.ggn_diagonal(net, loss)(params, x, y)[0]["w"]
    other = jax.tree.map(lambda p: 1.5 * p, params)
    far = beyond.ggn_diagonal(net, loss)(other, x, y)[0]["w"]
    update = jax.jit(tx.update)
    step, first = update(params, state, params, batch=(params, x, y))
    close(step[0]["w"], params[0]["w"] / (diagonal + 0.1), 1e-6)
    _, second = update(params, first, params, batch=(other, x, y))
    mean = (diagonal + far) / 2
    close(second.curvature[0]["w"], mean, 1e-6)
    close(second.inverses[0]["w"], first.inverses[0]["w"])  # taken at steps 0, 2, 4, …
    _, third = update(params, second, params, batch=(other, x, y))
    close(third.inverses[0]["w"], (mean + far) / 2, 1e-6)


def test_a_step_can_be_kept_short() -> None:
    net, loss, params, x, y = problem("mlp")
    _, grads = value_and_grad(net, loss)(params, x, y)

    def along(limit):
        tx = beyond.scale_by_kfac(net, loss, x, max_change=limit)
        step, _ = tx.update(grads, tx.init(params), params, batch=(params, x, y))
        return float(ravel_pytree(step)[0] @ ravel_pytree(grads)[0])

    free = along(0.0)
    np.testing.assert_allclose(along(free / 4), free / 2, rtol=1e-5)  # half as long
    np.testing.assert_allclose(along(4 * free), free, rtol=1e-5)


def test_it_trains_in_a_step_with_statistics_stacks_and_groups() -> None:
    """Everything that has another shape of factors, in training mode; statistics move by themselves."""
    net = Chain(Conv(6, 3, groups=2), BatchNorm(), Tanh(), Flatten(), Dense(3))
    x, y = normal(1, (12, 3, 3, 4), "float32"), ids(2, (12,), 3)
    params, loss = net.init(KEY, x), SoftmaxCrossEntropy()
    tx = beyond.kfac(net, loss, x, 0.1, max_change=1.0, damping=0.1)
    step, state, values = make_step(net, loss, tx), tx.init(params), []
    for i in range(8):
        params, state, value = step(params, state, x, y, Train(jax.random.key(i)))
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]
    assert np.abs(params[1]["mean"]).max() > 0


def test_errors() -> None:
    net, loss, params, x, _ = problem("mlp")
    with pytest.raises(InputError, match="damping must be positive"):
        beyond.scale_by_kfac(net, loss, x, damping=0.0)
    with pytest.raises(InputError, match="decay must be in"):
        beyond.scale_by_kfac(net, loss, x, decay=1.0)
    with pytest.raises(InputError, match="inverse of split, exact"):
        beyond.scale_by_kfac(net, loss, x, inverse="lu")
    with pytest.raises(InputError, match="kfac: expected a kind of sampled"):
        beyond.scale_by_kfac(net, loss, x, kind="all")
    with pytest.raises(InputError, match="every must be a positive integer"):
        beyond.scale_by_kfac(net, loss, x, every=0)
    tx = beyond.scale_by_kfac(net, loss, x)
    with pytest.raises(InputError, match="batch="):
        tx.update(params, tx.init(params), params)
    deferred = Chain(Dense(3), Head(4, deferred=True))
    with pytest.raises(InputError, match="deferred=False"):
        beyond.scale_by_kfac(deferred, loss, x).init(())
