"""Steps and epochs: the same trajectories as `jax.grad` and torch, one compilation, no extra work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import (
    BatchNorm,
    Chain,
    Dense,
    Dropout,
    Eval,
    InputError,
    Residual,
    Sigmoid,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    Train,
    apply_updates,
    jaxprs,
    make_epoch,
    make_step,
    value_and_grad,
)
from jaxbp.models import mlp
from jaxbp.oracle import reference_value_and_grad
from jaxbp.train.step import batch_weights, epoch_function
from tests.proof import normal

NET = mlp(16, 12, 3)
LOSS = SoftmaxCrossEntropy()


def data(count: int = 22, dtype: str = "float64"):
    x = normal(1, (count, 7), dtype)
    return x, jnp.asarray(np.random.default_rng(2).integers(0, 3, count))


def copy(tree):
    return jax.tree.map(jnp.array, tree)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's Adam multiplies floats with its step counter, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(
    "tx",
    [optax.sgd(0.3), optax.sgd(0.1, momentum=0.9, nesterov=True), optax.adam(0.01), optax.adamw(0.01)],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_ten_steps_are_those_of_jax_grad(tx) -> None:
    x, y = data()
    params = NET.init(jax.random.key(0), x)
    reference, state = copy(params), tx.init(params)
    ours, our_state = copy(params), tx.init(params)
    step = make_step(NET, LOSS, tx)
    oracle = jax.jit(reference_value_and_grad(NET, LOSS))
    for _ in range(10):
        ours, our_state, value = step(ours, our_state, x, y)
        expected, grads = oracle(reference, x, y)
        updates, state = tx.update(grads, state, reference)
        reference = optax.apply_updates(reference, updates)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, reference)


def test_ten_steps_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x, y = data()
    params = NET.init(jax.random.key(0), x)
    model = torch.nn.Sequential(
        torch.nn.Linear(7, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 12),
        torch.nn.ReLU(),
        torch.nn.Linear(12, 3),
    ).double()
    with torch.no_grad():
        for module, p in zip(model[::2], params[::2], strict=True):
            module.weight.copy_(torch.tensor(np.asarray(p["w"]).T))
            module.bias.copy_(torch.tensor(np.asarray(p["b"])))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    tx = optax.sgd(0.3, momentum=0.9)
    step, state = make_step(NET, LOSS, tx), tx.init(params)
    inputs, labels = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y))
    for _ in range(10):
        params, state, value = step(params, state, x, y)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(value, loss.item(), rtol=1e-10)
    for module, p in zip(model[::2], params[::2], strict=True):
        np.testing.assert_allclose(p["w"].T, module.weight.detach().numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(p["b"], module.bias.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_plain_sgd_is_the_default() -> None:
    x, y = data()
    params = NET.init(jax.random.key(0), x)
    grads = value_and_grad(NET, LOSS)(params, x, y)[1]
    new, _, _ = make_step(NET, LOSS)(params, optax.sgd(0.1).init(params), x, y)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), new, expected)


def test_an_epoch_is_its_steps_and_sees_every_example_once() -> None:
    x, y = data(22)
    tx = optax.sgd(0.2, momentum=0.5)
    params = NET.init(jax.random.key(0), x)
    epoch = make_epoch(NET, LOSS, tx, batch_size=5, shuffle=False)
    ours, _, losses = epoch(copy(params), tx.init(params), x, y, jax.random.key(1))
    step, state = make_step(NET, LOSS, tx), tx.init(params)
    expected = []
    for start in range(0, 22, 5):
        rows = slice(start, start + 5)
        params, state, value = step(params, state, x[rows], y[rows])
        expected.append(value)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, params)
    np.testing.assert_allclose(batch_weights(22, 5), np.array([5, 5, 5, 5, 2]) / 22)


def test_shuffling_is_by_the_key_and_keeps_every_example() -> None:
    x = jnp.arange(10.0)[:, None]
    y = jnp.zeros((10, 1))
    net, loss = Chain(Dense(1, bias=False)), SquaredError("sum")
    frozen = optax.set_to_zero()
    params = ({"w": jnp.ones((1, 1))},)
    epoch = make_epoch(net, loss, frozen, batch_size=1)
    state = frozen.init(params)
    orders = [epoch(params, state, x, y, jax.random.key(k))[2] for k in (0, 1, 0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(np.asarray(order)), np.arange(10.0) ** 2)
    assert np.any(np.asarray(orders[0]) != np.asarray(orders[1]))
    np.testing.assert_array_equal(orders[0], orders[2])


def test_one_compilation_for_all_epochs_and_donated_state(compiled) -> None:
    traces = []

    class Counted(Tanh):
        def forward(self, params, x, mode=Eval()):
            traces.append(x.shape)
            return super().forward(params, x, mode)

    net = Chain(Dense(6), Counted(), Dense(3))
    x, y = data(22)
    params = net.init(jax.random.key(0), x)
    tx = optax.adam(0.01)
    state = tx.init(params)
    traces.clear()
    epoch = make_epoch(net, LOSS, tx, batch_size=5, donate=True)
    first = params[0]["w"]
    for k in range(4):
        params, state, _ = epoch(params, state, x, y, jax.random.key(k))
    assert traces == [(5, 6), (2, 6)]  # the scan's body and the last, smaller step, each once
    assert compiled["epoch"] == 1
    assert first.is_deleted()


def test_dropout_draws_a_new_mask_every_step() -> None:
    net = Chain(Dropout(0.5), Dense(1, bias=False))
    x, y = jnp.ones((8, 40)), jnp.zeros((8, 1))
    params = ((), {"w": jnp.ones((40, 1))})
    frozen = optax.set_to_zero()
    epoch = make_epoch(net, SquaredError(), frozen, batch_size=2)
    losses = np.asarray(epoch(params, frozen.init(params), x, y, jax.random.key(0))[2])
    assert len(set(losses.tolist())) == 4


def test_a_step_with_dropout_asks_for_a_key() -> None:
    net = Chain(Dropout(0.5), Dense(3))
    x, y = data()
    params = net.init(jax.random.key(0), x)
    tx = optax.sgd(0.1)
    with pytest.raises(InputError, match=r"Chain\[0\] > Dropout\(0.5\): training draws a mask; pass"):
        make_step(net, LOSS, tx)(params, tx.init(params), x, y)
    make_step(net, LOSS, tx)(params, tx.init(params), x, y, Train(jax.random.key(0)))


# --- no more work than autodiff ---------------------------------------------------------------------


def count_dots(jaxpr) -> int:
    """Floating-point operations of all matrix products in a jaxpr, counting a scan's body every turn."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            a = eqn.invars[0].aval.shape
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([a[i] for i in contract]))
        turns = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += turns * sum(map(count_dots, jaxprs.programs(eqn)))
    return total


