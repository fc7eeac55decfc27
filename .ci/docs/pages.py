"""The pages of the documentation, from what the repository already says: a hook of mkdocs.

The READMEs are its guides, `__all__` and the docstrings its reference; the tables of the configs and of
the checker's causes are asked of the code; the notes are the pages that `experiments/notes.py` computes.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import runpy
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

GUIDES = {  # page: the file that it is, relative to the checkout
    "index.md": "README.md",
    "reading.md": "jaxbp/README.md",
    "check.md": "jaxbp/check/README.md",
    "explain.md": "jaxbp/explain/README.md",
    "beyond.md": "jaxbp/beyond/README.md",
    "bench.md": "jaxbp/bench/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
TITLES = {
    "index.md": "jaxbp",
    "reading.md": "Reading the code, adding a layer",
    "check.md": "How the checker works",
    "explain.md": "How a weight is explained",
    "beyond.md": "Beyond the gradient",
    "bench.md": "The bench",
    "contributing.md": "Contributing",
    "changelog.md": "Changes",
}
REFERENCE = {  # page: its title, and the modules whose public names are on it
    "contract.md": ("The contract", ("jaxbp.layer",)),
    "combinators.md": ("Combinators", ("jaxbp.compose", "jaxbp.graph", "jaxbp.recompute")),
    "layers.md": ("Layers", ("jaxbp.layers",)),
    "losses.md": ("Losses", ("jaxbp.losses",)),
    "models.md": ("Models", ("jaxbp.models",)),
    "training.md": ("Training", ("jaxbp.train.step", "jaxbp.train.sweep", "jaxbp.precision")),
    "runs.md": ("Runs, weights, tables", ("jaxbp.app.run", "jaxbp.weights", "jaxbp.summary")),
    "checking.md": (
        "Checking",
        ("jaxbp.check.verify", "jaxbp.check.report", "jaxbp.check.sensitivity", "jaxbp.check.nonfinite"),
    ),
    "explaining.md": ("Explaining", ("jaxbp.explain",)),
    "oracle.md": ("In and out of autodiff", ("jaxbp.bridge", "jaxbp.oracle")),
    "quantities.md": ("Quantities beyond the gradient", ("jaxbp.beyond",)),
}
IMAGE = re.compile(r"\]\((?:\.\./)*(experiments/images/[\w.]+)\)")
FILE = re.compile(r"`([\w/]*\w+\.md)`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    guides = [{TITLES[page]: page} for page in GUIDES if page != "index.md"]
    reference = [{title: page} for page, (title, _) in REFERENCE.items()]
    config.nav = [
        {"jaxbp": "index.md"},
        {"The notes": "notes.md"},
        {"Guides": guides},
        {"Reference": [*reference, {"Causes of a wrong gradient": "causes.md"}]},
        {"Fields of a config": "config.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def page(name: str, text: str) -> None:
        files.append(File.generated(config, name, content=text))

    for name, source in GUIDES.items():
        page(name, _guide(source))
    for name, (title, modules) in REFERENCE.items():
        page(name, "\n".join(_reference(title, modules)))
    page("causes.md", "\n".join(_causes()))
    page("config.md", "\n".join(_config()))
    for image in (ROOT / "experiments/images").glob("*.png"):
        source = f"experiments/images/{image.name}"
        files.append(File.generated(config, source, abs_src_path=str(image)))
    for name, text in _notes().items():
        page(name, text)
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Formulas with their indices: `w_ij` in a line, and what is set apart without being Python."""
    return re.sub(r"<code>([^<]*)</code>", lambda found: f"<code>{_indices(found[1])}</code>", content)


def _indices(text: str) -> str:
    """One letter, then `_` and one or two more or a group in braces: an index; `^` a power."""
    letter = r"(?<![\w.])([A-Za-zα-ωΑ-Ω∂ŷΣ]̂?)"
    text = re.sub(letter + r"_(?:\{([^}]+)\}|([A-Za-z0-9]{1,3})\b(?![(\w]))", _subscript, text)
    return re.sub(r"\^(?:\{([^}]+)\}|(\w)\b)", lambda m: f"<sup>{m[1] or m[2]}</sup>", text)


