"""Strict structs: from plain values to a frozen struct, with errors that name the field.

Every section of a config is a `msgspec.Struct` whose field types say what is possible
(`Positive = Annotated[int, Meta(ge=1)]`); `build` turns a dictionary into one, and anything wrong is one
line: `configs/x.toml: train.epochs: expected a positive integer, got "ten"`.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from jaxbp.layer import InputError

Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]

OWN = "module:function"  # the name in a registry under which one's own goes

Origin = Callable[[str], str]
"""From a field's path (`train.epochs`) to what an error calls it (`configs/x.toml: train.epochs`)."""

T = TypeVar("T")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a config."""


def names(cls: type) -> dict[str, Any]:
    """The fields of a struct with their types."""
    return {field.name: field.type for field in msgspec.structs.fields(cls)}


def build(cls: type[T], raw: Any, origin: Origin, path: str = "") -> T:
    """`raw` as a `cls`, or an `InputError` that names the first field that is wrong."""
    if not isinstance(raw, Mapping):
        raise InputError(f"{origin(path)}: expected a section [{path}], got {show(raw)}")
    types = names(cls)
    for key in raw:
        if key not in types:
            raise InputError(unknown(origin(join(path, key)), "field", key, types))
    values = {key: one(types[key], raw[key], origin(join(path, key))) for key in raw}
    return cls(**values)


def one(kind: Any, value: Any, what: str, strict: bool = True) -> Any:
    """`value` as the annotated type `kind`; with `strict=False`, from the text of a flag."""
    try:
        result = msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError:
        result = None
    if result is None or (isinstance(result, float) and not math.isfinite(result)):
        raise InputError(f"{what}: expected {describe(kind)}, got {show(value)}")
    return result


def join(path: str, key: str) -> str:
    """`train`, `epochs` → `train.epochs`."""
    return f"{path}.{key}" if path else key


def unknown(what: str, noun: str, got: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the closest one that does."""
    known = list(known)
    close = difflib.get_close_matches(got, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"expected one of {', '.join(known)}"
    return f"{what}: unknown {noun}; {hint}"


def choose(registry: Mapping[str, type[T]], raw: Any, what: str) -> type[T]:
    """The struct that `raw["name"]` names in a registry."""
    name = raw.get("name", next(iter(registry))) if isinstance(raw, Mapping) else raw
    if OWN in registry and isinstance(name, str) and re.fullmatch(r"[\w.]+:\w+", name):
        return registry[OWN]
    if not isinstance(name, str) or name not in registry:
        close = difflib.get_close_matches(str(name), registry, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise InputError(f"{what}: expected one of {', '.join(registry)}, got {show(name)}{hint}")
    return registry[name]


def describe(kind: Any) -> str:
    """An annotated type in words: `a positive integer`."""
    meta = None
    if get_origin(kind) is Annotated:
        kind, meta = get_args(kind)[:2]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        words = describe(get_args(kind)[0]).split(" ")[1:]  # without the article
        at = next((i for i, word in enumerate(words) if word in ("integer", "number", "text")), 0)
        words[at] += "s"
        return "a list of " + " ".join(words)
    if kind is bool:
        return "true or false"
    if kind is str:
        return "a text"
    noun = "integer" if kind is int else "number"
    limits = {} if meta is None else {"> ": meta.gt, ">= ": meta.ge, "< ": meta.lt, "<= ": meta.le}
    shown = [f"{sign}{limit:g}" for sign, limit in limits.items() if limit is not None]
    if shown in (["> 0"], [">= 1"]):
        return f"a positive {noun}"
    article = "an" if kind is int else "a"
    return " ".join([article, noun, " and ".join(shown)]).strip()


def show(value: Any) -> str:
    """A value as TOML would write it: `"ten"`, `true`, `[1, 2]`."""
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, Mapping):
        return "a section"
    return repr(value)


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of plain values as TOML text."""
    parts = []
    for section, values in sections.items():
        lines = [f"{key} = {show(value)}" for key, value in values.items()]
        parts.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(parts) + "\n"


# --- what a config says of itself ---------------------------------------------------------------------


def meanings(cls: type) -> dict[str, str]:
    """Of every field of a section, the text below it in the source, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (isinstance(base, type) and issubclass(base, Section)):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return {name: found.get(name, "") for name in names(cls)}


def summary(cls: type) -> str:
    """The first line of what a kind says of itself."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]


def commented_toml(sections: Mapping[str, Any], registries: Mapping[str, Mapping[str, type]]) -> str:
    """Sections as TOML: every field with its meaning, its choices, and its default if it has another."""
    parts = []
    for section, struct in sections.items():
        cls = type(struct)
        texts, types = meanings(cls), names(cls)
        defaults = {field.name: field.default for field in msgspec.structs.fields(cls)}
        lines = [f"# {summary(cls)}", f"[{section}]"]
        for key, value in msgspec.structs.asdict(struct).items():
            kinds = registries.get(section, {}) if key == "name" else {}
            allowed = ", ".join(kinds) or _choices(types[key])
            said = f"{texts[key]}; one of {allowed}" if allowed else texts[key]
            other = "" if value == defaults[key] or kinds else f" (default: {show(defaults[key])})"
            lines += [f"# {line}" for line in textwrap.wrap(said + other, 98)]
            lines.append(f"{key} = {show(value)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _choices(kind: Any) -> str:
    return ", ".join(get_args(kind)) if get_origin(kind) is Literal else ""
