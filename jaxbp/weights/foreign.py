"""How PyTorch and Flax name a layer's arrays and order their axes, and how theirs become ours and back.

Most layers have an array there for each array here, with its axes in another order: a row of `Rule`s. A
recurrence and an attention have theirs in several pieces, and write two functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbp import layers
from jaxbp.layer import InputError, Layer

Arrays = Mapping[str, np.ndarray]


class Format(NamedTuple):
    """`read(arrays, layer) -> ours` and `write(ours, layer) -> arrays`; `optional` ones start at 0."""

    read: Callable[[Arrays, Any], dict[str, np.ndarray]]
    write: Callable[[Arrays, Any], dict[str, np.ndarray]]
    optional: tuple[str, ...] = ()


class Rule(NamedTuple):
    """One array of a layer: its name there, and how its axes become ours and back."""

    theirs: str
    ours: str
    read: Callable[[np.ndarray, Any], np.ndarray] = lambda a, layer: a
    write: Callable[[np.ndarray, Any], np.ndarray] = lambda a, layer: a


def _transpose(a: np.ndarray, layer: Any) -> np.ndarray:
    return a.T


def _kernel_in(a: np.ndarray, layer: Any) -> np.ndarray:
    """`[f, c/G, *taps] -> [*taps, c/G, f]`."""
    return np.moveaxis(a, (0, 1), (-1, -2))


def _kernel_out(a: np.ndarray, layer: Any) -> np.ndarray:
    return np.moveaxis(a, (-1, -2), (0, 1))


def _transposed_in(a: np.ndarray, layer: Any) -> np.ndarray:
    """`[c, f/G, *taps] -> [*taps, c/G, f]`, group by group."""
    c, inner, *taps = a.shape
    blocks = a.reshape(layer.groups, c // layer.groups, inner, *taps)
    turned = np.moveaxis(blocks, (1, 0, 2), (-3, -2, -1))
    return turned.reshape(*taps, c // layer.groups, layer.groups * inner)


def _transposed_out(a: np.ndarray, layer: Any) -> np.ndarray:
    *taps, inner, f = a.shape
    blocks = a.reshape(*taps, inner, layer.groups, f // layer.groups)
    turned = np.moveaxis(blocks, (-3, -2, -1), (1, 0, 2))
    return turned.reshape(layer.groups * inner, f // layer.groups, *taps)


def _flip(a: np.ndarray, layer: Any) -> np.ndarray:
    """Flax's transposed convolution has its taps the other way round, and no groups."""
    return np.flip(a, axis=tuple(range(a.ndim - 2)))


def rows(*rules: Rule) -> Format:
    """A layer with one array there for each array here."""

    def read(arrays: Arrays, layer: Any) -> dict[str, np.ndarray]:
        return {
            rule.ours: rule.read(arrays[rule.theirs], layer) for rule in rules if rule.theirs in arrays
        }

    def write(ours: Arrays, layer: Any) -> dict[str, np.ndarray]:
        return {rule.theirs: rule.write(ours[rule.ours], layer) for rule in rules if rule.ours in ours}

    return Format(read, write)


# --- recurrence ---------------------------------------------------------------------------------------


def _recurrent_from_torch(arrays: Arrays, layer: Any) -> dict[str, np.ndarray]:
    """torch has two biases, which only the state's part of a GRU's candidate keeps apart."""
    ours = {"w_x": arrays["weight_ih"].T, "w_h": arrays["weight_hh"].T}
    b, b_h = arrays["bias_ih"], arrays["bias_hh"]
    if type(layer).__name__ != "GRU":
        return {**ours, "b": b + b_h}
    gates = np.arange(len(b)) < 2 * layer.features
    return {**ours, "b": np.where(gates, b + b_h, b), "b_n": b_h[2 * layer.features :]}


def _recurrent_to_torch(ours: Arrays, layer: Any) -> dict[str, np.ndarray]:
    b_h = np.zeros_like(ours["b"])
    if "b_n" in ours:
        b_h[2 * layer.features :] = ours["b_n"]
    return {"weight_ih": ours["w_x"].T, "weight_hh": ours["w_h"].T, "bias_ih": ours["b"], "bias_hh": b_h}


