"""What the harness does not see of recurrence: loops' work, masks, segments, devices, torch and Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import GRU, LSTM, RNN, InputError, Precision, jaxprs
from jaxbp.layers import recurrent
from tests.devices import on_four_devices
from tests.proof import like, normal

CELLS = [RNN, LSTM, GRU]
B, T, I, H = 3, 4, 5, 6
X = normal(1, (B, T, I), "float64")
DY = normal(2, (B, T, H), "float64")


def state_for(cell, key=3):
    h, c = normal(key, (B, H), "float64"), normal(key + 1, (B, H), "float64")
    return (h, c) if cell is LSTM else h


def params_for(cell, dtype="float64"):
    params = cell(H).init(jax.random.key(0), X.astype(dtype))
    return jax.tree.map(lambda p, i: p + normal(i, p.shape, dtype, 0.3), params, numbered(params))


def numbered(tree):
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, range(10, 10 + len(leaves)))


def close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def scans(jaxpr):
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]


def products(jaxpr):
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]


@pytest.mark.parametrize("cell", CELLS)
def test_the_loops_do_one_product_a_step_and_carry_no_weight_gradient(cell) -> None:
    layer, params = cell(H), params_for(cell)

    def passes(p, x, dy):
        y, saved = layer.forward(p, x)
        return y, layer.backward(p, saved, dy)

    jaxpr = jax.make_jaxpr(passes)(params, X, DY).jaxpr
    forward, backward = scans(jaxpr)
    weights = {p.shape for p in params.values()} | {p.shape[::-1] for p in params.values()}
    for loop in (forward, backward):
        inner = jaxprs.loop_of(loop)
        body, _ = jaxprs.opened(inner.body)
        (product,) = products(body)
        assert product.outvars[0].aval.shape[0] == B
        carries = body.outvars[: inner.carry]
        assert {v.aval.shape for v in carries} == {(B, H)}
        assert not weights & {v.aval.shape for eqn in body.eqns for v in eqn.outvars}
    # outside: one for the inputs, one for dx, two for the weights, each over all steps at once
    assert len(products(jaxpr)) == 4


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_multiplies_its_own_input_where_that_is_cheaper(cell, monkeypatch) -> None:
    """The same numbers as with one product before the loop, and never an array of every `a_x`."""
    layer, params = cell(H), params_for(cell)
    x = normal(7, (9, 6, X.shape[-1]), "float64")
    dy = normal(8, (9, 6, H), "float64")
    found = {}
    for inside in (True, False):
        monkeypatch.setattr(recurrent, "_product_inside", lambda x, inside=inside: inside)

        def passes(p, x, dy):  # anew, since a trace is remembered by its function
            y, saved = layer.forward(p, x)
            return y, layer.backward(p, saved, dy)

        jaxpr = jax.make_jaxpr(passes)(params, x, dy).jaxpr
        assert len(products(scans(jaxpr)[0].params["jaxpr"].jaxpr)) == 1 + inside
        assert len(products(jaxpr)) == 4 - inside
        found[inside] = jax.jit(passes)(params, x, dy)
    jax.tree.map(close, found[True], found[False])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_nothing(cell, reverse) -> None:
    layer, params = cell(H, reverse=reverse, return_state=True), params_for(cell)
    state, hidden = state_for(cell), np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
    (y, last), saved = layer.forward(params, {"x": X, "mask": jnp.asarray(hidden), "state": state})
    for row, steps in enumerate([slice(0, 4), slice(0, 2), slice(2, 4)]):
        own = jax.tree.map(lambda s, row=row: s[row : row + 1], state)
        y_row, last_row = layer(params, {"x": X[row : row + 1, steps], "state": own})
        close(y[row, steps], y_row[0])
        jax.tree.map(lambda a, b, row=row: close(a[row], b[0]), last, last_row)
    assert not y[~hidden].any()
    dlast = jax.tree.map(jnp.ones_like, last)
    assert not layer.backward(params, saved, (DY, dlast))[1]["x"][~hidden].any()


@pytest.mark.parametrize("cell", CELLS)
def test_segments_add_up_to_the_whole_sequence_if_the_state_error_is_handed_back(cell) -> None:
    layer, params, state = cell(H, return_state=True), params_for(cell), state_for(cell)
    zero = jax.tree.map(jnp.zeros_like, state)
    _, saved = layer.forward(params, {"x": X, "state": state})
    whole, dx = layer.backward(params, saved, (DY, zero))

    (_, middle), saved_1 = layer.forward(params, {"x": X[:, :2], "state": state})
    _, saved_2 = layer.forward(params, {"x": X[:, 2:], "state": middle})
    second, dx_2 = layer.backward(params, saved_2, (DY[:, 2:], zero))
    first, dx_1 = layer.backward(params, saved_1, (DY[:, :2], dx_2["state"]))
    jax.tree.map(lambda a, b, c: close(a + b, c), first, second, whole)
    close(jnp.concatenate([dx_1["x"], dx_2["x"]], axis=1), dx["x"])
    jax.tree.map(close, dx_1["state"], dx["state"])

    truncated, _ = layer.backward(params, saved_1, (DY[:, :2], zero))
    assert np.abs(truncated["w_h"] + second["w_h"] - whole["w_h"]).max() > 1e-3


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_that_is_carried_on_stops_the_error_as_stop_gradient_does(cell) -> None:
    """Truncated backpropagation through time: each segment starts where the last one ended."""
    layer, params = cell(H, return_state=True), params_for(cell)

    def segments(p, stop):
        state, total = state_for(cell), 0.0
        for t in range(0, T, 2):
            y, state = layer(p, {"x": X[:, t : t + 2], "state": stop(state)})
            total += jnp.vdot(DY[:, t : t + 2], y)
        return total

    state, found = state_for(cell), []
    for t in range(0, T, 2):
        (_, state), saved = layer.forward(params, {"x": X[:, t : t + 2], "state": state})
        zero = jax.tree.map(jnp.zeros_like, state)
        found.append(layer.backward(params, saved, (DY[:, t : t + 2], zero))[0])
    expected = jax.jit(jax.grad(lambda p: segments(p, jax.lax.stop_gradient)))(params)
    jax.tree.map(lambda a, b, c: close(a + b, c), *found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_step_by_step_is_the_whole_sequence(cell) -> None:
    layer, params = cell(H), params_for(cell)
    cache, ys = layer.start(params, B, T, "float64"), []
    for t in range(T):
        y, cache = layer.advance(params, cache, X[:, t : t + 1])
        ys.append(y)
    close(jnp.concatenate(ys, axis=1), layer(params, X))


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_products_with_float32_parameters(cell) -> None:
    layer = cell(H, precision=Precision("float32", "bfloat16", "float32"))
    x, params = X.astype("float32"), params_for(cell, "float32")
    y, saved = layer.forward(params, x)
    grads, dx = layer.backward(params, saved, DY.astype("float32"))
    exact, kept = cell(H).forward(params, x)
    expected, _ = cell(H).backward(params, kept, DY.astype("float32"))
    assert y.dtype == dx.dtype == grads["w_h"].dtype == jnp.float32
    assert saved["before"][0].dtype == jnp.bfloat16
    close(y, exact, 0.02)
    jax.tree.map(lambda a, b: close(a, b, 0.05), grads, expected)


def test_the_forget_gate_starts_open() -> None:
    b = LSTM(2).init(jax.random.key(0), X)["b"]
    np.testing.assert_array_equal(b, [0, 0, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(0), "features must be a positive integer"),
        (lambda: GRU(2, unroll=0), "unroll must be a positive integer"),
        (lambda: RNN(2, initializer="best"), "initializer"),
        (lambda: RNN(2).init(jax.random.key(0), X[0, 0]), r"\[..., time, features\]"),
        (lambda: RNN(2).init(jax.random.key(0), jnp.ones((2, 3), jnp.int32)), "floating"),
        (lambda: RNN(H)(params_for(RNN), X[..., :2]), "expected 5 features"),
        (lambda: RNN(H)(params_for(RNN), {"x": X, "lengths": 3}), "expected x, mask and state"),
        (lambda: RNN(H)(params_for(RNN), {"x": X, "mask": jnp.ones((B, T))}), "boolean mask"),
        (lambda: RNN(H)(params_for(RNN), {"x": X, "mask": jnp.ones((B, 2), bool)}), r"\[3, 4\]"),
        (lambda: LSTM(H)(params_for(LSTM), {"x": X, "state": jnp.ones((B, H))}), "a state of 2"),
        (lambda: RNN(H, reverse=True).advance(params_for(RNN), (), X), "whole sequence"),
    ],
)
def test_bad_input(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_torch(cell) -> None:
    torch = pytest.importorskip("torch")
    params, state = params_for(cell), state_for(cell)
    other = getattr(torch.nn, cell.__name__)(I, H, batch_first=True, dtype=torch.float64)

    def tensor(a, grad=False):
        return torch.tensor(np.asarray(a), requires_grad=grad)

    with torch.no_grad():
        b_hh = np.zeros(params["b"].shape)
        if cell is GRU:
            b_hh[2 * H :] = params["b_n"]
        own = [params["w_x"].T, params["w_h"].T, params["b"], b_hh]
        for theirs, value in zip(other.parameters(), own, strict=True):
            theirs.copy_(tensor(value))
    x, s = tensor(X, True), [tensor(p[None], True) for p in jax.tree.leaves(state)]
    y_torch, last_torch = other(x, tuple(s) if cell is LSTM else s[0])
    dlast = jax.tree.map(lambda p: p[::-1], state)
    finals = last_torch if cell is LSTM else (last_torch,)
    pairs = zip(finals, jax.tree.leaves(dlast), strict=True)
    sum([(y_torch * tensor(DY)).sum(), *((a[0] * tensor(b)).sum() for a, b in pairs)]).backward()

    (y, last), saved = cell(H, return_state=True).forward(params, {"x": X, "state": state})
    grads, dx = cell(H, return_state=True).backward(params, saved, (DY, dlast))
    close(y, y_torch.detach())
    for ours, theirs in zip(jax.tree.leaves(last), finals, strict=True):
        close(ours, theirs[0].detach())
    for ours, theirs in zip(jax.tree.leaves(dx["state"]), s, strict=True):
        close(ours, theirs.grad[0])
    close(dx["x"], x.grad)
    w_ih, w_hh, b_ih, b_hh = (p.grad.numpy() for p in other.parameters())
    close(grads["w_x"], w_ih.T)
    close(grads["w_h"], w_hh.T)
    close(grads["b"], b_ih)
    if cell is GRU:
        close(grads["b_n"], b_hh[2 * H :])


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_agrees_with_flax(cell) -> None:
    linen = pytest.importorskip("flax.linen")
    params = params_for(cell)
    gates = ["i", "f", "g", "o"] if cell is LSTM else ["r", "z", "n"]
    w_x, w_h, b = (jnp.split(params[n], len(gates), axis=-1) for n in ("w_x", "w_h", "b"))
    theirs = {}
    for gate, x_part, h_part, b_part in zip(gates, w_x, w_h, b, strict=True):
        theirs[f"i{gate}"], theirs[f"h{gate}"] = {"kernel": x_part}, {"kernel": h_part}
        theirs[f"h{gate}" if cell is LSTM else f"i{gate}"]["bias"] = b_part
    if cell is GRU:
        theirs["hn"]["bias"] = params["b_n"]
    kind = linen.LSTMCell if cell is LSTM else linen.GRUCell
    rnn = linen.RNN(kind(H, dtype=jnp.float64, param_dtype=jnp.float64))

    def run(p, x):
        return rnn.apply({"params": {"cell": p}}, x)

    y_flax, vjp = jax.vjp(jax.jit(run), theirs, X)
    expected, dx_flax = vjp(DY)
    y, saved = cell(H).forward(params, X)
    grads, dx = cell(H).backward(params, saved, DY)
    close(y, y_flax)
    close(dx, dx_flax)
    close(grads["w_x"], jnp.concatenate([expected[f"i{g}"]["kernel"] for g in gates], axis=-1))
    close(grads["w_h"], jnp.concatenate([expected[f"h{g}"]["kernel"] for g in gates], axis=-1))
    side = "h" if cell is LSTM else "i"
    close(grads["b"], jnp.concatenate([expected[f"{side}{g}"]["bias"] for g in gates]))
    if cell is GRU:
        close(grads["b_n"], expected["hn"]["bias"])


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from jaxbp import GRU, LSTM, RNN
jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
draw = np.random.default_rng(0).standard_normal
x, mask = draw((8, 3, 5)), np.arange(3) < np.array([3, 1, 2, 0, 3, 3, 1, 2])[:, None]
cells = RNN(4), GRU(4, reverse=True), LSTM(4, return_state=True)
shapes = [jax.eval_shape(cell.init, jax.random.key(0), x) for cell in cells]
like = [jax.eval_shape(cell, p, x) for cell, p in zip(cells, shapes)]
params, dy = jax.tree.map(lambda a: draw(a.shape), (shapes, like))

def passes(params, x, mask, dy, add=lambda tree: tree):
    found = []
    for cell, p, d in zip(cells, params, dy):
        y, saved = cell.forward(p, {"x": x, "mask": mask})
        grads, dx = cell.backward(p, saved, d)
        found.append((y, dx["x"], add(grads)))
    return found

expected = jax.jit(passes)(params, x, mask, dy)
split, whole = P("batch"), P()
mapped = jax.shard_map(
    lambda *args: passes(*args, add=lambda grads: jax.lax.psum(grads, "batch")),
    mesh=jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)),
    in_specs=(whole, split, split, split),
    out_specs=[(split, split, whole)] * 3,
)
got = jax.jit(mapped)(params, x, mask, dy)
assert len(got[0][0].sharding.device_set) == 4
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, expected)
print("same")
"""


def test_on_four_devices_each_walks_its_own_sequences() -> None:
    """The states that the loops start from vary over the devices as the input does; `shard_map` asks."""
    run = on_four_devices(SHARDED, "--xla_backend_optimization_level=0")
    assert run.stdout.strip() == "same", run.stderr


@pytest.mark.parametrize("layer", [RNN(3), LSTM(3), GRU(3), LSTM(3, reverse=True)], ids=repr)
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_a_hidden_step_may_hold_anything(layer, hidden) -> None:
    x, dy = normal(1, (2, 4, 5), "float64"), normal(2, (2, 4, 3), "float64")
    mask = jnp.array([[True, True, False, False], [False, True, True, True]])
    params = like(3, layer.init(jax.random.key(0), x))

    def passes(x, dy):
        y, saved = layer.forward(params, {"x": x, "mask": mask})
        dparams, dx = layer.backward(params, saved, dy)
        return y, dparams, dx["x"]

    holes = (jnp.where(mask[..., None], a, hidden) for a in (x, dy))
    jax.tree.map(np.testing.assert_array_equal, passes(*holes), passes(x, dy))
