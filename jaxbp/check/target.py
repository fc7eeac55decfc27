"""What can be checked, brought to one form: a plain function, and a rule that claims its derivative.

A `Target` speaks of the differentiable leaves of its arguments as a flat list. Everything else in the
arguments (integers, keys, strings) is held fixed, so that a rule sees it exactly as the caller gave it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.opaque import Opaque, torch_rule
from jaxbp.check.operations import is_float
from jaxbp.layer import InputError, Layer, PyTree, shape_text
from jaxbp.losses import Loss


@dataclass(frozen=True)
class Misfit:
    """A way in which a cotangent does not have the form that it must have."""

    path: str
    cause: str
    detail: str


@dataclass(eq=False)
class Target:
    """`plain(leaves) -> y` and `rule(leaves, dy) -> (y, cotangents of the arguments)`."""

    name: str
    kind: str
    args: tuple[Any, ...]
    names: list[str]
    apply: Callable[..., Any]
    walk: Callable[..., tuple[Any, Any]]
    layer: Layer | None = None
    fixed: tuple[int, ...] = ()
    where: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)
    optional: list[bool] = field(default_factory=list)
    saved: Callable[[tuple[Any, ...]], Any] | None = None  # what a rule's forward pass keeps
    hand: Callable[..., Any] | None = None  # what may turn out not to be written in JAX
    opaque: Opaque | None = None  # and then is this: called with numbers, never traced

    def __post_init__(self) -> None:
        for i, (path, leaf) in enumerate(self._flat()[0]):
            if not _differentiable(leaf):
                continue
            if int(path[0].idx) in self.fixed:
                continue
            self.where.append(i)
            self.paths.append(self.names[path[0].idx] + jax.tree_util.keystr(path[1:]))
            self.leaves.append(jnp.asarray(leaf))
            self.optional.append(isinstance(leaf, float) and not isinstance(leaf, np.floating))
        if not self.leaves:
            got = ", ".join(shape_text(v) for _, v in self._flat()[0] if hasattr(v, "shape")) or "none"
            raise InputError(
                f"{self.name}: no argument has a floating dtype, so there is no gradient (got {got})"
            )

    def _flat(self) -> tuple[list[tuple[Any, Any]], Any]:
        return jax.tree_util.tree_flatten_with_path(self.args)

    def rebuild(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with these leaves in the place of the differentiable ones."""
        flat, tree = jax.tree.flatten(self.args)
        for i, leaf in zip(self.where, leaves, strict=True):
            flat[i] = leaf
        return jax.tree.unflatten(tree, flat)

    def plain(self, *leaves: Any) -> PyTree:
        """The function whose derivative the oracle takes."""
        return self.apply(*self.rebuild(leaves))

    def rule(self, leaves: Sequence[Any], dy: PyTree) -> tuple[PyTree, list[Any]]:
        """`(y, cotangents)`, one for every differentiable leaf, `None` where the rule gives none."""
        y, raw = self.walk(self.rebuild(leaves), list(leaves), dy)
        if self.kind in ("rule", "plain"):
            return y, raw
        aligned, misfits = self.align(raw)
        if misfits:
            raise InputError(misfits[0].detail)
        return y, aligned

    def align(self, raw: Any) -> tuple[list[Any], list[Misfit]]:
        """Cotangents in the order of the leaves, and where their structure is not the arguments'."""
        misfits: list[Misfit] = []
        found: list[Any] = []
        raw = raw if self.kind == "custom_vjp" else _as_tuple(raw, self.args)
        if not isinstance(raw, tuple) or len(raw) != len(self.args):
            count = f"{len(raw)} cotangents" if isinstance(raw, tuple) else f"a {type(raw).__name__}"
            detail = (
                f"the rule must return one cotangent for each of the {len(self.args)} arguments "
                f"({', '.join(self.names)}), as a tuple, but returns {count}"
            )
            return [None] * len(self.leaves), [Misfit("", "structure", detail)]
        for name, arg, part in zip(self.names, self.args, raw, strict=True):
            _align(arg, part, name, found, misfits)
        return [found[i] for i in self.where] if not misfits else [], misfits


def _differentiable(leaf: Any) -> bool:
    if isinstance(leaf, float) and not isinstance(leaf, np.floating):
        return True
    return is_float(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct)


def _as_tuple(raw: Any, args: tuple[Any, ...]) -> Any:
    """A lone cotangent counts as a tuple of one where there is one argument."""
    if isinstance(raw, list):
        raw = tuple(raw) if len(raw) == len(args) else raw
    if len(args) != 1 or (isinstance(raw, tuple) and len(raw) == 1):
        return raw
    alone = not isinstance(raw, tuple) or jax.tree.structure(raw) == jax.tree.structure(args[0])
    return (raw,) if alone else raw


def _one_level(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=lambda t: t is not tree)


