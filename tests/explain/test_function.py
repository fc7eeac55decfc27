"""Functions of numbers: the notes' examples as written there, every row of the table, and more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import InputError, explain_function
from jaxbp.explain.table import TABLE
from jaxbp.oracle.autodiff import function_gradients

NOTES = [
    (
        lambda x: jnp.exp(x**2),
        ["h1 = x²", "y = e^{h1}"],
        "2x e^{x²}",
        5.436563656918091,
    ),
    (
        lambda x: jnp.exp(jnp.exp(x**2)),
        ["h1 = x²", "h2 = e^{h1}", "y = e^{h2}"],
        "2x e^{x²} e^{e^{x²}}",
        82.38711134943229,
    ),
    (
        lambda x: 1 / jnp.exp(x**2),
        ["h1 = x²", "h2 = e^{h1}", "y = 1/h2"],
        "-(1/(e^{x²})²) · 2x e^{x²}",
        -0.7357588823428847,
    ),
]


@pytest.mark.parametrize(("f", "stages", "formula", "value"), NOTES)
def test_the_three_examples_of_the_notes(f, stages, formula, value):
    e = explain_function(f, 1.0)
    assert [f"{s.name} = {s.formula}" for s in e.stages[1:]] == stages
    text = e.text()
    assert formula in text
    assert e.derivatives[0].total == pytest.approx(value, rel=3e-16)
    assert repr(value) in text
    assert "dy/dx = " + " · ".join(f"d{a}/d{b}" for a, b in pairs(e)) in text
    assert e.to_dict()["derivatives"]["x"]["formula"] == formula


def pairs(e):
    names = [s.name for s in e.stages]
    return list(zip(names[1:], names[:-1], strict=True))[::-1]


def test_the_thin_network_of_the_notes():
    s = jax.nn.sigmoid

    def thin(x, y, w1, w2, w3):
        return (y - s(w3 * s(w2 * s(w1 * x)))) ** 2

    names = ("a1", "h1", "a2", "h2", "a3", "ŷ", "L")
    e = explain_function(thin, 1.0, 0.5, 0.3, -0.4, 0.8, names=names)
    assert e.flow() == "x → ·w1 → σ → h1 → ·w2 → σ → h2 → ·w3 → σ → ŷ → L"
    by_name = {d.input: d for d in e.derivatives}
    for weight, nodes in {
        "w1": names,
        "w2": names[2:],
        "w3": names[4:],
    }.items():
        assert by_name[weight].count == 1
        assert by_name[weight].routes[0].nodes == nodes
    assert [str(f) for f in by_name["w3"].routes[0].formulas] == ["h2", "ŷ(1 - ŷ)", "-2(y - ŷ)"]
    for d in e.derivatives:
        assert d.total == pytest.approx(d.reference, rel=1e-14)
        assert f"∂L/∂{d.input}" in e.text()


MIX = jnp.asarray([[1.0, -2.0], [0.5, 4.0], [-3.0, 0.7]])
FUNCTIONS = {
    "used twice": (lambda x: x * x * jnp.sin(x), (1.3,), 3),
    "softmax": (lambda x: jax.nn.softmax(x)[1], (np.array([0.1, 0.7, -0.3]),), None),
    "matmul": (lambda w, x: jnp.sum(jnp.tanh(w @ x)), (np.ones((2, 3)), np.array([0.1, 0.2, 0.3])), None),
    "two matrices": (lambda a, b: jnp.sum((a @ b) ** 2), (np.ones((2, 3)), np.full((3, 2), 0.5)), None),
    "product": (lambda x: jnp.prod(x), (np.array([2.0, 3.0, 0.5]),), None),
    "scan": (
        lambda x: jax.lax.scan(lambda c, t: (c * t + 1, c), x[0], x)[0],
        (np.array([0.1, 0.2]),),
        None,
    ),
    "moves": (
        lambda x: jnp.cumsum(x.reshape(2, 2).T[::-1].ravel())[2] * x[1:3][0],
        (np.arange(4.0),),
        None,
    ),
    "stack": (
        lambda x: (jnp.stack([x, x**2], 1)[::-1] ** 2 * MIX).sum(),
        (np.array([1.3, -0.4, 2.0]),),
        None,
    ),
    "unstack": (lambda x: sum(k * v for k, v in enumerate(jnp.unstack(x**2))), (np.arange(4.0),), None),
    "tile": (
        lambda x: (jnp.tile(x**2, 2).reshape(3, 2) * MIX).sum(),
        (np.array([1.3, -0.4, 2.0]),),
        None,
    ),
    "pad": (
        lambda x: (jax.lax.pad(x**2, x[0], [(2, -1, 1)]).reshape(3, 2) * MIX).sum(),
        (np.array([1.3, -0.4, 2.0]),),
        None,
    ),
    "put": (
        lambda x: ((x**2).at[1].set(x[0]).at[2].set(5.0) * MIX[:, 0]).sum(),
        (np.array([1.3, -0.4, 2.0]),),
        None,
    ),
    "where": (lambda x, y: jnp.where(x > y, x**3, jnp.log(y)), (1.2, 0.4), None),
    "maximum": (lambda x: jnp.max(x) - jnp.min(x), (np.array([1.0, 4.0, 2.0]),), None),
    "cond": (lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x), (0.3,), None),
    "clip": (lambda x: jnp.clip(x, -1, 1) + jnp.clip(x * 9, -1, 1), (0.4,), None),
    "logsumexp": (lambda x: jax.scipy.special.logsumexp(x), (np.array([0.3, -0.2]),), None),
    "jit and grad inside": (jax.jit(lambda x: jnp.sqrt(x) * jax.nn.gelu(x)), (0.8,), None),
    "constant": (lambda x: jnp.float64(3.0), (0.8,), 0),
    "identity": (lambda x: x, (0.8,), 1),
    "power": (lambda x, y: x**y, (1.7, 0.4), None),
    "stop": (lambda x: jax.lax.stop_gradient(x) * x, (1.7,), 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_against_jax(name):
    f, x, count = FUNCTIONS[name]
    e = explain_function(f, *x)
    expected = np.concatenate([np.ravel(g) for g in function_gradients(f, x)])
    assert [d.total for d in e.derivatives] == pytest.approx(list(expected), rel=1e-12, abs=1e-14)
    assert e.value == pytest.approx(float(f(*map(jnp.asarray, x))), rel=1e-14)
    for d in e.derivatives:
        shown = sum(r.contribution for r in d.routes) + d.remainder
        assert shown == pytest.approx(d.total, rel=1e-12, abs=1e-14)
    if count is not None:
        assert e.derivatives[0].count == count
    assert "jax.grad says" in e.text() or not count
    assert e.latex().count("align*") >= 2


UNARY = {
    "neg": jnp.negative, "square": jnp.square, "exp": jnp.exp, "exp2": jnp.exp2, "expm1": jnp.expm1,
    "log": jnp.log, "log1p": jnp.log1p, "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "cbrt": jnp.cbrt,
    "sin": jnp.sin, "cos": jnp.cos, "tan": jnp.tan, "asin": jnp.arcsin, "acos": jnp.arccos,
    "atan": jnp.arctan, "sinh": jnp.sinh, "cosh": jnp.cosh, "tanh": jnp.tanh, "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh, "atanh": jnp.arctanh, "logistic": jax.nn.sigmoid, "erf": jax.lax.erf,
    "erfc": jax.lax.erfc, "abs": jnp.abs, "sign": jnp.sign, "floor": jnp.floor, "ceil": jnp.ceil,
    "round": jnp.round,
}  # fmt: skip
BINARY = {
    "add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide, "pow": jnp.power,
    "atan2": jnp.arctan2, "max": jnp.maximum, "min": jnp.minimum,
}  # fmt: skip


def test_every_row_of_the_table_is_tested():
    assert set(UNARY) | set(BINARY) | {"add_any"} == set(TABLE)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_a_row_of_the_table(name):
    """The number against `jax.grad`; and the formula, evaluated, against the number."""
    if name in UNARY:
        x = (1.7,) if name == "acosh" else (0.37,)
        e = explain_function(UNARY[name], *x)
    else:
        e = explain_function(BINARY[name], 0.37, 1.2)
    for d in e.derivatives:
        assert d.total == pytest.approx(d.reference, rel=1e-13, abs=1e-15)
    known = {s.name: s.value for s in e.stages}
    for stage in e.stages:
        for formula, number in stage.slopes:
            assert evaluate(formula, known) == pytest.approx(number, rel=1e-12, abs=1e-15)
        if stage.formula is not None:
            assert evaluate(stage.formula, known) == pytest.approx(stage.value, rel=1e-12)


CALLS = {
    "log": np.log, "√": np.sqrt, "∛": np.cbrt, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "arcsin": np.arcsin, "arccos": np.arccos, "arctan": np.arctan, "arctan2": np.arctan2,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "arsinh": np.arcsinh, "arcosh": np.arccosh,
    "artanh": np.arctanh, "σ": lambda a: 1 / (1 + np.exp(-a)), "sign": np.sign, "abs": np.abs,
    "max": max, "min": min, "floor": np.floor, "ceil": np.ceil, "round": np.round,
    "erf": lambda a: float(jax.lax.erf(a)), "erfc": lambda a: float(jax.lax.erfc(a)),
}  # fmt: skip


def evaluate(e, known):
    """A formula's value, by its own rules: an independent reading of what is printed."""
    parts = [evaluate(a, known) for a in e.args if hasattr(a, "op")]
    match e.op:
        case "num":
            return float(e.args[0])
        case "name":
            return {"e": np.e, "π": np.pi, **known}[e.args[0]]
        case "add":
            return sum(parts)
        case "mul":
            return float(np.prod(parts))
        case "div":
            return parts[0] / parts[1]
        case "neg":
            return -parts[0]
        case "pow":
            return parts[0] ** parts[1]
        case "step":
            return float(parts[0] > 0)
        case "call":
            return CALLS[e.args[0]](*parts)
    raise AssertionError(e.op)


