"""`experiments/curvature_peers.py`: what it takes, who is absent, and how far apart two are."""

import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import curvature_peers
from jaxbp import Chain, Conv, Dense, Flatten
from jaxbp.beyond import Factors


def run(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["curvature_peers.py", *argv])
    curvature_peers.main()


def test_absent_peers_are_named_and_the_rest_is_measured(monkeypatch, capsys) -> None:
    def absent(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}")

    net = Chain(Conv(2, 3, stride=9), Flatten(), Dense(10))  # compiles at once
    monkeypatch.setattr(curvature_peers, "NET", net)
    monkeypatch.setattr(curvature_peers, "importlib", SimpleNamespace(import_module=absent))
    monkeypatch.setattr(curvature_peers, "in_turns", lambda runs: dict.fromkeys(runs, 1.5))
    run(monkeypatch, "--batch", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "absent: kfac_jax: No module named 'kfac_jax'",
        "absent: backpack: No module named 'torch'",
    ]
    assert len(lines) == 6
    for line in lines[2:]:
        assert "jaxbp" in line or "by hand" in line
        assert line.endswith("1.50 plain steps")


@pytest.mark.parametrize("batch", ["0", "many"])
def test_a_batch_is_a_positive_number(monkeypatch, capsys, batch: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--batch", batch)
    assert stopped.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_factors_are_compared_entry_by_entry() -> None:
    """Theirs have a last row and column for the bias, left out; then one entry is off by a hundredth."""
    left, right = np.diag([1.0, 4.0]), np.diag([2.0, 3.0, 5.0])
    theirs = np.pad(left, ((0, 1), (0, 1)), constant_values=9.0)
    runs = {
        "factors, exact: jaxbp": lambda: {"layers[0].w": Factors(*map(jnp.asarray, (left, right)))},
        "diagonal, exact: jaxbp": lambda: [],
        "factors, exact: kfac-jax": lambda: [(theirs, right)],
    }
    assert curvature_peers.apart(runs) == {"factors, exact: kfac-jax": 0.0}
    theirs[1, 0] += 0.04
    assert curvature_peers.apart(runs)["factors, exact: kfac-jax"] == pytest.approx(0.01)
