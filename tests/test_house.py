"""The rules of the house that a script can see."""

import ast
import subprocess
import sys
from importlib import import_module
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
    if inside.parts[0] in ("check", "oracle") or str(inside) == "bridge.py":
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


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(source: str, modules: set[str]) -> set[str]:
    """The modules that a file imports: at its top, in its functions, and for its types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say where from: no dots"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & modules) or {str(node.module)}
            found |= {str(node.module)} if inner - modules else set()
    return found & modules


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Modules that import each other, in a circle of any length: those that reach themselves."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = imports[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {name: reached(name) for name in imports}
    found: list[set[str]] = []
    for name, seen in reach.items():
        circle = {other for other in seen if name in reach[other]}
        if name in seen and circle not in found:
            found.append(circle)
    return found


# They fall away with the checker's own issue.
CIRCLES_IN_CHECK = [
    {"report", "show"},
    {"contract", "differences", "far", "network", "nonfinite_ops", "verdict", "verify"},
]
FILES = {module_name(path): path for path in MODULES}
IMPORTS = {name: imported_by(path.read_text(), set(FILES)) for name, path in FILES.items()}


def test_no_two_files_import_each_other() -> None:
    known = [{f"jaxbp.check.{name}" for name in circle} for circle in CIRCLES_IN_CHECK]
    assert [sorted(circle) for circle in circles(IMPORTS) if circle not in known] == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a": "import b", "b": "import c", "c": "def f():\n    import a"}, [{"a", "b", "c"}]),
        ({"a": "from p import b", "p": "", "p.b": "if TYPE_CHECKING:\n    import a"}, [{"a", "p.b"}]),
        ({"a": "from b import f", "b": "import c", "c": ""}, []),
        ({"a": "from p import f", "p": "from p.b import f", "p.b": "import a"}, [{"a", "p", "p.b"}]),
    ],
)
def test_the_search_for_circles_finds(sources: dict[str, str], expected: list[set[str]]) -> None:
    assert circles({n: imported_by(text, set(sources)) for n, text in sources.items()}) == expected


@pytest.mark.parametrize("part", ["train", "app", "oracle", "layers", "compose", "record", "models"])
def test_the_checker_and_the_explanations_stand_on_the_others(part: str) -> None:
    own = [name for name in FILES if name.split(".")[1:2] == [part]]
    assert own
    for name in own:
        above = {other for other in IMPORTS[name] if other.split(".")[1:2] in (["check"], ["explain"])}
        assert above == set(), name


def test_the_library_does_not_know_the_application() -> None:
    """A config, a run folder and a page belong to `app`; a step and an epoch know nothing of them."""
    for name in FILES:
        # the package's own file names what comes when it is asked for
        if name.split(".")[1:2] not in (["app"], ["explain"], ["cli"], []):
            assert {other for other in IMPORTS[name] if other.split(".")[1:2] == ["app"]} == set(), name


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
jaxbp.Dense, jaxbp.Graph, jaxbp.make_step, jaxbp.make_sweep, jaxbp.as_function, jaxbp.summary
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
        "bad_input",
        "bridge",
        "compose",
        "graph",
        "integers",
        "layer",
        "layers",
        "losses",
        "models",
        "operations",
        "precision",
        "recompute",
        "record",
        "summary",
        "train",
    }
    assert len(new) < 90


def test_help_and_the_pytest_plugin_need_no_jax() -> None:
    """What everyone with jaxbp installed pays for at the start of every pytest, and who only asks."""
    script = """
import sys, pytest
before = set(sys.modules)
import jaxbp.check.pytest_plugin
from jaxbp.cli import main
assert main(["--help"]) == main(["--version"]) == 0
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert "jaxbp" in new, new
assert not new & {"jax", "jaxlib", "numpy", "optax", "chex", "jaxtyping"}, new
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT.parent, capture_output=True)


def test_names_are_at_home_where_type_checkers_find_them() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (checking,) = (node for node in tree.body if isinstance(node, ast.If))
    said = {
        alias.name: node.module
        for node in checking.body
        if isinstance(node, ast.ImportFrom) and node.module != "jaxbp"
        for alias in node.names
    }
    assert said == jaxbp._HOME
    assert {*said, "beyond"} == set(jaxbp.__all__)


def test_importing_a_module_does_not_hide_the_function_of_its_name() -> None:
    script = "import jaxbp.summary, jaxbp as bp; assert callable(bp.summary); assert bp.models.mlp"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT.parent, capture_output=True)


def test_the_public_names_are_documented_and_sorted() -> None:
    for name in jaxbp.__all__:
        assert getattr(jaxbp, name).__doc__, f"{name} has no docstring"
    assert len(set(jaxbp.__all__)) == len(jaxbp.__all__)


def test_the_reading_order_names_every_file_and_room() -> None:
    text = (ROOT / "README.md").read_text()
    files = {path.name for path in ROOT.glob("[!_]*.py")}
    rooms = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert [name for name in sorted(files | rooms) if f"`{name}" not in text] == []


OLDER_PATHS = {
    "jaxbp.generate": {"advance": "jaxbp.models.generate", "make_generator": "jaxbp.models.generate"},
    "jaxbp.language": {"gpt": "jaxbp.models.language", "Scaled": "jaxbp.layers.initializers"},
    "jaxbp.layer": {"InputError": "jaxbp.bad_input", "require_whole": "jaxbp.bad_input"},
    "jaxbp.models": {"lenet": "jaxbp.models.vision", "gpt": "jaxbp.models.language"},
    "jaxbp.summary": {"Summary": "jaxbp.models.summary", "operations": "jaxbp.operations"},
}


def test_older_import_paths_give_the_same_things() -> None:
    for path, names in OLDER_PATHS.items():
        older = import_module(path)
        for name, home in names.items():
            assert getattr(older, name) is getattr(import_module(home), name), f"{path}.{name}"


def test_summary_is_the_function_whatever_is_imported_after_it() -> None:
    script = "import jaxbp, jaxbp.models.summary, jaxbp.summary; jaxbp.summary.__call__"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT.parent)
