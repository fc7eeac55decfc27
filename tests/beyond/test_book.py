"""Gradients, norms and sums of single examples, against `vmap` of `jax.grad` in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    GRU,
    LSTM,
    Attention,
    BatchNorm,
    Branch,
    Chain,
    Conv,
    Dense,
    Embedding,
    Eval,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Head,
    InputError,
    LayerNorm,
    LinearCrossEntropy,
    MaxPool,
    PositionEmbedding,
    Recompute,
    ReLU,
    Residual,
    RMSNorm,
    SoftmaxCrossEntropy,
    SquaredError,
    Stack,
    Tanh,
    Tied,
    Train,
    beyond,
    value_and_grad,
)
from jaxbp.models import gpt
from tests.proof import like, normal

N, T, V = 5, 6, 11
CE, SQUARES = SoftmaxCrossEntropy(), SquaredError("sum")


def ids(key, shape, below=V):
    """Labels or tokens, some of them several times in a sequence."""
    return jnp.asarray(np.random.default_rng(key).integers(0, below, shape), jnp.int32)


def block(features):
    return Residual(Chain(Dense(features), Tanh()))


NETS = {
    "mlp": (Chain(Dense(7), Tanh(), Dense(3)), (4,), CE, "labels"),
    "one row": (Dense(3, bias=False), (4,), SQUARES, "values"),
    "rows": (Chain(Dense(2), Tanh(), Dense(40)), (T, 30), SQUARES, "values"),  # both ways to a product
    "stack": (Chain(Dense(5), Stack(block(5), 3), Dense(3)), (4,), CE, "labels"),
    "stacks": (Chain(Dense(5), Stack(Stack(block(5), 2), 3), Dense(3)), (4,), CE, "labels"),
    "recomputed": (
        Chain(Recompute(Chain(Dense(5), Tanh())), Stack(Recompute(block(5)), 3), Dense(3)),
        (4,), CE, "labels",
    ),
    "branch": (Branch(Dense(3), Chain(Dense(3), Tanh()), merge="product"), (4,), SQUARES, "values"),
    "convolution": (
        Chain(Conv(6, 3, groups=2), GroupNorm(3), ReLU(), MaxPool(2), Flatten(), Dense(3)),
        (6, 4, 4), CE, "labels",
    ),
    "patches": (  # the first kernel from its gradients, the second from pairs of rows
        Chain(Conv(3, 2), Tanh(), Conv(20, (3, 2), 2, dilation=(1, 2), bias=False), GlobalAvgPool()),
        (6, 5, 2), SQUARES, "values",
    ),
    "running": (
        Chain(Conv(3, 3), BatchNorm(), ReLU(), GlobalAvgPool(), Dense(4)), (5, 4, 2), CE, "labels",
    ),
    "lstm": (Chain(LSTM(4), LSTM(3, reverse=True)), (T, 2), SQUARES, "values"),
    "gru": (Chain(GRU(4), RMSNorm(), Residual(Attention(2)), LayerNorm()), (T, 2), SQUARES, "values"),
    "text": (
        Chain(Embedding(V, 4), PositionEmbedding("learned", T), LSTM(3), Head(V)), "ids", CE, "labels",
    ),
    "gpt": (gpt(V, depth=2, heads=2, features=4, length=T), "ids", CE, "labels"),
    "tied": (Tied(Embedding(V, 4), Tanh(), Head(V)), "ids", SoftmaxCrossEntropy("sum"), "labels"),
    "tied layers": (Tied(Dense(4), Tanh(), Dense(4)), (4,), SQUARES, "values"),
}  # fmt: skip


def problem(name, key=0):
    net, shape, loss, kind = NETS[name]
    x = ids(1 + key, (N, T)) if shape == "ids" else normal(1 + key, (N, *shape), "float64")
    params = jax.jit(net.init)(jax.random.key(0), x)

    def moved(path, p, d):
        p = p.astype("float64") + d.astype("float64")
        return jnp.abs(p) if path[-1] == jax.tree_util.DictKey("var") else p

    params = jax.tree_util.tree_map_with_path(moved, params, like(3, params, 0.4))
    y = jax.eval_shape(net, params, x)
    target = (
        ids(2 + key, y.shape[:-1], y.shape[-1])
        if kind == "labels"
        else normal(2 + key, y.shape, "float64")
    )
    return net, loss, params, x, target


def by_autodiff(net, loss, params, x, y):
    """`g_n` by `vmap(grad)` of each example's own loss, and the mask of what is trainable."""

    def own(p, one, target):
        return loss.forward(net.forward(p, one[None])[0], target[None])[0]

    return jax.jit(jax.vmap(jax.grad(own), (None, 0, 0)))(params, x, y)


