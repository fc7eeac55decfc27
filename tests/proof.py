"""The harness: is what a layer, loss or combinator writes by hand the derivative of its forward pass?

Two oracles, neither of which shares code with the backward pass: float64 autodiff of the same forward,
run one operation after another (by NumPy, and for a layer's first case by JAX without `jit` as well),
and finite differences through the inner-product identity

    ⟨dy, ∂y/∂v⟩ = ⟨dparams, v_params⟩ + ⟨dx, v_x⟩        for a random direction v,

which does not use reverse mode at all. Inputs are float32-representable, so that float32 and float64
share one oracle; bfloat16 has its own. Errors are relative to the largest entry of each leaf.

Nearly all of the time is XLA's, at 50 to 500 ms a program, so a case compiles one program a dtype and
way of running it, and nothing else: parameters are drawn, oracles are interpreted, and the differences
are those of the program that is being tested. float32 is compiled as it is for users, float64 and
bfloat16 on a CPU without LLVM's optimizations: the same program, whose last digits are far below the
tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import Eval, Layer, Train, value_and_grad
from jaxbp.losses import Loss
from jaxbp.oracle import reference_value_and_grad, relative_error, to_float64
from tests.interpreter import interpret

# Relative to the largest entry of each leaf. bfloat16 has a unit roundoff of 2⁻⁹; each leaf layer rounds
# its output, its error and its gradient once.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 4 * 2**-9}
DTYPES = tuple(TOLERANCE)
MODES = ("eager", "jit", "vmap")
ON_CPU = jax.default_backend() == "cpu"
FAST = (
    {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True} if ON_CPU else None
)


@dataclass(frozen=True)
class Case:
    """A layer and an input for it.

    `x` is the shape of a normal input, or a function `(key, dtype) -> pytree` of an integer key for
    anything else. `depth` is the number of roundings in a row (layers on the longest path); it scales
    the bfloat16 tolerance only. `params` may replace what `init` and a perturbation give. `modes`
    without `"vmap"` is for layers that mix examples. `saturated` says that the derivative is zero but
    for rounding (a softmax of logits of 1e4): `dx` is then measured against the error that came in.
    """

    layer: Layer
    x: tuple[int, ...] | Callable[..., Any]
    scale: float = 1.0
    train: bool = False
    depth: int = 1
    params: Callable[..., Any] | None = None
    modes: tuple[str, ...] = MODES
    float32: float = TOLERANCE["float32"]
    saturated: bool = False
    note: str = ""
    seed: int = 0

    def __str__(self) -> str:
        shape = "x".join(map(str, self.x)) if isinstance(self.x, tuple) else self.x.__name__
        extras = [f"*{self.scale:g}"] * (self.scale != 1) + ["train"] * self.train + [self.note]
        return "-".join([repr(self.layer).replace(" ", ""), shape, *filter(None, extras)])


def further(*cases: Case) -> list[Case]:
    """Cases beyond a layer's first, under `jit` only: its input does not change how a layer runs."""
    return [replace(case, modes=("jit",)) for case in cases]


@dataclass(frozen=True)
class LossCase:
    """A loss, the shape of its prediction, and a function `(key) -> target` of an integer key.

    A loss that takes several arrays has a tuple of shapes. `eager` cases, one a loss, run un-jitted too.
    """

    loss: Loss
    shape: tuple[Any, ...]
    target: Callable[..., Any]
    scale: float = 1.0
    note: str = ""
    eager: bool = False

    def draw(self, key: int, dtype: str, scale: float) -> Any:
        """A normal prediction, or a tuple of them."""
        if self.shape and isinstance(self.shape[0], tuple):
            return tuple(normal(key + 10 * i, s, dtype, scale) for i, s in enumerate(self.shape))
        return normal(key, self.shape, dtype, scale)

    def __str__(self) -> str:
        extras = [f"*{self.scale:g}"] * (self.scale != 1) + [self.note]
        name = [repr(self.loss).replace(" ", ""), "x".join(map(str, self.shape))]
        return "-".join([*name, *filter(None, extras)])


def normal(key: int, shape: tuple[int, ...], dtype: Any, scale: float = 1.0) -> jax.Array:
    """Signed values that are exact in `dtype` (and in float32, if `dtype` is float64).

    Drawn with NumPy: `jax.random` would compile a program for every shape.
    """
    values = scale * np.random.default_rng(key).standard_normal(shape)
    return jnp.asarray(values.astype(np.float32).astype(jnp.dtype(dtype)))


