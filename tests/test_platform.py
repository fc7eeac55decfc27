"""The suite's own switches: which device it runs on, and what it does where a package is not there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_suite(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, as from a shell."""
    free = {"JAX_PLATFORMS", "JAXBP_TEST_PLATFORM", "PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"}
    env = {**{k: v for k, v in os.environ.items() if k not in free}, **env}
    argv = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *argv)
    return subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_this_run_is_where_it_should_be():
    asked = os.environ.get("JAXBP_TEST_PLATFORM") or "cpu"
    assert jax.default_backend() == {"cuda": "gpu"}.get(asked, asked)
    assert (jax.config.jax_default_matmul_precision == "highest") >= (asked != "cpu")


@pytest.mark.parametrize("platform", ["tpu", "cuda", "abacus"])
def test_a_platform_that_is_not_there_is_one_line(platform):
    if jax.default_backend() == {"cuda": "gpu"}.get(platform, platform):
        pytest.skip(f"{platform} is here")
    done = run_suite("tests/test_cli.py", JAXBP_TEST_PLATFORM=platform)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"ERROR: JAXBP_TEST_PLATFORM={platform}: ")
    assert ("expected one of cpu, cuda, gpu, tpu" in line) == (platform == "abacus")


def test_the_cpu_by_name_and_a_foreign_plugin_that_warns(tmp_path):
    """`pytest-benchmark` warns as it is configured beside xdist, and our warnings are errors."""
    (tmp_path / "pytest_benchmark").mkdir()
    (tmp_path / "pytest_benchmark" / "__init__.py").write_text("")
    (tmp_path / "pytest_benchmark" / "plugin.py").write_text(
        "import warnings\ndef pytest_configure(config):\n    warnings.warn('disabled beside xdist')\n"
    )
    info = tmp_path / "pytest_benchmark-5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pytest-benchmark\nVersion: 5\n")
    (info / "entry_points.txt").write_text("[pytest11]\nbenchmark = pytest_benchmark.plugin\n")
    done = run_suite(
        "tests/test_cli.py::test_version", JAXBP_TEST_PLATFORM="cpu", PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on cpu (cpu)" in done.stdout


def test_a_test_without_its_package_is_skipped_and_says_so(tmp_path):
    """At the top of a file and inside a test; a package that no extra brings is still an error."""
    blocked = "\n".join(
        [
            "import sys",
            "sys.modules['hypothesis'] = None",
            "sys.modules['sklearn'] = sys.modules['sklearn.datasets'] = None",
        ]
    )
    (tmp_path / "block.py").write_text(blocked)
    done = run_suite(
        *("-p", "block", "-p", "no:hypothesispytest", "tests/test_shapes.py"),
        *("tests/app/test_tasks.py", "-k", "normal_equations or test_shapes"),
        PYTHONPATH=str(tmp_path),
    )
    assert "needs hypothesis, which is not installed" in done.stdout, done.stdout + done.stderr
    assert done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
