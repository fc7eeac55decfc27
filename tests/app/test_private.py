"""Private runs: the budget of a config is kept, counted, said, and counted on after a resume."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxbp.app.config import from_sections
from jaxbp.app.loop import Epochs
from jaxbp.beyond.privacy import epsilon, noise_for
from jaxbp.cli import main
from jaxbp.layer import InputError

pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.usefixtures("standard_promotion")
PRIVATE = "\n[private]\nclip_examples = 0.5\nnoise = 1.1\n"
RATE, STEPS = 1 / 3, 3  # 16 of the 48 training examples


@pytest.fixture(scope="module")
def private(tmp_path_factory, small) -> Path:
    path = tmp_path_factory.mktemp("configs") / "private.toml"
    path.write_text(small.read_text() + PRIVATE)
    return path


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_says_what_it_cost_and_goes_on_counting_where_it_stopped(private, tmp_path, capsys) -> None:
    whole = ["train", str(private), "--run.folder", str(tmp_path)]
    assert main([*whole, "--train.epochs", "4", "--run.name", "whole"]) == 0
    out = capsys.readouterr().out
    expected = [epsilon(1.1, RATE, STEPS * (epoch + 1)) for epoch in range(4)]
    records = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([r["epsilon"] for r in records], expected, rtol=1e-9)
    assert f"ε = {expected[-1]:.4g} at δ = 1e-05" in out
    assert f"ε {expected[0]:.3g}" in out
    found = summary(tmp_path / "whole")["private"]
    assert found["epsilon"] == pytest.approx(expected[-1])
    assert found | {"epsilon": 0} == {
        "epsilon": 0,
        "delta": 1e-5,
        "noise": 1.1,
        "clip_examples": 0.5,
        "sampling": "poisson",
        "rate": pytest.approx(RATE),
        "steps": 4 * STEPS,
    }
    parts = ["train", str(private), "--run.folder", str(tmp_path), "--run.name", "parts"]
    assert main([*parts, "--train.epochs", "2", "--train.steps-per-call", "1"]) == 0
    assert main([*parts, "--train.epochs", "4", "--train.steps-per-call", "1", "--resume"]) == 0
    assert summary(tmp_path / "parts")["private"] == summary(tmp_path / "whole")["private"]
    a, b = (load_file(tmp_path / name / "params.safetensors") for name in ("whole", "parts"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_noise_is_found_for_a_budget_and_then_the_epochs_are_fixed(private, tmp_path, capsys) -> None:
    """Of shuffled batches, an epoch is one look at every example."""
    run = ["train", str(private), "--run.folder", str(tmp_path), "--private.noise", "0"]
    run += ["--private.epsilon", "3", "--private.sampling", "shuffle"]
    assert main([*run, "--train.epochs", "2"]) == 0
    found = summary(tmp_path / "private")["private"]
    assert found["noise"] == pytest.approx(noise_for(3.0, 1.0, 2))
    assert 2.97 < found["epsilon"] <= 3
    capsys.readouterr()
    assert main([*run, "--train.epochs", "3", "--resume"]) == 2
    assert "train.epochs was 2, is 3" in capsys.readouterr().err


def test_a_batch_that_drew_too_many_is_said_and_not_cut(private, tmp_path, capsys, monkeypatch) -> None:
    class Crowded(Epochs):
        def __init__(self, *args):
            super().__init__(*args)
            draw = self._draw
            self._draw = lambda key: (*draw(key)[:3], np.asarray([3, 46, 9]))

    monkeypatch.setattr("jaxbp.app.loop.Epochs", Crowded)
    assert main(["train", str(private), "--run.folder", str(tmp_path)]) == 2
    assert "drew 46 examples and has room for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"private": {"noise": 1.0}}, "private.noise: expected private.clip_examples too"),
        ({"private": {"epsilon": 1.0}}, "private.epsilon: expected private.clip_examples too"),
        (
            {"private": {"clip_examples": 1.0, "noise": 1.0, "epsilon": 1.0}},
            "private.epsilon: expected 0, since private.noise is given",
        ),
        ({"private": {"delta": 0.0}}, "private.delta: expected a positive number"),
        (
            {"private": {"clip_examples": 1.0}, "sweep": {"seeds": [1, 2]}},
            "private.clip_examples: expected 0 in a sweep",
        ),
        ({"private": {"sampling": "all"}}, "private.sampling: expected one of poisson, shuffle"),
    ],
)
def test_what_cannot_be_asked_for(sections, message) -> None:
    with pytest.raises(InputError, match=message):
        from_sections(sections, lambda field: field)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--private.delta", "0.1"], "private.delta: expected below 1/48"),
        (["--data.name", "digits", "--model.name", "resnet"], "use GroupNorm"),
    ],
)
def test_what_these_data_and_networks_do_not_allow(private, tmp_path, capsys, flags, message) -> None:
    assert main(["train", str(private), "--run.folder", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
