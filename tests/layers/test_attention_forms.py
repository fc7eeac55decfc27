"""Every form of attention's core: the same numbers, no array of queries × keys, nothing hidden."""

import re
from dataclasses import replace
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import Attention, Chain, Eval, InputError, Residual, Stack, Train, as_function
from jaxbp.layer import map_leaves
from jaxbp.layers.attention_choice import Choice, Shape, choose
from jaxbp.layers.blockwise import Sight, Tiles
from tests.cases.attention import CASES
from tests.interpreter import interpret
from tests.proof import (
    FAST,
    Case,
    in_dtype,
    like,
    normal,
    pose,
    prove_layer,
    prove_traced,
    reference,
)

HEADS = {"heads": 2, "head_features": 3}


def form(layer, name, block=None):
    """The network with every attention in this form."""

    def one(part):
        return replace(part, implementation=name, block=block) if isinstance(part, Attention) else part

    return map_leaves(one, layer)


def passes(layer, mode=None):
    """Both passes as one function: `(y, dparams, dx)`."""

    def run(params, x, dy):
        y, saved = layer.forward(params, x, mode or Eval())
        return y, *layer.backward(params, saved, dy)

    return run


def compiled(layer, *args, mode=None):
    return jax.jit(passes(layer, mode), compiler_options=FAST)(*args)


def params_for(layer, x):
    return like(3, jax.eval_shape(layer.init, jax.random.key(0), x), 0.5)


