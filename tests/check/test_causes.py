"""Every cause is found where it is planted, in words that name the place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from experiments.gallery import exhibits

EXHIBITS = {exhibit.name: exhibit for exhibit in exhibits()}


def report_on(name: str, fault: str, **options) -> jaxbp.Report:
    exhibit = EXHIBITS[name]
    found = jaxbp.check_gradients(exhibit.fn, *exhibit.args, gradient=exhibit.faults[fault][0], **options)
    assert not any("search" in note or "failed" in note for note in found.notes), (
        found.notes
    )  # for none has failed
    return found


CAUSES = {
    "sign": ("dense", "sign of db"),
    "scale": ("dense", "dw averaged over the batch"),
    "transpose": ("dense", "dx with w instead of its transpose"),
    "flip": ("recurrence", "dx in reverse order of time"),
    "missing-sum": ("dense", "db of the last example"),
    "missing-path": ("layer norm", "path through the mean"),
    "extra-path": ("rms norm", "that path twice"),
    "wrong-point": ("sigmoid", "h(1 - h) taken at the input"),
    "wrong-activation": ("gelu", "the exact form's derivative"),
    "missing-rows": ("masked mean", "the mask"),
    "swapped": ("attention", "dk and dv exchanged"),
    "zero": ("dense", "db forgotten"),
    "stale": ("squared error", "the cotangent"),
    "nan": ("softmax", "nan where a probability is small"),
    "structure": ("dense", "one cotangent too few"),
    "shape": ("layer norm", "dscale over the wrong axis"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_cause_is_named(cause):
    report = report_on(*CAUSES[cause])
    assert not report.ok
    assert report.cause == cause, str(report)
    assert cause in str(report)


MECHANISMS = {
    ("inverse", "not transposed"): (
        "transpose",
        "with the matrix once more, where its transpose belongs",
    ),
    ("log-softmax, closed form", "p moved under the sum"): (
        "transpose",
        "the derivative carried forwards",
    ),
    ("two outputs", "its sign"): ("sign", "the wrong sign"),
    ("tanh", "1 - h"): ("wrong-activation", "by the formula 1 - h"),
    ("safe norm", "the error clipped"): ("stale", "not linear in the cotangent"),
    ("euler", "weights not transposed, in every step"): ("transpose", "exchanged"),
    ("messages", "errors overwrite each other"): (
        "missing-rows",
        "that of the last of several that look up the same entry",
    ),
    ("softmax, closed form", "the sum over the wrong axis"): (
        "transpose",
        "the sum runs along another axis",
    ),
    ("log-sum-exp", "no softmax"): ("scale", "no softmax stands beside the error that is spread"),
    ("batch norm, closed form", "x for x̂ under the sum"): ("wrong-point", "stands in the place of"),
    ("cosine", "the lengths left out"): ("scale", "or is not divided by"),
    ("leaky rnn", "the leak"): ("scale", "the factor the number 0.3, in the product"),
    ("leaky rnn", "the first turn of dU"): ("missing-rows", "index 0 of the 5 turns of that line"),
    ("leaky rnn", "the recurrent path"): ("missing-path", "`h @ w` in `h = (1 - LEAK) * h"),
    ("returns", "from the last reward to the first"): ("flip", "the backward pass of the loop"),
    ("returns", "across the ends of episodes"): ("missing-rows", "without its own factor"),
    ("heat", "after the step"): ("wrong-point", "is differentiated at its result (in 3 places"),
    ("group norm of images", "means over space alone"): ("missing-sum", "axes alone: [1]"),
    ("volume rendering", "each point hides itself"): ("missing-rows", "with each entry's own term"),
    ("messages on a graph", "along the edges"): ("transpose", "look-ups at two lists of places"),
    ("planar arm", "each angle its own link"): ("missing-path", "each entry's own term alone"),
    ("filter by its spectrum", "convolved, not correlated"): ("flip", "the conjugate"),
    ("clipped surrogate", "not clipped"): ("missing-rows", "with the other operand alone"),
    ("linear system", "solved with A again"): ("transpose", "solved with the matrix once more"),
    ("weighted quantiles", "the permutation for its inverse"): ("transpose", "where its inverse belongs"),
    ("edges of a graph", "errors looked up at the senders"): ("wrong-point", "places of another look-up"),
    ("two gates", "the gates' errors exchanged"): ("swapped", "in each other's place"),
    ("leapfrog", "an error handed on before it is complete"): ("missing-path", "is not handed on to"),
    ("dense tanh", "weights of an earlier step"): ("stale", "it does not follow them"),
    ("stopped teacher", "the teacher followed"): ("extra-path", "where the function stops it"),
}


@pytest.mark.parametrize(("name", "fault"), MECHANISMS)
def test_a_slip_behind_other_operations_is_named(name, fault):
    cause, words = MECHANISMS[name, fault]
    report = report_on(name, fault)
    assert report.cause == cause, str(report)
    assert words in report.findings[0].detail


def test_another_number_is_named():
    def fn(x, e=0.1):
        return x / jnp.sqrt(x * x + jnp.asarray(e, x.dtype))

    def hand(x, g):
        return jax.vjp(lambda x: fn(x, 0.3), x)[1](g)

    finding = jaxbp.check_gradients(fn, X, gradient=hand).findings[0]
    assert finding.cause == "wrong-point"
    assert finding.evidence["number"] == pytest.approx(0.1)
    assert finding.evidence["instead"] == pytest.approx(0.3)


def test_a_loop_that_is_run_the_wrong_way_is_named():
    def fn(x):
        def step(h, v):
            h = jnp.tanh(2 * h + v)
            return h, h

        return jax.lax.scan(step, jnp.zeros((), x.dtype), x)[1]

    def hand(x, g):
        def back(dh, part):
            da = (dh + part[0]) * (1 - part[1] ** 2)
            return 2 * da, da

        return jax.lax.scan(back, jnp.zeros((), x.dtype), (g, fn(x)))[1]  # without reverse=True

    report = jaxbp.check_gradients(fn, X, gradient=hand)
    assert report.cause == "flip", str(report)
    assert "from the first turn to the last" in report.findings[0].detail


def test_first_exhibit_the_softmax_second_path():
    report = report_on("softmax", "the second path (the slip of the notes)")
    finding = report.findings[0]
    assert (finding.cause, finding.path) == ("missing-path", "x")
    assert "the denominator of the division" in finding.detail
    assert "off-diagonal of the Jacobian is dropped" in finding.detail
    assert finding.evidence["source"].endswith("return e / jnp.sum(e, axis=-1, keepdims=True)")
    assert finding.evidence["line"] > 0


def notes_network(w1, w2, x, y):
    h = jax.nn.sigmoid(w1 @ x)
    return jnp.sum((y - jax.nn.softmax(w2 @ h)) ** 2)


def notes_gradient(w1, w2, x, y, g):
    """As in the notes: only each output's own path through the softmax."""
    h = jax.nn.sigmoid(w1 @ x)
    p = jax.nn.softmax(w2 @ h)
    d = 2 * (p - y) * p * (1 - p) * g
    dh = (w2.T @ d) * h * (1 - h)
    return jnp.outer(dh, x), jnp.outer(d, h), w1.T @ dh, None


