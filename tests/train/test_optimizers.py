"""Every public optimizer of Optax trains a network here, and sees of it what is trained."""

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib as contrib
import pytest

from jaxbp import (
    BatchNorm,
    Chain,
    Dense,
    Eval,
    InputError,
    SoftmaxCrossEntropy,
    SquaredError,
    Stack,
    Tanh,
    Train,
    make_epoch,
    make_step,
    value_and_grad,
)
from tests.proof import normal

SGD = optax.sgd(0.1)
ADAM = optax.adam(0.01)


pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|required in optax)")


def at(*args, **named):
    """The arguments of a constructor."""
    return args, named


def each(names, *args):
    return dict.fromkeys(names.split(), at(*args))


def kinds(tree):
    return jax.tree.map(lambda p: "ab"[p.ndim > 1], tree)


def matrices(tree):
    return jax.tree.map(lambda p: p.ndim > 1, tree)


def dimensions(tree):
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), tree)


# every public constructor of a transformation, with arguments; a new one makes the test below fail
OPTAX = {
    **each("adabelief adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam", 0.01),
    **each("nadamw novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent", 0.01),
    **each("radam rmsprop rprop scale scale_by_learning_rate scale_by_rprop sgd sign_sgd signum", 0.01),
    **each("sm3 yogi adaptive_grad_clip clip clip_by_block_rms clip_by_global_norm", 0.01),
    **each("adadelta adafactor add_decayed_weights apply_every centralize identity lbfgs"),
    **each("keep_params_nonnegative normalize_by_update_norm polyak_sgd scale_by_adadelta"),
    **each("scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_belief"),
    **each("scale_by_distance_over_gradients scale_by_factored_rms scale_by_lbfgs scale_by_lion"),
    **each("scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm scale_by_rms"),
    **each("scale_by_param_block_rms scale_by_polyak scale_by_radam scale_by_rss scale_by_sign"),
    **each("scale_by_sm3 scale_by_stddev scale_by_trust_ratio scale_by_yogi set_to_zero zero_nans"),
    **each("scale_by_backtracking_linesearch scale_by_zoom_linesearch", 5),
    **each("conditionally_mask conditionally_transform", ADAM, lambda step: step % 2 == 0),
    **each("multi_transform partition", {"a": SGD, "b": ADAM}, kinds),
    **each("inject_hyperparams inject_stateful_hyperparams", optax.adam),
    **each("ema trace", 0.9),
    "add_noise": at(0.01, 0.5, jax.random.key(3)),
    "apply_if_finite": at(ADAM, 3),
    "chain": at(optax.clip(0.1), contrib.sam(SGD, SGD)),
    "flatten": at(ADAM),
    "freeze": at(False),
    "lookahead": at(SGD, 3, 0.5),
    "masked": at(ADAM, matrices),
    "monitor": at({"norm": optax.measure_with_ema(optax.tree.norm, 0.9)}),
    "named_chain": at(("clip", optax.clip(0.1)), ("rule", ADAM)),
    "noisy_sgd": at(0.01, key=jax.random.key(3)),
    "scale_by_schedule": at(optax.cosine_decay_schedule(0.1, 10)),
    "selective_transform": at(ADAM, freeze_mask=False),
    "snapshot": at("norm", optax.tree.norm),
    "stateless": at(lambda updates, params: updates),
    "stateless_with_tree_map": at(lambda update, param: update),
    "with_extra_args_support": at(SGD),
    "MultiSteps": at(SGD, 2),
}
CONTRIB = {
    **each("acprop ademamix adopt galore madgrad muon scale_by_madgrad simplified_ademamix sophia", 0.01),
    **each("cocob dadapt_adamw hutchinson_estimator_diag_hessian momo momo_adam normalize prodigy"),
    **each("reduce_on_plateau scale_by_acprop scale_by_ademamix scale_by_adopt scale_by_cocob"),
    **each("scale_by_galore scale_by_simplified_ademamix schedule_free_adamw schedule_free_sgd dowg"),
    **each("dog", 1.0, ("distance", 1e-3)),
    "differentially_private_aggregate": at(1.0, 0.1, jax.random.key(3)),
    "dpsgd": at(0.01, 1.0, 0.1, 0),
    "mechanize": at(SGD),
    "sam": at(SGD, SGD),
    "scale_by_muon": at(weight_dimension_numbers=dimensions),
    "schedule_free": at(SGD, 0.1),
    "split_real_and_imaginary": at(ADAM),
}
CASES = [(optax, n) for n in OPTAX] + [(contrib, n) for n in CONTRIB]
UNABLE = {"lookahead", "differentially_private_aggregate", "dpsgd"}

SEARCH = ("value", "grad", "value_fn")
ASKS = {  # what they are told besides the gradients
    **dict.fromkeys(("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"), SEARCH),
    **dict.fromkeys(("hutchinson_estimator_diag_hessian", "sophia"), ("obj_fn",)),
    **dict.fromkeys(
        ("momo", "momo_adam", "polyak_sgd", "scale_by_polyak", "reduce_on_plateau"), ("value",)
    ),
}


