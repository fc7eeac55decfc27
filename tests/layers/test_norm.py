"""What the harness does not see of the norms: statistics, their training, devices, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import (
    BatchNorm,
    Chain,
    Dense,
    Eval,
    GroupNorm,
    InputError,
    LayerNorm,
    Precision,
    Residual,
    RMSNorm,
    SquaredError,
    Stack,
    Train,
    make_step,
    value_and_grad,
)
from jaxbp.layer import smallest_batch
from tests.devices import on_four_devices
from tests.proof import like, normal

KEY = jax.random.key(0)
X = normal(1, (6, 5, 4), "float64")


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (LayerNorm(epsilon=1e-9), 2),
        (GroupNorm(1, epsilon=1e-9), (1, 2)),
        (GroupNorm(4, epsilon=1e-9), 1),
        (BatchNorm(epsilon=1e-9), (0, 1)),
    ],
)
def test_what_comes_out_has_mean_0_and_variance_1(layer, axes) -> None:
    y = layer.forward(layer.init(jax.random.key(0), X), X + 3.0, Train())[0]
    np.testing.assert_allclose(np.mean(y, axis=axes), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(y, axis=axes), 1, atol=1e-6)


def test_group_norm_of_one_feature_groups_is_blind_to_the_other_features() -> None:
    layer = GroupNorm(2)
    params = layer.init(jax.random.key(0), X)
    other = X.at[..., 2:].multiply(100.0)
    np.testing.assert_array_equal(layer(params, X)[..., :2], layer(params, other)[..., :2])


def test_the_gradient_of_running_statistics_in_training_is_exactly_zero() -> None:
    layer = BatchNorm()
    params = like(2, layer.init(jax.random.key(0), X))
    _, saved = layer.forward(params, X, Train())
    grads, _ = layer.backward(params, saved, normal(3, X.shape, "float64"))
    assert [bool(np.any(grads[k])) for k in ("mean", "var", "scale", "offset")] == [0, 0, 1, 1]


def test_statistics_move_by_momentum_and_not_in_evaluation() -> None:
    layer = BatchNorm(momentum=0.75)
    params = layer.init(jax.random.key(0), X)
    moved = layer.update_statistics(params, layer.forward(params, X, Train())[1])
    np.testing.assert_allclose(moved["mean"], 0.25 * np.mean(X, (0, 1)), rtol=1e-12)
    np.testing.assert_allclose(moved["var"], 0.75 + 0.25 * np.var(X, (0, 1)), rtol=1e-12)
    still = layer.update_statistics(params, layer.forward(params, X, Eval())[1])
    jax.tree.map(np.testing.assert_array_equal, still, params)


def test_a_step_moves_statistics_in_a_stack_and_no_optimizer_touches_them() -> None:
    net = Chain(Dense(4), Stack(Residual(Chain(BatchNorm(), Dense(4))), 2))
    x, y = normal(1, (8, 3), "float64"), normal(2, (8, 4), "float64")
    params = net.init(jax.random.key(0), x)
    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))  # decays whatever it may
    step = make_step(net, SquaredError(), tx)
    after, _, _ = step(params, tx.init(params), x, y)
    h = x @ params[0]["w"]
    for i in range(2):
        before = jax.tree.map(lambda a, i=i: a[i], params[1])
        seen, here = {k: v[i] for k, v in after[1][0].items()}, before[0]
        np.testing.assert_allclose(seen["mean"], 0.9 * here["mean"] + 0.1 * np.mean(h, 0), rtol=1e-12)
        np.testing.assert_allclose(seen["var"], 0.9 * here["var"] + 0.1 * np.var(h, 0), rtol=1e-12)
        h = Residual(Chain(BatchNorm(), Dense(4))).forward(before, h, Train())[0]
    assert not np.allclose(after[1][0]["scale"], params[1][0]["scale"])


NORMS = [LayerNorm(), GroupNorm(1), GroupNorm(2), GroupNorm(6), BatchNorm()]


@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("features", [6, 768])
@pytest.mark.parametrize("offset", [12345.678, -3e7])
def test_a_constant_is_normalised_to_zero_however_large_it_is(norm, features, offset) -> None:
    """The mean of 768 equal numbers, as rounded, is another number: no deviation for all that."""
    x = jnp.full((5, 3, features), offset, "float32")
    params = norm.init(jax.random.key(0), x)
    for run in (norm.forward, jax.jit(norm.forward)):
        y, saved = run(params, x, Train())
        np.testing.assert_array_equal(y, jnp.zeros_like(x))
        moved = norm.update_statistics(params, saved)
        if "var" in moved:
            np.testing.assert_allclose(moved["var"], 0.9, rtol=1e-6)
            np.testing.assert_allclose(moved["mean"], 0.1 * np.asarray(x)[0, 0], rtol=1e-6)


def passes(layer, params, x, dy):
    y, saved = layer.forward(params, x, Train())
    dparams, dx = layer.backward(params, saved, dy)
    moved = layer.update_statistics(params, saved)
    return {"y": y, "dx": dx, "dparams": dparams, "moved": moved}


@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("shape", [(3, 2, 768), (97, 1, 6)], ids=str)
@pytest.mark.parametrize("offset", [12345.678, -3e6])
@pytest.mark.parametrize(("dtype", "depth"), [("float32", 0), ("float32", 2), ("bfloat16", 0)])
def test_a_large_offset_costs_no_digits(norm, shape, offset, dtype, depth) -> None:
    """The bar does not grow with the offset; what the numbers of `dtype` say is the same in float64."""
    spread = 1.0 if dtype == "float32" else abs(offset) / 64  # else all are the same bfloat16
    x = (normal(1, shape, "float64") * spread + offset).astype(dtype)
    x = x.at[0, 0, 0].add(jnp.asarray(20 * spread, dtype))  # an outlier comes first
    layer = Stack(norm, depth) if depth else norm
    params = layer.init(jax.random.key(0), x.astype("float32"))
    params = jax.tree.map(jnp.add, params, like(2, params, 0.3))
    dy = normal(3, shape, dtype)
    got = jax.jit(passes, static_argnums=0)(layer, params, x, dy)
    exact = jax.tree.map(lambda a: a.astype("float64"), (params, x, dy))
    wanted = jax.jit(passes, static_argnums=0)(layer, *exact)
    bar = 4 * np.sqrt(x.size) * 2**-24 + (2**-8 if dtype == "bfloat16" else 0)

    def same(a, b):
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        assert np.max(np.abs(a - b)) <= 2 * bar * max(np.max(np.abs(b)), 1.0)

    jax.tree.map(same, got, wanted)


def test_one_row_has_a_mean_and_no_variance() -> None:
    """The running mean moves and the variance stays; more positions, or devices, make a variance."""
    layer, one = BatchNorm(), X[:1, 0]
    params = like(2, layer.init(jax.random.key(0), X))
    moved = layer.update_statistics(params, layer.forward(params, one, Train())[1])
    np.testing.assert_allclose(moved["mean"], 0.9 * params["mean"] + 0.1 * one[0], rtol=1e-12)
    np.testing.assert_array_equal(moved["var"], params["var"])
    image = layer.update_statistics(params, layer.forward(params, X[:1], Train())[1])
    expected = 0.9 * params["var"] + 0.1 * np.var(X[0], 0)
    np.testing.assert_allclose(image["var"], expected, rtol=1e-12)

    def share(x):
        shared = BatchNorm(axis_name="rows")
        return shared.update_statistics(params, shared.forward(params, x, Train())[1])

    apart = jax.vmap(share, out_axes=None, axis_name="rows")(X[0, :, None])
    np.testing.assert_allclose(apart["var"], expected, rtol=1e-12)


def test_how_many_examples_a_network_needs() -> None:
    plain, body = Chain(Dense(4), LayerNorm()), Residual(Chain(BatchNorm(), Dense(4)))
    nets = [plain, BatchNorm(), Chain(plain, Stack(body, 2))]
    assert [smallest_batch(net) for net in nets] == [1, 2, 2]


def test_repeated_batches_bring_evaluation_to_training() -> None:
    layer = BatchNorm(momentum=0.5)
    params, x = layer.init(jax.random.key(0), X), 3.0 * X + 1.0
    for _ in range(60):
        y, saved = layer.forward(params, x, Train())
        params = layer.update_statistics(params, saved)
    np.testing.assert_allclose(layer(params, x), y, rtol=1e-9, atol=1e-9)


def test_narrow_inputs_have_wide_statistics() -> None:
    x = (normal(1, (64, 8), "float32") + np.float32(100)).astype(jnp.bfloat16)
    layer = BatchNorm()
    params = layer.init(jax.random.key(0), x)
    y, (_, (_, mu), r, var) = layer.forward(params, x, Train())
    assert params["mean"].dtype == mu.dtype == r.dtype == var.dtype == jnp.float32
    assert params["scale"].dtype == y.dtype == jnp.bfloat16
    mixed = LayerNorm(precision=Precision("float32", output="bfloat16"))
    assert mixed.init(jax.random.key(0), x)["scale"].dtype == jnp.float32
    assert mixed(mixed.init(jax.random.key(0), x), x.astype(jnp.float32)).dtype == jnp.bfloat16


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxbp import BatchNorm, Chain, Dense, Residual, Stack, Tanh, Train
jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
draw = np.random.default_rng(0).standard_normal
x, dy = 3 * draw((8, 3, 5)) + 1, draw((8, 3, 4))
x[4:] *= 5  # the shares of the devices do not look alike

def make(axis_name):
    norm = BatchNorm(axis_name=axis_name)
    return Chain(norm, Dense(4), Stack(Residual(Chain(norm, Tanh(), Dense(4))), 2))

def passes(net, add=lambda tree: tree):
    def run(params, x, dy):
        y, saved = net.forward(params, x, Train())
        grads, dx = net.backward(params, saved, dy)
        return y, dx, add(grads), net.update_statistics(params, saved)
    return run

net = make(None)
params = jax.tree.map(lambda p: p + 0.3 * draw(p.shape), net.init(jax.random.key(0), x))
expected = jax.jit(passes(net))(params, x, dy)
autodiff = jax.jit(lambda p, v, d: jax.vjp(lambda *a: net.forward(*a, Train())[0], p, v)[1](d))
dparams, dx = autodiff(params, x, dy)

def same(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, wanted)

same(expected[1:3], (dx, dparams))
mesh = Mesh(np.array(jax.devices()), ("batch",))
shares = [jax.device_put(a, NamedSharding(mesh, P("batch"))) for a in (x, dy)]
sharded = jax.jit(passes(net))(params, *shares)
assert len(sharded[0].sharding.device_set) == 4 and not sharded[0].is_fully_replicated
same(sharded, expected)
print("jit", end=" ")

split, whole = P("batch"), P()
run = passes(make("batch"), lambda grads: jax.lax.psum(grads, "batch"))
mapped = jax.shard_map(
    run, mesh=mesh, in_specs=(whole, split, split), out_specs=(split, split, whole, whole)
)
same(jax.jit(mapped)(params, x, dy), expected)
print("shard_map", end=" ")
names = jax.jit(jax.vmap(run, (None, 0, 0), (0, 0, None, None), axis_name="batch"))
y, dx, grads, moved = names(params, x.reshape(4, 2, 3, 5), dy.reshape(4, 2, 3, 4))
same((y.reshape(dy.shape), dx.reshape(x.shape), grads, moved), expected)
print("vmap")
"""


