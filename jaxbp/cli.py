"""The `jaxbp` command: a table of subcommands, each imported only when it is called for.

Exit codes: 0 done, 1 the command's own "no" (a wrong gradient, say), 2 bad input, 130 interrupted. Bad
input is an `InputError` anywhere below: it is printed as one line, without a traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

COMMANDS = {
    #  name       module:function(argv) -> exit code     what it does
    "train": ("jaxbp.app.command:train", "train a network from a config and write a run folder"),
    "new": ("jaxbp.app.command:new", "write a config to start from, with every field and its meaning"),
    "evaluate": ("jaxbp.app.results:evaluate", "reload a run and report on its held-out data"),
    "predict": ("jaxbp.app.results:predict", "run a trained network on new inputs"),
    "sample": ("jaxbp.app.sample:sample", "let a trained network go on with a text"),
    "check": ("jaxbp.check.command:check", "check a hand-written gradient and say what is wrong with it"),
    "bench": ("jaxbp.bench.command:bench", "time the backward passes beside their rivals"),
    "runs": ("jaxbp.app.results:runs", "list the runs in a folder"),
    "explain": ("jaxbp.explain.command:explain", "why a weight has the gradient that it has"),
    "exercises": ("jaxbp.explain.command:exercises", "write backward passes, with hints"),
}

# What the commands import beyond the base install (the extra `train`), by the name that pip knows it by.
PACKAGES = {
    "msgspec": "msgspec",
    "tyro": "tyro",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's arguments) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"jaxbp {import_module('jaxbp').__version__}")
        return 0
    return _run(argv[0], argv[1:])


def _run(name: str, rest: list[str]) -> int:
    """Call a command; what is imported here brings in JAX, for which `--help` does not wait."""
    from jaxbp.bad_input import InputError

    try:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"unknown command {name!r}{hint} (commands: {', '.join(COMMANDS)})")
        module, function = COMMANDS[name][0].split(":")
        return getattr(import_module(module), function)(rest)
    except InputError as error:
        print(f"jaxbp: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # a base install; at the start, or once the package is needed
        if (error.name or "").split(".")[0] not in PACKAGES:
            raise
        print(f"jaxbp: error: {not_installed(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxbp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`| head`) has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def not_installed(error: ModuleNotFoundError) -> str:
    """Which package is missing, and what installs it with the others that the commands use."""
    package = PACKAGES[str(error.name).split(".")[0]]
    others = [name for module, name in PACKAGES.items() if name != package and not find_spec(module)]
    return (
        f"this command needs the package {package!r}, which is not installed: pip install "
        f"{' '.join([package, *others])} (or, in a checkout of jaxbp: pip install '.[train]')"
    )


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: jaxbp COMMAND …\n\nBackpropagation written by hand in JAX, proven, and fast.\n\n"
        f"{rows}\n\n'jaxbp COMMAND --help' shows the options of a command."
    )


if __name__ == "__main__":
    sys.exit(main())