def make(module, name):
    args, named = (OPTAX if module is optax else CONTRIB)[name]
    tx = getattr(module, name)(*args, **named)
    if name == "scale_by_muon":  # matrices alone
        return optax.masked(tx, matrices)
    if name == "scale_by_galore":  # whose steps of 1 magnify the rounding of its factorisation
        return optax.chain(tx, optax.scale(-0.01))
    return tx(0.01) if name.startswith("inject") else tx


FUNCTIONS = types.FunctionType, functools.partial  # not types, whose signature is each Python's own


def names(module):
    """The public constructors: what returns a transformation, or does not say what it returns."""
    found = set()
    for name, fn in vars(module).items():
        if name.startswith("_") or not isinstance(fn, FUNCTIONS):
            continue
        returned = inspect.signature(fn).return_annotation
        if "GradientTransformation" in str(returned) or returned is inspect.Signature.empty:
            found.add(name)
    return found


def test_no_optimizer_is_left_out() -> None:
    no_optimizers = {
        *("measure_with_ema", "matrix_inverse_pth_root", "sigmoid_binary_cross_entropy"),
        *("update_moment", "update_infinity_moment", "update_moment_per_elem_norm"),
        "schedule_free_eval_params",
    }
    assert names(optax) - no_optimizers == set(OPTAX) - {"MultiSteps"}
    assert names(contrib) - no_optimizers == set(CONTRIB)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax promotes dtypes and ranks where it likes to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


NET = Chain(Dense(4, bias=False), BatchNorm(), Tanh(), Dense(3))
LOSS = SoftmaxCrossEntropy()


def data(count=12, dtype="float64"):
    x = 3 * normal(1, (count, 5), dtype) + 1
    return x, jnp.asarray(np.random.default_rng(2).integers(0, 3, count))


def start(net=NET, dtype="float64"):
    params = net.init(jax.random.key(0), jnp.zeros((1, 5), dtype))
    return jax.tree.map(lambda p: p + 0.1 * normal(4, p.shape, dtype), params)


def trained(params, net=NET):
    """The trained leaves alone, as a list."""
    yes = jax.tree.leaves(net.trainable(params))
    return [leaf for leaf, keep in zip(jax.tree.leaves(params), yes, strict=True) if keep]


def put(params, own, net=NET):
    rest, own = jax.tree.leaves(params), iter(own)
    yes = jax.tree.leaves(net.trainable(params))
    leaves = [next(own) if keep else leaf for leaf, keep in zip(rest, yes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def reference(tx, params, batches, mode, asks=(), net=NET, loss=LOSS):
    """The trained leaves by autodiff and Optax, which never hear of the others."""
    state = tx.init(trained(params, net))
    for x, y in batches:

        def value_fn(own, x=x, y=y, params=params):
            return loss(net.forward(put(params, own, net), x, mode)[0], y)

        own = trained(params, net)
        value, grads = jax.value_and_grad(value_fn)(own)
        extra = {"value": value, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn}
        extra["grad_fn"] = lambda own, _, value_fn=value_fn: jax.grad(value_fn)(own)
        given = {name: extra[name] for name in asks if name in extra}
        updates, state = optax.with_extra_args_support(tx).update(grads, state, own, **given)
        moved = net.update_statistics(params, net.forward(params, x, mode)[1])
        params = put(moved, optax.apply_updates(own, updates), net)
    return params


def batches(count=2):
    x, y = data(12 * count)
    return [(x[i : i + 12], y[i : i + 12]) for i in range(0, 12 * count, 12)]


def same(got, wanted, bar=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=bar, atol=bar), got, wanted)


@pytest.mark.parametrize(("module", "name"), CASES, ids=[name for _, name in CASES])
def test_every_optimizer_takes_the_steps_that_it_takes_of_the_trained_alone(module, name) -> None:
    tx = make(module, name)
    params = start()
    state, step = tx.init(params), make_step(NET, LOSS, tx)
    if name in UNABLE:
        with pytest.raises(InputError, match=f"opt_state: optax.*{name}"):
            step(params, state, *data())
        return
    if isinstance(tx, optax.MultiSteps):
        tx = tx.gradient_transformation()
    if name == "flatten":  # all are one vector in its state
        with pytest.raises(InputError, match=r"opt_state.*masked\(tx, net.trainable\)"):
            step(params, state, *data())
        tx = optax.masked(tx, NET.trainable)
        state, step = tx.init(params), make_step(NET, LOSS, tx)
        tx = make(module, name)
    wanted = reference(tx, params, batches(), Train(), ASKS.get(name, ()))
    structure = jax.tree.structure(state)
    for x, y in batches():
        params, state, value = step(params, state, x, y)
        assert np.isfinite(value)
    assert jax.tree.structure(state) == structure or name == "monitor"  # which starts with none
    same(params, wanted)


DEEP = Chain(Dense(4), Stack(BatchNorm(), 2), Dense(3))


@pytest.mark.parametrize("mode", [Train(), Eval()], ids=repr)
@pytest.mark.parametrize(
    ("tx", "asks"),
    [
        (optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(1.0)), ()),
        (contrib.dog(1.0, ("distance", 1e-3), weight_decay=0.1), ()),
        (contrib.sam(SGD, SGD, sync_period=3, opaque_mode=True), ("grad_fn",)),
    ],
    ids=["clip", "dog", "sam"],
)
def test_statistics_take_no_part_in_any_mode_or_nesting(mode, tx, asks) -> None:
    """In evaluation their gradients are not zero, in training they move by themselves."""
    wanted = reference(tx, start(DEEP), batches(), mode, asks, net=DEEP)
    params = start(DEEP)
    state, step = tx.init(params), make_step(DEEP, LOSS, tx)
    for x, y in batches():
        params, state, _ = step(params, state, x, y, mode)
    same(params, wanted)


