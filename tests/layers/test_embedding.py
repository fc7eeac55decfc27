"""What the harness does not see of embeddings, positions, tied weights and the deferred head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    Dense,
    Embedding,
    Head,
    InputError,
    LinearCrossEntropy,
    PositionEmbedding,
    SoftmaxCrossEntropy,
    Tanh,
    Tied,
    value_and_grad,
)
from tests.proof import normal, prove_net

IDS = jnp.array([[1, 4, 4], [0, 6, 1]])
KEY = jax.random.key(0)
W = normal(1, (7, 5), "float64")


def close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_an_id_out_of_range_is_an_error_outside_jit_and_nan_inside() -> None:
    layer, params, dy = Embedding(7, 5), {"w": W}, normal(2, (2, 3, 5), "float64")
    for wrong in (-1, 7):
        ids = IDS.at[0, 1].set(wrong)
        with pytest.raises(InputError, match=rf"ids in 0 … 6, got {wrong} \(1 of 6 ids\)"):
            layer(params, ids)
        y, saved = jax.jit(layer.forward)(params, ids)
        assert np.isnan(y[0, 1]).all()
        assert np.isnan(y).sum() == 5
        grads, dx = layer.backward(params, saved, dy)
        right, _ = layer.backward(params, IDS, dy.at[0, 1].set(0))
        np.testing.assert_array_equal(grads["w"], right["w"])
        assert dx is None


@pytest.mark.parametrize("dtype", ["uint2", "int4", "int8", "uint8", "int16", "uint32", "uint64"])
@pytest.mark.usefixtures("unchecked")
def test_ids_of_every_integer_dtype_mean_what_they_say(dtype) -> None:
    layer, top = Embedding(300, 2), min(299, int(jnp.iinfo(dtype).max))
    params = {"w": normal(1, (300, 2), "float64")}
    ids = np.array([[0, top, 1]]).astype(dtype)
    for x in (ids, jnp.asarray(ids)):
        y, saved = layer.forward(params, x)
        np.testing.assert_array_equal(y[0], params["w"][jnp.array([0, top, 1])])
        grads, _ = layer.backward(params, saved, jnp.ones_like(y))
        np.testing.assert_array_equal(np.flatnonzero(grads["w"][:, 0]), sorted([0, 1, top]))


@pytest.mark.parametrize("wrong", [np.array([2**32 + 1]), np.array([2**63 + 1], "uint64")])
@pytest.mark.usefixtures("unchecked")
def test_an_id_is_not_cut_down_to_one_that_exists(wrong) -> None:
    with jax.enable_x64(False):
        params = {"w": normal(1, (7, 5), "float32")}
        for call in (Embedding(7, 5), jax.jit(lambda p, _: Embedding(7, 5)(p, wrong))):
            with pytest.raises(InputError, match=rf"ids in 0 … 6, got {wrong[0]} \(1 of 1 ids\)"):
                call(params, wrong)


def test_rows_that_do_not_occur_get_no_error() -> None:
    layer, params = Embedding(7, 5), {"w": W}
    _, saved = layer.forward(params, IDS)
    grads, _ = layer.backward(params, saved, jnp.ones((2, 3, 5)))
    np.testing.assert_array_equal(grads["w"][:, 0], [1, 2, 0, 0, 2, 0, 1])


def test_errors_of_a_bfloat16_table_add_up_in_float32() -> None:
    ids, dy = jnp.zeros(1024, jnp.int32), jnp.ones((1024, 1), jnp.bfloat16)
    params = {"w": jnp.ones((1, 1), jnp.bfloat16)}
    assert float(Embedding(1, 1).backward(params, ids, dy)[0]["w"][0, 0]) == 1024


def test_positions_tell_places_apart_and_rotation_keeps_lengths() -> None:
    x = jnp.ones((1, 6, 8))
    sinusoidal = PositionEmbedding("sinusoidal")((), x)
    close(sinusoidal[0, 3, :2] - 1, [np.sin(3), np.cos(3)])
    rotary = PositionEmbedding("rotary")((), x)
    close(jnp.linalg.norm(rotary, axis=-1), np.sqrt(8) * np.ones((1, 6)))
    close(rotary[0, 2, [0, 4]], [np.cos(2) - np.sin(2), np.cos(2) + np.sin(2)])


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rotary"])
def test_positions_go_on_where_they_stopped(kind) -> None:
    layer, x = PositionEmbedding(kind, 5), normal(1, (2, 5, 4), "float64")
    params = layer.init(jax.random.key(0), x)
    cache = layer.start(params, 2, 5, "float64")
    first, cache = layer.advance(params, cache, x[:, :3])
    second, _ = layer.advance(params, cache, x[:, 3:])
    close(jnp.concatenate([first, second], axis=1), layer(params, x))


def test_a_deferred_head_with_its_loss_is_a_head_with_cross_entropy() -> None:
    h, y = normal(3, (4, 5), "float64"), jnp.array([1, 0, 6, 2])
    whole = value_and_grad(Head(7), SoftmaxCrossEntropy())({"w": W}, h, y)
    deferred = value_and_grad(Head(7, deferred=True), LinearCrossEntropy())({"w": W}, h, y)
    jax.tree.map(close, deferred, whole)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_tied_weight_gets_both_contributions(deferred) -> None:
    net = Tied(Embedding(7, 5), Dense(5), Tanh(), Head(7, deferred))
    loss = LinearCrossEntropy() if deferred else SoftmaxCrossEntropy()
    params, y = net.init(jax.random.key(0), IDS), jnp.roll(IDS, -1, axis=1)
    assert params[-1] == ()
    assert prove_net(net, loss, params, IDS, y) < 2e-5
    one_by_one = Tied.__mro__[1](*net.layers)  # a Chain of the same layers, the two tables apart
    apart = value_and_grad(one_by_one, loss)((*params[:-1], params[0]), IDS, y)[1]
    both = value_and_grad(net, loss)(params, IDS, y)[1]
    close(both[0]["w"], apart[0]["w"] + apart[-1]["w"], 1e-6)


def test_another_gather_gets_both_places_side_by_side() -> None:
    net = Tied(Embedding(7, 5), Tanh(), Head(7))
    params = net.init(jax.random.key(0), IDS)
    y, saved = net.forward(params, IDS)
    gathered, _ = net.backward(params, saved, jnp.ones_like(y), lambda layer, *_: repr(layer))
    assert gathered == ("Embedding(7, 5)", "Tanh()", "Head(7)")


def test_no_gradient_of_ids_reaches_the_user_as_an_array() -> None:
    net = Tied(Embedding(7, 5), Head(7))
    params = net.init(jax.random.key(0), IDS)
    y, saved = net.forward(params, IDS)
    assert net.backward(params, saved, y)[1] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Embedding(0, 5), "size must be a positive integer"),
        (lambda: Embedding(7, 0), "features must be a positive integer"),
        (lambda: Embedding(7, 5)({"w": W}, jnp.ones(3)), "integer dtype, got float64"),
        (lambda: Embedding(8, 5)({"w": W}, IDS), r"w of shape \[8, 5\], got \[7, 5\]"),
        (lambda: PositionEmbedding("absolute"), "expected a kind of learned"),
        (lambda: PositionEmbedding("learned", 0), "length must be a positive integer"),
        (
            lambda: PositionEmbedding("learned", 2)({}, jnp.ones((1, 3, 4))),
            "longer than the table: 3 > 2",
        ),
        (lambda: PositionEmbedding("rotary")((), jnp.ones((1, 3, 5))), "even number of features"),
        (lambda: PositionEmbedding("rotary").init(KEY, jnp.ones(4)), r"\[..., time, features\]"),
        (lambda: Head(0), "size must be a positive integer"),
        (lambda: Head(7)({"w": W}, jnp.ones((2, 4))), r"w of shape \[7, 4\], got \[7, 5\]"),
        (lambda: Head(7)({"w": W}, IDS), "floating"),
        (lambda: Tied(Head(7)), "at least two layers"),
        (lambda: Tied(Embedding(7, 5), Head(8)).init(KEY, IDS), "parameters of one shape"),
        (lambda: LinearCrossEntropy()(jnp.ones((2, 3)), IDS), "the pair"),
        (lambda: LinearCrossEntropy()((jnp.ones((2, 3)), W), jnp.ones(2, int)), "h as"),
        (lambda: LinearCrossEntropy()((jnp.ones((2, 7)), W), jnp.array([0, 5])), "labels in 0 … 4"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    dy = normal(2, (2, 3, 5), "float64")
    w = torch.tensor(np.asarray(W), requires_grad=True)
    y = torch.nn.functional.embedding(torch.tensor(np.asarray(IDS)), w)
    (y * torch.tensor(np.asarray(dy))).sum().backward()
    ours, saved = Embedding(7, 5).forward({"w": W}, IDS)
    close(ours, y.detach())
    close(Embedding(7, 5).backward({"w": W}, saved, dy)[0]["w"], w.grad)


def test_agrees_with_flax() -> None:
    linen = pytest.importorskip("flax.linen")
    other, dy = linen.Embed(7, 5, param_dtype=jnp.float64), normal(2, (2, 3, 5), "float64")
    y, vjp = jax.vjp(lambda p: other.apply({"params": p}, IDS), {"embedding": W})
    ours, saved = Embedding(7, 5).forward({"w": W}, IDS)
    close(ours, y)
    close(Embedding(7, 5).backward({"w": W}, saved, dy)[0]["w"], vjp(dy)[0]["embedding"])


def test_a_table_without_a_length_is_as_long_as_what_init_sees() -> None:
    layer, x = PositionEmbedding(), normal(1, (2, 5, 4), "float64")
    params = layer.init(jax.random.key(0), x)
    assert params["p"].shape == (5, 4)
    np.testing.assert_array_equal(layer(params, x[:, :3]), x[:, :3] + params["p"][None, :3])
    with pytest.raises(InputError, match="longer than the table: 6 > 5"):
        layer(params, jnp.ones((1, 6, 4)))