def matrix(net, params, each):
    mask = jax.tree.leaves(net.trainable(params))
    rows = [np.reshape(g, (N, -1)) for g, yes in zip(jax.tree.leaves(each), mask, strict=True) if yes]
    return np.concatenate(rows, axis=1)


def close(got, expected, bar=1e-11):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=bar * max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize("name", NETS)
def test_everything_about_single_examples(name: str) -> None:
    net, loss, params, x, y = problem(name)
    book = jax.jit(beyond.record(net, loss))(params, x, y)
    each = by_autodiff(net, loss, params, x, y)
    flat = matrix(net, params, each)
    assert np.abs(flat).max(axis=1).min() > 1e-4  # nobody's gradient is zero
    close(book.norms(), np.linalg.norm(flat, axis=1))
    close(sum(book.layer_square_norms().values()) if "tied" not in name and name != "gpt" else
          book.square_norms(), (flat**2).sum(axis=1))  # fmt: skip
    jax.tree.map(close, jax.jit(beyond.Book.gradients)(book), each)
    c = normal(9, (N,), "float64")
    weighted = jax.jit(beyond.Book.weighted)(book, c)
    jax.tree.map(lambda w, g: close(w, jnp.tensordot(c, g, 1)), weighted, each)
    value, grads = value_and_grad(net, loss)(params, x, y)
    close(book.value, value)
    share = jnp.full(N, 1 / book.scale)
    jax.tree.map(close, book.weighted(share), grads)


def test_dots_between_the_examples_of_two_batches() -> None:
    net, loss, params, x, y = problem("gpt")
    *_, x2, y2 = problem("gpt", key=20)
    book, other = (beyond.record(net, loss)(params, *batch) for batch in ((x, y), (x2[:3], y2[:3])))
    g, h = (matrix(net, params, by_autodiff(net, loss, params, *b)) for b in ((x, y), (x2, y2)))
    close(book.dots(other), g @ h[:3].T)


@pytest.mark.parametrize(
    "layer",
    [
        Attention(4, kv_heads=2, rotary=True, window=3, causal=True),
        Attention(2, kv_heads=1, bias=False, head_features=3),
    ],
    ids=str,
)
def test_attention_is_four_products_whatever_it_attends_to(layer: Attention) -> None:
    """Grouped, and across two sequences of different lengths and sizes."""
    x = normal(1, (N, T, 8), "float64")
    memory = normal(2, (N, 4, 5), "float64")
    mask = jnp.asarray(np.random.default_rng(3).random((N, 4)) < 0.7)
    loss, y = SQUARES, normal(4, (N, T, 8), "float64")
    for inputs in [x] if layer.causal else [x, {"x": x, "memory": memory, "mask": mask}]:
        params = jax.tree.map(lambda p: p.astype("float64"), layer.init(jax.random.key(0), inputs))
        params = jax.tree.map(lambda p, d: p + d.astype("float64"), params, like(3, params, 0.4))

        def own(p, one, target):
            whole = jax.tree.map(lambda a: a[None], one)
            return loss(layer.forward(p, whole)[0], target[None])

        each = jax.jit(jax.vmap(jax.grad(own), (None, 0, 0)))(params, inputs, y)
        book = beyond.record(layer, loss)(params, inputs, y)
        (part,) = book.parts()
        assert set(layer.products(part.params, part.saved, part.gathered)) == set(params)
        for name, g in each.items():  # each of the products by itself
            seen, error = layer.products(part.params, part.saved, part.gathered)[name]
            flat = error if seen is None else seen[..., :, None] * error[..., None, :]
            close(flat.sum(axis=1), g)
        close(book.norms(), np.linalg.norm(matrix(layer, params, each), axis=1))


def test_a_query_that_is_lost_has_no_norm_and_the_others_keep_theirs() -> None:
    layer, x = Attention(2), normal(1, (N, T, 4), "float64")
    params = layer.init(jax.random.key(0), x)
    norms = beyond.record(layer, SQUARES)(params, x, jnp.zeros_like(x)).norms()
    broken = beyond.record(layer, SQUARES)(params, x.at[2, 1, 3].set(jnp.inf), jnp.zeros_like(x)).norms()
    assert np.isnan(broken[2])
    close(np.delete(broken, 2), np.delete(norms, 2))


def test_an_id_that_occurs_again_adds_up_before_it_is_squared() -> None:
    net, x = Embedding(4, 3), jnp.asarray([[2, 2, 2], [0, 1, 3]], jnp.int32)
    params = net.init(jax.random.key(0), x)
    book = beyond.record(net, SquaredError("sum"))(params, x, jnp.zeros((2, 3, 3)))
    w = np.asarray(params["w"], "float64")
    close(book.square_norms(), [9 * (2 * w[2]) @ (2 * w[2]), ((2 * w[[0, 1, 3]]) ** 2).sum()], 1e-6)