def test_the_notes_network_is_half_and_the_report_says_why():
    w1 = jnp.asarray(
        [[0.1, 0.3, 0.8, -0.4], [-0.3, -0.2, 0.5, 0.5], [-0.3, 0.0, 0.5, 0.4], [0.2, 0.5, -0.9, 0.7]]
    )
    w2 = jnp.asarray([[0.5, 0.8, 0.2, 0.4], [0.5, 0.2, 0.3, -0.5]])
    args = (w1, w2, jnp.asarray([2.0, 5.0, 3.0, 3.0]), jnp.asarray([1.0, 0.0]))
    report = jaxbp.check_gradients(notes_network, *args, gradient=notes_gradient)
    finding = next(f for f in report.findings if f.cause == "missing-path")
    assert "jax.nn.softmax(w2 @ h)" in finding.evidence["source"]
    assert finding.evidence["factor"] == pytest.approx(0.5)
    assert report.findings[-1].cause == "zero"  # y: the notes have no gradient for the target


# --- faults of the contract ---------------------------------------------------------------------------


X = jnp.asarray(np.linspace(-1.0, 1.3, 6), jnp.float32)


def cube(x):
    return x**3


def test_dtype():
    report = jaxbp.check_gradients(
        cube, X.astype(jnp.float64), gradient=lambda x, g: (3 * x**2 * g).astype(jnp.float32)
    )
    assert report.cause == "dtype"
    assert "float64" in report.findings[0].detail


