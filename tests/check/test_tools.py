"""What surrounds a check: input errors, the report's forms, the command, the plugin, and the helpers."""

import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from jaxbp import InputError
from jaxbp.check.command import check, make_argument
from jaxbp.cli import main

X = jnp.asarray([0.5, -1.0, 2.0], jnp.float32)


def square(x):
    return x * x


def right(x, g):
    return 2 * x * g


def half(x, g):
    return x * g


# --- the tester is tested -----------------------------------------------------------------------------


def test_right_rule_passes_and_its_report_is_short():
    report = jaxbp.assert_gradients(square, X, gradient=right)
    assert report.ok
    assert report
    assert len(str(report).splitlines()) <= 6


@pytest.mark.parametrize(
    ("pair", "cause"),
    [
        ((lambda x: (x * x + 0.1, x), lambda x, g: (2 * x * g,)), "forward"),
        ((lambda x: (x * x, x), lambda x, g: (x * g,)), "scale"),
        ((lambda x: (x * x, x), lambda x, g: ()), "structure"),
    ],
)
def test_wrong_primal_wrong_derivative_and_missing_cotangent_fail(pair, cause):
    with pytest.raises(AssertionError, match=cause):
        jaxbp.assert_gradients(pair, X, reference=square)


def test_report_in_all_its_forms(tmp_path):
    report = jaxbp.check_gradients(square, X, gradient=half)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is False
    assert data["findings"][0]["cause"] == "scale"
    assert data["leaves"][0]["path"] == "x"
    page = report._repr_html_()
    assert "scale" in page
    assert "½" in page
    picture = report.heat_map(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no wrong leaf"):
        report.heat_map(tmp_path, "y")


# --- bad input ----------------------------------------------------------------------------------------


def raises(x, g):
    raise RuntimeError("the original words")


def broken(x):
    raise RuntimeError("the original words")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jaxbp.check_gradients(3, X), "expected a layer, a loss, a function or a pair"),
        (lambda: jaxbp.check_gradients(square, X, X), "cannot be called with 2 arguments"),
        (lambda: jaxbp.check_gradients(square, X, gradient=lambda x: x), "gradient: cannot be called"),
        (lambda: jaxbp.check_gradients(square, jnp.arange(3)), "no argument has a floating dtype"),
        (lambda: jaxbp.check_gradients(square, X.astype(jnp.complex64)), "complex numbers cannot"),
        (lambda: jaxbp.check_gradients(broken, X, gradient=right), "the original words"),
        (lambda: jaxbp.check_gradients(lambda x: x > 0, X, gradient=right), "no output has a floating"),
        (lambda: jaxbp.check_gradients((square,), X), "a pair must be"),
        (lambda: jaxbp.check_gradients(jaxbp.Tanh(), X, X, X, X), "expected \\(params, x\\)"),
        (lambda: jaxbp.check_gradients(square, X, gradient=right, samples=0), "samples"),
        (lambda: jaxbp.check_gradients(square, X, gradient=right, seed=-1), "seed: expected a whole"),
        (lambda: jaxbp.check_gradients(lambda x: np.sin(x), X, gradient=right), "cannot trace"),
        (lambda: jaxbp.check_gradients(square, X, cotangent=jnp.ones(2)), "cotangent: expected shapes"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_rule_that_raises_shows_the_original_message():
    report = jaxbp.check_gradients(square, X, gradient=raises)
    assert not report.ok
    assert "the original words" in report.findings[0].detail


# --- the command --------------------------------------------------------------------------------------

FILE = """
import jax.numpy as jnp
def square(x): return x * x
def right(x, g): return 2 * x * g
def half(x, g): return x * g
"""


def test_command_exits_0_right_1_wrong_2_not_run(tmp_path, capsys):
    file = tmp_path / "rules.py"
    file.write_text(FILE)
    assert main(["check", f"{file}:square", "--gradient", f"{file}:right", "--arg", "f32[4]"]) == 0
    assert (
        main(["check", f"{file}:square", "--gradient", f"{file}:half", "--arg", "f32[4]", "--json"]) == 1
    )
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["findings"][0]["cause"] == "scale"
    assert main(["check", f"{file}:cube", "--arg", "f32[4]"]) == 2
    assert "has no 'cube'" in capsys.readouterr().err
    assert main(["check", f"{file}:square", "--gradient", "quarter", "--arg", "f32[4]"]) == 2
    assert "--gradient" in capsys.readouterr().err
    picture = tmp_path / "heat.png"
    command = ["check", f"{file}:square", "--gradient", "half", "--arg", "f32[4]"]
    assert main([*command, "--heat-map", str(picture)]) == 1
    assert picture.is_file()
    assert "square: THE GRADIENT IS WRONG" in capsys.readouterr().out
    assert main(["check", "no_such_module:f"]) == 2
    assert "cannot import" in capsys.readouterr().err


def test_command_arguments():
    rng = np.random.default_rng(0)
    assert make_argument("bf16[2,3]", rng).dtype == jnp.bfloat16
    whole = make_argument("i32[50]<4", rng)
    assert (int(whole.min()), int(whole.max())) == (0, 3)
    assert make_argument("f32[]", rng).shape == ()
    assert make_argument("2.5", rng) == 2.5
    assert isinstance(make_argument("jaxbp:Tanh", rng), jaxbp.Tanh)
    for bad in ("f99[2]", "x y"):
        with pytest.raises(InputError, match="--arg"):
            make_argument(bad, rng)


def test_command_takes_a_layer(capsys):
    assert check(["jaxbp.layers:Softmax", "--arg", "f32[3,4]"]) == 0
    assert "right" in capsys.readouterr().out


# --- the plugin ---------------------------------------------------------------------------------------

pytest_plugins = ["pytester"]


def test_plugin_fails_with_the_report_and_prints_a_table(pytester):
    pytester.makepyfile(
        textwrap.dedent("""
        import jax.numpy as jnp
        X = jnp.asarray([0.5, -1.0, 2.0], jnp.float32)
        def square(x): return x * x
        def test_right(gradients): gradients(square, X, gradient=lambda x, g: 2 * x * g)
        def test_wrong(gradients): gradients(square, X, gradient=lambda x, g: x * g)
        """)
    )
    result = pytester.runpytest(
        "-p", "no:jaxbp", "-p", "jaxbp.check.pytest_plugin", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*gradients*", "*checked*verdict*error*noise floor*", "square*right*", "square*wrong*"]
    )
    assert "THE GRADIENT IS WRONG" in result.stdout.str()


# --- sensitivity --------------------------------------------------------------------------------------


def test_sensitivity_tells_a_good_test_from_a_bad_one():
    def thorough(fn):
        dy = jnp.asarray([1.0, -2.0, 0.5], X.dtype)
        pull = jax.vjp(fn, X)[1]
        for call in (pull, pull, jax.jit(lambda dy: jax.vjp(fn, X)[1](dy))):
            np.testing.assert_allclose(call(dy)[0], 2 * X * dy, rtol=1e-5)

    def careless(fn):
        got = jax.vjp(fn, X)[1](jnp.ones(3, X.dtype))[0]
        np.testing.assert_allclose(np.abs(got), np.abs(2 * X), rtol=0.05)

    good = jaxbp.check_sensitivity(square, X, test=thorough, gradient=right)
    assert good.missed == []
    assert good.rate == 1
    bad = jaxbp.check_sensitivity(square, X, test=careless, gradient=right)
    assert "sign in x" in bad.missed
    assert "scale 1.01 in x" in bad.missed
    assert "scale 2 in x" in bad.caught
    assert "wrong-point in x" in bad.caught
    assert {"jit in x", "nondeterministic in x"} <= set(bad.missed)  # called once, and not compiled
    assert "let through: sign in x" in str(bad)
    assert jaxbp.check_sensitivity(square, X, test=lambda fn: False, gradient=right).rejects_truth


def test_sensitivity_plants_faults_along_paths_too():
    def fn(x):
        return x * jnp.tanh(x)

    def ones(fn):  # does not look at the cotangent, and only roughly at the gradient
        got = jax.vjp(fn, X)[1](jnp.ones(3, X.dtype))[0]
        np.testing.assert_allclose(got, jnp.tanh(X) + X * (1 - jnp.tanh(X) ** 2), rtol=1e-4)

    found = jaxbp.check_sensitivity(fn, X, test=ones, faults=("stale", "missing-path", "extra-path"))
    assert found.missed == ["stale in x"]
    assert found.caught == ["missing-path in x", "extra-path in x"]


# --- where NaN begins ---------------------------------------------------------------------------------


def root(params, x):
    return jnp.sqrt(x)


def test_locate_nonfinite_names_the_first_layer_and_operation():
    x = jnp.asarray([[1.0, 4.0], [0.0, 9.0]], jnp.float32)
    net = jaxbp.Chain(jaxbp.Identity(), jaxbp.Auto(root), jaxbp.Dense(2))
    params = net.init(jax.random.key(0), x)
    loss = jaxbp.SquaredError()
    found = jaxbp.locate_nonfinite(net, loss, params, x, jnp.zeros((2, 2), x.dtype))
    assert found is not None
    assert (found.phase, found.path) == ("backward", "layers[1]")
    assert "infinite" in found.output
    forward = jaxbp.locate_nonfinite(net, loss, params, x - 2, jnp.zeros((2, 2), x.dtype))
    assert forward is not None
    assert (forward.phase, forward.path) == ("forward", "layers[1]")
    assert "`sqrt`" in forward.operation
    assert "in [-2, 7]" in forward.inputs
    assert jaxbp.locate_nonfinite(net, loss, params, x + 1, jnp.zeros((2, 2), x.dtype)) is None
    given = jaxbp.locate_nonfinite(net, loss, params, x.at[0, 0].set(jnp.nan), None)
    assert given is not None
    assert given.phase == "input"
