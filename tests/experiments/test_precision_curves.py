"""The script that holds bfloat16's loss curves against float32's: a few steps of its smallest network."""

import sys

import numpy as np
import pytest

from experiments import precision_curves


def test_a_few_steps_of_lenet(monkeypatch, capsys, tmp_path) -> None:
    image = tmp_path / "curves.png"
    monkeypatch.setattr(
        sys, "argv", ["precision_curves.py", "--steps", "8", "--only", "lenet", "--image", str(image)]
    )
    precision_curves.main()
    line, *_ = capsys.readouterr().out.splitlines()
    assert line.startswith("lenet")
    far = float(line.split("apart by ")[1].removesuffix(" %"))
    assert 0 < far < 2  # percent: narrow, and near
    assert image.stat().st_size > 1000


def test_how_far_two_curves_are_apart() -> None:
    wide = np.random.default_rng(0).uniform(1, 2, 43)
    assert precision_curves.smoothed(wide).shape == (10,)
    assert precision_curves.apart(wide, wide) == 0
    late = wide * np.where(np.arange(43) < 36, 1, 0.9)  # the last window
    assert precision_curves.apart(wide, late) == pytest.approx(0.1)