def test_forward():
    report = jaxbp.check_gradients(
        (lambda x: (x**3 + 1e-2, x), lambda x, g: (3 * x**2 * g,)), X, reference=cube
    )
    assert report.cause == "forward"


def test_jit():
    def hand(x, g):
        traced = isinstance(x, jax.core.Tracer)
        return (3 if traced else 2) * x**2 * g

    report = jaxbp.check_gradients(cube, X, gradient=hand)
    assert report.cause == "jit"


def test_vmap():
    def hand(x, g):
        return 3 * x**2 * g * (1 if type(x).__name__ != "BatchTracer" else 2)

    assert jaxbp.check_gradients(cube, X, gradient=hand).cause == "vmap"


def test_nondeterministic():
    calls = []

    def hand(x, g):
        calls.append(0)
        return 3 * x**2 * g * (1 + 0.1 * len(calls))

    assert jaxbp.check_gradients(cube, X, gradient=hand).cause == "nondeterministic"


def test_in_place_changes_are_reported():
    def hand(p, g):
        p["w"] = p["w"] * 2
        return ({"w": 3 * X**2 * g},)

    report = jaxbp.check_gradients(lambda p: p["w"] ** 3, {"w": X}, gradient=hand)
    assert any(f.cause == "nondeterministic" and "in place" in f.detail for f in report.findings)


def test_noise():
    def hand(x, g):
        return (3 * x**2 * g).astype(jnp.float8_e4m3fn).astype(x.dtype)

    report = jaxbp.check_gradients(cube, X, gradient=hand)
    assert report.cause == "noise", str(report)


def test_digits_lost_in_a_narrow_dtype_are_noise_and_not_a_fault_of_jit():
    def hand(x, g):
        return (3 * x.astype(jnp.bfloat16) ** 2 * g.astype(jnp.bfloat16)).astype(x.dtype)

    report = jaxbp.check_gradients(cube, X, gradient=hand)
    assert [f.cause for f in report.findings] == ["noise"], str(report)


def test_a_random_function_has_no_derivative():
    draw = np.random.default_rng(0)
    report = jaxbp.check_gradients(lambda x: x * np.float32(draw.normal()), X, gradient=lambda x, g: g)
    assert [f.cause for f in report.findings] == ["nondeterministic"]


def test_nothing_finite_is_nothing_tested():
    x = X.at[1].set(jnp.nan)
    report = jaxbp.check_gradients(jax.nn.softmax, x, gradient=lambda x, g: g)
    assert (report.ok, report.verdict) == (False, "untested")


def test_a_bare_array_is_not_what_a_custom_vjp_returns():
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: g * jnp.cos(x))
    assert jaxbp.check_gradients(sine, X).cause == "structure"


def test_how_many_entries_differ_is_said():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((100, 100)), jnp.float32)
    report = jaxbp.check_gradients(
        lambda x: x**2, x, gradient=lambda x, g: (2 * x * g).at[5, 7].multiply(1.05)
    )
    assert report.cause == "unknown"
    assert "1 of 10000 entries differs, at [5, 7]" in report.findings[0].detail


def test_untested_is_said():
    report = jaxbp.check_gradients(lambda x: jnp.round(x), X, gradient=lambda x, g: 0 * g)
    assert report.verdict == "untested"
    assert report.cause == "untested"
    with pytest.raises(AssertionError, match="could not have failed"):
        jaxbp.assert_gradients(lambda x: jnp.round(x), X, gradient=lambda x, g: 0 * g)


def test_unknown_says_where_it_is_wrong():
    def hand(x, g):
        return 3 * x**2 * g + jnp.where(jnp.abs(x) > 4, jnp.sin(7 * x) * jnp.roll(g, 1), 0)

    report = jaxbp.check_gradients(cube, X, gradient=hand)
    assert not report.ok
    assert report.cause == "unknown"
    assert "it is right as given" in report.findings[0].detail