def test_on_four_devices_the_statistics_are_those_of_the_whole_batch() -> None:
    """Outputs, both errors and the running statistics, however the batch is spread over devices."""
    run = on_four_devices(SHARDED)
    assert run.stdout.strip() == "jit shard_map vmap", run.stderr


def test_per_example_gradients_of_layer_and_group_norm() -> None:
    for layer in (LayerNorm(), RMSNorm(), GroupNorm(2)):
        params = like(2, layer.init(jax.random.key(0), X))
        _, saved = layer.forward(params, X)
        _, delta = layer.pull(params, saved, normal(3, X.shape, "float64"))
        each = jax.vmap(layer.gradient, (None, 0, 0))(params, saved, delta)
        total = layer.gradient(params, saved, delta)
        for name in total:
            np.testing.assert_allclose(np.sum(each[name], 0), total[name], rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LayerNorm(epsilon=0.0), "epsilon must be positive"),
        (lambda: BatchNorm(momentum=1.5), r"momentum must be in \[0, 1\]"),
        (lambda: GroupNorm(0), "groups must be a positive integer"),
        (lambda: GroupNorm(3).init(KEY, X), "that 3 groups divide, got 4"),
        (lambda: GroupNorm(2).init(KEY, X[0, 0]), "at least 2 axes"),
        (lambda: LayerNorm().init(KEY, jnp.zeros((3, 4), int)), "floating dtype"),
        (lambda: BatchNorm().init(KEY, jnp.zeros((0, 4))), "none of them empty"),
        (lambda: LayerNorm()(LayerNorm().init(KEY, X), X[..., :3]), "expected 4 features"),
    ],
)
def test_bad_input_is_one_line(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_equal_errors_tell_nothing_of_a_mean() -> None:
    """Why cotangents must never be all ones: the sum of a normalised row does not depend on `x`."""
    net = LayerNorm()
    params = net.init(jax.random.key(0), X)
    _, saved = net.forward(params, X)
    _, dx = net.backward(params, saved, jnp.ones_like(X))
    np.testing.assert_allclose(dx, 0, atol=1e-12)
    grads = value_and_grad(net, SquaredError())(params, X, 0 * X)[1]
    assert np.all(np.abs(grads["scale"]) > 0.1)
