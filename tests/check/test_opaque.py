"""Rules in NumPy and torch: called with numbers, never traced, and diagnosed like rules in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import InputError, check_gradients
from jaxbp.cli import main

RNG = np.random.default_rng(3)
X = jnp.asarray(RNG.normal(size=(5, 7)), jnp.float32)
W = jnp.asarray(RNG.uniform(0.5, 1.5, 7), jnp.float32)


@pytest.fixture(autouse=True)
def as_a_user():
    """Functions as people write them: a weight is broadcast over the rows."""
    with jax.numpy_rank_promotion("allow"):
        yield


def rms_norm(x, w):
    r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
    return x * r * w


def backward(x, w, dy, path=1.0):
    """In NumPy: `path` weighs what comes back through the root mean square."""
    x, w, dy = np.asarray(x), np.asarray(w), np.asarray(dy)
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-5))
    s = (dy * x * w).sum(-1, keepdims=True)
    dx = dy * w * r - x.dtype.type(path) * r**3 * x * s / x.dtype.type(x.shape[-1])
    return dx, (dy * x * r).sum(0)


def test_a_right_rule_in_numpy_is_right_and_hardly_called() -> None:
    calls = []

    def hand(*args):
        calls.append([type(a) for a in args])
        return backward(*args)

    report = check_gradients(rms_norm, X, W, gradient=hand)
    assert report.ok, report
    assert len(calls) < 16
    assert any("not written in JAX" in note and "under jit" in note for note in report.notes)


@pytest.mark.parametrize(
    ("path", "cause"),
    [(0.0, "missing-path"), (2.0, "extra-path"), (-1.0, "sign")],
)
def test_a_slip_in_numpy_is_named(path, cause) -> None:
    report = check_gradients(rms_norm, X, W, gradient=lambda *a: backward(*a, path=path))
    assert [(f.cause, f.path) for f in report.findings] == [(cause, "x")], report
    assert "test_opaque.py" in report.findings[0].detail


def test_a_rule_that_only_takes_numpy_arrays_and_writes_into_them() -> None:
    def hand(x, dy):
        x *= 2  # JAX's arrays refuse nothing here, but make new ones; NumPy's are written into
        dy[...] = dy * x
        return dy

    assert check_gradients(lambda x: x * x, X, gradient=hand).ok


def test_a_kernel_that_only_runs_in_float32() -> None:
    def hand(x, w, dy):
        if np.asarray(x).dtype != np.float32:
            raise TypeError("float32 only")
        return backward(x, w, dy)

    assert check_gradients(rms_norm, X, W, gradient=hand).ok
    wrong = check_gradients(rms_norm, X, W, gradient=lambda *a: (hand(*a)[0], hand(*a)[1] * 2))
    assert [(f.cause, f.path) for f in wrong.findings] == [("scale", "w")], wrong


def test_a_pair_in_numpy_beside_its_function_in_jax() -> None:
    def forward(x, w):
        x, w = np.asarray(x), np.asarray(w)
        return np.maximum(x * w, 0), (x, w)

    def slope(saved, dy):
        x, w = saved
        d = np.asarray(dy) * (x * w > 0)
        return d * w, (d * x).sum(0)

    with pytest.raises(InputError, match="the same function in JAX as reference="):
        check_gradients((forward, slope), X, W)
    plain = lambda x, w: jax.nn.relu(x * w)  # noqa: E731
    assert check_gradients((forward, slope), X, W, reference=plain).ok
    mean = lambda saved, dy: (slope(saved, dy)[0], slope(saved, dy)[1] / 5)  # noqa: E731
    report = check_gradients((forward, mean), X, W, reference=plain)
    assert not report.ok
    assert {f.path for f in report.findings} == {"w"}


def test_a_rule_in_jax_that_looks_at_values_is_still_told_so() -> None:
    def hand(x, dy):
        return 2 * x * dy if x.sum() > 0 else x * dy * 2

    assert [f.cause for f in check_gradients(lambda x: x * x, X, gradient=hand).findings] == ["jit"]


def test_two_rules_or_no_function_of_tensors() -> None:
    with pytest.raises(InputError, match="give one of them"):
        check_gradients(rms_norm, X, W, gradient=backward, torch=backward)
    with pytest.raises(InputError, match="expected a function of tensors"):
        check_gradients(rms_norm, X, W, torch=3)


TORCH = """
import jax, jax.numpy as jnp, torch

def rms_norm(x, w):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * w

class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        r = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)
        ctx.save_for_backward(x, w, r)
        return x * r * w

    @staticmethod
    def backward(ctx, dy):
        x, w, r = ctx.saved_tensors
        s = (dy * x * w).sum(-1, keepdim=True)
        return dy * w * r - KEPT * r**3 * x * s / x.shape[-1], (dy * x * r).sum(0)
"""


@pytest.mark.parametrize(("kept", "code"), [("1", 0), ("0", 1)])
def test_a_torch_function_is_checked_by_the_command(tmp_path, capsys, kept, code) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "norm.py"
    path.write_text(TORCH.replace("KEPT", kept))
    argv = [f"{path}:rms_norm", "--arg", "f32[5,7]", "--arg", "f32[7]", "--torch", "RMSNorm.apply"]
    assert main(["check", *argv]) == code
    out = capsys.readouterr().out
    assert ("missing" in out) == (code == 1)
    assert "not written in JAX" in out


def test_torch_in_bfloat16_and_with_an_output_that_is_not_the_functions() -> None:
    torch = pytest.importorskip("torch")
    x = X.astype(jnp.bfloat16)
    assert check_gradients(lambda x: jnp.tanh(x), x, torch=torch.tanh).ok
    report = check_gradients(lambda x: jnp.tanh(x), X, torch=torch.sigmoid)
    assert report.cause == "forward"