# the gates in our order; Flax has a dense layer for the input's and one for the state's part of each
FLAX_GATES = {"RNN": ("",), "LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}


def _recurrent_from_flax(arrays: Arrays, layer: Any) -> dict[str, np.ndarray]:
    kind = type(layer).__name__
    gates, side = FLAX_GATES[kind], "h" if kind == "LSTM" else "i"  # which of the two has the bias

    def joined(name: str) -> np.ndarray:
        return np.concatenate([arrays[name.format(gate)] for gate in gates], axis=-1)

    ours = {"w_x": joined("i{}.kernel"), "w_h": joined("h{}.kernel"), "b": joined(side + "{}.bias")}
    return {**ours, "b_n": arrays["hn.bias"]} if kind == "GRU" else ours


def _recurrent_to_flax(ours: Arrays, layer: Any) -> dict[str, np.ndarray]:
    kind = type(layer).__name__
    gates, side = FLAX_GATES[kind], "h" if kind == "LSTM" else "i"
    arrays = {}
    for name, template in (("w_x", "i{}.kernel"), ("w_h", "h{}.kernel"), ("b", side + "{}.bias")):
        parts = np.split(ours[name], len(gates), axis=-1)
        arrays |= {template.format(gate): part for gate, part in zip(gates, parts, strict=True)}
    return {**arrays, "hn.bias": ours["b_n"]} if kind == "GRU" else arrays


# --- attention ----------------------------------------------------------------------------------------


def _require_plain(layer: Any, there: str) -> None:
    """What both have: a key and value head for every head, and no rotation."""
    if layer.kv_heads not in (None, layer.heads):
        raise InputError(f"{layer}: grouped queries have no counterpart in {there}")
    if layer.rotary:
        raise InputError(f"{layer}: rotary positions have no counterpart in {there}")


def _attention_from_torch(arrays: Arrays, layer: Any) -> dict[str, np.ndarray]:
    if "in_proj_weight" in arrays:
        q, k, v = np.split(arrays["in_proj_weight"], 3)
    else:  # another memory than x
        q, k, v = (arrays[f"{n}_proj_weight"] for n in "qkv")
    ours = {"w_q": q.T, "w_k": k.T, "w_v": v.T, "w_o": arrays["out_proj.weight"].T}
    if layer.bias:  # that of the keys changes nothing: a softmax ignores what a row has in common
        b_q, _, b_v = np.split(arrays["in_proj_bias"], 3)
        ours |= {"b_q": b_q, "b_v": b_v, "b_o": arrays["out_proj.bias"]}
    return ours


def _attention_to_torch(ours: Arrays, layer: Any) -> dict[str, np.ndarray]:
    _require_plain(layer, "torch.nn.MultiheadAttention")
    q, k, v, o = (ours[f"w_{n}"].T for n in "qkvo")
    if q.shape != o.shape:
        raise InputError(f"{layer}: torch.nn.MultiheadAttention has no head_features of its own")
    same = q.shape == k.shape
    weights = {"in_proj_weight": np.concatenate([q, k, v])} if same else {}
    weights |= {} if same else {"q_proj_weight": q, "k_proj_weight": k, "v_proj_weight": v}
    if layer.bias:
        b_q, b_v = ours["b_q"], ours["b_v"]
        weights["in_proj_bias"] = np.concatenate([b_q, np.zeros_like(b_q), b_v])
        weights["out_proj.bias"] = ours["b_o"]
    return {**weights, "out_proj.weight": o}


FLAX_PARTS = {"q": "query", "k": "key", "v": "value"}


def _attention_from_flax(arrays: Arrays, layer: Any) -> dict[str, np.ndarray]:
    kernels = {n: arrays[f"{full}.kernel"] for n, full in FLAX_PARTS.items()}
    ours = {f"w_{n}": kernel.reshape(kernel.shape[0], -1) for n, kernel in kernels.items()}
    out = arrays["out.kernel"]
    ours["w_o"] = out.reshape(-1, out.shape[-1])
    if layer.bias:
        ours |= {f"b_{n}": arrays[f"{FLAX_PARTS[n]}.bias"].reshape(-1) for n in "qv"}
        ours["b_o"] = arrays["out.bias"]
    return ours


def _attention_to_flax(ours: Arrays, layer: Any) -> dict[str, np.ndarray]:
    _require_plain(layer, "flax.linen.MultiHeadDotProductAttention")
    heads, arrays = layer.heads, {}
    for n, full in FLAX_PARTS.items():
        w = ours[f"w_{n}"]
        arrays[f"{full}.kernel"] = w.reshape(w.shape[0], heads, -1)
        if layer.bias:
            b = ours.get(f"b_{n}", np.zeros_like(ours["b_q"]))
            arrays[f"{full}.bias"] = b.reshape(heads, -1)
    arrays["out.kernel"] = ours["w_o"].reshape(heads, -1, ours["w_o"].shape[-1])
    return {**arrays, "out.bias": ours["b_o"]} if layer.bias else arrays


# --- the tables ---------------------------------------------------------------------------------------

_NORM = (Rule("weight", "scale"), Rule("bias", "offset"))
_FLAX_NORM = (Rule("scale", "scale"), Rule("bias", "offset"))
_TORCH_RECURRENT = Format(_recurrent_from_torch, _recurrent_to_torch, ("bias_ih", "bias_hh"))
_FLAX_RECURRENT = Format(_recurrent_from_flax, _recurrent_to_flax)

Table = Mapping[type[Layer], Format]

TORCH: Table = {
    layers.Dense: rows(Rule("weight", "w", _transpose, _transpose), Rule("bias", "b")),
    layers.Conv: rows(Rule("weight", "w", _kernel_in, _kernel_out), Rule("bias", "b")),
    layers.ConvTranspose: rows(Rule("weight", "w", _transposed_in, _transposed_out), Rule("bias", "b")),
    layers.LayerNorm: rows(*_NORM),
    layers.GroupNorm: rows(*_NORM),
    layers.RMSNorm: rows(_NORM[0]),
    layers.BatchNorm: rows(*_NORM, Rule("running_mean", "mean"), Rule("running_var", "var")),
    layers.Embedding: rows(Rule("weight", "w")),
    layers.PositionEmbedding: rows(Rule("weight", "p")),
    layers.Head: rows(Rule("weight", "w")),
    layers.RNN: _TORCH_RECURRENT,
    layers.GRU: _TORCH_RECURRENT,
    layers.LSTM: _TORCH_RECURRENT,
    layers.Attention: Format(_attention_from_torch, _attention_to_torch),
}
FLAX: Table = {
    layers.Dense: rows(Rule("kernel", "w"), Rule("bias", "b")),
    layers.Conv: rows(Rule("kernel", "w"), Rule("bias", "b")),
    layers.ConvTranspose: rows(Rule("kernel", "w", _flip, _flip), Rule("bias", "b")),
    layers.LayerNorm: rows(*_FLAX_NORM),
    layers.GroupNorm: rows(*_FLAX_NORM),
    layers.RMSNorm: rows(_FLAX_NORM[0]),
    layers.BatchNorm: rows(*_FLAX_NORM, Rule("mean", "mean"), Rule("var", "var")),
    layers.Embedding: rows(Rule("embedding", "w")),
    layers.PositionEmbedding: rows(Rule("embedding", "p")),
    layers.Head: rows(Rule("kernel", "w", _transpose, _transpose)),
    layers.RNN: _FLAX_RECURRENT,
    layers.GRU: _FLAX_RECURRENT,
    layers.LSTM: _FLAX_RECURRENT,
    layers.Attention: Format(_attention_from_flax, _attention_to_flax),
}
IGNORED = ("num_batches_tracked",)

# --- which arrays belong to one layer of ours ---------------------------------------------------------

_TORCH_CELL = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_(l\d+(?:_reverse)?)")
_INSIDE = (  # modules of theirs that together are one layer of ours
    {"out_proj"},
    {*FLAX_PARTS.values(), "out"},
    *({side + gate for gate in gates for side in "ih"} for gates in FLAX_GATES.values()),
)


def grouped(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by the layer that they belong to, in the order in which the layers first appear.

    A torch recurrence of several layers or directions is one of ours for each: `lstm.l0`,
    `lstm.l0_reverse`, `lstm.l1`, …
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        module, key = _place(name, arrays)
        if key not in IGNORED:
            groups.setdefault(module, {})[key] = array
    return groups


def _place(name: str, arrays: Mapping[str, Any]) -> tuple[str, str]:
    """The layer that an array belongs to, and what the array is called in it."""
    module, _, key = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    if cell := _TORCH_CELL.fullmatch(key):
        prefix = f"{module}." if module else ""
        several = f"{prefix}weight_ih_l1" in arrays or f"{prefix}weight_ih_l0_reverse" in arrays
        return (f"{prefix}{cell[2]}" if several else module), cell[1]
    prefix = f"{parent}." if parent else ""
    beside = {n[len(prefix) :].partition(".")[0] for n in arrays if n.startswith(prefix)}
    for parts in _INSIDE:
        alone = parts == {"out_proj"} and not beside & {"in_proj_weight", "q_proj_weight"}
        if last in parts and parts <= beside and not alone:
            return parent, f"{last}.{key}"
    return module, key


def full_name(module: str, key: str) -> str:
    """The name of an array in a `state_dict`: the inverse of what `grouped` does to it."""
    if key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        several = re.fullmatch(r"(?:(.*)\.)?(l\d+(?:_reverse)?)", module)
        module, part = (several[1] or "", several[2]) if several else (module, "l0")
        key = f"{key}_{part}"
    return f"{module}.{key}" if module else key
