"""The README's promises that can be run: its Python blocks as one program, its files and commands."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import jax
import pytest

import jaxbp
from jaxbp.cli import main

ROOT = Path(jaxbp.__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "jaxbp/README.md"])
@pytest.mark.usefixtures("unchecked")
def test_the_code_of_the_readme_runs(page: str, capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", (ROOT / page).read_text(), flags=re.S | re.M)
    assert blocks
    indent = re.match(r" *", blocks[0]).group()
    program = "\n".join(re.sub(f"^{indent}", "", block, flags=re.M) for block in blocks)
    standard = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), standard[0], standard[1]:
        exec(compile(program, page, "exec"), {"__name__": "readme"})
    expected = re.findall(r"# prints (.*)", program)
    assert capsys.readouterr().out.splitlines() == expected


def section_of_ones_own() -> str:
    text = (ROOT / "README.md").read_text()
    return text.split("## Your own data, network and runs\n")[1].split("\n## ")[0]


# Of every run; what the configs ask for takes longer, and their networks are trained elsewhere.
SHORT = ["--train.epochs", "1", "--train.no-prove", "--train.drop-last"]
SMALL = {
    "own_images": ["--model.name", "mlp", "--model.hidden", "8"],
    "own_text": ["--data.length", "16", "--data.train-bytes", "640", "--data.test-bytes", "640"],
}


@pytest.mark.usefixtures("unchecked")
def test_ones_own_data_network_and_runs(tmp_path, monkeypatch, capsys) -> None:
    """In an empty folder, as somebody who has only the README: its files, and its commands on them."""
    pytest.importorskip("PIL")
    section = section_of_ones_own()
    blocks = re.findall(r"^```(python file=(\S+)|sh)\n(.*?)^```", section, flags=re.S | re.M)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    ran, standard = [], (jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"))
    for kind, name, body in blocks:
        if kind != "sh":
            (tmp_path / name).write_text(body)
            continue
        for line in body.splitlines():
            program, *argv = shlex.split(line, comments=True)
            ran.append((program, argv[0]))
            with jax.enable_x64(False), standard[0], standard[1]:
                if program == "python":
                    runpy.run_path(argv[0], run_name="__main__")
                else:
                    assert program == "jaxbp"
                    short = SHORT + SMALL.get(argv[1], []) if argv[0] == "train" else []
                    assert main(argv + short) == 0, line
    sys.modules.pop("my_net", None)
    assert len(ran) == len(re.findall(r"^(?:python|jaxbp) ", section, flags=re.M))
    assert {("python", "check.py"), ("jaxbp", "predict"), ("jaxbp", "sample")} <= {*ran}
    out = capsys.readouterr().out
    assert "row,class,probability" in out
    assert "file,class,probability" in out
    assert "('setosa', 'versicolor', 'virginica')" in out


def test_the_fields_and_configs_that_the_section_names_are_there() -> None:
    from jaxbp.app.config import REGISTRIES, SECTIONS, listed_configs
    from jaxbp.app.data import Dataset
    from jaxbp.app.schema import names

    text = section_of_ones_own()
    for section, field in re.findall(r"`(data|train|model|optimizer|run)\.(\w+)(?:`| = )", text):
        kinds = REGISTRIES.get(section, {"": SECTIONS[section]}).values()
        known = {name for kind in kinds for name in names(kind)} | set(dir(Dataset))  # what `build` sees
        assert field in known | {"outputs"}, f"{section}.{field}"
    assert {*re.findall(r"jaxbp train ([a-z]\w+)", text)} <= {*listed_configs()}
