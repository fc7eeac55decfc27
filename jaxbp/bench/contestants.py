"""Who runs: the library, and what it is measured against in JAX. `torch_rivals.py` has those in torch.

A contestant prepares a problem for timing (`run` is one call, waited for), and hands out gradients in
NumPy by name, so that each is verified before it is timed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.bench.problem import Problem, WithInput
from jaxbp.bench.quantities import QUANTITIES
from jaxbp.layer import Layer, Train
from jaxbp.oracle import reference_value_and_grad, relative_error, to_float64
from jaxbp.train.step import make_epoch, make_step, value_and_grad

Gradients = dict[str, np.ndarray]


class AbsentError(Exception):
    """Why a contestant cannot take part: it is not installed, or has nothing for this row."""


@dataclass
class Prepared:
    """`run` is one call, waited for; seconds of compilation and bytes of scratch memory, where known."""

    run: Callable[[], None]
    compile_seconds: float | None = None
    temp_bytes: int | None = None


class Contestant(ABC):
    """`row` carries the names under which rivals find their module; `AbsentError` says why not."""

    name: str

    @abstractmethod
    def gradients(self, row: Any, problem: Problem) -> Gradients:
        """Every gradient of the problem by name."""

    @abstractmethod
    def prepare(self, row: Any, problem: Problem) -> Prepared:
        """The problem's work, compiled."""

    def expected(self, row: Any, problem: Problem, exact: Gradients) -> Gradients:
        """The exact gradients as this contestant names them."""
        return exact


def arguments(problem: Problem) -> tuple[Any, Any]:
    """`(params, x)` as a network under `WithInput` takes them."""
    return ((problem.params, problem.x), ()) if problem.has_dx else (problem.params, problem.x)


def named(problem: Problem, grads: Any) -> Gradients:
    """Leaves of a gradient by pytree path, with the input's as `x`."""
    dparams, dx = grads if problem.has_dx else (grads, None)
    flat = jax.tree_util.tree_leaves_with_path(dparams)
    found = {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in flat}
    return found if dx is None else {**found, "x": np.asarray(dx, np.float64)}


