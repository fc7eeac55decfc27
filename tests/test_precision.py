"""Mixed precision over whole networks: what is cast, what stays wide, and the proof of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    GRU,
    LSTM,
    Attention,
    Chain,
    Dense,
    InputError,
    Precision,
    SoftmaxCrossEntropy,
    Tanh,
    Train,
    value_and_grad,
    with_precision,
)
from jaxbp.generate import make_generator
from jaxbp.layer import leaves
from jaxbp.models import autoencoder, char_lstm, gated_mlp, gpt, lenet, mlp, resnet
from jaxbp.oracle.proof import prove
from jaxbp.precision import matmul
from tests.proof import normal

IMAGE, VECTOR = jax.ShapeDtypeStruct((2, 8, 8, 1), "float32"), jax.ShapeDtypeStruct((2, 6), "float32")
TOKENS = jax.ShapeDtypeStruct((2, 5), "int32")
NETWORKS = {
    "mlp": (lambda p: mlp(4, 3, precision=p), VECTOR),
    "autoencoder": (lambda p: autoencoder(4, outputs=6, precision=p), VECTOR),
    "gated_mlp": (lambda p: gated_mlp(4, 5, precision=p), VECTOR),
    "lenet": (lambda p: lenet(3, precision=p), IMAGE),
    "resnet": (lambda p: resnet(3, widths=(4, 8), precision=p), IMAGE),
    "char_lstm": (lambda p: char_lstm(9, features=4, precision=p), TOKENS),
    "gpt": (lambda p: gpt(9, depth=2, heads=2, features=8, length=5, precision=p), TOKENS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_and_errors_are_narrow_and_parameters_wide(name) -> None:
    make, x = NETWORKS[name]
    net = make("bfloat16")
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    y, saved = jax.eval_shape(lambda p, v: net.forward(p, v, Train()), params, x)
    grads, dx = jax.eval_shape(net.backward, params, saved, y)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((params, grads))} == {jnp.dtype("float32")}
    assert dx is None or dx.dtype == x.dtype
    assert jax.tree.structure(params) == jax.tree.structure(grads)
    assert with_precision(net, Precision()) == make(None)


def test_a_network_takes_every_precision_and_keeps_none_of_its_own() -> None:
    net = Chain(Dense(3, precision="float16"), Tanh())
    own = Precision("bfloat16", "float32", "float16")
    assert with_precision(net, own) == Chain(Dense(3, precision=own), Tanh())
    assert with_precision(net, None) is net
    narrow = Precision("float32", "bfloat16", "bfloat16")
    assert with_precision(net, jnp.bfloat16) == Chain(Dense(3, precision=narrow), Tanh())
    for _, leaf in leaves(with_precision(gpt(9, depth=1), "float64")):
        assert getattr(leaf, "precision", None) in (None, Precision("float64", "float64", "float64"))
    with pytest.raises(InputError, match="expected a Precision or a floating dtype, got 'int8'"):
        with_precision(net, "int8")


def test_text_is_generated_in_bfloat16() -> None:
    for name in ("char_lstm", "gpt"):
        make, _ = NETWORKS[name]
        net, prompt = make("bfloat16"), jnp.asarray([[1, 2]], "int32")
        params = net.init(jax.random.key(0), prompt)
        ids = make_generator(net, 5, temperature=0)(params, prompt, jax.random.key(1))
        assert ids.shape == (1, 5)


class Skewed(Dense):
    """The gradient of the weight is 3 percent too large: more than a rounding, less than a blunder."""

    def gradient(self, params, saved, delta):
        right = super().gradient(params, saved, delta)
        return {**right, "w": right["w"] * 1.03}


class Coarse(Dense):
    """Right in float32, but in bfloat16 the errors lose all but three bits."""

    def pull(self, params, saved, dy):
        dx, delta = super().pull(params, saved, dy)
        if delta.dtype == jnp.bfloat16:
            dx = dx.astype(jnp.float8_e5m2).astype(dx.dtype)
        return dx, delta


@pytest.mark.parametrize(("kind", "right"), [(Dense, True), (Skewed, False), (Coarse, False)])
def test_the_proof_knows_the_noise_of_bfloat16(kind, right) -> None:
    net = Chain(Dense(12), Tanh(), kind(12), Tanh(), Dense(5))
    x, y = normal(1, (16, 7), "float32"), jnp.arange(16) % 5
    params = net.init(jax.random.key(0), x)
    narrow = with_precision(net, "bfloat16")
    loss = SoftmaxCrossEntropy()
    assert (prove(narrow, loss, params, x, y).worst[1] < 1e-3) == right
    value, _ = jax.jit(value_and_grad(narrow, loss))(params, x, y)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, value_and_grad(net, loss)(params, x, y)[0], rtol=0.02)


@pytest.mark.parametrize(("platform", "inside"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_a_product_returns_what_is_needed_next(platform, inside, monkeypatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    a, b = jax.ShapeDtypeStruct((3, 5), "bfloat16"), jax.ShapeDtypeStruct((5, 2), "bfloat16")
    program = jax.make_jaxpr(lambda a, b: matmul(a, b, "bfloat16"))(a, b)
    (dot,) = (e for e in program.eqns if e.primitive.name == "dot_general")
    assert dot.outvars[0].aval.dtype == inside
    assert program.out_avals[0].dtype == jnp.bfloat16
    assert jax.eval_shape(matmul, a, b).dtype == jnp.float32  # of a parameter's gradient: not rounded


@pytest.mark.parametrize(("platform", "narrow"), [("cpu", False), ("gpu", True)])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LSTM(7), (2, 3, 5)),
        (GRU(7), (2, 3, 5)),
        (Attention(2, bias=False), (2, 3, 8)),
        (Attention(2), (2, 3, 8)),
    ],
)
def test_errors_that_are_cast_next_come_out_narrow(layer, shape, platform, narrow, monkeypatch) -> None:
    net = with_precision(layer, "bfloat16")
    x = normal(3, shape, "bfloat16")
    params = net.init(jax.random.key(0), x)
    y, saved = net.forward(params, x, Train())
    # on CPU attention chooses another form; what is asked here is the dtype of its products alone
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    program = str(jax.make_jaxpr(lambda p, d: net.pull(p, saved, d)[0])(params, y))
    lines = [line for line in program.splitlines() if "dot_general" in line]
    assert any(":bf16[" in line for line in lines) == narrow
    assert jax.eval_shape(lambda d: net.pull(params, saved, d)[0], y).dtype == jnp.bfloat16


def test_a_long_sum_in_bfloat16_is_rounded_once() -> None:
    a, b = normal(1, (7, 4096), "bfloat16"), normal(2, (4096, 5), "bfloat16")
    exact = np.float64(a) @ np.float64(b)
    got = np.float64(matmul(a, b, "bfloat16"))
    assert np.all(np.abs(got - exact) <= 2**-8 * np.abs(exact) + 1e-3)