def _subscript(found: re.Match[str]) -> str:
    return f"{found[1]}<sub>{found[2] or found[3]}</sub>"


def _guide(source: str) -> str:
    """A README as a page: its pictures, and the other READMEs that it names, are where they are now."""
    pages = {file: page for page, file in GUIDES.items()}

    def link(found: re.Match[str]) -> str:
        named = found[1] if found[1] in pages else f"jaxbp/{found[1]}"
        return f"[`{found[1]}`]({pages[named]})" if named in pages else found[0]

    text = (ROOT / source).read_text(encoding="utf-8")
    return FILE.sub(link, IMAGE.sub(r"](\1)", text))


def _public(module: str) -> list[str]:
    import jaxbp

    named = jaxbp._HOMES.get(module, "").split()  # as `bp.NAME`
    every = getattr(importlib.import_module(module), "__all__", [])
    return sorted({*named, *(name for name in every if name[:1].isalpha())}, key=str.lower)


def _reference(title: str, modules: Iterable[str]) -> Iterator[str]:
    """An index of the names with a line each, then each with its docstring."""
    entries = [(module, name) for module in modules for name in _public(module)]
    yield from (f"# {title}", "", "| name | what it is |", "| --- | --- |")
    for module, name in entries:
        found = getattr(importlib.import_module(module), name)
        yield f"| [`{name}`][{module}.{name}] | {_first_line(found)} |"
    for module, name in entries:
        yield from ("", f"::: {module}.{name}")
        if module == "jaxbp.layer":  # whose methods are the contract
            yield from ("    options:", '      filters: ["!^_"]')


def _first_line(found: Any) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0].rstrip(":").replace("|", "\\|")


def _causes() -> Iterator[str]:
    from jaxbp.check.report import ADVICE

    yield from ("# Causes of a wrong gradient", "", "What a finding of `check_gradients` is called, and")
    yield from ("what to do about it.", "", "| cause | advice |", "| --- | --- |")
    for cause, advice in ADVICE.items():
        yield f"| `{cause}` | {advice} |"


def _config() -> Iterator[str]:
    """Every section and every kind of data, model and optimizer, with its fields."""
    import msgspec

    from jaxbp.app.config import REGISTRIES, SECTIONS, Config
    from jaxbp.app.schema import describe, meanings, names, summary

    yield from ("# Fields of a config", "", "`--section.field` on the command line, `field = …` under")
    yield from ("`[section]` in a file. `jaxbp new NAME my.toml` writes a config to start from.", "")
    for section in SECTIONS:
        kinds = REGISTRIES.get(section)
        yield from ("", f"## [{section}]", "")
        for name, cls in (kinds or {"": names(Config)[section]}).items():
            if kinds:
                yield from ("", f"### {section}.name = {name!r}", "", summary(cls), "")
            told = meanings(cls)
            yield from ("| field | | default | meaning |", "| --- | --- | --- | --- |")
            for field in msgspec.structs.fields(cls):
                shown = "" if field.default is msgspec.NODEFAULT else f"`{field.default!r}`"
                row = (f"`{field.name}`", describe(field.type), shown, told.get(field.name, ""))
                yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _notes() -> dict[str, str]:
    """The lecture notes' explanation as its own pages, and a page that leads there."""
    from jaxbp.explain.notes import notes_report

    with tempfile.TemporaryDirectory() as folder:
        argv, sys.argv = sys.argv, ["notes.py", folder]
        try:
            with contextlib.redirect_stdout(None):
                runpy.run_path(str(ROOT / "experiments/notes.py"), run_name="__main__")
        finally:
            sys.argv = argv
        pages = {f"notes/{p.name}": p.read_text(encoding="utf-8") for p in Path(folder).glob("*.html")}
    links = "The notes from top to bottom are [one page](notes/notes.html); the worked example is "
    links += "[another, to click through](notes/network.html)."
    text = f"# The notes\n\n{links}\n\n```text\n{notes_report(k=4)}\n```\n"
    return {"notes.md": text, **pages}