def like(key: int, tree: Any, scale: float = 1.0) -> Any:
    """Normal values in the shapes and dtypes of `tree`'s floating leaves; other leaves as they are."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = [
        normal(1000 * key + i, leaf.shape, leaf.dtype, scale) if is_floating(leaf) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def rounded(leaf: Any) -> Any:
    """A floating array in bfloat16."""
    return jnp.asarray(np.asarray(leaf).astype(jnp.bfloat16)) if is_floating(leaf) else leaf


def is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


class Problem(NamedTuple):
    """What the two passes are given: parameters, two inputs with a cotangent each, and the mode."""

    params: Any
    xs: tuple[Any, Any]
    dys: tuple[Any, Any]
    mode: Any


@cache
def pose(case: Case, drawn: str) -> Problem:
    """Random parameters (nothing left at zero), inputs and cotangents: signed, never all ones."""

    def make_x(key: int) -> Any:
        return case.x(key, drawn) if callable(case.x) else normal(key, case.x, drawn, case.scale)

    key = jax.random.key(case.seed)
    if drawn == "bfloat16":  # the same numbers, rounded
        params, xs = jax.tree.map(rounded, pose(case, "float32")[:2])
    else:
        xs = make_x(10 * case.seed + 1), make_x(10 * case.seed + 2)
        params = make_params(case, key, xs[0], drawn)
    mode = Train(key) if case.train else Eval()
    y = jax.eval_shape(lambda: case.layer.forward(params, xs[0], mode)[0])
    return Problem(params, xs, (like(5, y), like(6, y)), mode)


def make_params(case: Case, key: Any, x: Any, drawn: str) -> Any:
    """The case's own, or what `init` makes, nudged; where only `jit` is proven, drawn in its shapes."""
    if case.params is not None:
        return case.params(10 * case.seed + 3, drawn)
    nudges = like(10 * case.seed + 4, jax.eval_shape(case.layer.init, key, x), 0.4)
    if "eager" not in case.modes:
        return nudges
    made = jax.jit(case.layer.init, compiler_options=FAST)(key, x)
    return jax.tree.map(lambda p, n: p + n if is_floating(p) else p, made, nudges)


def in_dtype(problem: Problem, dtype: str) -> Problem:
    """The same numbers in `dtype`: float32 ones are posed, and exact in float64."""
    return Problem(*to_float64(problem[:3]), problem.mode) if dtype == "float64" else problem


