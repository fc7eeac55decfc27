"""Slips in a derivation on paper: one factor, one sum or one term of a coupled stretch's formula.

`regions.py` gives the formula `du = d ∘ g + Σ outer ∘ S(inner ∘ g)` of a softmax or a norm. What is
written down and typed in is such a formula in named values (`p`, `x̂`, `1/σ`), and the slips are those of
paper: a factor forgotten, on one side of the sum or in one term only; another value in its place (`x` for
`x̂`); a mean for a sum; a sum along another axis; a term lost. Each is a guess: arrays for one compiled
program.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites
from jaxbp.check.evaluate import again
from jaxbp.check.guesses import regions
from jaxbp.check.guesses.factors import Factor, even, exponent, exponential, factors, softmax, terms
from jaxbp.check.guesses.regions import Formula, Region, ratio_along
from jaxbp.check.guesses.stretches import Guess, Values
from jaxbp.check.report import Finding

MOST_GUESSES = 900  # of one stretch
MOST_AXES = 5  # where all choices among them are tried
BLOCKS = 1 + 2 * regions.MOST_TERMS
Parts = list[np.ndarray]  # d, then inner and outer of every term


@dataclass(eq=False)
class Slip(Guess):
    """A guess that says itself what was written."""

    region: Region | None = None
    along: tuple[int, ...] = ()  # the axes of the sum, where it runs along others

    def finding(self, case: Any, sites: Sites, names: str, places: int) -> Finding:
        region = self.region
        assert region is not None
        op, start = region.end, sites.describe(region.start)
        also = f", in {places} places of that line" if places > 1 else ""
        axes = f"axis {list(region.axes)}"
        detail = (
            f"{names}: from `{op.name}` {at(op)} back to {start}{also}, the error goes along each "
            f"entry's own path and along a sum over {axes}; {self.words}"
        )
        evidence = {
            "source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name
        }  # fmt: skip
        if self.along and places == 1:
            detail += f": {list(self.along)}"
        if self.along:
            evidence["advice"] = f"Sum over {axes} there, as the forward pass does."
        return Finding(names, self.cause, detail, evidence)


def guesses(sites: Sites, known: Values) -> list[Slip]:
    """What may have been written in the place of every coupled stretch's derivative."""
    found: list[Slip] = []
    for region in regions.find(sites, known):
        formula = region.formula(known)
        if formula is not None:
            found += itertools.islice(_Writer(sites, region, known, formula).slips(), MOST_GUESSES)
    return found


