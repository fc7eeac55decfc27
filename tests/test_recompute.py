"""Less kept, the same numbers: recomputation against the plain walk, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    BatchNorm,
    Chain,
    Dense,
    Dropout,
    Eval,
    InputError,
    LayerNorm,
    Recompute,
    Residual,
    Stack,
    Tanh,
    Train,
)
from jaxbp.recompute import default_unroll, segment_length
from tests.proof import normal

BODY = Chain(Residual(Chain(LayerNorm(), Dense(6), Dropout(0.3))), BatchNorm())


def walk(net, params, x, dy):
    """Output, gradients and statistics of one training step."""
    y, saved = net.forward(params, x, Train(jax.random.key(3)))
    grads, dx = net.backward(params, saved, dy)
    return y, grads, dx, net.update_statistics(params, saved)


def assert_same(got, wanted, tolerance=0.0):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


def test_a_recomputed_layer_is_the_layer_itself_to_the_last_bit() -> None:
    x, dy = normal(1, (5, 6), "float32"), normal(2, (5, 6), "float32")
    params = BODY.init(jax.random.key(0), x)
    assert_same(walk(Recompute(BODY), params, x, dy), walk(BODY, params, x, dy))


@pytest.mark.parametrize("recompute", [True, 2, "sqrt", 5])
def test_a_recomputed_stack_draws_and_learns_as_the_plain_one(recompute) -> None:
    """In float64: XLA fuses the bodies of other loops in other ways, and the last digits differ."""
    with jax.enable_x64(True):
        x, dy = normal(1, (5, 6), "float64"), normal(2, (5, 6), "float64")
        plain = Stack(BODY, 5)
        params = plain.init(jax.random.key(0), x)
        got = walk(Stack(BODY, 5, recompute=recompute), params, x, dy)
        assert_same(got, walk(plain, params, x, dy), 1e-12)


def test_statistics_move_by_the_batch_and_not_by_the_new_weights() -> None:
    x, body = normal(1, (7, 3), "float32"), Chain(Dense(4), BatchNorm())
    params = body.init(jax.random.key(0), x)
    moved = jax.tree.map(lambda p: p + 1, params[:1]) + params[1:]  # as after an optimizer's update
    _, saved = body.forward(params, x, Train())
    _, kept = Recompute(body).forward(params, x, Train())
    assert_same(Recompute(body).update_statistics(moved, kept), body.update_statistics(moved, saved))


def kept(net, x):
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    saved = jax.eval_shape(lambda p, v: net.forward(p, v, Eval())[1], params, x)
    return sum(leaf.size for leaf in jax.tree.leaves(saved))


def test_what_a_stack_keeps_is_what_the_derivation_says() -> None:
    x, body = jax.ShapeDtypeStruct((32, 6), "float32"), Chain(Tanh(), Dense(6))
    n, entries = 16, 32 * 6
    assert kept(Stack(body, n), x) == n * 2 * entries  # the outputs of Tanh and the inputs of Dense
    assert kept(Stack(body, n, recompute=True), x) == n * entries
    assert kept(Stack(body, n, recompute="sqrt"), x) == 4 * entries
    assert kept(Stack(body, n, recompute=8), x) == 2 * entries
    assert kept(Recompute(Stack(body, n)), x) == entries


def temporary(net, x):
    """Bytes that the compiled two passes need beside their arguments and results."""
    params = jax.eval_shape(net.init, jax.random.key(0), x)

    def passes(p, v):
        y, saved = net.forward(p, v, Eval())
        return net.backward(p, saved, y)

    return jax.jit(passes).lower(params, x).compile().memory_analysis().temp_size_in_bytes


def test_memory_falls_as_derived() -> None:
    """`n s`, `n x + s`, and `√n (x + s)`, with a body that keeps `s ≫ x`."""
    x = jax.ShapeDtypeStruct((256, 16), "float32")
    body = Residual(Chain(Dense(64), Tanh(), Dense(64), Tanh(), Dense(16)))
    plain, each, root = (temporary(Stack(body, 16, recompute=r), x) for r in (False, True, "sqrt"))
    assert each < 0.3 * plain
    assert root < 0.6 * plain


def test_a_barrier_keeps_the_second_forward_pass_behind_the_error() -> None:
    """In straight code, where XLA would share it with the first (and on a CPU does all the same)."""
    x = jax.ShapeDtypeStruct((4, 6), "float32")
    net = Recompute(Dense(6))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    saved = jax.eval_shape(lambda p, v: net.forward(p, v)[1], params, x)
    first = jax.make_jaxpr(net.backward)(params, saved, x).jaxpr.eqns[0]
    assert first.primitive.name == "optimization_barrier"
    assert [v.aval.shape for v in first.invars] == [(4, 6), (4, 6)]


def test_a_recomputed_walk_can_be_differentiated_and_mapped() -> None:
    x, dy = normal(1, (3, 4, 6), "float32"), normal(2, (3, 4, 6), "float32")
    body = Chain(Dense(6), Tanh())
    params = body.init(jax.random.key(0), x[0])

    def curvature(net):
        def size(p, v, d):
            return jnp.sum(net.backward(p, net.forward(p, v, Eval())[1], d)[1] ** 2)

        return jax.vmap(jax.grad(size), (None, 0, 0))(params, x, dy)

    assert_same(curvature(Recompute(body)), curvature(body), 1e-6)


@pytest.mark.parametrize(
    ("recompute", "depth", "length"),
    [
        (False, 9, None),
        (True, 9, 1),
        (4, 9, 4),
        ("sqrt", 12, 3),
        ("sqrt", 16, 4),
        ("sqrt", 13, 4),
        ("sqrt", 1, 1),
    ],
)
def test_segments_divide_the_depth_where_they_can(recompute, depth, length) -> None:
    assert segment_length(recompute, depth) == length


@pytest.mark.parametrize("recompute", [0, 6, -1, "half"])
def test_bad_segments_are_refused(recompute) -> None:
    with pytest.raises(InputError, match=r"Stack > recompute must be a bool, 'sqrt' or a number"):
        Stack(Tanh(), 5, recompute=recompute)


def test_a_loop_is_unrolled_where_it_pays() -> None:
    assert default_unroll(48, "cpu") == 1
    assert default_unroll(48, "gpu") == 12
    assert default_unroll(3, "gpu") == 3
