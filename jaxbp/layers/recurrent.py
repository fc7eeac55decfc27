"""Recurrence: `RNN`, `LSTM` and `GRU`, backpropagated through time by hand.

Letters: `B` batch (any leading axes), `T` time, `I` input features, `H` features of the state, `G`
gates of a cell (1, 4, 3). All three cells read the same two things, the input of their own step and
the state of the step before:

    a_t = x_t w_x + h_{t-1} w_h + b          [B, G H], with w_x: [I, G H], w_h: [H, G H], b: [G H]
    (h_t, …) = cell(a_t, h_{t-1}, …)

The weights stand in every step, so their gradient is a sum over time, of `δ_t = ∂L/∂a_t` met with what
the step saw; and `h_t` has two kinds of paths to the loss, its own output and all that comes later:

    ∂L/∂h_t = ∂L/∂y_t + w_h-path of step t+1         the only thing that must run backwards in time
    ∂L/∂x_t = δ_t w_xᵀ                               pull, all steps at once
    ∂L/∂w_x = Σ_t x_tᵀ δ_t                           gradient, all steps at once
    ∂L/∂w_h = Σ_t h_{t-1}ᵀ δ_t                       gradient, all steps at once
    ∂L/∂b   = Σ_t δ_t                                gradient, all steps at once

So there is one matrix product a step in the forward loop (`h_{t-1} w_h`), one in the reverse loop
(`δ_t w_hᵀ`), and the loops carry states and errors only. Everything else is one product over all `B T`
rows, before or after the loop (but on a CPU `x_t w_x` is a step's own: `_product_inside`). Autodiff of
the same loop instead adds a `[H, G H]` outer product into `∂L/∂w_h` at every step of the reverse loop.

A step that a mask hides leaves the state as it was, gives the output 0 and gets no error; the error of
the state passes it by unchanged. So sequences of unequal lengths can be padded at either end.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Static,
    require_whole,
)
from jaxbp.layers.initializers import initializer
from jaxbp.layers.sequence_input import read_recurrent
from jaxbp.precision import PrecisionField, matmul, wide

State = tuple[Array, ...]
Product = Callable[[Array], Array]  # with w_h, or back through it


@dataclass(frozen=True, repr=False)
class Recurrent(Layer):
    """What the three cells share: shapes, masks, states, direction, and the loop in both directions.

    `x` is an array `[..., T, I]`, or a dict of such an `x` and any of
      `mask`   `[..., T]`, boolean: `False` hides a step; from lengths, `jnp.arange(T) < lengths[:, None]`
      `state`  the initial state: `h: [..., H]`, for an `LSTM` the pair `(h, c)`; 0 if not given
    and `dx` is the same, with `None` for the mask. The output is `y: [..., T, H]`, or with
    `return_state=True` the pair `(y, final state)`: hand the state to the next segment to train on
    long sequences piece by piece; the error stops at the border (truncated backpropagation through
    time) unless you hand `dx["state"]` back to the segment before. `reverse=True` walks time from the
    end; a bidirectional layer is `Branch(LSTM(n), LSTM(n, reverse=True), merge="concat")`, a deep one a
    `Chain` or `Stack`. `unroll` steps make one turn of the loop.

    Weights start with `initializer`, `w_h` orthogonal, biases at 0. Gates are computed in float32 at
    least and products in the dtype of `x` (or `precision.compute`).
    """

    features: int
    reverse: bool = False
    return_state: bool = False
    initializer: str | Callable[..., Array] = "glorot"
    unroll: int = 1
    precision: Any = PrecisionField()

    gates: ClassVar[int]
    states: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_whole(type(self).__name__, features=self.features, unroll=self.unroll)
        initializer(self.initializer)

    # --- what a cell writes ---------------------------------------------------------------------

    @abstractmethod
    def _cell(self, params: PyTree, a_x: Array, state: State, product: Product) -> tuple[State, PyTree]:
        """`(state, kept)` of one step from `a_x = x_t w_x + b` and the state before."""

    @abstractmethod
    def _cell_pull(
        self, params: PyTree, kept: PyTree, before: State, errors: State, product: Product
    ) -> tuple[State, PyTree]:
        """`(errors of the state before, δ)` from the errors of the state after the step."""

    # --- the contract ---------------------------------------------------------------------------

    def init(self, key: Array, x: PyTree) -> PyTree:
        _, inputs, _, _ = read_recurrent(self, x, self.states, self.features)
        dtype = jnp.dtype(self.precision.params or inputs.dtype)
        k_x, k_h = jax.random.split(key)
        wide_dtype, H, GH = wide(dtype), self.features, self.gates * self.features
        w_h = jax.nn.initializers.orthogonal()(k_h, (H, GH), wide_dtype).astype(dtype)
        w_x = initializer(self.initializer)(k_x, (inputs.shape[-1], GH), dtype)
        return {"w_x": w_x, "w_h": w_h, "b": jnp.zeros(GH, dtype)}

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        form, inputs, mask, state = read_recurrent(self, x, self.states, self.features, params)
        dtype = jnp.dtype(self.precision.compute or inputs.dtype)
        # what is hidden may hold anything, NaN too, and ∂L/∂w_x would meet it: 0 · NaN is NaN
        (seen_x,) = _where(mask, (inputs.astype(dtype),), None)
        w_x, b = params["w_x"].astype(dtype), params["b"]

        def arrive(x: Array) -> Array:
            a = matmul(x, w_x)
            return a + jnp.broadcast_to(b.astype(a.dtype), a.shape)

        # 1. the input's part of every step, one product: before the loop, or step by step inside
        steps, inside = _time_first(seen_x), _product_inside(seen_x)
        # 2. the loop: one product a step
        if state is None:
            batch = (*inputs.shape[:-2], self.features)
            state = (jnp.zeros_like(seen_x, wide(dtype), shape=batch),) * self.states
        first = tuple(s.astype(wide(dtype)) for s in state)
        given = (steps, arrive) if inside else (arrive(steps), lambda a: a)
        last, (h, before, kept) = self._loop(params, first, *given, mask, dtype)
        # 3. what goes out, and what the way back needs
        out = jnp.dtype(self.precision.output or inputs.dtype)
        y = jnp.moveaxis(h, 0, -2).astype(out)
        saved = {
            "x": seen_x,
            "before": tuple(jnp.moveaxis(s, 0, -2).astype(dtype) for s in before),
            "kept": jax.tree.map(lambda k: jnp.moveaxis(k, 0, -2).astype(dtype), kept),
            "mask": mask,
            "input": Static((inputs.dtype, form)),
        }
        if not self.return_state:
            return y, saved
        final = tuple(s.astype(out) for s in last)
        return (y, final if self.states > 1 else final[0]), saved

    def pull(self, params: PyTree, saved: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        dtype = saved["x"].dtype
        dy, dlast = dy if self.return_state else (dy, None)
        d = _time_first(dy).astype(wide(dtype))
        if dlast is None:
            errors = (jnp.zeros_like(d, shape=d.shape[1:]),) * self.states
        else:
            errors = tuple(e.astype(d.dtype) for e in (dlast if self.states > 1 else (dlast,)))
        # 2. the loop, backwards: one product a step
        dfirst, delta = self._loop_back(params, saved, d, errors, dtype)
        # 1. the input's part of every step, one product
        input_dtype, form = saved["input"].value
        dx = jnp.moveaxis(matmul(delta["a"], params["w_x"].T.astype(dtype), input_dtype), 0, -2)
        delta = {name: jnp.moveaxis(part, 0, -2) for name, part in delta.items()}
        dstate = tuple(e.astype(input_dtype) for e in dfirst)
        return form.errors(x=dx, state=dstate if self.states > 1 else dstate[0]), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        a = delta["a"]
        dw_x = _meet(saved["x"], a)
        dw_h = _meet(saved["before"][0], delta.get("a_h", a))
        db = jnp.sum(a, axis=tuple(range(a.ndim - 1)), dtype=wide(a.dtype))
        grads = {"w_x": dw_x, "w_h": dw_h, "b": db}
        return {name: g.astype(params[name].dtype) for name, g in grads.items()}

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        a = delta["a"]
        return {"w_x": (saved["x"], a), "w_h": (saved["before"][0], delta.get("a_h", a)), "b": (None, a)}

    # --- the two loops --------------------------------------------------------------------------

    def _loop(
        self,
        params: PyTree,
        first: State,
        steps: Array,
        arrive: Callable[[Array], Array],
        mask: Array | None,
        dtype: DTypeLike,
    ) -> PyTree:
        """`(last state, (every output, every state before its step, every step's kept))`, time first."""
        w_h = params["w_h"].astype(dtype)

        def product(h: Array) -> Array:
            return matmul(h.astype(dtype), w_h)

        def step(state: State, part: PyTree) -> PyTree:
            x, m = part
            new, kept = self._cell(params, arrive(x), state, product)
            (h,) = _where(m, new[:1], None)
            return _where(m, new, state), (h, state, kept)

        xs = (steps, None if mask is None else _time_first(mask, 1))
        return jax.lax.scan(step, first, xs, reverse=self.reverse, unroll=self.unroll)

    def _loop_back(
        self, params: PyTree, saved: PyTree, d: Array, errors: State, dtype: DTypeLike
    ) -> PyTree:
        """`(errors of the first state, δ of every step)`, time first. Carries errors only."""
        w_h, mask = params["w_h"].T.astype(dtype), saved["mask"]

        def product(delta: Array) -> Array:
            return matmul(delta.astype(dtype), w_h)

        def step(errors: State, part: PyTree) -> PyTree:
            dy, kept, before, m = part
            kept, before = jax.tree.map(lambda k: k.astype(d.dtype), (kept, before))
            arrived = (errors[0] + dy, *errors[1:])
            down, delta = self._cell_pull(params, kept, before, arrived, product)
            delta = {name: _where(m, (part,), None)[0] for name, part in delta.items()}
            return _where(m, down, errors), jax.tree.map(lambda e: e.astype(dtype), delta)

        kept, before = jax.tree.map(_time_first, (saved["kept"], saved["before"]))
        steps = (d, kept, before, None if mask is None else _time_first(mask, 1))
        return jax.lax.scan(step, errors, steps, reverse=not self.reverse, unroll=self.unroll)

    # --- decoding -------------------------------------------------------------------------------

    def start(self, params: PyTree, batch: int, length: int, dtype: DTypeLike) -> State:
        """Decoding: the state before the first step."""
        dtype = self.precision.output or dtype  # that of the states that a step hands on
        return (jnp.zeros((batch, self.features), dtype),) * self.states

    def advance(self, params: PyTree, cache: State, x: Array) -> tuple[Array, State]:
        """Decoding: the outputs of further steps and the state after them."""
        if self.reverse:
            raise InputError(f"{self}: a reverse layer needs the whole sequence and cannot decode")
        state = cache if self.states > 1 else cache[0]
        layer = dataclasses.replace(self, return_state=True)
        y, state = layer(params, {"x": x, "state": state})
        return y, state if self.states > 1 else (state,)


@dataclass(frozen=True, repr=False)
class RNN(Recurrent):
    """`h_t = tanh(a_t)`. `[..., T, I] -> [..., T, H]`; see `Recurrent` for masks, states, direction.

    Parameters `w_x: [I, H]`, `w_h: [H, H]`, `b: [H]`. One step back in time:

        δ_t        = ∂L/∂h_t (1 - h_t)(1 + h_t)
        ∂L/∂h_{t-1} += δ_t w_hᵀ

    Keeps `x`, `h_{t-1}` and `h_t` of every step.
    """

    gates: ClassVar[int] = 1

    def _cell(self, params: PyTree, a_x: Array, state: State, product: Product) -> tuple[State, PyTree]:
        h = jnp.tanh(a_x + product(state[0]))
        return (h,), h

    def _cell_pull(
        self, params: PyTree, kept: PyTree, before: State, errors: State, product: Product
    ) -> tuple[State, PyTree]:
        (dh,) = errors
        delta = dh * (1 - kept) * (1 + kept)
        return (product(delta),), {"a": delta}


@dataclass(frozen=True, repr=False)
class LSTM(Recurrent):
    """Long short-term memory: `[..., T, I] -> [..., T, H]`, the state is the pair `(h, c)`.

        i, f, g, o = σ(a_i), σ(a_f), tanh(a_g), σ(a_o)          a = x_t w_x + h_{t-1} w_h + b
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)

    Parameters `w_x: [I, 4H]`, `w_h: [H, 4H]`, `b: [4H]` in gate order `i, f, g, o` (torch's order; its
    two biases are one here). Two paths lead from `c_t`: through `h_t`, and through `c_{t+1}`, which
    multiplies by the forget gate only:

        ∂L/∂c_t     = (∂L/∂c_t)_{from t+1} + ∂L/∂h_t o (1 - tanh² c_t)
        δ_i, δ_g    = ∂L/∂c_t g i(1 - i),         ∂L/∂c_t i (1 - g²)
        δ_f, δ_o    = ∂L/∂c_t c_{t-1} f(1 - f),   ∂L/∂h_t tanh(c_t) o(1 - o)
        ∂L/∂c_{t-1} = ∂L/∂c_t f
        ∂L/∂h_{t-1} += δ_t w_hᵀ,   δ_t = (δ_i, δ_f, δ_g, δ_o)

    Keeps `x`, the gates, `h_{t-1}` and `c_{t-1}` of every step; `tanh c_t` is computed again, an
    elementwise function that costs less than storing `[B, T, H]` more. Biases start at 0, that of the
    forget gate at 1, so that errors travel far from the start (Jozefowicz et al. 2015). Source:
    Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000. See `Recurrent` for masks,
    states, direction.
    """

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    def init(self, key: Array, x: PyTree) -> PyTree:
        params, H = super().init(key, x), self.features
        return {**params, "b": params["b"].at[H : 2 * H].set(1)}

    def _cell(self, params: PyTree, a_x: Array, state: State, product: Product) -> tuple[State, PyTree]:
        h, c = state
        i, f, g, o = jnp.split(a_x + product(h), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * c + i * g
        return (o * jnp.tanh(c), c), jnp.concatenate([i, f, g, o], axis=-1)

    def _cell_pull(
        self, params: PyTree, kept: PyTree, before: State, errors: State, product: Product
    ) -> tuple[State, PyTree]:
        i, f, g, o = jnp.split(kept, 4, axis=-1)
        dh, dc = errors
        t = jnp.tanh(f * before[1] + i * g)
        dc = dc + dh * o * (1 - t) * (1 + t)
        delta = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * before[1] * f * (1 - f),
                dc * i * (1 - g) * (1 + g),
                dh * t * o * (1 - o),
            ],
            axis=-1,
        )
        return (product(delta), dc * f), {"a": delta}


@dataclass(frozen=True, repr=False)
class GRU(Recurrent):
    """Gated recurrent unit: `[..., T, I] -> [..., T, H]`; the state is `h`.

        r, z = σ(a_r), σ(a_z)                     a = x_t w_x + b, and + h_{t-1} w_h for r and z
        u    = h_{t-1} w_hn + b_n                 the state's part of n, which r gates as a whole
        n    = tanh(a_n + r u)
        h_t  = (1 - z) n + z h_{t-1}

    Parameters `w_x: [I, 3H]`, `w_h: [H, 3H]`, `b: [3H]` in gate order `r, z, n`, and `b_n: [H]` inside
    the gated part. Three paths lead back from `h_t` to `h_{t-1}`: directly through `z`, through `u`, and
    through the two gates:

        δ_n = ∂L/∂h_t (1 - z)(1 - n²)             ∂L/∂u = δ_n r
        δ_z = ∂L/∂h_t (h_{t-1} - n) z(1 - z)      δ_r   = δ_n u r(1 - r)
        ∂L/∂h_{t-1} = ∂L/∂h_t z + (δ_r, δ_z, ∂L/∂u) w_hᵀ
        ∂L/∂w_x = Σ_t x_tᵀ (δ_r, δ_z, δ_n),       ∂L/∂b_n = Σ_t ∂L/∂u
        ∂L/∂w_h = Σ_t h_{t-1}ᵀ (δ_r, δ_z, ∂L/∂u)

    Keeps `x`, `r`, `z`, `n`, `u` and `h_{t-1}` of every step. This is the form of cuDNN, torch and Flax;
    Cho et al. 2014 gate `h_{t-1}` before the product. See `Recurrent` for masks, states, direction.
    """

    gates: ClassVar[int] = 3

    def init(self, key: Array, x: PyTree) -> PyTree:
        params = super().init(key, x)
        return {**params, "b_n": jnp.zeros(self.features, params["b"].dtype)}

    def _cell(self, params: PyTree, a_x: Array, state: State, product: Product) -> tuple[State, PyTree]:
        (h,) = state
        a_r, a_z, a_n = jnp.split(a_x, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(product(h), 3, axis=-1)
        r, z = jax.nn.sigmoid(a_r + h_r), jax.nn.sigmoid(a_z + h_z)
        u = h_n + jnp.broadcast_to(params["b_n"].astype(h_n.dtype), h_n.shape)
        n = jnp.tanh(a_n + r * u)
        return ((1 - z) * n + z * h,), jnp.concatenate([r, z, n, u], axis=-1)

    def _cell_pull(
        self, params: PyTree, kept: PyTree, before: State, errors: State, product: Product
    ) -> tuple[State, PyTree]:
        r, z, n, u = jnp.split(kept, 4, axis=-1)
        (h,), (dh,) = before, errors
        delta_n = dh * (1 - z) * (1 - n) * (1 + n)
        delta_z = dh * (h - n) * z * (1 - z)
        delta_r = delta_n * u * r * (1 - r)
        a_h = jnp.concatenate([delta_r, delta_z, delta_n * r], axis=-1)
        a = jnp.concatenate([delta_r, delta_z, delta_n], axis=-1)
        return (dh * z + product(a_h),), {"a": a, "a_h": a_h}

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        rows = delta["a_h"][..., 2 * self.features :].reshape(-1, self.features)
        db_n = jnp.sum(rows, axis=0, dtype=wide(rows.dtype)).astype(params["b_n"].dtype)
        return {**super().gradient(params, saved, delta), "b_n": db_n}

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        inside = delta["a_h"][..., 2 * self.features :]
        return {**super().products(params, saved, delta), "b_n": (None, inside)}


def _meet(seen: Array, delta: Array) -> Array:
    """`Σ seenᵀ δ` over all rows, time first as the loops left them: flattening copies nothing."""
    rows_seen, rows_delta = (_time_first(a).reshape(-1, a.shape[-1]) for a in (seen, delta))
    return matmul(rows_seen.T, rows_delta)


def _time_first(a: Array, features: int = 2) -> Array:
    """Time from just before the features to the front (`features=1`: there are none)."""
    return jnp.moveaxis(a, -features, 0)


def _product_inside(x: Array) -> bool:
    """Whether each step multiplies its own input, instead of one product for all of them before the loop.

    On CPU what counts is memory: `a_x: [T, B, G H]` is the largest array of the forward pass, and costs
    more to write and read than a step's product does, once it has rows enough to be one. Measured for
    T128 B32 D64 H256 on two cores: forward 61 ms of processor time before the loop, 35 inside. On an
    accelerator the loop waits for each product, so the fewer and larger they are, the better.
    """
    return jax.default_backend() == "cpu" and prod(x.shape[:-2]) >= 8


def _where(mask: Array | None, yes: State, no: State | None) -> State:
    """Entry by entry `yes` where the step counts, else `no` (0 if `None`); all `yes` without a mask."""
    if mask is None:
        return yes
    no = tuple(map(jnp.zeros_like, yes)) if no is None else no
    return tuple(jnp.where(mask[..., None], y, n) for y, n in zip(yes, no, strict=True))