def close(got, expected, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


# --- proofs -----------------------------------------------------------------------------------------

IN_TILES = [replace(case, layer=form(case.layer, "blocks", 2)) for case in CASES]
SATURATED = next(case for case in IN_TILES if case.saturated)


@pytest.mark.parametrize("case", [case for case in IN_TILES if case is not SATURATED], ids=str)
def test_every_case_in_tiles(case: Case) -> None:
    prove_traced(case)


def test_where_the_softmax_is_saturated_tiles_round_what_came_in() -> None:
    """`D_i` from the output is a sum in another order than that over the keys, whose terms it meets: of
    `∂L/∂s = 0` that leaves the rounding of `∂L/∂p`, and not of 0."""
    params, xs, dys, mode = in_dtype(pose(SATURATED, "float32"), "float64")
    run = passes(SATURATED.layer, mode)
    y, grads, dx = interpret(run, params, xs[0], dys[0])(params, xs[0], dys[0])
    y_, expected = reference(SATURATED, "float32", 0)
    got = {f"[0]['{name}']": g for name, g in grads.items()} | {"[1]": dx}
    close(y, y_)
    for g, e in zip(got.values(), expected, strict=True):
        assert np.abs(np.asarray(g) - e).max() <= 1e-10 * 1e4 * max(1e4, np.abs(e).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [IN_TILES[i] for i in (6, 8, 10, 12, 15, 21, 22)], ids=str)
def test_compiled_in_tiles(case: Case, dtype: str) -> None:
    prove_layer(replace(case, modes=("jit",)), dtype)


@pytest.mark.parametrize("case", [CASES[i] for i in (4, 5, 9, 18)], ids=str)
def test_compiled_as_a_fused_pair(case: Case) -> None:
    prove_layer(replace(case, layer=form(case.layer, "xla"), modes=("jit",)), "float32")


LENGTHS = [(7, 7), (8, 8), (9, 9), (17, 17), (31, 31), (5, 19), (23, 8), (16, 33), (1, 9), (9, 1)]


@pytest.mark.parametrize(
    "fields",
    [{}, {"causal": True}, {"window": 3}, {"window": 9, "causal": True}, {"window": 8, "kv_heads": 1}],
    ids=str,
)
def test_lengths_around_the_borders_of_tiles(fields) -> None:
    """Against one tile, which the cases above prove; every length is no multiple of 8 but two."""
    for queries, keys in LENGTHS:
        layer = Attention(**{**HEADS, **fields})
        x, memory = normal(1, (2, queries, 4), "float64"), normal(2, (2, keys, 5), "float64")
        mask = np.random.default_rng(4).integers(0, 4, (2, queries, keys)) > 0
        mask[0, 0] = False  # a row hidden whole
        parts = {"x": x, "memory": memory, "mask": jnp.asarray(mask)}
        params, dy = params_for(layer, parts), normal(5, x.shape, "float64")
        for given in (parts, {**parts, "mask": jnp.asarray(mask[:, -1])}, (x, memory)):
            expected = interpret(passes(form(layer, "whole")), params, given, dy)(params, given, dy)
            tiled = passes(form(layer, "blocks", 8))
            close(interpret(tiled, params, given, dy)(params, given, dy), expected)


def test_tiles_that_are_hidden_whole_are_not_visited() -> None:
    assert len(Tiles.cut(Sight(), 64, 64, 16).starts) == 16
    assert len(Tiles.cut(Sight(causal=True), 64, 64, 16).starts) == 10
    assert len(Tiles.cut(Sight(causal=True, window=17), 64, 64, 16).starts) == 4 + 3
    assert len(Tiles.cut(Sight(causal=True, window=18), 64, 64, 16).starts) == 4 + 3 + 2
    assert len(Tiles.cut(Sight(window=1), 64, 64, 16).starts) == 4
    for causal, window, queries, keys in product((False, True), (None, 1, 5, 16), (1, 33, 64), (1, 40)):
        sight = Sight(causal, window)
        seen = sight.seen(jnp.arange(queries), jnp.arange(keys))
        seen = np.ones((queries, keys), bool) if seen is None else np.asarray(seen)
        tiles = Tiles.cut(sight, queries, keys, 16)
        covered = np.zeros((queries, keys), int)
        for i, j in tiles.starts:
            at = slice(i, i + tiles.rows), slice(j, j + tiles.columns)
            covered[at] += 1
            assert seen[at].any() or tiles.one
        assert (covered[seen] == 1).all()
        flags = jnp.asarray(np.random.default_rng(keys).integers(0, 8, keys) == 0)
        got = sight.any_seen(flags, queries, None)
        np.testing.assert_array_equal(got, (seen & np.asarray(flags)).any(-1))


def test_no_place_at_all() -> None:
    layer = Attention(**HEADS)
    params = params_for(layer, (jnp.ones((2, 3, 4)), jnp.ones((2, 1, 5))))
    for name, queries, keys in product(("whole", "blocks"), (0, 9), (0, 9)):
        x, memory = normal(1, (2, queries, 4), "float64"), normal(2, (2, keys, 5), "float64")
        y, saved = form(layer, name, 4).forward(params, (x, memory))
        grads, _ = form(layer, name, 4).backward(params, saved, y)
        assert y.shape == x.shape
        assert keys or np.array_equal(y, np.broadcast_to(params["b_o"], y.shape))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_dropout_draws_the_same_in_both_passes_and_anew_in_every_tile_and_example() -> None:
    layer = Attention(1, dropout=0.5, bias=False, implementation="blocks", block=8)
    x = jnp.ones((2, 16, 4))
    eye = dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), jnp.eye(4))
    y, _ = layer.forward(eye, x, Train(jax.random.key(1)))  # all scores alike: how many keys are kept
    counts = np.asarray(y[..., 0] * 16 / 2).round(6)
    assert len(np.unique(counts)) > 3
    assert not np.array_equal(counts[0], counts[1])
    assert not np.array_equal(counts[:, :8], counts[:, 8:])
    again, _ = layer.forward(eye, x, Train(jax.random.key(1)))
    np.testing.assert_array_equal(y, again)


@pytest.mark.parametrize("name", ["whole", "blocks", "xla"])
def test_gradients_of_single_examples(name) -> None:
    """`vmap` over what is saved: everything in it belongs to examples."""
    dropped = {} if name == "xla" else {"dropout": 0.3}
    layer = Attention(**HEADS, causal=True, **dropped, implementation=name, block=4)
    x = normal(1, (3, 9, 4), "float64")
    parts = x if name == "xla" else {"x": x, "mask": jnp.ones((3, 9), bool).at[1, 4:].set(False)}
    params, dy, mode = params_for(layer, x), normal(2, x.shape, "float64"), Train(jax.random.key(5))
    _, saved = layer.forward(params, parts, mode)
    _, delta = layer.pull(params, saved, dy)
    each = jax.vmap(layer.gradient, (None, 0, 0))(params, saved, delta)
    close(jax.tree.map(lambda g: g.sum(0), each), layer.gradient(params, saved, delta))
    assert all(len(g) == 3 for g in jax.tree.leaves(each))


