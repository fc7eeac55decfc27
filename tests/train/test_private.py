"""A private step: what an example changes, what the noise is, who joins a batch, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp.train.batches as batches_module
from jaxbp import (
    BatchNorm,
    Chain,
    Dense,
    Dropout,
    InputError,
    SoftmaxCrossEntropy,
    SquaredError,
    Tanh,
    Train,
    make_epoch,
    make_step,
)
from jaxbp.train.batches import Batches
from jaxbp.train.private import APART, Private, private_passes, with_noise
from jaxbp.train.step import plan_poisson, steps_function
from tests.beyond.test_book import block, by_autodiff, matrix, problem
from tests.proof import normal

N = 5


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def close(got, expected, bar=1e-11):
    np.testing.assert_allclose(got, expected, rtol=0, atol=bar * max(np.abs(expected).max(), 1e-3))


def test_one_example_changes_the_sum_by_its_own_gradient_and_never_by_more_than_the_limit() -> None:
    """Of permuted examples, of pieces, and of the chain that a stack is, too."""
    net, loss, params, x, y = problem("stack")
    lengths = np.linalg.norm(matrix(net, params, by_autodiff(net, loss, params, x, y)), axis=1)
    limit = float(np.median(lengths))  # some are cut, some are not
    first, stacked, last = params
    apart = Chain(Dense(5), *(block(5) for _ in range(3)), Dense(3))
    slices = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(3)]
    chain = (first, *slices, last)
    order = np.asarray([3, 0, 4, 1, 2])

    def sums(net, params, order, pieces):
        """The sum over all, then over all but one."""
        fn = private_passes(net, loss, Private(limit, expected=1.0), pieces)
        masks = jnp.concatenate([jnp.ones((1, N), bool), ~jnp.eye(N, dtype=bool)])

        def one(present):
            return fn(params, x[order], y[order], Train(), present[order])[1]

        run = jax.jit(jax.vmap(one))
        return np.concatenate([np.reshape(g, (N + 1, -1)) for g in jax.tree.leaves(run(masks))], axis=1)

    def in_any_order(rows):  # a stack has its numbers name by name, a chain layer by layer
        return np.sort(rows, axis=1)

    found = sums(net, params, np.arange(N), 1)
    changes = np.linalg.norm(found[0] - found[1:], axis=1)
    close(changes, np.minimum(lengths, limit))
    assert (changes <= limit * (1 + 1e-12)).all()
    close(sums(net, params, order, 1), found)
    close(sums(net, params, np.arange(N), 3), found)
    close(in_any_order(sums(apart, chain, np.arange(N), 1)), in_any_order(found))


def test_rows_that_are_not_there_count_for_nothing() -> None:
    """Value, clipped mean over the expected number, and the same with others in their place."""
    net, loss, params, x, y = problem("mlp")
    flat_each = matrix(net, params, by_autodiff(net, loss, params, x, y))
    lengths = np.linalg.norm(flat_each, axis=1)
    limit, there = float(np.median(lengths)), np.asarray([True, False, True, True, False])
    step = make_step(
        net, loss, optax.sgd(1.0), donate=False, accumulate=2, clip_examples=limit, expected=4.0
    )
    state = optax.sgd(1.0).init(params)
    new, _, value = step(params, state, x, y, Train(), jnp.asarray(there))
    share = np.minimum(1, limit / lengths) * there
    close(flat(params) - flat(new), share @ flat_each / 4)
    losses = [float(loss(net(params, x[i : i + 1]), y[i : i + 1])) for i in np.flatnonzero(there)]
    close(value, np.mean(losses))
    other, _, _ = step(params, state, jnp.where(there[:, None], x, 0), y, Train(), jnp.asarray(there))
    close(flat(other), flat(new))


def test_without_a_limit_in_reach_and_noise_it_is_the_plain_step() -> None:
    net = Chain(Dense(6), Tanh(), Dropout(0.5), Dense(3))
    x, y = normal(1, (8, 4), "float64"), jnp.asarray([0, 2, 1, 1, 0, 2, 2, 0], jnp.int32)
    params, tx, mode = net.init(jax.random.key(0), x), optax.sgd(0.1, 0.9), Train(jax.random.key(5))
    args = params, tx.init(params), x, y, mode
    plain = make_step(net, SoftmaxCrossEntropy(), tx, donate=False)(*args)
    private = make_step(net, SoftmaxCrossEntropy(), tx, donate=False, clip_examples=1e6)(*args)
    jax.tree.map(lambda a, b: close(a, b, 1e-9), private, plain)


NOISY = Chain(Dense(40), Tanh(), Dense(40))
X, Y = normal(1, (6, 40), "float64"), normal(2, (6, 40), "float64")


def noise_of(private: Private, key, pieces=1, params=None):
    params = NOISY.init(jax.random.key(0), X) if params is None else params
    fns = [
        private_passes(NOISY, SquaredError("sum"), p, pieces)
        for p in (private, Private(private.clip_examples))
    ]
    both = jax.jit(lambda mode: [fn(params, X, Y, mode)[1] for fn in fns])(Train(key))
    return jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), *both)


def test_noise_is_normal_with_the_deviation_that_it_should_have_in_one_piece_and_in_three() -> None:
    """Fixed seed; each bar is five standard errors."""
    private = Private(0.7, noise=1.3)
    once, thrice = (noise_of(private, jax.random.key(3), pieces) for pieces in (1, 3))
    size = 0.7 * 1.3
    for tree in (once, thrice):
        z = flat(tree) / size
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs(z.std() - 1) < 5 / np.sqrt(2 * z.size)
        assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / z.size)
        first, second = (np.ravel(tree[i]["w"]) / size for i in (0, 2))  # of one shape
        assert abs(first @ second) / first.size < 5 / np.sqrt(first.size)
    close(flat(once), flat(thrice), 1e-9)


def test_a_key_is_used_once() -> None:
    """Every step of an epoch has other noise, and none of it is what a layer or an image draws."""
    net, x = Dense(40, bias=False), jnp.zeros((6, 40))  # whose gradient is zero
    params, steps = net.init(jax.random.key(0), x), 4

    def keep(updates, state, params=None):
        return jax.tree.map(jnp.zeros_like, updates), (*state[1:], updates["w"])

    tx = optax.GradientTransformation(lambda p: (jnp.zeros_like(p["w"]),) * steps, keep)
    run = steps_function(net, SquaredError("sum"), tx, private=Private(1.0, 2.0))
    rows, keys = jnp.zeros((steps, 3), jnp.int32), jax.random.split(jax.random.key(1), steps)
    seen = run(params, tx.init(params), x, jnp.zeros((6, 40)), rows, keys)[1]
    one = Train(keys[0])
    drawn = [one.key, jax.random.fold_in(one.key, 1), *jax.random.split(one.key, 3)]
    drawn = [jax.random.normal(key, (40, 40)) for key in drawn]
    z = np.stack([np.ravel(a) / 2 for a in seen] + [np.ravel(a) for a in drawn[:4]])
    near = z @ z.T / z.shape[1]
    np.fill_diagonal(near[:steps, :steps], 0)
    assert np.abs(near[:steps]).max() < 5 / np.sqrt(z.shape[1])
    total = {"w": jnp.zeros((40, 40))}
    again = with_noise(net, params, total, Private(1.0, 2.0), one)["w"]
    close(np.ravel(again), np.ravel(seen[0]), 1e-6)  # and the same key the same noise
    assert APART > 2**20


def test_an_epoch_of_poisson_batches() -> None:
    net, loss, tx = Dense(3), SoftmaxCrossEntropy(), optax.sgd(0.3)
    x, key = normal(1, (40, 4), "float64"), jax.random.key(2)
    y = jnp.asarray(np.arange(40) % 3, jnp.int32)
    params = net.init(jax.random.key(0), x)
    given = {"donate": False, "clip_examples": 0.2, "noise": 0.5}
    epoch = make_epoch(net, loss, tx, 8, poisson=True, **given)
    got, _, losses = epoch(params, tx.init(params), x, y, key)
    rows, present, keys, drawn = plan_poisson(key, Batches(40, 8, poisson=True))
    step = make_step(net, loss, tx, expected=8, **given)
    for i in range(5):
        assert present[i].sum() == drawn[i]
        assert len(set(np.asarray(rows[i])[np.asarray(present[i])])) == drawn[i]
        params, _, value = step(
            params, tx.init(params), x[rows[i]], y[rows[i]], Train(keys[i]), present[i]
        )
        close(losses[i], value)
    close(flat(got), flat(params), 1e-9)
    assert len(losses) == 5


def test_everybody_joins_each_batch_with_the_same_probability_whatever_the_others_do() -> None:
    batches = Batches(200, 20, poisson=True)
    plan = jax.jit(jax.vmap(lambda key: plan_poisson(key, batches)[:2]))
    rows, present = map(np.asarray, plan(jax.random.split(jax.random.key(0), 60)))
    joins = np.zeros((600, 200))
    at = np.nonzero(present.reshape(600, -1))
    joins[at[0], rows.reshape(600, -1)[at]] = 1
    q, n = 0.1, 600
    assert np.abs(joins.mean(axis=0) - q).max() < 5 * np.sqrt(q * (1 - q) / n)
    sizes = joins.sum(axis=1)
    variance = 200 * q * (1 - q)
    assert abs(sizes.var(ddof=1) / variance - 1) < 5 * np.sqrt(2 / n)
    near = np.corrcoef(joins.T)
    assert np.abs(near[np.triu_indices(200, 1)]).max() < 6 / np.sqrt(n)


@pytest.mark.parametrize(("count", "size"), [(1437, 256), (60_000, 256), (40, 8), (12, 12), (50, 1)])
def test_batches_have_room_for_all_that_a_draw_ever_has(count: int, size: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    batches = Batches(count, size, poisson=True)
    assert stats.binom.sf(batches.widest, count, size / count) < batches_module.RARE
    least = int(stats.binom.isf(1e-15, count, size / count)) + 16
    assert size <= batches.widest <= min(count, least)
    assert batches.steps == count // size
    assert batches.seen == batches.steps * size


def test_a_draw_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "RARE", 1e6)
    net, x, y = Dense(1), jnp.ones((64, 2)), jnp.ones((64, 1))
    params, tx = net.init(jax.random.key(0), x), optax.sgd(0.1)
    batches = Batches(64, 8, poisson=True)
    drawn = plan_poisson(jax.random.key(1), batches)[-1]
    assert (drawn > batches.widest).any()
    assert not (drawn > batches.widest).all()
    epoch = make_epoch(net, SquaredError(), tx, 8, clip_examples=1.0, poisson=True)
    losses = epoch(params, tx.init(params), x, y, jax.random.key(1))[2]
    np.testing.assert_array_equal(np.isnan(losses), np.asarray(drawn > batches.widest))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": 1.0}, "clip_examples too"),
        ({"expected": 4.0}, "clip_examples too"),
        ({"clip_examples": 0.0}, "clip_examples must be positive"),
        ({"clip_examples": 1.0, "noise": -1.0}, "noise: expected a number >= 0"),
        ({"clip_examples": 1.0, "expected": -1.0}, "expected must be positive"),
        ({"clip_examples": 1.0, "noise": 1.0}, r"Train\(key\)"),
        ({"clip_examples": 1.0, "net": Chain(Dense(3), BatchNorm())}, "use GroupNorm"),
        ({"clip_examples": 1.0, "loss": SoftmaxCrossEntropy(ignore=1)}, "depends on the others"),
        ({"clip_examples": 1.0, "present": jnp.ones(3, bool)}, "present: expected 4 entries"),
        ({"present": jnp.ones(4, bool)}, "present: expected clip_examples"),
        ({"clip_examples": 1.0, "noise": 1.0, "tx": optax.lbfgs()}, "one noisy gradient"),
        ({"clip_examples": 1.0, "noise": 1.0, "tx": optax.polyak_sgd()}, "one noisy gradient"),
    ],
)
def test_what_is_refused(given, message) -> None:
    given = dict(given)
    net, tx = given.pop("net", Dense(3)), given.pop("tx", optax.sgd(0.1))
    loss, present = given.pop("loss", SoftmaxCrossEntropy()), given.pop("present", None)
    x, y = normal(1, (4, 2), "float32"), jnp.asarray([0, 1, 2, 1], jnp.int32)
    params = net.init(jax.random.key(0), x)
    mode = Train(jax.random.key(0)) if "noisy" in message else Train()
    with jax.numpy_dtype_promotion("standard"), pytest.raises(InputError, match=message):
        make_step(net, loss, tx, **given)(params, tx.init(params), x, y, mode, present)


def test_poisson_batches_are_for_private_steps() -> None:
    with pytest.raises(InputError, match="poisson"):
        make_epoch(Dense(3), SoftmaxCrossEntropy(), batch_size=2, poisson=True)
