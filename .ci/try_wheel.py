"""Try what `python -m build` made: `python .ci/try_wheel.py dist`.

The wheel and the sdist hold what they should and nothing else, and in a fresh environment outside the
checkout, in an empty folder, the base install imports and the command trains from a config by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AT_THE_TOP = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt"}


def files(folder: str, pattern: str = "*") -> set[str]:
    """The checkout's files in a folder, without what running it leaves there."""
    found = (path for path in (ROOT / folder).rglob(pattern) if path.is_file())
    return {p.relative_to(ROOT).as_posix() for p in found if p.parent.name != "__pycache__"}


def compare(what: str, found: set[str], expected: set[str]) -> None:
    """Stop with the files that are missing and those that are too many."""
    if found != expected:
        sys.exit(f"{what}: missing {sorted(expected - found)}, not expected {sorted(found - expected)}")
    print(f"{what}: {len(found)} files, as expected")


def check_contents(wheel: Path, sdist: Path) -> None:
    shipped = {f"jaxbp/{name}" for name in files("configs", "*.toml")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compare(wheel.name, names, files("jaxbp") | shipped)
    with tarfile.open(sdist) as archive:
        members = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in members if name.startswith("jaxbp.egg-info/"))}
    build = {"MANIFEST.in", "pyproject.toml", "setup.py"}
    tree = set().union(*map(files, (".ci", "jaxbp", "configs", "experiments", "tests")))
    compare(sdist.name, members - made, tree | AT_THE_TOP | build)


def run(*command: object, expected: int = 0, cwd: Path) -> str:
    """What a command printed; stop if it ends in another way than expected."""
    argv = list(map(str, command))
    print("$", *argv, flush=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(argv, cwd=cwd, env=env, **pipe)
    if done.returncode != expected:
        sys.exit(f"{done.stdout}\nexit code {done.returncode}, expected {expected}")
    return done.stdout


def check_install(wheel: Path, folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    venv.create(folder / "venv", with_pip=True)
    python, jaxbp = (folder / "venv" / "bin" / name for name in ("python", "jaxbp"))
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--constraint",
        ROOT / "constraints.txt",
    ]

    run(*pip, wheel, cwd=empty)
    run(python, "-c", "import jaxbp; print(jaxbp.__file__)", cwd=empty)
    said = run(jaxbp, "train", expected=2, cwd=empty)
    assert said.startswith("jaxbp: error: this command needs the package"), said

    run(*pip, f"{wheel}[train]", cwd=empty)
    said = run(jaxbp, "train", "none", expected=2, cwd=empty)
    assert all(path.stem in said for path in (ROOT / "configs").glob("*.toml")), said
    print(run(jaxbp, "train", "digits_lenet", "--train.epochs", "1", cwd=empty))
    print(run(jaxbp, "evaluate", "runs/digits_lenet", cwd=empty))
    run(jaxbp, "explain", "runs/digits_lenet", "--html", "page.html", cwd=empty)
    assert "<html" in (empty / "page.html").read_text(encoding="utf-8")


def main(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as folder:
        check_install(wheel.resolve(), Path(folder))
    print(f"{wheel} installs, imports and trains")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
