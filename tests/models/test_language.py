"""`gpt` and `char_lstm`: gradients, sizes, programs that do not grow with depth, and generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import GELU, Dense, InputError, LinearCrossEntropy, SoftmaxCrossEntropy, value_and_grad
from jaxbp.compose import Record
from jaxbp.generate import make_generator
from jaxbp.models import char_lstm, gated_mlp, gpt
from tests.proof import Case, prove_net, prove_traced

IDS = jnp.array([[1, 4, 4, 2, 0], [0, 6, 1, 3, 3]])
SMALL = {"depth": 2, "heads": 2, "features": 8, "length": 9}
NETS = {
    "learned": gpt(7, **SMALL),
    "rotary": gpt(7, **SMALL, positions="rotary"),
    "lstm": char_lstm(7, features=6, depth=2, embedding=4),
}


def params_for(net):
    made = net.init(jax.random.key(0), IDS)
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape, p.dtype), made)


@pytest.mark.parametrize("name", ["learned", "lstm"])
def test_gradients(name) -> None:
    net, y = NETS[name], jnp.roll(IDS, -1, axis=1)
    assert prove_net(net, SoftmaxCrossEntropy(), params_for(net), IDS, y) < 2e-5


def test_a_deferred_gpt_has_the_same_gradient() -> None:
    y, params = jnp.roll(IDS, -1, axis=1), params_for(NETS["learned"])
    whole = value_and_grad(NETS["learned"], SoftmaxCrossEntropy())
    deferred = value_and_grad(gpt(7, **SMALL, deferred=True), LinearCrossEntropy())
    a, b = (jax.jit(fn)(params, IDS, y) for fn in (whole, deferred))
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-6), a, b)


@pytest.mark.parametrize("activation", [None, GELU()])
def test_the_gated_mlp(activation) -> None:
    layer = gated_mlp(3, 5, activation) if activation else gated_mlp(3, 5, bias=True)
    prove_traced(Case(layer, (2, 3), modes=("jit",)))


def test_the_sizes_of_gpt2() -> None:
    """Counts of parameters as published with the weights (the 124M, 355M, 774M and 1558M models)."""
    for size, count in [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ]:
        params = jax.eval_shape(gpt(size=size).init, jax.random.key(0), IDS)
        biases_of_keys = sum(
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if "b_q" in jax.tree_util.keystr(path)
        )  # there is no b_k here: its gradient is always 0
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) + biases_of_keys == count


def test_the_program_does_not_grow_with_depth() -> None:
    def lines(depth):
        net = gpt(7, **{**SMALL, "depth": depth})
        params = jax.eval_shape(net.init, jax.random.key(0), IDS)
        fn = jax.jit(value_and_grad(net, SoftmaxCrossEntropy()))
        return fn.lower(params, IDS, IDS).as_text().count("\n")

    assert lines(24) == lines(6)


@pytest.mark.parametrize("name", NETS)
def test_generation_with_a_cache_is_generation_without(name) -> None:
    net, tokens = NETS[name], IDS[:, :3]
    params = jax.tree.map(lambda p: 3 * p, params_for(net))
    fast = make_generator(net, 7, temperature=0)(params, tokens, jax.random.key(0))
    run = jax.jit(lambda t, n: jnp.argmax(net(params, t)[:, n], axis=-1))
    padded = jnp.zeros((2, 7), IDS.dtype).at[:, :3].set(tokens)
    for n in range(3, 7):  # nothing looks ahead, so zeros after the end change nothing
        padded = padded.at[:, n].set(run(padded, n - 1))
    np.testing.assert_array_equal(fast, padded)
    assert len(np.unique(fast)) > 1


def test_top_one_is_the_likeliest_and_keys_differ() -> None:
    net, params = NETS["learned"], params_for(NETS["learned"])
    best = make_generator(net, 9, temperature=0)(params, IDS, jax.random.key(0))
    np.testing.assert_array_equal(make_generator(net, 9, top=1)(params, IDS, jax.random.key(1)), best)
    free = make_generator(net, 9)
    draws = [np.asarray(free(params, IDS, jax.random.key(k))) for k in range(4)]
    assert any((draws[0] != d).any() for d in draws[1:])
    assert all((d[:, :5] == IDS).all() for d in draws)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gpt(), "the size of the vocabulary"),
        (lambda: gpt(size="gpt3"), "size must be one of gpt2"),
        (lambda: gpt(7, positions="none"), "positions must be"),
        (lambda: char_lstm(7, depth=0), "depth must be"),
        (lambda: make_generator(NETS["lstm"], 5, temperature=-1), "temperature"),
        (lambda: make_generator(NETS["lstm"], 5, top=0), "top"),
        (
            lambda: make_generator(NETS["lstm"], 3)(params_for(NETS["lstm"]), IDS, 0),
            "1 … 2 tokens, got 5",
        ),
        (lambda: make_generator(Record(Dense(3)), 9)([IDS], IDS, 0), "token by token"),
    ],
)
def test_bad_input(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()