def test_a_stack_is_a_chain() -> None:
    net, loss, params, x, y = problem("stack")
    first, stacked, last = params
    apart = Chain(Dense(5), *(block(5) for _ in range(3)), Dense(3))
    slices = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(3)]
    chain = beyond.record(apart, loss)((first, *slices, last), x, y)
    close(beyond.record(net, loss)(params, x, y).norms(), chain.norms())


@pytest.mark.parametrize("name", ["mlp", "gpt", "lstm"])
def test_clipping_limits_what_one_example_can_do(name: str) -> None:
    net, loss, params, x, y = problem(name)
    flat = matrix(net, params, by_autodiff(net, loss, params, x, y))
    lengths = np.linalg.norm(flat, axis=1)
    limit = float(np.median(lengths))
    share = np.minimum(1, limit / lengths)
    value, grads, norms = jax.jit(beyond.clipped_gradient(net, loss, limit))(params, x, y)
    mean = N if loss.reduction == "mean" else 1
    close(matrix(net, params, jax.tree.map(lambda g: jnp.stack([g] * N), grads))[0], share @ flat / mean)
    close(norms, lengths)
    close(value, loss(net(params, x), y))
    total = share @ flat
    for left_out in range(N):
        others = np.arange(N) != left_out
        _, fewer, _ = beyond.clipped_gradient(net, loss, limit)(params, x[others], y[others])
        less = matrix(net, params, jax.tree.map(lambda g: jnp.stack([g] * N), fewer))[0]
        less = less * ((N - 1) if mean == N else 1)
        assert np.linalg.norm(total - less) <= limit * (1 + 1e-9)


def test_an_example_without_a_gradient_is_not_divided_by_zero() -> None:
    net, x = Dense(2, bias=False), jnp.asarray([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]])
    params = net.init(jax.random.key(0), x)
    _, grads, norms = beyond.clipped_gradient(net, SquaredError(), 1e-3)(params, x, jnp.ones((2, 2)))
    assert norms[0] == 0
    assert np.isfinite(np.asarray(grads["w"])).all()
    close(np.linalg.norm(grads["w"]), 1e-3 / 2, 1e-5)


def test_statistics_are_those_of_the_gradients() -> None:
    net, loss, params, x, y = problem("mlp")
    flat = matrix(net, params, by_autodiff(net, loss, params, x, y))
    found = jax.jit(beyond.gradient_statistics(net, loss))(params, x, y)
    variance = flat.var(axis=0, ddof=1).sum()
    signal = (flat.mean(axis=0) ** 2).sum() - variance / N
    close(found.variance, variance)
    assert signal > 0
    close(found.noise_scale, variance / signal)
    close(found.signal_to_noise, signal * N / variance)
    jax.tree.map(close, found.gradient, value_and_grad(net, loss)(params, x, y)[1])


def test_a_batch_of_noise_has_no_signal() -> None:
    net, x = Dense(1, bias=False), jnp.asarray([[1.0], [1.0]])
    params = {"w": jnp.zeros((1, 1))}
    found = beyond.gradient_statistics(net, SquaredError())(params, x, jnp.asarray([[1.0], [-1.0]]))
    assert found.noise_scale == np.inf
    assert found.signal_to_noise == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (Chain(Dense(3), BatchNorm()), SQUARES, Train()), "depend on all the others"),
        (lambda: (Head(3, deferred=True), LinearCrossEntropy(), Eval()), "deferred=False"),
        (lambda: (Dense(3), SoftmaxCrossEntropy(ignore=0), Eval()), "reduction='sum'"),
    ],
)
def test_examples_that_have_no_gradient_of_their_own(make, message) -> None:
    net, loss, mode = make()
    x = normal(1, (4, 2), "float32")
    params = net.init(jax.random.key(0), x)
    with pytest.raises(InputError, match=message):
        beyond.record(net, loss)(params, x, jnp.asarray([1, 2, 0, 1]), mode)
    with pytest.raises(InputError, match="max_norm"):
        beyond.clipped_gradient(net, loss, 0.0)


def test_no_array_of_every_examples_weight_gradient_is_made_for_norms() -> None:
    """Neither of a matrix, nor of a table: temporary memory stays that of the walk."""
    net = Chain(Embedding(512, 32), Tanh(), Dense(64), Tanh(), Head(512))
    x = ids(1, (16, 4), 512)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    fn = beyond.clipped_gradient(net, CE, 1.0)
    text = str(jax.make_jaxpr(fn)(params, x, x))
    for shape in ("16,512,32", "16,64,512", "16,512,64", "16,32,64"):
        assert f"[{shape}]" not in text
