"""Rows of a table by number, places in a sequence, and the same table used as an output head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxbp.integers import between, require_all
from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Static,
    require_floating,
    require_params,
    require_whole,
    shape_text,
)
from jaxbp.layers.initializers import initializer
from jaxbp.layers.rotation import angles, rotate
from jaxbp.precision import PrecisionField, matmul, wide


@dataclass(frozen=True, repr=False)
class Embedding(Layer):
    """`y_i = w_{x,i}`, row `x` of a table. Integer `[...] -> [..., features]`.

    Parameter `w: [size, features]`, the orientation of a table, not that of a `Dense` weight. An id
    picks its row with weight 1 and every other row with weight 0, so

        ∂L/∂w_ki = Σ_n [x_n = k] ∂L/∂y_ni     gradient: errors are added up in the rows they came from
        ∂L/∂x                                 does not exist: a number of a row has no neighbours

    Forward is a gather, `gradient` a scatter-add (in float32 at least), and `pull` hands on `None`.
    Keeps the ids. The output has the dtype of `w` unless `precision` says otherwise, for ids have no
    floating dtype of their own. An id that occurs twice gets both errors, one that does not occur 0.

    Raises `InputError` for ids that are not integers and, outside `jit`, for ids outside
    `0 … size - 1` (a negative id does not count from the end). Inside `jit`, where ids cannot be seen,
    the row of such an id is NaN, and its error goes nowhere.
    """

    size: int
    features: int
    initializer: str | Callable[..., Array] = "normal"
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        require_whole("Embedding", size=self.size, features=self.features)
        initializer(self.initializer)

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._check(x)
        dtype = jnp.dtype(self.precision.params or jnp.float32)
        return {"w": initializer(self.initializer)(key, (self.size, self.features), dtype)}

    def forward(
        self, params: PyTree, x: Num[Array, "*batch"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*batch features"], PyTree]:
        self._check(x)
        require_params(self, params, "w")
        w = params["w"]
        self._check(x, w)
        require_all(self._valid(x), x, f"{self}: expected ids in 0 … {self.size - 1}", "ids")
        y = jnp.take(w, self._rows(x), axis=0, mode="fill", fill_value=jnp.nan)
        return y.astype(self.precision.output or self.precision.compute or w.dtype), x

    def pull(
        self, params: PyTree, saved: Num[Array, "*batch"], dy: Float[Array, "*batch features"]
    ) -> tuple[None, Float[Array, "*batch features"]]:
        return None, dy

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*batch features"]) -> PyTree:
        w = params["w"]
        errors = delta.reshape(-1, self.features).astype(wide(w.dtype))
        rows = self._rows(saved).reshape(-1)
        dw = jnp.zeros(w.shape, wide(w.dtype)).at[rows].add(errors, mode="drop")
        return {"w": dw.astype(w.dtype)}

    def rows(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        return {"w": (self._rows(saved), delta)}

    def _valid(self, ids: Array) -> Array:
        return between(ids, 0, self.size - 1)

    def _rows(self, ids: Array) -> Array:
        """The ids as row numbers, `size` (a row that is not there) for those out of range."""
        return jnp.where(self._valid(ids), ids.astype(jnp.int32), self.size)

    def _check(self, x: PyTree, w: Array | None = None) -> None:
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.integer):
            got = shape_text(x) if hasattr(x, "dtype") else type(x).__name__
            raise InputError(f"{self}: x: expected an array of ids of an integer dtype, got {got}")
        _check_table(self, w, (self.size, self.features))


@dataclass(frozen=True, repr=False)
class Head(Layer):
    """`a_k = Σ_i h_i w_ki`: how well `h` fits every row of a table. `[..., features] -> [..., size]`.

    Parameter `w: [size, features]`, laid out like an `Embedding`'s, so that `Tied` can hand it the
    very same table. No bias. With `δ_k = ∂L/∂a_k`:

        ∂L/∂w_ki = δ_k h_i               gradient
        ∂L/∂h_i  = Σ_k δ_k w_ki          pull

    Keeps `h`. With `deferred=True` the output is the pair `(h, wᵀ)` instead of logits, with
    `wᵀ: [features, size]` laid out like a `Dense` weight, for a loss that never needs all logits at
    once (`LinearCrossEntropy`). That loss returns `(∂L/∂h, ∂L/∂wᵀ)`; `pull` passes the first on to the
    layer below, `gradient` returns the second, and nothing is kept but a dtype. The deferred weight
    gradient is already summed over the examples, so there are none per example.

    Raises `InputError` for an `h` that is not floating or has other features than `w`.
    """

    size: int
    deferred: bool = False
    initializer: str | Callable[..., Array] = "normal"
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        require_whole("Head", size=self.size)
        initializer(self.initializer)

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._check(x)
        dtype = jnp.dtype(self.precision.params or x.dtype)
        return {"w": initializer(self.initializer)(key, (self.size, x.shape[-1]), dtype)}

    def forward(
        self, params: PyTree, x: Float[Array, "*batch features"], mode: Mode = Eval()
    ) -> tuple[PyTree, PyTree]:
        require_params(self, params, "w")
        self._check(x, params["w"])
        compute = self.precision.compute or x.dtype
        h, w = x.astype(compute), params["w"].T.astype(compute)
        if self.deferred:
            return (h, w), Static(x.dtype)
        return matmul(h, w, self.precision.output or x.dtype), (h, Static(x.dtype))

    def pull(
        self, params: PyTree, saved: PyTree, dy: PyTree
    ) -> tuple[Float[Array, "*batch features"], PyTree]:
        if self.deferred:
            dh, dw = dy
            return dh.astype(saved.value), dw
        h, input_dtype = saved
        delta = dy.astype(h.dtype)
        return matmul(delta, params["w"].astype(h.dtype), input_dtype.value), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        w = params["w"]
        if self.deferred:
            return {"w": delta.T.astype(w.dtype)}
        h = saved[0].reshape(-1, w.shape[1])
        return {"w": matmul(delta.reshape(-1, self.size).T, h).astype(w.dtype)}

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        return {} if self.deferred else {"w": (delta, saved[0])}

    def gradient_of_each(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        if self.deferred:
            raise InputError(f"{self}: its loss has summed over the examples already; use deferred=False")
        return super().gradient_of_each(params, saved, delta)

    def _check(self, x: PyTree, w: Array | None = None) -> None:
        require_floating(x, f"{self}: x")
        if not x.shape:
            raise InputError(f"{self}: x must have a feature axis, got a scalar")
        _check_table(self, w, (self.size, x.shape[-1]))


@dataclass(frozen=True, repr=False)
class PositionEmbedding(Layer):
    """Tells places in a sequence apart. `[..., time, features] -> [..., time, features]`.

        "learned"       y_t = x_t + p_t            p: [length, features], a parameter
        "sinusoidal"    y_t = x_t + s_t            s_t,2i = sin(t ω_i), s_t,2i+1 = cos(t ω_i)
        "rotary"        y_t = R(t) x_t             each pair (i, i + features/2) turned by t ω_i

    with `ω_i = base^{-2i/features}`. A sum passes its error on along both paths, and `p_t` meets every
    sequence of the batch; a rotation is orthogonal, so its transpose turns by `-t ω_i`:

        learned         ∂L/∂x_t = ∂L/∂y_t,   ∂L/∂p_t = Σ_batch ∂L/∂y_t   (0 where t ≥ time)
        sinusoidal      ∂L/∂x_t = ∂L/∂y_t
        rotary          ∂L/∂x_t = R(-t) ∂L/∂y_t

    Keeps the shape only; the angles are constants of the compiled program. `length` is the longest
    sequence that a learned table serves, by default as long as those that `init` sees; the other kinds
    serve any. Angles are taken in float32 at least; the output has the dtype of `x`, the table that of
    `precision.params` or of `x`.

    Raises `InputError` for an unknown kind, a sequence longer than the table, and an odd number of
    features where they come in pairs. Sources: Vaswani et al. 2017 (sinusoidal); Su et al. 2021
    (rotary, in the half-and-half pairing of GPT-NeoX).
    """

    kind: str = "learned"
    length: int | None = None
    base: float = 10000.0
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        kinds = ("learned", "sinusoidal", "rotary")
        if self.kind not in kinds:
            hint = f"; the table's length goes by name: length={self.kind!r}" * (
                not isinstance(self.kind, str)
            )
            raise InputError(
                f"PositionEmbedding: expected a kind of {', '.join(kinds)}, got {self.kind!r}{hint}"
            )
        if self.length is not None:
            require_whole("PositionEmbedding", length=self.length)

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._check(x)
        if self.kind != "learned":
            return ()
        dtype = jnp.dtype(self.precision.params or x.dtype)
        length = self.length or x.shape[-2]
        return {"p": initializer("normal")(key, (length, x.shape[-1]), dtype)}

    def forward(
        self, params: PyTree, x: Float[Array, "*batch time features"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*batch time features"], PyTree]:
        self._check(x, params)
        if self.kind == "learned":
            require_params(self, params, "p")
        return self._at(params, x, jnp.arange(x.shape[-2])), Static(x.shape[-2])

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*batch time features"]
    ) -> tuple[Float[Array, "*batch time features"], PyTree]:
        if self.kind == "rotary":
            return rotate(dy, -jnp.arange(saved.value), self.base), ()
        return dy, dy

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        if self.kind != "learned":
            return ()
        p = params["p"]
        sequences = delta.reshape(-1, *delta.shape[-2:])
        dp = jnp.sum(sequences, axis=0, dtype=wide(delta.dtype)).astype(p.dtype)
        return {"p": jnp.zeros_like(p).at[: saved.value].set(dp)}

    def rows(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        if self.kind != "learned" or delta.ndim < 3:
            return {}
        return {"p": (jnp.broadcast_to(jnp.arange(saved.value), delta.shape[:-1]), delta)}

    def start(self, params: PyTree, batch: int, length: int, dtype: DTypeLike) -> PyTree:
        """Decoding: the number of positions that went by."""
        if self.kind == "learned" and length > (rows := len(params["p"])):
            raise InputError(f"{self}: the table is shorter than the text: {rows} < {length}")
        return jnp.zeros((), jnp.int32)

    def advance(
        self, params: PyTree, cache: PyTree, x: Float[Array, "*batch time features"]
    ) -> tuple[Float[Array, "*batch time features"], PyTree]:
        """Decoding: the next positions of sequences whose first `cache` positions went by before."""
        self._check(x)
        positions = cache + jnp.arange(x.shape[-2], dtype=cache.dtype)
        return self._at(params, x, positions), cache + x.shape[-2]

    def _at(self, params: PyTree, x: Array, positions: Array) -> Array:
        if self.kind == "rotary":
            return rotate(x, positions, self.base)
        if self.kind == "learned":
            p = jnp.take(params["p"], positions, axis=0, mode="clip")
        else:
            angle = angles(positions, x.shape[-1], self.base, x.dtype)
            p = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(x.shape[-2:])
        return x + jnp.broadcast_to(p.astype(x.dtype), x.shape)

    def _check(self, x: PyTree, params: PyTree = None) -> None:
        require_floating(x, f"{self}: x")
        if len(x.shape) < 2:
            raise InputError(f"{self}: expected x as [..., time, features], got {shape_text(x)}")
        if self.kind == "learned":
            length = self.length or x.shape[-2]
            if params is not None and not self.length:
                require_params(self, params, "p")
                length = len(params["p"])
            if x.shape[-2] > length:
                raise InputError(f"{self}: x is longer than the table: {x.shape[-2]} > {length}")
        if self.kind != "learned" and x.shape[-1] % 2:
            raise InputError(f"{self}: expected an even number of features, got {x.shape[-1]}")


def _check_table(layer: Layer, w: Array | None, shape: tuple[int, ...]) -> None:
    if w is not None and w.shape != shape:
        raise InputError(f"{layer}: expected w of shape {list(shape)}, got {list(w.shape)}")