def test_the_second_derivative_goes_through_tiles() -> None:
    layer = Attention(2, causal=True, implementation="blocks", block=8)
    x = normal(1, (1, 11, 4), "float64")
    params, direction, dy = (
        params_for(layer, x),
        like(7, params_for(layer, x)),
        normal(2, x.shape, "float64"),
    )

    def by_hand(p):
        y, saved = layer.forward(p, x)
        return layer.backward(p, saved, y * dy)[0]

    def by_autodiff(p):
        return jax.grad(lambda p: 0.5 * jnp.sum(dy * form(layer, "whole").forward(p, x)[0] ** 2))(p)

    def along(fn):
        return lambda p, v: jax.jvp(fn, (p,), (v,))[1]

    expected = interpret(along(by_autodiff), params, direction)(params, direction)
    close(interpret(along(by_hand), params, direction)(params, direction), expected, 1e-9)
    twice = jax.grad(
        lambda p: sum(
            jnp.vdot(g, direction[name])
            for name, g in jax.grad(lambda p: 0.5 * jnp.sum(dy * as_function(layer)(p, x) ** 2))(
                p
            ).items()
        )
    )
    close(interpret(twice, params)(params), expected, 1e-9)


# --- nothing of [T, S] --------------------------------------------------------------------------------


def program_of(fn, *args):
    return jax.jit(fn, compiler_options=FAST).lower(*args).compile()


def long(layer, length, batch=1):
    """The two compiled passes of `layer` over sequences of `length`."""
    x = jax.ShapeDtypeStruct((batch, length, 8), "float32")
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    return program_of(passes(layer, Train(jax.random.key(0))), params, x, x)


def largest(program) -> int:
    """The entries of the largest array in a compiled program."""
    return max(prod(map(int, s.split(","))) for s in re.findall(r"\w\[([\d,]+)\]", program.as_text()))


BLOCK = Residual(Attention(2, causal=True))


@pytest.mark.parametrize(
    "layer",
    [
        Attention(2, causal=True, kv_heads=1, rotary=True),
        Attention(2, window=300, dropout=0.1),
        Stack(BLOCK, 2),
        Chain(BLOCK, BLOCK),
    ],
    ids=str,
)
def test_no_array_of_queries_times_keys(layer) -> None:
    assert largest(long(layer, 2048)) < 2048 * 2048 / 8


def test_the_search_finds_the_array_where_there_is_one() -> None:
    assert largest(long(Attention(2, implementation="whole"), 512)) >= 512 * 512


def test_the_working_memory_is_linear_in_the_length() -> None:
    layer = Attention(2, causal=True)
    one, two = (long(layer, n).memory_analysis().temp_size_in_bytes for n in (2048, 4096))
    assert two < 2.1 * one
    assert two < 0.1 * 4 * 2 * 4096 * 4096


def test_nothing_of_queries_times_keys_is_saved() -> None:
    layer = Attention(2, causal=True, dropout=0.1)
    for name in ("whole", "blocks"):
        x = jax.ShapeDtypeStruct((2, 64, 4), "float32")
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        saved = jax.eval_shape(
            lambda p, v, name=name: form(layer, name).forward(p, v, Train(jax.random.key(0)))[1],
            params,
            x,
        )
        assert max(a.size for a in jax.tree.leaves(saved)) == 2 * 64 * 4


# --- what is hidden -----------------------------------------------------------------------------------

T, S = 9, 11
BAD = [np.nan, np.inf, -np.inf, 1e300]


def place(array, rows, value):
    """`value` in some entries of the `rows` of the first example and in all of the second's."""
    changed = np.array(array)
    changed[0, rows, 1], changed[1, rows] = value, value
    return jnp.asarray(changed)


def hidden_keys(rows):
    return jnp.asarray(np.tile(~np.isin(np.arange(S), rows), (2, 1)))


