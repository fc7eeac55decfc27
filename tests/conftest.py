"""Strict while testing: float64 is available, dtypes and ranks do not promote, shapes are checked.

The suite runs on the CPU, or on the platform that `JAXBP_TEST_PLATFORM` names (`make test
PLATFORM=cuda`): there matrix products are in full precision, every process has a device of its own, and
the tolerances stay. It also runs from a checkout that is not installed, with the packages of the base
install and pytest: a test that needs another one is skipped, and says which.
"""

import collections
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jax
import jaxtyping
import pytest

PLATFORM = os.environ.get("JAXBP_TEST_PLATFORM") or "cpu"
PLATFORMS = {"cpu": "cpu", "cuda": "cuda,cpu", "gpu": "", "tpu": "tpu,cpu"}
BACKEND = {"cuda": "gpu"}.get(PLATFORM, PLATFORM)

# What tests import beyond the base install: the extras of pyproject.toml.
OPTIONAL = {
    *("IPython", "PIL", "beartype", "equinox", "flax", "hypothesis", "ipykernel", "matplotlib"),
    *("msgspec", "nbclient", "nbformat", "orbax", "rich", "safetensors", "selenium", "sklearn"),
    *("torch", "tyro"),
}

os.environ["JAX_PLATFORMS"] = PLATFORMS.get(PLATFORM, PLATFORM)  # also of the processes that tests start
if BACKEND != "cpu":
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves room for those processes
if BACKEND == "gpu":
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    there = os.environ.setdefault("JAXBP_TEST_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    os.environ["CUDA_VISIBLE_DEVICES"] = "".join(there.split(",")[worker:][:1]) if there else str(worker)

# Compiled programs are kept beside pytest's own cache, for both workers, the processes that tests start
# and the next run; not in the folder of whoever runs the suite, where the commands would keep theirs.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"] or None)
seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)

jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"] or None)
if BACKEND != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

MISSING = [name for name in sorted(OPTIONAL) if not find_spec(name)]
if "beartype" not in MISSING:
    assert "jaxbp" not in sys.modules, "imported before its shapes can be checked"
    jaxtyping.install_import_hook("jaxbp", "beartype.beartype")

from jaxbp import cli  # noqa: E402  with its shapes checked

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background; some tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """One line if the platform is not there, before anything runs."""
    if PLATFORM not in PLATFORMS:
        raise pytest.UsageError(f"JAXBP_TEST_PLATFORM={PLATFORM}: expected one of {', '.join(PLATFORMS)}")
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        found = str(error).splitlines()[0]
    if found != BACKEND:
        raise pytest.UsageError(f"JAXBP_TEST_PLATFORM={PLATFORM}: no such device here (JAX: {found})")
    if cli.PACKAGES.keys() & MISSING:  # a command would end in an error that says so: skip that, too
        cli.not_installed = skip_if_optional


def pytest_report_header() -> str:
    device = jax.devices()[0]
    absent = f"; not installed: {', '.join(MISSING)}" if MISSING else ""
    return f"jax {jax.__version__} on {device.platform} ({device.device_kind}){absent}"


def skip_if_optional(error: BaseException | None) -> None:
    """Skip what failed on a package that only the extras bring."""
    name = (getattr(error, "name", None) or "").split(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in OPTIONAL:
        pytest.skip(f"needs {name}, which is not installed", allow_module_level=True)


class TestFile(pytest.Module):
    """A file of tests that is skipped where it imports an optional package that is not there."""

    def collect(self):
        try:
            return list(super().collect())
        except self.CollectError as error:
            skip_if_optional(error.__cause__)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return TestFile.from_parent(parent, path=module_path)


def skip_on_missing() -> Iterator[None]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        skip_if_optional(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item):
    return (yield from skip_on_missing())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    return (yield from skip_on_missing())


# Where programs are compiled as they are for users: the proofs' own, whose options they choose, what is
# said of options, and the checker's many small ones, which this would only slow down.
QUICKLY = pytest.StashKey[bool]()
AS_FOR_USERS = ("check/", "bench/", "test_proof.py", "app/test_compiled.py")


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(request: pytest.FixtureRequest):
    """Without LLVM's optimizations on a CPU: the same program, and a quarter less of most tests' time."""
    file = request.path.relative_to(Path(__file__).parent).as_posix()
    quickly = BACKEND == "cpu" and not file.startswith(AS_FOR_USERS)
    if request.config.stash.get(QUICKLY, False) and not quickly:
        jax.clear_caches()  # or what an earlier file compiled would be used as it is
    request.config.stash[QUICKLY] = quickly
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unchecked():
    """Without the shape checks of testing: bad input as a user meets it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def standard_promotion():
    """Optax's Adam raises a Python float to an integer count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def compiled():
    """How often each function was compiled in this test, by name, as JAX itself reports it."""
    counts: collections.Counter[str] = collections.Counter()

    def listen(event: str, seconds: float, **details: object) -> None:
        if event.endswith("/backend_compile_duration"):
            counts[str(details.get("fun_name")).removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)