def test_a_tie_is_shared_and_said():
    e = explain_function(jnp.maximum, 2.0, 2.0)
    assert [d.total for d in e.derivatives] == [0.5, 0.5] == [d.reference for d in e.derivatives]
    assert "tie" in e.text()


def test_many_paths_are_counted_and_the_rest_added():
    def f(x):
        for _ in range(70):
            x = x * 0.5 + jnp.sin(x) * 0.5
        return x

    e = explain_function(f, 0.3, k=2)
    (d,) = e.derivatives
    assert d.count == 2**70
    assert len(d.routes) == 2
    assert sum(r.contribution for r in d.routes) + d.remainder == pytest.approx(d.reference, rel=1e-12)
    assert f"{2**70:,}" in e.text()


@pytest.mark.parametrize(
    ("f", "x", "message"),
    [
        (lambda x: x * jnp.ones(3), (1.0,), "must return one number"),
        (
            lambda x: jax.lax.while_loop(lambda v: v < 9, lambda v: v * 2, x),
            (1.0,),
            "no local derivative",
        ),
        (lambda x: jnp.sum(jnp.fft.fft(x).real), (np.ones(4),), "makes complex numbers"),
        (lambda x: jax.lax.lgamma(x), (1.5,), "no local derivative for 'lgamma'"),
        (lambda x: (x, x), (1.0,), "must return one number, got shapes [], []"),
        (lambda x: None, (1.0,), "must return one number, got nothing"),
        (lambda x: x > 2, (1.0,), "must return a real number, got one of dtype bool"),
        (lambda x: x if x > 0 else -x, (1.0,), "f asks for the value of a number"),
        (lambda x: jnp.asarray(np.sin(x)), (1.0,), "f asks for the value of a number"),
        (lambda: 1.0, (), "at least one number"),
        (lambda x: x, (1j,), "expected real numbers"),
        (lambda x: x, ("a",), "expected real numbers"),
    ],
)
def test_what_cannot_be_explained_is_named(f, x, message):
    with pytest.raises(InputError) as error:
        explain_function(f, *x)
    assert message in str(error.value)


def test_wrong_names_are_refused():
    with pytest.raises(InputError, match="expected 2 different names"):
        explain_function(NOTES[0][0], 1.0, names=("a",))