def hlo_dots(compiled) -> int:
    text = compiled.as_text()
    return sum(map(text.count, (" dot(", "__onednn$matmul", "__cublas$")))


# Sizes are multiples of 16: XLA aligns buffers to 64 bytes, so that others differ by padding alone.
NETS = {
    "relu": mlp(64, 32, 16),
    "tanh": mlp(64, 32, 16, activation=Tanh()),
    "sigmoid": mlp(64, 32, 16, activation=Sigmoid()),
    "residual": Chain(Dense(32), Residual(Chain(Dense(32), Tanh())), Dense(16)),
}


@pytest.mark.parametrize("name", NETS)
def test_no_more_flops_or_memory_than_jax_grad(name: str) -> None:
    net, tx = NETS[name], optax.sgd(0.1)
    x, y = normal(1, (128, 48), "float32"), jnp.asarray(np.random.default_rng(2).integers(0, 16, 128))
    params = net.init(jax.random.key(0), x)

    def program(gradients):
        def step(params, x, y):
            value, grads = gradients(params, x, y)
            updates, _ = tx.update(grads, tx.init(params), params)
            return optax.apply_updates(params, updates), value

        return jax.jit(step, donate_argnums=0)

    ours, theirs = program(value_and_grad(net, LOSS)), program(reference_value_and_grad(net, LOSS))
    flops = [count_dots(jax.make_jaxpr(f)(params, x, y).jaxpr) for f in (ours, theirs)]
    layers = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    floor = sum(6 * 128 * w.size for w in layers) - 2 * 128 * layers[0].size  # no error to the data
    compiled = [f.lower(params, x, y).compile() for f in (ours, theirs)]
    assert hlo_dots(compiled[0]) <= hlo_dots(compiled[1])
    assert floor <= flops[0] <= floor + 2 * 128 * layers[0].size
    assert flops[1] == floor
    if jax.default_backend() != "cpu":
        return  # buffers are aligned in another way, and libraries have a workspace of their own
    memory = [c.memory_analysis() for c in compiled]
    used = [m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes for m in memory]
    assert used[0] <= used[1]


# --- bad input --------------------------------------------------------------------------------------


def test_bad_batches_are_named() -> None:
    x, y = data(5)
    tx = optax.sgd(0.1)
    params = NET.init(jax.random.key(0), x)
    with pytest.raises(InputError, match="batch_size: expected at most the 5 examples, got 8"):
        make_epoch(NET, LOSS, tx, batch_size=8)(params, tx.init(params), x, y, jax.random.key(0))
    with pytest.raises(InputError, match="batch_size must be a positive integer, got 0"):
        epoch_function(NET, LOSS, tx, 0)
    with pytest.raises(InputError, match=r"same number of examples, got \[5, 4\]"):
        make_epoch(NET, LOSS, tx, 2)(params, tx.init(params), x, y[:4], jax.random.key(0))
    with pytest.raises(InputError, match="at least one example, got none"):
        make_epoch(NET, LOSS, tx, 2)(params, tx.init(params), x[:0], y[:0], jax.random.key(0))


def test_a_loop_of_ones_own_moves_statistics_as_a_step_does() -> None:
    """With weight decay, which would shrink statistics if they took its updates."""
    net, loss, tx = Chain(Dense(6), BatchNorm(), Tanh(), Dense(3)), LOSS, optax.adamw(0.05)
    x, y = data(12)
    params = by_step = net.init(jax.random.key(0), x)
    state = by_step_state = tx.init(params)
    both, step = value_and_grad(net, loss, with_saved=True), make_step(net, loss, tx)

    @jax.jit
    def own(params, state):
        value, grads, saved = both(params, x, y, Train())
        updates, state = tx.update(grads, state, params)
        return apply_updates(net, params, updates, saved), state, value

    for _ in range(3):
        params, state, value = own(params, state)
        by_step, by_step_state, by_step_value = step(by_step, by_step_state, x, y)
    np.testing.assert_allclose(value, by_step_value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(by_step), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not np.allclose(params[1]["mean"], 0)
    with pytest.raises(InputError, match="shaped like the parameters"):
        apply_updates(net, params, params[0], ())


def test_given_away_params_are_named() -> None:
    x, y = data(10)
    params, tx = NET.init(jax.random.key(0), x), optax.sgd(0.1)
    step = make_step(NET, LOSS, tx, donate=True)
    new, state, _ = step(params, tx.init(params), x, y)
    with pytest.raises(InputError, match=r"went to the result of an earlier call \(donate=True\)"):
        step(params, state, x, y)
    step(new, state, x, y)
