"""A run on images draws what in them speaks for their class, if asked; the page of one shows it."""

import re

import jax
import numpy as np
import pytest

from jaxbp import Chain, Dense, Flatten, ReLU, SoftmaxCrossEntropy
from jaxbp.app import attributions
from jaxbp.app.data import Dataset
from jaxbp.app.data.scale import Scale
from jaxbp.app.task import Task
from jaxbp.cli import main
from jaxbp.explain import Explainer
from jaxbp.explain.attributions import section
from jaxbp.explain.page import Frame, write_page

RAW = np.random.default_rng(0).integers(0, 255, (6, 4, 3, 1)).astype(np.uint8)
SCALE = Scale(shift=100.0, divide=50.0)
LABELS = np.asarray([1, 0, 2, 1, 0, 2], np.int32)
NET = Chain(Flatten(), Dense(5), ReLU(), Dense(3))


@pytest.fixture(scope="module")
def task() -> Task:
    x = SCALE.apply(RAW)
    data = Dataset("own", x, LABELS, x, LABELS, 3, ("a", "b<", "c"), scale=SCALE, image=(4, 3, 1))
    return Task(NET, SoftmaxCrossEntropy(), data, 2)


def test_images_and_their_black_are_those_of_the_file(task) -> None:
    for data in (task.data, task.data.flat()):
        assert attributions.are_images(data)
        np.testing.assert_allclose(attributions.black(data).ravel(), np.full(12, -2.0))
        shown = attributions.as_images(data, data.x)
        assert shown.shape == (6, 4, 3, 3)
        np.testing.assert_allclose(1 - shown[..., 0], RAW[..., 0] / RAW.max(), atol=1e-6)
    table = Dataset("own", task.data.flat().x, LABELS, task.data.flat().x, LABELS, 3)
    assert not attributions.are_images(table)


def test_a_map_is_red_where_it_is_positive_by_its_own_largest_entry(task) -> None:
    maps = np.zeros((2, 4, 3, 1))
    maps[0, 1, 2], maps[1, 3, 0] = 1e-3, -20.0
    red, blue = attributions.as_colours(task.data, maps)
    assert red[1, 2, 0] > 2 * red[1, 2, 2]
    assert blue[3, 0, 2] > 2 * blue[3, 0, 0]
    np.testing.assert_allclose(red[0, 0], blue[0, 0])


def test_the_page_says_what_the_maps_add_up_to(task, tmp_path, monkeypatch) -> None:
    params = NET.init(jax.random.key(0), task.data.x)
    explainer = Explainer(NET, params, RAW[0] / 50 - 2.0, LABELS[0], SoftmaxCrossEntropy())
    made = section(explainer, task.data)
    monkeypatch.setattr("jaxbp.explain.page.page_data", lambda *_: {})
    write_page(tmp_path / "page.html", explainer, "b21", frames=[Frame("0", params)], data=task.data)
    assert made in (tmp_path / "page.html").read_text("utf-8")
    assert made.count("<figure>") == 5
    assert "What in this image speaks for b&lt;" in made
    both = np.concatenate([RAW[:1] / 50 - 2.0, np.full((1, 4, 3, 1), -2.0)])
    z, dark = np.asarray(NET(explainer.params, both))[:, 1]
    found = re.search(r"add up to (\S+); the output is (\S+) here and (\S+) for a black image", made)
    parts, here, black = (float(v.replace("−", "-")) for v in found.groups())
    assert (here, black) == (pytest.approx(z, rel=0.01), pytest.approx(dark, rel=0.01))
    assert parts == pytest.approx(z - dark, abs=0.1 * abs(z - dark))
    assert section(explainer, task.data.flat().reproduced()) == ""


def test_a_run_draws_them_if_asked(tmp_path, capsys) -> None:
    flags = ["--train.epochs", "1", "--train.no-prove", "--run.folder", str(tmp_path)]
    assert main(["train", "digits_mlp", "--model.hidden", "8", *flags, "--run.attributions"]) == 0
    assert (tmp_path / "digits_mlp" / "attributions.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