class Jax(Contestant):
    """`jax.grad` of the plain network or, with `other(row, problem)`, of that in its place."""

    def __init__(self, name: str = "jax.grad", other: Callable[[Any, Problem], Layer] | None = None):
        self.name, self.other = name, other

    def passes(self, row: Any, problem: Problem) -> Callable[..., Any]:
        """`fn(params, x, y, mode) -> (value, gradients)`."""
        net, loss = problem.plain or (problem.net, problem.loss)
        net = net if self.other is None else self.other(row, problem)
        if problem.quantity:
            rival = QUANTITIES[problem.quantity].by_autodiff
            if rival is None or self.other is not None:
                raise AbsentError("nothing for this row")
            return rival(net, loss)
        return reference_value_and_grad(WithInput(net) if problem.has_dx else net, loss)

    def gradients(self, row: Any, problem: Problem) -> Gradients:
        fn = jax.jit(self.passes(row, problem))
        return named(problem, fn(*arguments(problem), problem.y)[1])

    def prepare(self, row: Any, problem: Problem) -> Prepared:
        program, args, held = self._program(row, problem)
        began = time.perf_counter()
        compiled = program.lower(*held, *args).compile()
        seconds = time.perf_counter() - began
        memory = compiled.memory_analysis()
        state = list(held)

        def run() -> None:
            result = compiled(*state, *args)
            if state:  # donated: the next call goes on from here
                state[:] = result[:2]
            jax.block_until_ready(result)

        temp = None if memory is None else int(memory.temp_size_in_bytes)
        return Prepared(run, seconds, temp)

    def _program(self, row: Any, problem: Problem) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        """`(jitted, arguments, state that it takes first and returns first)`."""
        if problem.work == "gradient":
            return jax.jit(self.passes(row, problem)), (*arguments(problem), problem.y), ()
        tx = problem.optimizer
        params = jax.tree.map(jnp.array, problem.params)  # they will be donated
        state = (params, jax.tree.map(jnp.array, tx.init(params)))
        if problem.work == "step":
            step = self._step(row, problem, tx)
            return step, (problem.x, problem.y), state
        return self._epoch(row, problem, tx), (problem.x, problem.y, jax.random.key(1)), state

    def _step(self, row: Any, problem: Problem, tx: Any) -> Any:
        update = self._update(row, problem, tx)
        return jax.jit(update, donate_argnums=(0, 1))

    def _update(self, row: Any, problem: Problem, tx: Any) -> Callable[..., Any]:
        passes = self.passes(row, problem)

        def update(params: Any, state: Any, x: Any, y: Any) -> Any:
            value, grads = passes(params, x, y, Train())
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        return update

    def _epoch(self, row: Any, problem: Problem, tx: Any) -> Any:
        """The scan of `make_epoch`, with another backward pass."""
        update, size = self._update(row, problem, tx), problem.batch

        def epoch(params: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
            order = jax.random.permutation(jax.random.split(key)[0], x.shape[0])
            steps, rest = divmod(x.shape[0], size)

            def step(carry: Any, rows: Any) -> Any:
                params, state, value = update(*carry, jnp.take(x, rows, 0), jnp.take(y, rows, 0))
                return (params, state), value

            carry, losses = jax.lax.scan(
                step, (params, state), order[: steps * size].reshape(steps, size)
            )
            if rest:
                carry, last = step(carry, order[steps * size :])
                losses = jnp.append(losses, last)
            return *carry, losses

        return jax.jit(epoch, donate_argnums=(0, 1))


class ByHand(Jax):
    """The library as its users call it: `value_and_grad`, `make_step`, `make_epoch`."""

    def __init__(self) -> None:
        super().__init__("by hand")

    def passes(self, row: Any, problem: Problem) -> Callable[..., Any]:
        if problem.quantity:
            return QUANTITIES[problem.quantity].by_hand(problem.net, problem.loss)
        net = WithInput(problem.net) if problem.has_dx else problem.net
        return value_and_grad(net, problem.loss)

    def _step(self, row: Any, problem: Problem, tx: Any) -> Any:
        return make_step(problem.net, problem.loss, tx, donate=True)

    def _epoch(self, row: Any, problem: Problem, tx: Any) -> Any:
        return make_epoch(problem.net, problem.loss, tx, problem.batch, donate=True)


class Plain(ByHand):
    """Value and gradient by hand, beside a quantity that is measured in such plain steps."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "plain"

    def passes(self, row: Any, problem: Problem) -> Callable[..., Any]:
        return super().passes(row, _without_quantity(problem))

    def expected(self, row: Any, problem: Problem, exact: Gradients) -> Gradients:
        return _exact(row, _without_quantity(problem), Jax())


def _without_quantity(problem: Problem) -> Problem:
    return replace(problem, quantity="", work="step")  # whose gradients are of the parameters alone


def exact(row: Any, problem: Problem) -> Gradients:
    """The gradients in float64, by `jax.grad` of the plain forward pass; of a quantity, as it says."""
    known = not problem.quantity or QUANTITIES[problem.quantity].by_autodiff
    return _exact(row, problem, Jax() if known else ByHand())


def _exact(row: Any, problem: Problem, by: Jax) -> Gradients:
    with jax.enable_x64(True):
        params, x, y = to_float64((problem.params, problem.x, problem.y))
        net, loss = problem.plain or (problem.net, problem.loss)
        wide = replace(problem, params=params, x=x, y=y, plain=(full_width(net), loss))
        return by.gradients(row, wide)


def full_width(net: Any) -> Any:
    """`net` without a precision of its own, so that it computes in the dtype of its input."""
    from jaxbp.precision import Precision, with_precision

    return with_precision(net, Precision())


def largest_error(got: Gradients, expected: Gradients) -> tuple[str, float]:
    """`(name, error relative to that gradient's largest entry)` of the worst gradient; NaN is worst."""
    if set(got) != set(expected):
        return ", ".join(sorted(set(got) ^ set(expected))), float("inf")
    errors = {name: relative_error(got[name], value) for name, value in expected.items()}
    name = max(errors, key=lambda n: (np.isnan(errors[n]), errors[n]))
    return name, errors[name]