def split_leaves(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The floating leaves of `tree` and a function that puts new ones in their place."""
    leaves, structure = jax.tree.flatten(tree)
    where = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def put(new: list[Any]) -> Any:
        filled = list(leaves)
        for i, leaf in zip(where, new, strict=True):
            filled[i] = leaf
        return jax.tree.unflatten(structure, filled)

    return [leaves[i] for i in where], put


@cache
def oracle(case: Case) -> Callable[..., Any]:
    """`(params, x, dy, mode) -> (y, [gradient a floating leaf])` by autodiff of the forward pass."""

    def solve(params: Any, x: Any, dy: Any, mode: Any) -> tuple[Any, list[Any]]:
        floating, put = split_leaves((params, x))
        y, vjp = jax.vjp(lambda v: case.layer.forward(*put(v), mode)[0], floating)
        return y, vjp(dy)[0]

    params, xs, dys, mode = in_dtype(pose(case, "float32"), "float64")
    args = params, xs[0], dys[0], mode
    by_numpy = interpret(solve, *args)
    if "eager" in case.modes:  # once a layer: the interpreter, too, has to be right
        pairs = zip(jax.tree.leaves(by_numpy(*args)), jax.tree.leaves(solve(*args)), strict=True)
        for got, expected in pairs:
            assert relative_error(got, expected, 1e-12) <= 1e-12, "NumPy and JAX disagree on autodiff"
    return by_numpy


@cache
def reference(case: Case, drawn: str, i: int) -> tuple[Any, list[Any]]:
    """The oracle's float64 answer on input `i`."""
    params, xs, dys, mode = in_dtype(pose(case, drawn), "float64")
    return oracle(case)(params, xs[i], dys[i], mode)


def by_hand(layer: Layer, params: Any, x: Any, dy: Any, mode: Any) -> Any:
    """The two passes: `(y, dparams, dx)`."""
    y, saved = layer.forward(params, x, mode)
    return y, *layer.backward(params, saved, dy)


@cache
def compiled(layer: Layer, mapped: bool, dtype: str) -> Callable[..., Any]:
    """`by_hand` of one layer under `jit`, shared by all its cases."""
    run = partial(by_hand, layer)
    run = jax.vmap(run, (None, 0, 0, None)) if mapped else run
    return jax.jit(run, compiler_options=None if dtype == "float32" else FAST)


def run_modes(case: Case, problem: Problem, dtype: str) -> Any:
    """`(mode, index of the input, (y, dparams, dx))` for every way of running the two passes.

    Eagerly in float64 only: operations know their dtype before they run, and a trace sees the same ones.
    """
    params, xs, dys, mode = problem
    if "eager" in case.modes and dtype == "float64":
        yield "eager", 0, by_hand(case.layer, params, xs[0], dys[0], mode)
    if "jit" in case.modes:
        yield "jit", 0, compiled(case.layer, False, dtype)(params, xs[0], dys[0], mode)
    if "vmap" in case.modes:
        x, dy = jax.tree.map(lambda *pair: np.stack(pair), *zip(xs, dys, strict=True))
        results = compiled(case.layer, True, dtype)(params, x, dy, mode)
        for i in range(2):
            yield "vmap", i, jax.tree.map(lambda r, i=i: np.asarray(r)[i], results)


def prove_layer(case: Case, dtype: str) -> float:
    """Assert everything that the contract promises of a backward pass; returns the largest error."""
    drawn = "bfloat16" if dtype == "bfloat16" else "float32"
    problem = in_dtype(pose(case, drawn), dtype)
    results = run_modes(case, problem, dtype)
    return max(compare(case, problem, i, found, dtype, mode) for mode, i, found in results)


def prove_traced(case: Case) -> float:
    """The two passes as traced in float64, run by NumPy: a further shape without a compilation."""
    problem = in_dtype(pose(case, "float32"), "float64")
    args = problem.params, problem.xs[0], problem.dys[0], problem.mode
    found = interpret(partial(by_hand, case.layer), *args)(*args)
    return compare(case, problem, 0, found, "float64", "traced")


def compare(case: Case, problem: Problem, i: int, found: Any, dtype: str, how: str) -> float:
    """Assert that `(y, dparams, dx)` is what the oracle says of input `i`; returns the largest error."""
    y, dparams, dx = found
    y_reference, expected = reference(case, "bfloat16" if dtype == "bfloat16" else "float32", i)
    tolerance = {**TOLERANCE, "float32": case.float32}[dtype]
    tolerance *= case.depth if dtype == "bfloat16" else 1
    how = f"{how} ({dtype})"
    assert_same_kind(f"{how}: y", y, y_reference, any_dtype=True)
    assert_same_kind(f"{how}: dparams", dparams, problem.params)
    assert_same_kind(f"{how}: dx", dx, problem.xs[i])
    incoming = max(float(np.max(np.abs(d), initial=0)) for d in jax.tree.leaves(problem.dys[i]))
    got = named_floating((dparams, dx), (problem.params, problem.xs[i]))
    assert len(got) == len(expected), f"{how}: {len(got)} gradients for {len(expected)} leaves"
    ys = zip(jax.tree.leaves(y), jax.tree.leaves(y_reference), strict=True)
    pairs = [("y", a, b) for a, b in ys]
    pairs += [(name, g, r) for (name, g), r in zip(got, expected, strict=True)]
    worst = 0.0
    for name, a, b in pairs:
        floor = incoming if case.saturated and name.startswith("[1]") else 0.0
        error = relative_error(a, b, floor)
        assert error <= tolerance, f"{how}: {name}: error {error:.2e} > {tolerance:.1e}"
        worst = max(worst, error)
    return worst


def named_floating(grads: Any, values: Any) -> list[tuple[str, Any]]:
    """The gradient of every floating leaf of `values`, with its path."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(values)]
    flat = jax.tree.structure(values).flatten_up_to(grads)
    leaves = jax.tree.leaves(values)
    return [(n, g) for n, g, v in zip(names, flat, leaves, strict=True) if is_floating(v)]


def assert_same_kind(what: str, got: Any, like_: Any, any_dtype: bool = False) -> None:
    """Same structure, shapes and dtypes; `None` stands for the gradient of an integer leaf."""
    expected = jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, like_)
    assert jax.tree.structure(got) == jax.tree.structure(expected), (
        f"{what}: structure {jax.tree.structure(got)}, expected {jax.tree.structure(expected)}"
    )
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.shape == e.shape, f"{what}: shape {g.shape}, expected {e.shape}"
        assert any_dtype or g.dtype == e.dtype, f"{what}: dtype {g.dtype}, expected {e.dtype}"


def prove_by_differences(case: Case) -> float:
    """The inner-product identity in float64; central differences, Richardson-extrapolated."""
    problem = in_dtype(pose(case, "float32"), "float64")
    params, x, dy = problem.params, problem.xs[0], problem.dys[0]
    floating, put = split_leaves((params, x))
    sizes = [float(np.max(np.abs(leaf), initial=0)) for leaf in split_leaves(x)[0]]
    size = max(sizes, default=1.0)  # no floating leaf: token ids
    own = [min(1.0, float(np.max(np.abs(leaf), initial=0))) or 1.0 for leaf in floating]
    direction = [  # small parameters take small steps
        normal(100 + i, leaf.shape, "float64") * (size if i >= _count(params) else own[i])
        for i, leaf in enumerate(floating)
    ]

    run = compiled(case.layer, False, "float64")  # its first output is the forward pass

    def along(t: float) -> float:
        moved = put([leaf + t * v for leaf, v in zip(floating, direction, strict=True)])
        return float(inner(dy, run(*moved, dy, problem.mode)[0]))

    def slope(h: float) -> float:
        return (along(h) - along(-h)) / (2 * h)

    differences = (4 * slope(1e-5) - slope(2e-5)) / 3
    _, dparams, dx = run(params, x, dy, problem.mode)
    grads = named_floating((dparams, dx), (params, x))
    terms = [float(inner(g, v)) for (_, g), v in zip(grads, direction, strict=True)]
    expected = sum(terms)
    scale = max(sum(abs(t) for t in terms), abs(along(0.0)))
    error = abs(differences - expected) / max(scale, 1e-300)
    assert error <= 1e-7, f"finite differences {differences:.12g}, by hand {expected:.12g}: {error:.1e}"
    return error


def _count(tree: Any) -> int:
    return len([leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)])


def prove_net(net: Layer, loss: Loss, params: Any, x: Any, y: Any, mode: Any = Eval()) -> float:
    """The largest error of a network's compiled float32 gradient, leaf by leaf, against the oracle's."""
    fn = interpret(reference_value_and_grad(net, loss), *(wide := to_float64((params, x))), y, mode)
    expected = fn(*wide, y, mode)[1]
    grads = jax.jit(value_and_grad(net, loss))(params, x, y, mode)[1]
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
    return max(relative_error(got, reference) for got, reference in pairs)


def inner(a: Any, b: Any) -> Any:
    """`⟨a, b⟩` over all leaves."""
    return sum(np.vdot(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def prove_loss(case: LossCase, dtype: str) -> float:
    """Value and gradient of a loss against float64 autodiff of its forward pass, in all modes."""
    drawn = "bfloat16" if dtype == "bfloat16" else "float32"
    prediction, target = case.draw(1, drawn, case.scale), case.target(2)
    prediction = jax.tree.map(lambda p: p.astype(dtype), prediction)
    exact = to_float64(prediction)
    autodiff = jax.value_and_grad(lambda p: case.loss.forward(p, target)[0])
    reference = interpret(autodiff, exact)(exact)

    def run(p: Any) -> Any:
        value, saved = case.loss.forward(p, target)
        return value, case.loss.backward(saved)

    def both(p: Any) -> Any:
        return run(p), jax.vmap(run)(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p))

    single, stacked = jax.jit(both, compiler_options=None if dtype == "float32" else FAST)(prediction)
    results = {"jit": single, "vmap": jax.tree.map(lambda r: r[0], stacked)}
    if case.eager and dtype == "float64":
        results |= {"eager": run(prediction), "autodiff by JAX": autodiff(exact)}
    worst = 0.0
    for mode, (value, gradient) in results.items():
        assert value.shape == (), f"{mode}: value has shape {value.shape}"
        assert_same_kind(f"{mode}: gradient", gradient, prediction)
        pairs = zip(jax.tree.leaves((value, gradient)), jax.tree.leaves(reference), strict=True)
        for i, (got, expected) in enumerate(pairs):
            error = relative_error(got, expected)
            name = "gradient" if i else "value"
            assert error <= TOLERANCE[dtype], f"{mode}: {name}: relative error {error:.2e} ({dtype})"
            worst = max(worst, error)
    return worst


def prove_loss_by_differences(case: LossCase) -> float:
    prediction, target = case.draw(1, "float64", case.scale), case.target(2)
    direction = case.draw(3, "float64", 1.0)

    run = interpret(lambda p: case.loss.forward(p, target), prediction)

    def value(t: float) -> float:
        return float(run(jax.tree.map(lambda p, d: p + t * d, prediction, direction))[0])

    def slope(h: float) -> float:
        return (value(h) - value(-h)) / (2 * h)

    h = 1e-3 * np.sqrt(case.scale)
    differences = (4 * slope(h) - slope(2 * h)) / 3
    gradient = interpret(lambda p: case.loss.backward(case.loss.forward(p, target)[1]), prediction)(
        prediction
    )
    by_hand = float(inner(gradient, direction))
    scale = float(
        sum(jnp.sum(jnp.abs(t)) for t in jax.tree.leaves(jax.tree.map(jnp.multiply, gradient, direction)))
    )
    error = abs(differences - by_hand) / max(scale, 1e-300)
    assert error <= 1e-7, f"finite differences {differences:.12g}, by hand {by_hand:.12g}: {error:.1e}"
    return error