def _align(arg: Any, raw: Any, path: str, found: list[Any], misfits: list[Misfit]) -> None:
    count = len(jax.tree.leaves(arg))
    if raw is None or getattr(raw, "dtype", None) == jax.dtypes.float0:
        found.extend([None] * count)
    elif jax.tree_util.all_leaves([arg]):
        if not jax.tree_util.all_leaves([raw]):
            detail = f"{path}: expected an array like the argument, got a {type(raw).__name__}"
            misfits.append(Misfit(path, "structure", detail))
        found.append(raw)
    else:
        (parts, tree), (others, other) = _one_level(arg), _one_level(raw)
        if tree != other:
            detail = f"{path}: expected the argument's structure {_shape_of(arg)}, got {_shape_of(raw)}"
            misfits.append(Misfit(path, "structure", detail))
            return
        keys = [jax.tree_util.keystr(k) for k, _ in _paths_one_level(arg)]
        for key, part, piece in zip(keys, parts, others, strict=True):
            _align(part, piece, path + key, found, misfits)


def _paths_one_level(tree: Any) -> list[Any]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda t: t is not tree)[0]


def _shape_of(tree: Any) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(map(repr, tree)) + "}"
    if isinstance(tree, tuple | list):
        return f"{type(tree).__name__} of {len(tree)}"
    return shape_text(tree) if hasattr(tree, "dtype") else type(tree).__name__


# --- the kinds of target ------------------------------------------------------------------------------


def make_target(
    target: Any,
    args: tuple[Any, ...],
    gradient: Any = None,
    reference: Any = None,
    torch: Any = None,
) -> Target:
    """A `Target` of any of the forms that `check_gradients` takes, or `InputError`."""
    if gradient is not None and torch is not None:
        raise InputError("check_gradients: gradient= and torch= are two rules; give one of them")
    if torch is not None and not callable(torch):
        raise InputError(f"torch: expected a function of tensors (Function.apply), got {torch!r}")
    if reference is not None and not callable(reference):
        raise InputError(f"reference: expected a function, got {type(reference).__name__}")
    if gradient is not None and not callable(gradient):
        raise InputError(f"gradient: expected a function of (*args, cotangent), got {gradient!r}")
    _reject(args)
    args = jax.tree.map(_as_of_jax, args)
    if isinstance(target, type) and issubclass(target, Layer | Loss):
        try:
            target = target()
        except TypeError as error:
            raise InputError(f"{target.__name__} is a class; give an instance of it ({error})") from None
    if isinstance(target, Layer):
        return _layer(target, args, reference)
    if isinstance(target, Loss):
        return _loss(target, args, reference)
    if isinstance(target, tuple):
        return _pair(target, args, reference)
    if not callable(target):
        raise InputError(
            "check_gradients: expected a layer, a loss, a function or a pair (forward, backward), "
            f"got {type(target).__name__}"
        )
    if torch is not None:
        return _with_torch(target, torch, args, reference)
    if gradient is not None:
        return _with_gradient(target, gradient, args, reference)
    return _function(target, args, reference)


def _as_of_jax(leaf: Any) -> Any:
    """NumPy's integer arrays as JAX's: where a rule is mapped and traced at once, JAX takes no other."""
    array = isinstance(leaf, np.ndarray) and leaf.ndim > 0 and leaf.dtype.kind in "iub"
    return jnp.asarray(leaf) if array else leaf


def _reject(args: tuple[Any, ...]) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        dtype = getattr(leaf, "dtype", None)
        if isinstance(leaf, complex) or (
            dtype is not None and np.issubdtype(_np(dtype), np.complexfloating)
        ):
            place = f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}"
            raise InputError(f"{place}: complex numbers cannot be checked; pass real and imaginary parts")
        if dtype is not None and dtype == np.dtype(object):
            raise InputError(f"argument {path[0].idx}: an array of objects has no gradient")


def _np(dtype: Any) -> Any:
    try:
        return np.dtype(dtype)
    except TypeError:
        return np.dtype(np.uint32)  # a PRNG key


def _names(fn: Any, count: int) -> list[str]:
    """The names of the first `count` parameters of `fn`, or `args[i]`."""
    fallback = [f"args[{i}]" for i in range(count)]
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return fallback
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (positional + fallback[len(positional) :])[:count]


def _label(fn: Any) -> str:
    """The function's name; a lambda's place."""
    inner = getattr(fn, "func", fn)
    name = getattr(inner, "__name__", None) or type(inner).__name__
    code = getattr(inner, "__code__", None)
    if name == "<lambda>" and code is not None:
        return f"the lambda at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
    return name