# fmt: off
HIDING = {  # fields, what is given for `value`, which queries count
    "padded memory": ({}, lambda x, m, v: {
        "x": x, "memory": place(m, [3, 9], v), "mask": hidden_keys([3, 9])}, T),
    "a column of the mask": ({"kv_heads": 1}, lambda x, m, v: {
        "x": x, "memory": place(m, [4], v), "mask": jnp.ones((2, T, S), bool).at[:, :, 4].set(False)}, T),
    "from some queries": ({"rotary": True, "head_features": 4}, lambda x, m, v: {
        "x": x, "memory": place(m, [2], v),
        "mask": jnp.ones((2, T, S), bool).at[:, :6, 2].set(False)}, 6),
    "padding of x": ({}, lambda x, m, v: {
        "x": place(x, [7, 8], v), "mask": hidden_keys([7, 8])[:, :T]}, 7),
    "the future": ({"causal": True}, lambda x, m, v: place(x, [6], v), 6),
    "the future, padded": ({"causal": True}, lambda x, m, v: {
        "x": place(x, [7, 8], v), "mask": hidden_keys([7, 8])[:, :T]}, 7),
    "out of the window": ({"window": 3}, lambda x, m, v: (x, place(m, [8, 10], v)), 6),
    "never seen": ({"causal": True}, lambda x, m, v: (x, place(m, [9, 10], v)), T),
}
# fmt: on


@pytest.mark.parametrize(("name", "value"), list(product(("whole", "blocks", "xla"), BAD)))
@pytest.mark.parametrize("hiding", HIDING)
def test_what_is_hidden_may_hold_anything(hiding, name, value) -> None:
    fields, give, count = HIDING[hiding]
    layer = Attention(**{**HEADS, **fields}, implementation=name, block=4)
    x, m, dy = (normal(i, s, "float64") for i, s in enumerate([(2, T, 4), (2, S, 5), (2, T, 4)]))
    plain, changed = give(x, m, 0.5), give(x, m, value)
    if name == "xla" and (value == 1e300 or isinstance(plain, dict) or hiding == "never seen"):
        return  # not a form that it takes; float32 inside
    dy = dy.at[:, count:].set(0)
    params = params_for(layer, plain)
    run = interpret(passes(layer), params, plain, dy)
    (y, grads, dx), (y_, grads_, dx_) = run(params, plain, dy), run(params, changed, dy)
    tolerance = 1e-6 if name == "xla" else 1e-12
    close(y_[:, :count], y[:, :count], tolerance)
    close(grads_, grads, tolerance)
    assert all(np.isfinite(d).all() for d in jax.tree.leaves(dx_))
    given, base = ([a for a in jax.tree.leaves(tree) if a.dtype != bool] for tree in (changed, plain))
    for before, after, a, b in zip(jax.tree.leaves(dx), jax.tree.leaves(dx_), given, base, strict=True):
        same = np.asarray((a == b).all(-1))
        close(after[same], before[same], tolerance)


def test_what_is_hidden_compiled_and_mapped() -> None:
    layer = Attention(2, causal=True, implementation="blocks", block=4)
    x, dy = normal(1, (3, T, 4), "float32"), normal(2, (3, T, 4), "float32").at[:, 5:].set(0)
    params, bad = params_for(layer, x), x.at[:, 5:].set(jnp.nan)
    run = jax.jit(jax.vmap(passes(layer), (None, 0, 0)))
    (y, grads, dx), (y_, grads_, dx_) = run(params, x, dy), run(params, bad, dy)
    close((y_[:, :5], grads_, dx_), (y[:, :5], grads, dx), 1e-6)


@pytest.mark.parametrize("value", BAD[:3])
@pytest.mark.parametrize("name", ["whole", "blocks", "xla"])
def test_what_is_seen_is_not_swallowed(name, value) -> None:
    layer = Attention(2, causal=True, implementation=name, block=4)
    x, dy = normal(1, (1, T, 4), "float64"), normal(2, (1, T, 4), "float64")
    params = params_for(layer, x)
    y, grads, dx = interpret(passes(layer), params, x, dy)(params, x.at[0, 5, 2].set(value), dy)
    lost = np.isnan(y[0]).all(-1)
    np.testing.assert_array_equal(lost, np.arange(T) >= 5)
    assert np.isfinite(y[0, :5]).all()
    for leaf in ("w_q", "w_k", "w_v", "w_o"):
        assert np.isnan(grads[leaf]).any(), leaf
    assert np.isnan(dx).any()


def test_a_padded_query_that_is_not_finite_sees_nothing() -> None:
    layer = Attention(2)
    x, dy = normal(1, (2, T, 4), "float64"), normal(2, (2, T, 4), "float64")
    params, mask = params_for(layer, x), jnp.ones((2, T), bool).at[:, 6].set(False)
    given = {"x": x.at[:, 6].set(jnp.nan), "mask": mask}
    y, grads, dx = interpret(passes(layer), params, given, dy)(params, given, dy)
    close(y[:, 6], np.tile(params["b_o"], (2, 1)))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((y, grads, dx)))