def test_a_softmax_has_no_kink_where_its_largest_logits_tie():
    def hand(x, g):
        p = jax.nn.softmax(x)
        return p * (1 - p) * g  # the second path dropped

    x = jnp.asarray([[1.0, 1.0, -0.5], [0.3, 2.0, 2.0]], jnp.float32)
    report = jaxbp.check_gradients(jax.nn.softmax, x, gradient=hand)
    assert report.cause == "missing-path"
    assert not any("kink" in note for note in report.notes)


def test_a_gradient_taken_after_the_update_is_named():
    def fn(x, w):
        return x @ w

    def hand(x, w, g):
        dw = x.T @ g
        return g @ (w - 0.05 * dw).T, dw

    rng = np.random.default_rng(5)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 3), (3, 4)))
    (finding,) = jaxbp.check_gradients(fn, x, w, gradient=hand).findings
    assert (finding.cause, finding.path) == ("wrong-point", "x")
    assert "w has already been updated by 0.05 times its own gradient" in finding.detail


def test_an_update_is_named_only_where_its_step_is_the_same_everywhere():
    def fn(c):
        return jnp.sin(c * X)

    c = jnp.asarray(0.7, X.dtype)
    odd = jaxbp.check_gradients(
        fn, c, gradient=lambda c, g: (g * X * jnp.cos(c * X)).sum() + 0.02 * g[0] * jnp.sin(3 * c)
    )
    assert not odd.ok
    assert "already been updated" not in str(odd)


def test_budget_is_said_to_be_cut_short():
    report = report_on("layer norm", "path through the variance", budget=4)
    assert not report.ok
    assert any("cut short" in note for note in report.notes)


# --- a wrong layer in a network -----------------------------------------------------------------------


class Tanh(jaxbp.Tanh):
    def pull(self, params, saved, dy):
        return dy * (1 - saved), ()


def test_first_wrong_layer():
    net = jaxbp.Chain(
        jaxbp.Dense(4), jaxbp.Residual(jaxbp.Chain(Tanh())), jaxbp.Dense(3), jaxbp.Sigmoid()
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    report = jaxbp.check_gradients(net, net.init(jax.random.key(0), x), x)
    assert not report.ok
    assert report.findings[0].evidence["address"] == "layers[1].body.layers[0]"
    assert "Tanh()" in report.findings[0].detail


# --- custom_vjp: the rule is never its own oracle -----------------------------------------------------


def make_rule(k):
    @jax.custom_vjp
    def fn(x, w):
        return jnp.tanh(x * w)

    def backward(saved, g):
        x, w = saved
        d = g * (1 - jnp.tanh(x * w) ** 2)
        return k * d * w, d * x

    fn.defvjp(lambda x, w: (fn(x, w), (x, w)), backward)
    return fn


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: lambda x, w: 2.0 * jax.jit(f)(x, w)])
def test_custom_vjp_is_checked_against_the_function_inside(wrap):
    assert jaxbp.check_gradients(wrap(make_rule(1)), X, X[::-1]).ok
    report = jaxbp.check_gradients(wrap(make_rule(3)), X, X[::-1])
    assert (report.cause, report.findings[0].path) == ("scale", "x")


def test_custom_vjp_with_nondiff_argnums():
    from functools import partial

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def power(x, n):
        return x**n

    power.defvjp(lambda x, n: (x**n, x), lambda n, x, g: (g * x ** (n - 1),))
    report = jaxbp.check_gradients(power, X, 3)
    assert report.cause == "scale"
    assert report.findings[0].evidence["factor"] == pytest.approx(1 / 3)


def test_statistics_of_lost_axes_do_not_stop_the_search():
    """A norm over the batch: what is kept of it does not line up with the entries, and need not."""
    rng = np.random.default_rng(2)
    x, scale, offset = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 4), (4,), (4,)))

    def norm(x, scale, offset):
        mean, variance = jnp.mean(x, 0), jnp.var(x, 0)
        return (x - mean[None]) / jnp.sqrt(variance + 1e-5)[None] * scale[None] + offset[None]

    def hand(x, scale, offset, dy):
        dx, dscale, doffset = jax.vjp(norm, x, scale, offset)[1](dy)
        return dx, dscale, doffset / 6

    report = jaxbp.check_gradients(norm, x, scale, offset, gradient=hand)
    assert not report.ok
    assert not [note for note in report.notes if "failed" in note], report.notes
