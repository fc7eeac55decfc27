"""What a network needs of the data that it was trained on, as one JSON file in the run's folder.

Shapes, scales, the names of columns and classes: with them `predict` and `sample` need no data at all.
The fingerprint of what the data file held says whether data is still that of the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.app.data.dataset import Dataset
from jaxbp.app.data.scale import Scale
from jaxbp.layer import InputError

FILE, FORMAT, VERSION = "data.json", "jaxbp data", 1
SHOWN = 5  # columns or classes in a message


def describe(data: Dataset) -> dict[str, Any]:
    """All but the examples, as plain values: numbers keep every bit, and names are texts."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": data.name,
        "kind": data.kind,
        "held_out": data.held_out,
        "examples": {"training": len(data.x), "held_out": len(data.test_x) if data.held_out else 0},
        "inputs": {
            "shape": list(data.shape),
            "given": list(data.given),
            "dtype": str(data.x.dtype),
            "columns": list(data.columns),
            "image": list(data.image),
            "pixels": data.pixels,
            "scale": data.scale.to_json(),
            "sizes": list(data.size_range()),
        },
        "targets": {
            "outputs": data.outputs,
            "shape": list(data.y.shape[1:]),
            "dtype": str(data.y.dtype),
            "classes": list(data.classes),
            "columns": list(data.target_columns),
            "scale": data.target_scale.to_json(),
        },
        "fingerprint": dict(data.fingerprint),
    }


def described(raw: Mapping[str, Any]) -> Dataset:
    """The dataset of a description, without examples."""
    inputs, targets = raw["inputs"], raw["targets"]
    x = np.zeros((0, *inputs["shape"]), inputs["dtype"])
    y = np.zeros((0, *targets["shape"]), targets["dtype"])
    return Dataset(
        raw["name"],
        x,
        y,
        x,
        y,
        targets["outputs"],
        tuple(targets["classes"]),
        raw["kind"],
        raw["held_out"],
        Scale.from_json(inputs["scale"]),
        Scale.from_json(targets["scale"]),
        tuple(inputs["image"]),
        inputs["pixels"],
        tuple(inputs["given"]),
        tuple(inputs["columns"]),
        tuple(targets["columns"]),
        sizes=tuple(inputs.get("sizes", ())),
        fingerprint=raw["fingerprint"],
        start=(),
    )


def read_description(folder: Path) -> dict[str, Any] | None:
    """The description in a run's folder; `None` for a run from before there was one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: truncated or not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
        found = raw.get("version") if isinstance(raw, dict) else None
        raise InputError(f'{path}: expected a "{FORMAT}" of version {VERSION}, got version {found}')
    try:
        described(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    return raw


def fingerprint(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, str]:
    """Hashes of what a file held, before anything was computed from it: of the inputs, of the targets."""
    return {"inputs": _hash(inputs), "targets": _hash(targets)}


def _hash(arrays: Sequence[np.ndarray]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.newbyteorder('<').str} {array.shape} ".encode())
        if array.dtype == object:  # integers that no dtype holds
            found.update(repr(array.tolist()).encode())
        else:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            found.update(np.ascontiguousarray(little).data.cast("B") if array.size else b"")
    return found.hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what the data of two descriptions differs, in words; the coarsest differences only."""
    found = []
    rows = [f"{d['examples']['training']} + {d['examples']['held_out']}" for d in (old, new)]
    if rows[0] != rows[1]:
        found.append(f"rows (training + held out) were {rows[0]}, now {rows[1]}")
    for part, key, noun in (
        ("inputs", "given", "an input's shape was"),
        ("inputs", "shape", "an input's shape was"),
        ("inputs", "columns", "columns were"),
        ("targets", "columns", "the target's column was"),
        ("targets", "classes", "labels were"),
        ("targets", "outputs", "the number of outputs was"),
    ):
        was, now = old[part][key], new[part][key]
        if was != now and not any(line.startswith(noun) for line in found):
            found.append(f"{noun} {_few(was)}, now {_few(now)}")
    if not found:
        labels = "labels" if new["kind"] == "classes" else "targets"
        for part, noun in (("inputs", "values of the inputs"), ("targets", labels)):
            if old["fingerprint"].get(part) != new["fingerprint"].get(part):
                found.append(f"{noun} are others")
    return found


def fits(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a network for the one takes inputs of the other and has outputs for its targets."""
    same = (("inputs", "shape"), ("inputs", "dtype"), ("targets", "outputs"), ("targets", "shape"))
    return old["kind"] == new["kind"] and all(old[part][key] == new[part][key] for part, key in same)


def _few(values: Any) -> str:
    if not isinstance(values, list):
        return str(values)
    more = f", … ({len(values)})" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more if values else "none"
