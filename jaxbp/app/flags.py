"""Flags: every field of a config as `--section.field`, through `tyro`, with one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from jaxbp.app.config import REGISTRIES, SECTIONS, Config, from_sections, listed_configs
from jaxbp.app.schema import choose, names, one, summary, unknown
from jaxbp.layer import InputError

HELP = ("-h", "--help")
KIND = re.compile(r"(data|model|optimizer)\.name=\S+")  # after --help, as one would write it in a config

SWITCHES = {  # flags that are no field of a config
    "resume": "go on with the run in this folder, from its last checkpoint",
    "resume_on_other_data": "the same on data that is not what the run began with",
    "print_config": "print the config as TOML, every field with its meaning, and train nothing",
}


@dataclasses.dataclass(frozen=True)
class Resume:
    """Whether a run is to go on, and whether on data that is not its own; true if it is to."""

    asked: bool = False
    on_other_data: bool = False

    def __bool__(self) -> bool:
        return self.asked or self.on_other_data


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command line asks for besides a config."""

    resume: Resume
    print_config: bool = False


def override(config: Config, argv: Sequence[str], where: str) -> tuple[Config, Asked]:
    """`(config with the flags in argv, what else they ask)`; `where` is the name of the config's file."""
    import tyro

    helping = any(token in HELP for token in argv)
    argv = [f"--{token}" if helping and KIND.fullmatch(token) else token for token in argv]
    given = [_flag(token) for token in argv if token.startswith("--")]
    config = _switch(config, argv)
    # One struct with the kinds that were chosen, so that their own fields become flags too.
    fields: Any = [(name, type(getattr(config, name))) for name in SECTIONS]
    space = {"__doc__": Config.__doc__}
    switches: Any = [
        (name, Annotated[bool, tyro.conf.arg(help=text), tyro.conf.FlagCreatePairsOff], False)
        for name, text in SWITCHES.items()
    ]
    cls = msgspec.defstruct("Flags", [*fields, *switches], namespace=space, kw_only=True)
    default = cls(**{name: getattr(config, name) for name in SECTIONS})
    if helping:
        about = f"{Config.__doc__} By name: {', '.join(sorted(listed_configs()))}."
        try:
            tyro.cli(
                cls, default=default, args=["--help"], prog="jaxbp train [CONFIG]", description=about
            )
        finally:  # tyro ends the process, and its help knows no kinds but those chosen
            print(_kinds())
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parsed: Any = tyro.cli(cls, default=default, args=list(argv), prog="jaxbp train")
    except SystemExit:
        _explain(config, argv)
        raise InputError(f"{' '.join(argv)}: not understood; see jaxbp train --help") from None

    def origin(field: str) -> str:
        return f"--{field}" if field in given else f"{where}: {field}" if where else field

    raw = {name: msgspec.structs.asdict(getattr(parsed, name)) for name in SECTIONS}
    return from_sections(raw, origin), Asked(
        Resume(parsed.resume, parsed.resume_on_other_data), parsed.print_config
    )


def _kinds() -> str:
    """What every `name` may be, with a line each."""
    lines = []
    for section, registry in REGISTRIES.items():
        lines.append(f"--{section}.name is one of")
        width = max(map(len, registry))
        for name, cls in registry.items():
            text = textwrap.wrap(summary(cls), 76 - width)
            lines += [f"  {name:<{width}}  {text[0]}", *(f"  {'':<{width}}  {more}" for more in text[1:])]
        lines.append("")
    return "\n".join(lines) + "The fields of a kind: jaxbp train --help data.name=file"


def _flag(token: str) -> str:
    """`--train.stop-below=1` → `train.stop_below`."""
    path = token[2:].split("=", 1)[0].replace("-", "_")
    section, _, field = path.partition(".")
    return f"{section}.{field.removeprefix('no_')}" if field else section


def _switch(config: Config, argv: Sequence[str]) -> Config:
    """`--model.name other` replaces the section by the other kind's, with the fields that both have."""
    for i, token in enumerate(argv):
        section = _flag(token).removesuffix(".name")
        if not token.startswith("--") or section not in REGISTRIES or not _flag(token).endswith(".name"):
            continue
        name = token.split("=", 1)[1] if "=" in token else "".join(argv[i + 1 : i + 2])
        kind = choose(REGISTRIES[section], {"name": name}, f"--{section}.name")
        old = getattr(config, section)
        if kind is not type(old):
            shared = {k: v for k, v in msgspec.structs.asdict(old).items() if k in names(kind)}
            config = msgspec.structs.replace(config, **{section: kind(**(shared | {"name": name}))})
    return config


def _explain(config: Config, argv: Sequence[str]) -> None:
    """Raise the `InputError` for the first flag that is wrong."""
    known: dict[str, Any] = dict.fromkeys(SWITCHES, bool)
    for section in SECTIONS:
        kinds = names(type(getattr(config, section)))
        known |= {f"{section}.{field}": kind for field, kind in kinds.items()}
    groups = _groups(argv)
    for token, values in groups:
        field = _flag(token)
        if not token.startswith("--"):
            raise InputError(f"{token}: expected a flag such as --train.epochs 40 (CONFIG comes first)")
        section, _, name = field.partition(".")
        if section in SECTIONS and name and field not in known:
            kinds = names(type(getattr(config, section)))
            raise InputError(unknown(f"--{field}", "flag", name, kinds))
        if field not in known:
            raise InputError(unknown(f"--{field}", "flag", field, known))
        kind = known[field]
        if kind is bool and values:
            raise InputError(
                f"--{field}: expected no value (--{field} or its --no- form), got {values[0]!r}"
            )
        if kind is bool:
            continue
        if msgspec.inspect.type_info(kind).__class__.__name__ == "VarTupleType":
            one(kind, values, f"--{field}", strict=False)
        elif len(values) != 1:
            raise InputError(f"--{field}: expected one value, got {len(values)}")
        else:
            one(kind, values[0], f"--{field}", strict=False)


def _groups(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Every flag with the values that follow it."""
    groups: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--") or not groups:
            head, _, value = token.partition("=")
            groups.append((head, [value] if value else []))
        else:
            groups[-1][1].append(token)
    return groups