def test_the_past_that_fell_out_of_the_window_may_hold_anything() -> None:
    layer = Attention(2, causal=True, window=2)
    x = normal(1, (1, 6, 4), "float64")
    params = params_for(layer, x)
    y = layer(params, x)
    cache, ys = layer.start(params, 1, 6, "float64"), []
    for t in range(6):
        step = x[:, t : t + 1] if t != 2 else x[:, 2:3] * jnp.nan
        out, cache = layer.advance(params, cache, step)
        ys.append(out)
    got = np.asarray(jnp.concatenate(ys, axis=1))
    np.testing.assert_array_equal(np.isnan(got[0]).all(-1), [0, 0, 1, 1, 0, 0])
    close(got[:, [0, 1, 4, 5]], y[:, jnp.array([0, 1, 4, 5])])


# --- the choice ---------------------------------------------------------------------------------------

SHAPE = Shape(2048, 2048, 64, causal=True, window=False, mask=False, dropout=False)


@pytest.mark.parametrize(
    ("platform", "dtype", "changed", "expected"),
    [
        ("cpu", "float32", {}, Choice("blocks", 256)),
        ("cpu", "bfloat16", {"queries": 512, "keys": 512}, Choice("blocks", 128)),
        ("cpu", "float32", {"queries": 128, "keys": 128}, Choice("blocks", 64)),
        ("cpu", "float32", {"queries": 100, "keys": 100}, Choice("whole")),
        ("gpu", "bfloat16", {}, Choice("cudnn")),
        ("cuda", "float16", {"window": True}, Choice("cudnn")),
        ("gpu", "float32", {}, Choice("blocks", 1024)),
        ("gpu", "bfloat16", {"mask": True}, Choice("blocks", 1024)),
        ("gpu", "bfloat16", {"dropout": True}, Choice("blocks", 1024)),
        ("gpu", "bfloat16", {"features": 36}, Choice("blocks", 1024)),
        ("gpu", "bfloat16", {"causal": False, "window": True}, Choice("blocks", 1024)),
        ("gpu", "bfloat16", {"keys": 1000}, Choice("blocks", 1024)),
        ("gpu", "bfloat16", {"queries": 16, "keys": 16}, Choice("whole")),
        ("tpu", "bfloat16", {}, Choice("blocks", 1024)),
    ],
)
def test_the_table(monkeypatch, platform, dtype, changed, expected) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert choose(None, None, dtype, SHAPE._replace(**changed)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Attention(2, implementation="flash"), "expected implementation 'whole', 'blocks'"),
        (lambda x: Attention(2, block=0), "block must be a positive integer"),
        (lambda x: run_once(Attention(2, implementation="cudnn"), x), "cannot do float64"),
        (lambda x: run_once(Attention(2, dropout=0.1, implementation="xla"), x), "cannot do dropout"),
        (
            lambda x: run_once(Attention(2, implementation="xla"), {"x": x, "mask": x[..., 0] > 9}),
            "a mask",
        ),
        (
            lambda x: run_once(Attention(2, causal=True, implementation="xla"), (x, x[:, :2])),
            "causal attention to another sequence",
        ),
    ],
)
def test_a_form_that_cannot(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make(normal(1, (2, 3, 4), "float64"))


def run_once(layer, x):
    return layer.forward(params_for(layer, x), x, Train(jax.random.key(0)))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("fields", [{}, {"causal": True}, {"causal": True, "window": 70, "kv_heads": 2}])
def test_cudnns_pair_on_a_gpu(fields) -> None:
    layer = Attention(4, **fields, precision="bfloat16")
    x, dy = normal(1, (2, 256, 256), "float32"), normal(2, (2, 256, 256), "float32")
    params = like(3, jax.eval_shape(layer.init, jax.random.key(0), x), 0.06)
    expected = jax.jit(passes(replace(form(layer, "whole"), precision="float32")))(params, x, dy)
    got = jax.jit(passes(form(layer, "cudnn")))(params, x, dy)
    theirs = jax.jit(passes(form(layer, "blocks", 128)))(params, x, dy)
    for a, b, c in zip(*map(jax.tree.leaves, (got, theirs, expected)), strict=True):
        scale = np.abs(c).max()
        assert np.abs(a - c).max() / scale < 2 * np.abs(b - c).max() / scale + 2**-8
