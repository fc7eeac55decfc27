"""The bench: rows are right before they are timed; what it prints and writes is what it measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import InputError, value_and_grad
from jaxbp.bench import measure
from jaxbp.bench.contestants import AbsentError, ByHand, Jax, Plain, arguments, exact, largest_error
from jaxbp.bench.jax_rivals import flax_layers, fused_attention
from jaxbp.bench.problem import WithInput
from jaxbp.bench.quantities import QUANTITIES
from jaxbp.bench.rows import ROWS, choose
from jaxbp.bench.torch_rivals import Torch
from jaxbp.cli import main

ROOT = Path(__file__).parents[2]
BY_NAME = {row.name: row for row in ROWS}
# one row for each network, and for each quantity: what differs is the size
KINDS = list({row.quantity or (row.build, repr(row.check)): row for row in reversed(ROWS)}.values())
NAMES = [row.name for row in KINDS]


def error_of(contestant, row, problem, expected):
    found = contestant.gradients(row, problem)
    return largest_error(found, contestant.expected(row, problem, expected))


@pytest.mark.parametrize("name", NAMES)
def test_every_contestant_of_a_row_has_the_gradients_of_float64(name: str) -> None:
    row = BY_NAME[name]
    problem = row.build(row.check).started()
    expected = exact(row, problem)
    assert all(np.max(np.abs(value)) > 0 for value in expected.values() if value.size)
    rivals = [Jax(), Jax("flax", flax_layers), Jax("jax.nn", fused_attention), Torch()]
    if row.quantity:  # whose reference is the rival, and a plain step that of another row
        rivals = []
    ran = []
    for contestant in [ByHand(), *rivals]:
        try:
            where, error = error_of(contestant, row, problem, expected)
        except AbsentError:
            continue
        assert error <= measure.LIMITS["float32"], f"{contestant.name}: {where}"
        ran.append(contestant.name)
    assert ran[:2] == ["by hand", "jax.grad"][: 1 if row.quantity else 2]


def test_a_quantity_is_measured_in_plain_steps() -> None:
    row = BY_NAME["beyond_digits_statistics"]
    hand, plain, rival = measure.measure_row(
        replace(row, cpu=row.check), "cpu", [ByHand(), Plain(), Jax()], 1, 0.0, lambda _: None
    )
    assert max(figure.error for figure in (hand, plain, rival)) < 1e-5
    assert plain.ratio is not None
    row = BY_NAME["beyond_lenet_factors"]
    with pytest.raises(AbsentError):
        Jax().passes(row, row.build(row.check))


def test_low_precision_stays_within_the_limit_of_its_dtype() -> None:
    for name in ("mlp", "gpt_T128"):
        row = BY_NAME[name]
        problem = row.build({**row.check, "dtype": "bfloat16"}).started()
        assert {leaf.dtype for leaf in jax.tree.leaves(problem.params)} == {jnp.dtype("float32")}
        _, error = error_of(ByHand(), row, problem, exact(row, problem))
        assert 1e-4 < error <= measure.LIMITS["bfloat16"]  # not computed in float32 after all


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.gpu and not row.series])
def test_what_needs_an_accelerator_traces_at_its_size(name: str) -> None:
    """Shapes only, so that one command settles it where there is a card."""
    row = BY_NAME[name]
    problem = row.build(row.gpu or {})
    params = jax.eval_shape(problem.net.init, jax.random.key(0), problem.x)
    if row.quantity:
        fn = QUANTITIES[row.quantity].by_hand(problem.net, problem.loss)
        assert jax.eval_shape(fn, params, problem.x, problem.y)[0].shape == ()
        return
    net = WithInput(problem.net) if problem.has_dx else problem.net
    fn = value_and_grad(net, problem.loss)
    params, x = arguments(replace(problem, params=params))
    value, grads = jax.eval_shape(fn, params, x, problem.y)
    assert value.shape == ()
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_rows_have_names_of_their_own_and_a_size_somewhere() -> None:
    assert len(BY_NAME) == len(ROWS)
    assert all(row.cpu or row.gpu for row in ROWS)
    assert not any(row.series for row in choose([], "cpu")[0])
    assert {row.family for row in choose(["conv_*"], "gpu")[0]} <= {n for n in BY_NAME if "conv" in n}
    with pytest.raises(InputError, match=r"expected one of .*mlp.*got 'nope'"):
        choose(["nope"], "cpu")
    with pytest.raises(InputError, match="gpt2_124M: has no size for cpu"):
        choose(["gpt2_124M"], "cpu")
    rows, without = choose(["gpt2_124M", "lenet", "len*"], "cpu")
    assert ([row.name for row in rows], without) == (["lenet"], ["gpt2_124M"])


class Halved(Jax):
    """A contestant whose gradients are wrong."""

    def gradients(self, row, problem):
        return {name: 0.5 * value for name, value in super().gradients(row, problem).items()}


def test_a_wrong_contestant_is_named_and_not_timed() -> None:
    row = replace(BY_NAME["mlp"], cpu=BY_NAME["mlp"].check)
    rivals = [ByHand(), Halved("halved"), Jax("jax.nn", fused_attention)]
    hand, wrong, absent = measure.measure_row(row, "cpu", rivals, 2, 0.0, lambda _: None)
    assert hand.median_ms
    assert hand.compile_s
    assert wrong.median_ms is None
    assert wrong.note.startswith("wrong: error 5.0e-01 at")
    assert absent.note == "nothing for this row"


def test_contestants_run_in_turns() -> None:
    called: list[str] = []
    runs = {name: (lambda n=name: called.append(n)) for name in "abc"}
    times = measure.in_turns(runs, 3, 0.0, lambda _: None)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 3)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"


def test_programs_are_compiled_and_not_read_from_the_cache(monkeypatch) -> None:
    """Their seconds are a figure; whoever has a cache has it again afterwards."""
    before, during = jax.config.jax_enable_compilation_cache, []

    def run(*_: object) -> list:
        during.append(jax.config.jax_enable_compilation_cache)
        return []

    monkeypatch.setattr("jaxbp.bench.command.measure_row", run)
    assert main(["bench", "mlp", "--quick"]) == 0
    assert during == [False]
    assert jax.config.jax_enable_compilation_cache == before is True


def test_the_command_says_and_writes_what_it_measured(tmp_path, capsys, unchecked) -> None:
    file = tmp_path / "result.json"
    argv = ["bench", "mlp@128", "digits_epoch", "--quick", "--against", "jax.grad,flax"]
    assert main([*argv, "--json", str(file)]) == 0
    printed, result = capsys.readouterr().out, json.loads(file.read_text())
    assert result["versions"]["jax"] == jax.__version__
    assert "cores" in result["device"]
    assert result["peak_tflops"] > 0
    figures = {(f["row"], f["contestant"]): f for f in result["figures"]}
    ours, theirs = figures["mlp@128", "by hand"], figures["mlp@128", "jax.grad"]
    assert f"{ours['median_ms']:.2f}" in printed
    assert ours["temp_mb"] <= 1.01 * theirs["temp_mb"]
    assert theirs["ratio"] > 0
    assert figures["digits_epoch", "flax"]["note"] in ("no module for this row", "flax is not installed")
    draw = ROOT / "experiments" / "bench_figures.py"
    readme = tmp_path / "page.md"
    readme.write_text("a\n<!-- bench -->\nold\n<!-- /bench -->\nz\n")
    command = [sys.executable, str(draw), str(file), "--readme", str(readme), "--images", str(tmp_path)]
    drawn = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert drawn.returncode == 0, drawn.stderr
    text = readme.read_text()
    assert "old" not in text
    assert "| digits_epoch |" in text
    assert "mlp@128" not in text  # a point of the plot
    assert (tmp_path / "bench_result.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["nope"], "expected one of"),
        (["mlp", "--against", "jax.grad,tensorflow"], "got 'tensorflow'"),
        (["mlp", "--json", "no/such/folder/x.json"], "no such folder"),
    ],
)
def test_bad_arguments_are_one_line(argv, expected, capsys) -> None:
    assert main(["bench", *argv]) == 2
    assert expected in capsys.readouterr().err
