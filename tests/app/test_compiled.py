"""What the commands compile, and where compiled programs are kept."""

import jax
import pytest

from jaxbp.app.compiled import cache_folder, use_cache
from jaxbp.app.config import LOSSES
from jaxbp.app.task import keys, make_score
from jaxbp.cli import main
from jaxbp.models import mlp


def test_a_run_compiles_a_few_whole_functions(small, tmp_path, compiled, standard_promotion) -> None:
    """Not hundreds of single operations; sizes that no other test has."""
    flags = ["--model.hidden", "11", "--train.batch-size", "13", "--train.prove"]
    assert main(["train", str(small), *flags, "--run.folder", str(tmp_path)]) == 0
    assert {"epoch", "gradient", "part"} <= set(compiled)
    assert compiled["part"] <= 2  # the training and the held-out examples
    assert compiled.total() <= 20, compiled


def test_parameters_of_a_run_are_those_of_init_to_the_bit(small) -> None:
    """However it is compiled: a network in Python starts as the command's does."""
    from jaxbp.app.config import read_config
    from jaxbp.app.task import make_task

    task, key = make_task(read_config(small)), keys(3)[0]
    for ours, own in zip(
        jax.tree.leaves(task.init(key)), jax.tree.leaves(task.net.init(key, task.like())), strict=True
    ):
        assert ours.tobytes() == own.tobytes()


def test_one_compiled_score_for_all_who_ask(compiled) -> None:
    net = mlp(3, 2)
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 17), "float32"))
    x, y = jax.random.normal(jax.random.key(1), (5, 17), "float32"), jax.numpy.arange(5) % 2
    for _ in range(2):
        make_score(mlp(3, 2), LOSSES["cross_entropy"])(params, x, y)
    assert compiled["part"] == 1


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """JAX as if nobody had told it of a cache; afterwards as it was."""
    names = ("compilation_cache_dir", "compilation_cache_max_size")
    names += ("persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")
    before = {name: getattr(jax.config, f"jax_{name}") for name in names}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(f"jax_{name}", value)


def test_the_cache_is_the_users_own_folder(no_cache, tmp_path) -> None:
    use_cache()
    assert jax.config.jax_compilation_cache_dir == str(cache_folder())
    assert cache_folder().is_dir()
    assert cache_folder().is_relative_to(tmp_path / "cache" / "jaxbp")


@pytest.mark.parametrize("value", ["", "/elsewhere"])
def test_a_user_who_has_told_jax_wins(no_cache, monkeypatch, value) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    use_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not cache_folder().exists()


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_and_what_is_asked_of_it_keep_programs_unless_a_field_says_no(
    no_cache, small, tmp_path, standard_promotion, kept
) -> None:
    flags = ["--train.epochs", "1", "--run.folder", str(tmp_path / "runs")]
    assert main(["train", str(small), *flags, "--run.cache" if kept else "--run.no-cache"]) == 0
    assert cache_folder().exists() == kept
    run = next((tmp_path / "runs").iterdir())
    for command in (["evaluate", str(run)], ["predict", str(run), str(tmp_path / "none.csv")]):
        jax.config.update("jax_compilation_cache_dir", None)
        main(command)
        assert jax.config.jax_compilation_cache_dir == (str(cache_folder()) if kept else None)


def test_a_home_that_cannot_be_written_is_no_reason_to_stop(no_cache, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file")
    use_cache()
    assert jax.config.jax_compilation_cache_dir is None