class _Writer:
    """All that may be written wrongly in one formula."""

    def __init__(self, sites: Sites, region: Region, known: Values, formula: Formula):
        self.sites, self.region = sites, region
        self.lead = np.shape(known[region.start])[: region.depth]
        self.full = (*self.lead, *region.shape)
        self.axes = tuple(region.depth + a for a in region.axes)
        direct, terms = formula
        self.count = len(terms)
        self.sums = [term.op for term in terms]
        self.plain = not np.any(direct)
        self.factors = list(factors(sites, region, known))
        size = int(np.prod(region.shape))
        self.flags = -(-regions.MOST_TERMS * len(region.shape) // size)  # blocks that say what is summed
        make = _reduced(region) if region.reduced else _spread(region)
        shape = (*self.lead, BLOCKS + self.flags, *region.shape)
        self.slot = Instead(region.end, -1, make, shape=shape)
        self.known = known

    def parts(self, env: Values) -> Parts:
        """`d`, `inner`, `outer`, … at a point, in the full shape; NaN where it has another form there."""
        formula = self.region.formula(env)
        if formula is None or len(formula[1]) != self.count:
            return [np.full(self.full, np.nan)] * (1 + 2 * self.count)
        arrays = [formula[0]]
        for t in formula[1]:
            arrays += [np.ones(()), t.inner * t.outer] if self.region.reduced else [t.inner, t.outer]
        return [np.broadcast_to(a, self.full) for a in arrays]

    def slips(self) -> Iterator[Slip]:
        yield from self._numbers()
        if self.region.reduced:
            for t in range(self.count):
                yield from self._of_softmax(t)
            yield from self._factors_out()
            yield from self._of_one_sum()
            yield from self._values_exchanged()
            return
        yield from self._other_sums()
        yield from self._values_exchanged()
        yield from self._factors_out()
        yield from self._plain_means()

    def _slip(
        self,
        cause: str,
        words: str,
        change: Callable[[Parts, Values], Parts],
        axes: tuple[int, ...] | None = None,
        terms: tuple[int, ...] = (),
        way: int = 0,
    ) -> Slip:
        """`axes` are those of the sums in `terms`, or of all sums."""
        rank, own = len(self.region.shape), self.region.axes
        summed = np.zeros((regions.MOST_TERMS, rank))
        for t in range(self.count):
            chosen = own if axes is None or (terms and t not in terms) else axes
            summed[t] = np.isin(np.arange(rank), chosen)
        size = int(np.prod(self.region.shape))
        flags = np.zeros(self.flags * size)
        flags[: summed.size] = summed.reshape(-1)
        flags = np.broadcast_to(flags, (*self.lead, flags.size))
        flags = flags.reshape(*self.lead, self.flags, *self.region.shape)

        def values(env: Values, slopes: Values) -> np.ndarray:
            parts = change(list(self.parts(env)), env)
            parts += [np.zeros(self.full)] * (BLOCKS - len(parts))
            stacked = np.stack([np.broadcast_to(p, self.full) for p in parts], len(self.lead))
            return np.concatenate([stacked, flags], len(self.lead))

        return Slip(
            self.slot,
            cause,
            words,
            values,
            region=self.region,
            along=axes or (),
            ways=((way, axes, terms, len(self.region.ops)),),
        )

    # --- where in the formula

    def _places(self) -> Iterator[tuple[list[int], str]]:
        """Which parts, and what to call them. Part 0 is `d`; term t has inner 1 + 2t and outer 2 + 2t."""
        terms = range(self.count)
        inner, outer = [1 + 2 * t for t in terms], [2 + 2 * t for t in terms]
        for t in terms:
            through = f"`{self.sums[t].name}` {at(self.sums[t])}" if self.count > 1 else "the sum"
            yield [1 + 2 * t], f"under the sum of the path through {through}"
            yield [2 + 2 * t], f"in front of the sum of the path through {through}"
            yield [1 + 2 * t, 2 + 2 * t], f"on both sides of the sum of the path through {through}"
        if self.count > 1:
            yield inner, "under every sum"
            yield outer, "in front of every sum"
        if not self.plain:
            yield [0], "in each entry's own path"
            yield [0, *outer], "in front of everything"
            yield [0, *inner], "beside the error that comes in, everywhere"

    # --- numbers

    def _numbers(self) -> Iterator[Slip]:
        n = int(np.prod([self.region.shape[a] for a in self.region.axes]))
        scales = {
            float(n): "the number of entries",
            1.0 / n: "1 / the number of entries",
            2.0: "2",
            0.5: "½",
        }
        if n > 1:
            scales |= {n / (n - 1): "n/(n - 1)", (n - 1) / n: "(n - 1)/n"}
        terms = [
            (f"the path through `{op.name}` {at(op)}", [2 + 2 * t]) for t, op in enumerate(self.sums)
        ]
        if self.count > 1:
            terms.append(("every path through a sum", [2 + 2 * t for t in range(self.count)]))
        if not self.plain:
            terms.append(("each entry's own path", [0]))
        if not self.region.reduced:
            words = "all of it is left out, as if the error went through it unchanged"
            yield self._slip("wrong-activation", words, self._identity)
        for name, at_ in terms:
            yield self._slip("missing-path", f"{name} is missing", _times(at_, lambda env: 0.0))
            yield self._slip("sign", f"{name} has the wrong sign", _times(at_, lambda env: -1.0))
            for k, meaning in scales.items():
                words = f"{name} counts {k:.6g} times ({meaning})"
                yield self._slip("scale", words, _times(at_, lambda env, k=k: k))

    def _identity(self, parts: Parts, env: Values) -> Parts:
        return [np.ones(self.full)] + [np.zeros(self.full)] * (len(parts) - 1)

    # --- factors

    def _factors_out(self) -> Iterator[Slip]:
        """A factor left out, or put in once too often, somewhere."""
        for where, place in self._places():
            for name, value, cause in self.factors:
                out = self._without(where, value)
                yield self._slip(cause, f"{place}, {name} is left out, or divided by once too often", out)
                yield self._slip(
                    cause,
                    f"{place}, {name} is a factor too many, or is not divided by",
                    _times(where, value),
                )

    def _plain_means(self) -> Iterator[Slip]:
        """A mean where a weighted sum belongs: `mean(g)` for `S(p g)`."""
        n = int(np.prod([self.region.shape[a] for a in self.region.axes]))
        for t in range(self.count):
            for name, value, _ in self.factors:
                if not even(value(self.known), self.axes):
                    words = f"a plain mean stands where the sum is weighted with {name}"
                    out = self._without([1 + 2 * t], value)
                    both = lambda parts, env, f=out, t=t: _times(  # noqa: E731
                        [1 + 2 * t], lambda env: 1 / n
                    )(f(parts, env), env)
                    yield self._slip("wrong-point", words, both)

    def _without(self, where: list[int], value: Factor) -> Callable[[Parts, Values], Parts]:
        """The parts without a factor; where it is 0, what is left follows from the other entries."""

        def change(parts: Parts, env: Values) -> Parts:
            v = np.broadcast_to(value(env), self.full)
            made = list(parts)
            for k in where:
                left = ratio_along(parts[k], v, self.axes)
                made[k] = parts[k] / v if left is None else np.broadcast_to(left, self.full)
            return made

        return change

    def _values_exchanged(self) -> Iterator[Slip]:
        """Another value in the place of one that a part is proportional to."""
        first = self.parts(self.known)
        for where, place in self._places():
            if len({0} & set(where)) and len(where) > 1:
                continue
            for name, value, _ in self.factors:
                v = value(self.known)
                if even(v, self.axes) or any(ratio_along(first[k], v, self.axes) is None for k in where):
                    continue
                for other, instead, _ in self.factors:
                    if other != name and not even(instead(self.known), self.axes):
                        swap = lambda env, a=value, b=instead: b(env) / a(env)  # noqa: E731
                        words = f"{place}, {other} stands in the place of {name}"
                        yield self._slip("wrong-point", words, _times(where, swap))

    # --- sums

    def _other_sums(self) -> Iterator[Slip]:
        """A sum along other axes, or none at all."""
        rank, own = len(self.region.shape), self.region.axes
        long = [a for a in range(rank) if self.region.shape[a] > 1]
        choices = [(a,) for a in long] + ([tuple(range(rank))] if rank > 1 else []) + [()]
        if len(long) <= MOST_AXES:
            choices += [c for count in range(2, len(long)) for c in itertools.combinations(long, count)]
        first = self.parts(self.known)
        options = [self._as_inner(first, t) for t in range(self.count)]
        for axes in dict.fromkeys(choices):
            if axes == own or set(axes) == set(own):
                continue
            n = {a: int(np.prod([self.region.shape[i] for i in a])) for a in (axes, own)}
            cause, words = ("transpose", "the sum runs along another axis")
            if set(axes) > set(own):
                cause, words = "extra-path", "the sum runs along further axes"
            elif axes and set(axes) < set(own):
                cause, words = "missing-sum", "the sum runs along a part of these axes alone"
            if not axes:
                cause = "missing-path"
                words = (
                    "the contributions of the other outputs are missing: the off-diagonal of the "
                    "Jacobian is dropped, every entry's own term stands for the sum"
                )
            shares = dict.fromkeys((1.0, n[own] / n[axes]))
            for way, (chosen, factor) in enumerate(
                itertools.product(itertools.product(*options), shares)
            ):
                yield self._slip(
                    cause, words, self._inner_as(dict(enumerate(chosen)), factor), axes, way=way
                )
            for t in range(self.count) if self.count > 1 and len(axes) < 2 else ():
                through = f", in the path through `{self.sums[t].name}` {at(self.sums[t])}"
                for way, (value, factor) in enumerate(itertools.product(options[t], shares)):
                    change = self._inner_as({t: value}, factor)
                    yield self._slip(cause, words + through, change, axes, (t,), way)

    def _as_inner(self, first: Parts, t: int) -> list[Factor]:
        """How the part under the sum may have been written, up to what is the same along the axes."""
        inner = first[1 + 2 * t]
        fits: list[Factor] = [
            value
            for _, value, _ in self.factors
            if not even(value(self.known), self.axes)
            and ratio_along(inner, value(self.known), self.axes) is not None
        ]
        if even(inner, self.axes):
            fits.append(lambda env: np.ones(self.full))
        fits.append(lambda env: self.parts(env)[1 + 2 * t])
        return fits[:4]

    def _inner_as(self, chosen: dict[int, Factor], factor: float) -> Callable[[Parts, Values], Parts]:
        """The parts with other ones under the sums of some terms; what is left over goes in front."""

        def change(parts: Parts, env: Values) -> Parts:
            made = list(parts)
            for t, value in chosen.items():
                v = np.broadcast_to(value(env), self.full)
                ratio = ratio_along(parts[1 + 2 * t], v, self.axes)
                ratio = np.full((), np.nan) if ratio is None else ratio
                made[1 + 2 * t : 3 + 2 * t] = [v, parts[2 + 2 * t] * ratio * factor]
            return made

        return change

    def _of_one_sum(self) -> Iterator[Slip]:
        """`y` is a sum (a log-sum-exp): what stands beside the spread error is another value."""
        for t in range(self.count) if self.count == 1 else ():
            for name, value, _ in self.factors:
                words = f"{name} stands beside the error that is spread, where a derivative belongs"
                yield self._slip("wrong-point", words, self._outer_as(t, value))

    def _outer_as(self, t: int, value: Factor) -> Callable[[Parts, Values], Parts]:
        def change(parts: Parts, env: Values) -> Parts:
            return [value(env) if k == 2 + 2 * t else p for k, p in enumerate(parts)]

        return change

    def _of_softmax(self, t: int) -> Iterator[Slip]:
        """In a softmax's place: one along another axis, exp without a sum, the largest entry alone."""
        u = exponent(self.region, self.known)
        if u is None or np.shape(self.known[u]) != self.full:
            return
        right = lambda env: softmax(env[u], self.axes)  # noqa: E731
        if ratio_along(self.parts(self.known)[2 + 2 * t], right(self.known), self.axes) is None:
            return
        best = lambda env: np.max(env[u], axis=self.axes, keepdims=True)  # noqa: E731
        lead, own = len(self.lead), list(self.region.axes)
        choices: list[tuple[str, str, Factor]] = [
            ("no softmax stands", "scale", lambda env: np.ones(self.full)),
            ("1 at the largest entry and 0 elsewhere stands", "wrong-activation",
             lambda env: np.where(env[u] == best(env), 1.0, 0.0)),
            ("the exponential, not divided by its sum, stands", "scale",
             lambda env: exponential(env[u])),
        ]  # fmt: skip
        for v, sign in terms(self.sites, u, self.known, self.region.depth):
            words = f"the softmax without the term {self.sites.describe(v)} stands"
            less = lambda env, v=v, k=sign: softmax(env[u] - k * env[v], self.axes)  # noqa: E731
            choices.append((words, "wrong-point", less))
        for axis, size in enumerate(self.region.shape):
            if axis not in own and size > 1:
                words = f"the softmax along axis {axis} stands"
                choices.append((words, "transpose", lambda env, a=axis + lead: softmax(env[u], (a,))))
        for words, cause, value in choices:
            swap = lambda env, v=value: v(env) / right(env)  # noqa: E731
            words = f"{words} beside the error that is spread, where the softmax along axis {own} belongs"
            yield self._slip(cause, words, _times([2 + 2 * t], swap))


def _times(where: list[int], factor: Callable[[Values], Any]) -> Callable[[Parts, Values], Parts]:
    return lambda parts, env: [p * factor(env) if k in where else p for k, p in enumerate(parts)]


def _spread(region: Region) -> Any:
    """The transpose of `g -> d ∘ g + Σ outer ∘ S(inner ∘ g)`, as a linear function of `u`.

    What is given says behind `d` and the terms, for each term and axis, whether `S` sums along it.
    """
    rank = len(region.shape)

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        u, given = env[region.start], jax.lax.stop_gradient(given)
        summed = given[BLOCKS:].reshape(-1)
        made = given[0] * u
        for t in range(regions.MOST_TERMS):
            inner, total = given[1 + 2 * t], given[2 + 2 * t] * u
            for axis in range(rank):
                more = jnp.sum(total, axis=axis, keepdims=True) - total
                total = total + summed[t * rank + axis] * more
            made = made + inner * total
        return made + region.beside(env, again)

    return make


def _reduced(region: Region) -> Any:
    """The same where `y` has no entries along the axes."""

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        u, given = env[region.start], jax.lax.stop_gradient(given)
        made = jnp.zeros(region.kept, u.dtype)
        first = tuple(slice(0, 1) if a in region.axes else slice(None) for a in range(len(region.shape)))
        for t in range(regions.MOST_TERMS):
            inner, outer = given[1 + 2 * t], given[2 + 2 * t]
            made = made + inner[first] * jnp.sum(outer * u, axis=region.axes, keepdims=True)
        return jnp.reshape(made, results[0].shape) + region.beside(env, again)

    return make
