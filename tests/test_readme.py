"""The README's promises that can be run: its Python blocks, in order, as one program."""

import re
from pathlib import Path

import jax
import pytest

import jaxbp

ROOT = Path(jaxbp.__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "jaxbp/README.md"])
@pytest.mark.usefixtures("unchecked")
def test_the_code_of_the_readme_runs(page: str, capsys: pytest.CaptureFixture) -> None:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", (ROOT / page).read_text(), flags=re.S | re.M)
    assert blocks
    indent = re.match(r" *", blocks[0]).group()
    program = "\n".join(re.sub(f"^{indent}", "", block, flags=re.M) for block in blocks)
    imports = "from dataclasses import dataclass\nimport jax.numpy as jnp\nfrom jaxbp import *\n"
    standard = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), standard[0], standard[1]:
        exec(compile(imports + program, page, "exec"), {"__name__": "readme"})
    expected = re.findall(r"# prints (.*)", program)
    assert capsys.readouterr().out.splitlines() == expected
