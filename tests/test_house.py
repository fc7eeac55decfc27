"""The rules of the house that a script can see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxbp

ROOT = Path(jaxbp.__file__).parent
AUTODIFF = {
    "grad",
    "value_and_grad",
    "vjp",
    "jvp",
    "linearize",
    "linear_transpose",
    "jacobian",
    "jacrev",
    "jacfwd",
    "hessian",
    "custom_vjp",
    "custom_jvp",
    "custom_gradient",
    "checkpoint",
    "remat",
    "saved_residuals",
    "defvjp",
    "defjvp",
}


def autodiff_names(source: str) -> list[str]:
    """Uses of autodiff in a module: attributes of `jax`, or names imported from it."""
    tree, found = ast.parse(source), []
    imported: set[str] = set()
    modules = {"jax"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                (a.asname or a.name).split(".")[0] for a in node.names if a.name.startswith("jax")
            }
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
            imported |= {a.asname or a.name for a in node.names if a.name in AUTODIFF}
            modules |= {a.asname or a.name for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in AUTODIFF:
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in modules - {"jaxbp"}:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Name) and node.id in imported:
            found.append(f"line {node.lineno}: {node.id}")
    return found


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_autodiff_is_the_oracle_never_the_engine(path: Path) -> None:
    inside = path.relative_to(ROOT)
    if inside.parts[0] == "check" or inside.name == "bridge.py":
        return
    assert autodiff_names(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import jax\ng = jax.grad(f)",
        "import jax as j\ng = j.vjp(f, 1.0)",
        "from jax import grad\ng = grad(f)",
        "from jax import value_and_grad as vg\ng = vg(f)",
        "import jax.ad_checkpoint\ng = jax.ad_checkpoint.checkpoint(f)",
        "@jax.custom_vjp\ndef f(x): pass\nimport jax",
    ],
)
def test_the_search_for_autodiff_finds(source: str) -> None:
    assert autodiff_names(source)


def test_the_search_leaves_our_own_names_alone() -> None:
    assert autodiff_names("from jaxbp import value_and_grad\nstep = value_and_grad(net, loss)") == []


def test_only_public_jax() -> None:
    for path in MODULES:
        for private in ("jax._src", "jax.interpreters"):
            assert private not in path.read_text(), f"{path}: {private}"


def test_import_needs_only_the_core_packages() -> None:
    """The optional packages are imported where they are used, not by `import jaxbp`."""
    script = (
        "import sys, jaxbp\nprint(*sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    )
    optional = [
        "msgspec",
        "tyro",
        "rich",
        "matplotlib",
        "orbax",
        "safetensors",
        "sklearn",
        "grain",
        "torch",
    ]
    result = subprocess.run(
        [sys.executable, "-c", script, *optional],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    assert result.stdout.split() == []


def test_import_brings_in_what_training_needs_and_no_more() -> None:
    """A measured time varies; what is imported does not. The rest comes when it is asked for."""
    script = """
import sys, jax, optax, chex
before = set(sys.modules)
import jaxbp
print(*sorted(set(sys.modules) - before))
assert {"check_gradients", "explain_weight", "Dense"} <= set(dir(jaxbp))
jaxbp.check_gradients, jaxbp.explain_weight
assert {"jaxbp.check", "jaxbp.explain"} <= set(sys.modules)
"""
    run = [sys.executable, "-c", script]
    result = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    new = result.stdout.split()
    assert {name.split(".")[0] for name in new} <= {"jaxbp", "jaxtyping", "jax", "numpy", "wadler_lindig"}
    ours = {name.split(".")[1] for name in new if name.startswith("jaxbp.")}
    assert ours == {
        "bridge",
        "compose",
        "graph",
        "integers",
        "layer",
        "layers",
        "losses",
        "precision",
        "record",
        "summary",
        "train",
    }
    assert len(new) < 80


def test_the_public_names_are_documented_and_sorted() -> None:
    for name in jaxbp.__all__:
        assert getattr(jaxbp, name).__doc__, f"{name} has no docstring"
    assert len(set(jaxbp.__all__)) == len(jaxbp.__all__)
