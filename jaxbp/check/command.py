"""`jaxbp check module:object --arg "f32[8,16]" …`: exit 0 right, 1 wrong, 2 could not run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.diagnosis.case import BUDGET
from jaxbp.check.report import Report
from jaxbp.check.verify import check_gradients
from jaxbp.layer import InputError, Layer
from jaxbp.losses import Loss

DTYPES = {
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u32": "uint32",
    "bool": "bool",
}
PATTERN = re.compile(r"(?P<dtype>\w+)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?$")


def check(argv: Sequence[str]) -> int:
    """The subcommand."""
    options = _parser().parse_args(argv)
    wide = options.x64 or any("64[" in text for text in options.arg)
    with jax.enable_x64(jax.config.read("jax_enable_x64") or wide):
        try:
            report = _report(options)
        except InputError:
            raise
        except Exception as error:  # a traceback would exit with 1, which says "wrong"
            raise InputError(f"the check itself failed: {type(error).__name__}: {error}") from error
        print(json.dumps(report.to_dict(), indent=2) if options.json else report)
        if options.heat_map and report.pictures:
            print(f"heat map: {report.heat_map(options.heat_map)}", file=sys.stderr)
    return 0 if report.ok else 1


def _report(options: argparse.Namespace) -> Report:
    target = load(options.target)
    rng = np.random.default_rng(options.seed)
    report = check_gradients(
        target,
        *(make_argument(text, rng) for text in options.arg),
        gradient=_beside(options, "gradient"),
        torch=_beside(options, "torch"),
        reference=_beside(options, "reference"),
        samples=options.samples,
        seed=options.seed,
        budget=options.budget,
    )
    if not isinstance(target, Layer | Loss | type):
        report.target = options.target.rpartition(":")[2]
    return report


def _beside(options: argparse.Namespace, name: str) -> Any:
    """The object that an option names: where it says, or by its bare name in the target's own file."""
    where = getattr(options, name)
    if where is None:
        return None
    try:
        return load(where if ":" in where else f"{options.target.rpartition(':')[0]}:{where}")
    except InputError as error:
        raise InputError(f"--{name}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "jaxbp check",
        description="Check a hand-written gradient, and say what is wrong with it. "
        "Exit code: 0 right, 1 wrong or nothing tested, 2 could not run.",
    )
    parser.add_argument(
        "target", help="module:object or path/to/file.py:object (a layer, a loss, a function, a pair)"
    )
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="SPEC",
        help='"f32[8,16]" (random normal), "i32[8]<10" (integers below 10), a number, or module:object',
    )
    parser.add_argument(
        "--gradient",
        metavar="WHERE",
        help="the hand-written gradient of a plain function (a bare name: in the target's file)",
    )
    parser.add_argument(
        "--torch",
        metavar="WHERE",
        help="a torch function whose backward pass is checked against the plain function's derivative",
    )
    parser.add_argument("--reference", metavar="WHERE", help="another function to be the truth")
    parser.add_argument("--samples", type=int, default=3, help="points near the arguments (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=BUDGET, help="gradient evaluations of a diagnosis")
    parser.add_argument("--x64", action="store_true", help="with float64 on, as if by jax_enable_x64")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--heat-map",
        type=Path,
        metavar="PATH",
        help="a picture of the worst wrong leaf: a folder, or a file ending in .png",
    )
    return parser


def load(where: str) -> Any:
    """The object at `module:object` or `path/to/file.py:object`, or `InputError`."""
    place, separator, name = where.rpartition(":")
    if not separator or not place or not name:
        raise InputError(f"expected module:object or path/to/file.py:object, got {where!r}")
    if place.endswith(".py"):
        module = _file(Path(place))
    elif "/" in place or Path(place).is_file():
        raise InputError(f"{place} is not a .py file")
    else:
        module = _module(place)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in vars(module) if not n.startswith("_")]
            raise InputError(f"{place} has no {name!r} (it has {', '.join(names[:12])})")
        value = getattr(value, part)
    return value


def _module(name: str) -> Any:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InputError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")


def _file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"cannot run {path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def make_argument(text: str, rng: np.random.Generator) -> Any:
    """`f32[8,16]`, `i32[8]<10`, `2.5`, `3` or `module:object` as an argument."""
    match = PATTERN.match(text.strip())
    if match:
        dtype = DTYPES.get(match["dtype"], match["dtype"])
        try:
            dtype = jnp.dtype(dtype)
        except TypeError:
            raise InputError(
                f"--arg {text!r}: unknown dtype {match['dtype']!r} (one of {', '.join(DTYPES)})"
            ) from None
        shape = tuple(int(n) for n in match["shape"].split(",") if n.strip())
        if jnp.issubdtype(dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(shape), dtype)
        return jnp.asarray(rng.integers(0, int(match["below"] or 2), shape), dtype)
    if ":" in text:
        value = load(text)
        return value() if callable(value) and not hasattr(value, "shape") else value
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)
    except ValueError:
        raise InputError(
            f'--arg {text!r}: expected "f32[8,16]", "i32[8]<10", a number or module:object'
        ) from None