EPOCHS = ["lbfgs", "MultiSteps", "dog", "cocob", "sam", "reduce_on_plateau", "schedule_free_sgd"]


@pytest.mark.parametrize("name", EPOCHS)
def test_an_epoch_is_the_steps_of_any_optimizer(name) -> None:
    tx = make(optax if name in OPTAX else contrib, name)
    x, y = data(26)
    epoch = make_epoch(NET, LOSS, tx, batch_size=8, shuffle=False)
    ours, state = start(), tx.init(start())
    step, params, expected = make_step(NET, LOSS, tx), start(), tx.init(start())
    for _ in range(2):
        ours, state, losses = epoch(ours, state, x, y, jax.random.key(3))
        assert losses.shape == (4,)
        for i in range(0, 26, 8):
            params, expected, _ = step(params, expected, x[i : i + 8], y[i : i + 8])
    same(ours, params, 1e-7)


def test_a_state_of_the_trained_alone_does_too() -> None:
    tx = optax.masked(contrib.dog(), NET.trainable)  # whose first step has a norm of the parameters
    wanted = reference(contrib.dog(), start(), batches(), Train())
    params = start()
    state, step = tx.init(params), make_step(NET, LOSS, tx)
    for x, y in batches():
        params, state, _ = step(params, state, x, y)
    same(params, wanted)


def test_an_average_of_the_parameters_leaves_the_statistics_be() -> None:
    params, tx = start(), contrib.schedule_free_adamw(0.1)
    state, step = tx.init(params), make_step(NET, LOSS, tx)
    for x, y in batches():
        params, state, _ = step(params, state, x, y)
    average = contrib.schedule_free_eval_params(state, params)
    for name in ("mean", "var"):
        np.testing.assert_allclose(average[1][name], params[1][name], rtol=1e-12)
    assert not np.allclose(average[0]["w"], params[0]["w"])


@pytest.mark.parametrize("init", [lambda tx, p: tx.init(p), lambda tx, p: jax.jit(tx.init)(p)])
def test_a_state_that_shares_its_arrays_is_donated_all_the_same(init) -> None:
    net = Chain(Dense(4), Tanh(), Dense(3))
    params = start(net)
    params = (params[0], params[1], {**params[2], "b": params[2]["b"]})
    tx = contrib.prodigy()
    state, step = init(tx, params), make_step(net, LOSS, tx, donate=True)
    first = params[0]["w"]
    for x, y in batches():
        params, state, _ = step(params, state, x, y)
    assert first.is_deleted()
    twice = jnp.ones((3, 3))
    shared = ({"w": twice}, {"w": twice})
    square = Chain(Dense(3, bias=False), Dense(3, bias=False))
    x = normal(1, (4, 3), "float64")
    make_step(square, SquaredError(), donate=True)(shared, optax.sgd(0.1).init(shared), x, x)


def test_a_state_of_another_optimizer_is_named() -> None:
    params = start()
    with pytest.raises(InputError, match=r"opt_state\[0\].count: expected an array .* got none"):
        make_step(NET, LOSS, ADAM)(params, SGD.init(params), *data())


def test_the_loss_that_an_optimizer_differentiates_is_differentiated_by_hand() -> None:
    """The gradient of `value_fn` is the walk's, not that of autodiff: a layer that lies shows it."""

    class Doubled(Tanh):
        def pull(self, params, saved, dy):
            dx, delta = super().pull(params, saved, dy)
            return 2 * dx, delta

    net = Chain(Dense(4), Doubled(), Dense(3))
    params, (x, y) = start(net), data()
    seen = []

    def watch(updates, state, params, *, value_fn, **_):
        seen.append(jax.grad(value_fn)(params))
        return seen[-1], state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), watch)
    new, _, _ = make_step(net, LOSS, tx)(params, (), x, y)
    grads = value_and_grad(net, LOSS)(params, x, y)[1]
    same(jax.tree.map(jnp.subtract, new, params), grads)