def _bind(fn: Any, args: tuple[Any, ...], what: str) -> None:
    """Raise `InputError` where `fn` does not take this number of arguments."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        count = f"{len(args)} argument{'s' * (len(args) != 1)}"
        raise InputError(f"{what}: cannot be called with {count} as {signature}: {error}") from None


def _layer(layer: Layer, args: tuple[Any, ...], reference: Any) -> Target:
    if len(args) == 1:
        args = (layer.init(jax.random.key(0), args[0]), args[0])
    if not 2 <= len(args) <= 3:
        raise InputError(f"{layer}: expected (params, x) or (params, x, mode), got {len(args)} arguments")

    def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
        y, saved = layer.forward(*new)
        return y, (*layer.backward(new[0], saved, dy), *(None,) * (len(new) - 2))

    plain = reference or (lambda *new: layer.forward(*new)[0])
    names = ["params", "x", "mode"][: len(args)]
    return Target(repr(layer), "layer", args, names, plain, walk, layer)


def _loss(loss: Loss, args: tuple[Any, ...], reference: Any) -> Target:
    if len(args) != 2:
        raise InputError(f"{loss}: expected (prediction, target), got {len(args)} arguments")

    def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
        y, saved = loss.forward(*new)
        scaled = jax.tree.map(lambda g: g * dy.astype(g.dtype), loss.backward(saved))
        return y, (scaled, None)

    names = ["prediction", "target"]
    return Target(repr(loss), "loss", args, names, reference or loss, walk, fixed=(1,))


def _pair(pair: tuple[Any, ...], args: tuple[Any, ...], reference: Any) -> Target:
    if len(pair) != 2 or not all(map(callable, pair)):
        raise InputError("check_gradients: a pair must be (forward, backward), two functions")
    forward, backward = pair
    _bind(forward, args, "forward")

    def both(*given: Any) -> tuple[Any, Any]:
        y, saved = _two(forward(*given[:-1]))
        return y, backward(saved, given[-1])

    def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
        return (made.opaque or both)(*new, dy)

    plain = reference or (lambda *new: _two(forward(*new))[0])
    made = Target(_label(forward), "pair", args, _names(forward, len(args)), plain, walk)
    made.hand = both
    made.saved = lambda new: _two(forward(*new))[1]
    return made


def _two(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError("forward: expected it to return a pair (y, saved)")
    return result


def _with_gradient(fn: Any, hand: Any, args: tuple[Any, ...], reference: Any) -> Target:
    _bind(fn, args, _label(fn))
    _bind(hand, (*args, None), "gradient")

    def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
        return fn(*new), (made.opaque or hand)(*new, dy)

    made = Target(_label(fn), "gradient", args, _names(fn, len(args)), reference or fn, walk)
    made.hand = hand
    return made


def _with_torch(fn: Any, torch: Any, args: tuple[Any, ...], reference: Any) -> Target:
    _bind(fn, args, _label(fn))
    opaque = Opaque(torch_rule(torch))

    def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
        return opaque(*new, dy)

    names = _names(fn, len(args))
    return Target(_label(fn), "gradient", args, names, reference or fn, walk, opaque=opaque)


def _function(fn: Any, args: tuple[Any, ...], reference: Any) -> Target:
    _bind(fn, args, _label(fn))
    raw = _raw_rule(fn)
    names = _names(fn, len(args))
    if raw is not None:
        fixed = tuple(n % len(args) for n in fn.nondiff_argnums if isinstance(n, int))
        plain = reference or fn.fun
        made = Target(_label(fn), "custom_vjp", args, names, plain, raw(fixed), fixed=fixed)
        made.saved = lambda new: _two(fn.fwd(*new))[1]
        return made

    def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
        y, pull = jax.vjp(lambda *values: fn(*made.rebuild(values)), *leaves)
        return y, list(pull(dy))

    made = Target(_label(fn), "rule", args, names, reference or fn, walk)
    return made


def _raw_rule(fn: Any) -> Any:
    """The two functions of a `jax.custom_vjp`, called as JAX calls them but without its checks."""
    special = ("symbolic_zeros", "with_accums", "with_logs")
    if not isinstance(fn, jax.custom_vjp) or any(getattr(fn, name, False) for name in special):
        return None
    forward, backward = getattr(fn, "fwd", None), getattr(fn, "bwd", None)
    if forward is None or backward is None or any(not isinstance(n, int) for n in fn.nondiff_argnums):
        return None

    def rule(fixed: tuple[int, ...]) -> Any:
        def walk(new: tuple[Any, ...], leaves: list[Any], dy: PyTree) -> tuple[Any, Any]:
            y, saved = _two(forward(*new))
            found = backward(*(new[i] for i in fixed), saved, dy)
            rest = [i for i in range(len(new)) if i not in fixed]
            if not isinstance(found, tuple) or len(found) != len(rest):
                return y, found
            parts = dict(zip(rest, found, strict=True))
            return y, tuple(parts.get(i) for i in range(len(new)))

        return walk

    return rule
