"""The rule under test, run in every way in which a rule can be run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.opaque import Opaque, is_opaque
from jaxbp.check.operations import is_float
from jaxbp.check.oracle import float64, quick_jit, traced
from jaxbp.check.program import Program
from jaxbp.check.target import Misfit, Target
from jaxbp.layer import InputError, shape_text


class RuleError(Exception):
    """The rule raised, or JAX refused what it returned; the message is the original one."""


def _integers(v: Any) -> bool:
    plain = isinstance(v, jax.Array) and v.ndim > 0
    return plain and (jnp.issubdtype(v.dtype, jnp.integer) or v.dtype == bool)


class Rule:
    """`target.rule` in flat lists: `(leaves, dy) -> cotangents`, `None` where the rule gives none."""

    def __init__(self, target: Target):
        self.target = target
        self.output: Any = None
        self.absent: list[bool] = [False] * len(target.leaves)
        self.program: Program | None = None
        self.jitted = jax.jit(self.flat)

    def with_integers(self) -> Callable[[Any, Any], list[Any]] | None:
        """`flat` under `jit` with the integer arrays as arguments, too; `None` where there are none."""
        flat, tree = jax.tree.flatten(self.target.args)
        at = [i for i, v in enumerate(flat) if i not in self.target.where and _integers(v)]

        @jax.jit
        def run(integers: list[Any], leaves: Any, dy: Any) -> list[Any]:
            target, rule = copy.copy(self.target), copy.copy(self)
            values = list(flat)
            for i, v in zip(at, integers, strict=True):
                values[i] = v
            target.args, rule.target = jax.tree.unflatten(tree, values), target
            return rule.flat(leaves, dy)

        return (lambda leaves, dy: run([flat[i] for i in at], leaves, dy)) if at else None

    def plain(self, compute: bool = True) -> list[Any]:
        """The function's floating outputs (or their shapes alone); remembers the output's structure."""
        target = self.target
        try:
            run = target.plain if compute else lambda *leaves: jax.eval_shape(target.plain, *leaves)
            self.output = run(*target.leaves)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{target.name}: the function itself raised {summary(error)}") from error
        if compute:
            self.output = jax.tree.map(jnp.asarray, self.output)
        outputs = [y for y in jax.tree.leaves(self.output) if is_float(y)]
        if not outputs:
            raise InputError(f"{target.name}: no output has a floating dtype, so there is no gradient")
        return outputs

    def cotangent(self, dy: Sequence[Any]) -> Any:
        """The floating cotangents as a tree like the output (`float0` for the others)."""
        flat, tree = jax.tree.flatten(self.output)
        rest = iter(dy)
        full = [next(rest) if is_float(y) else np.zeros(np.shape(y), jax.dtypes.float0) for y in flat]
        return jax.tree.unflatten(tree, full)

    def first(
        self, leaves: Sequence[Any], dy: Sequence[Any], compiled: bool = False
    ) -> tuple[Any, list[Any], list[Misfit]]:
        """`(y, cotangents, misfits)`, un-jitted unless `compiled`.

        Raises `RuleError` with the original message.
        """
        target = self.target
        args = target.rebuild(leaves)
        before = jax.tree.leaves(args)
        try:
            if compiled and not target.opaque:
                y, raw = self._compiled(args, list(leaves), self.cotangent(dy))
            else:
                y, raw = self._called(args, list(leaves), self.cotangent(dy))
        except Exception as error:
            raise RuleError(summary(error)) from error
        after = jax.tree.leaves(args)
        changed = len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True))
        if target.kind in ("rule", "plain"):
            cotangents, misfits = raw, []
        else:
            cotangents, misfits = target.align(raw)
        if changed:
            detail = "the rule changes its own arguments in place; make new values instead"
            misfits.append(Misfit("", "nondeterministic", detail))
        self.absent = [c is None for c in cotangents]
        return y, cotangents, misfits

    def _compiled(self, args: tuple[Any, ...], leaves: list[Any], dy: Any) -> tuple[Any, Any]:
        """The rule under `jit`, unless it turns out not to be written in JAX."""
        target = self.target
        try:
            return jax.jit(lambda new: target.walk(target.rebuild(new), new, dy))(leaves)
        except Exception:
            if target.hand is None:
                raise
            found = self._called(args, leaves, dy)
            if target.opaque is None:
                raise
            return found

    def _called(self, args: tuple[Any, ...], leaves: list[Any], dy: Any) -> tuple[Any, Any]:
        """The rule as it stands; with NumPy's arrays where it is not written in JAX, which shows here."""
        target, hand = self.target, self.target.hand
        if target.opaque or hand is None:
            return target.walk(args, leaves, dy)
        try:
            found = target.walk(args, leaves, dy)
        except Exception:
            target.opaque = Opaque(hand)
            try:
                return target.walk(args, leaves, dy)
            except Exception:
                target.opaque = None
            raise
        if is_opaque(hand, (*args, dy), found[1]):
            target.opaque = Opaque(hand, calls=1)
        return found

    def forms(self, cotangents: Sequence[Any]) -> list[Misfit]:
        """Where a cotangent's shape or dtype is not its argument's."""
        found = []
        for path, leaf, g in zip(self.target.paths, self.target.leaves, cotangents, strict=True):
            if g is None:
                continue
            dtype = getattr(g, "dtype", None)
            if dtype is None and not isinstance(g, float | int):
                detail = f"{path}: expected an array like {shape_text(leaf)}, got a {type(g).__name__}"
                found.append(Misfit(path, "structure", detail))
            elif np.shape(g) != leaf.shape:
                detail = f"{path}: expected shape {list(leaf.shape)}, got {list(np.shape(g))}"
                found.append(Misfit(path, "shape", detail))
            elif dtype is not None and dtype != leaf.dtype:
                detail = f"{path}: expected dtype {leaf.dtype}, as the argument has, got {dtype}"
                found.append(Misfit(path, "dtype", detail))
        return found

    def flat(self, leaves: Sequence[Any], dy: Sequence[Any]) -> list[Any]:
        """The cotangents as arrays; 0 where the rule gives none."""
        _, cotangents = self.target.rule(list(leaves), self.cotangent(dy))
        return [
            jnp.zeros_like(leaf) if g is None else jnp.asarray(g)
            for g, leaf in zip(cotangents, leaves, strict=True)
        ]

    def widened(self, dy: Sequence[Any]) -> Any:
        """The rule in float64, compiled: `(leaves, dy) -> cotangents`; `None` if it cannot be traced."""
        if self.target.opaque:
            return self._widened_opaque(dy)
        count = len(self.target.leaves)
        try:
            with float64():
                self.program = traced(
                    lambda *v: self.flat(v[:count], v[count:]), [*self.target.leaves, *dy]
                )
        except Exception:
            return None
        run = self.program.run
        return quick_jit(lambda leaves, dy: run([*leaves, *dy]))

    def _widened_opaque(self, dy: Sequence[Any]) -> Any:
        """The same of a rule that is called: whether it takes and gives float64 shows when it does."""
        with float64():
            try:
                wide = [jnp.asarray(leaf, jnp.float64) for leaf in self.target.leaves]
                _, found = self.target.rule(
                    wide, self.cotangent([jnp.asarray(g, jnp.float64) for g in dy])
                )
            except Exception:
                return None
        given = [g for g in found if g is not None]
        if any(np.result_type(g) != np.float64 for g in given):
            return None
        return self.flat


def summary(error: BaseException) -> str:
    """`ValueError: the message`, with JAX's closing remarks left out."""
    message = str(error).split("\n--------------------")[0].strip()
    return f"{type(error).__name__}: {message}"
