"""Scales: what differs in a file differs for the network, however far from zero it lies."""

import json

import numpy as np
import pytest

from jaxbp.app.data import Dataset
from jaxbp.app.data.dataset import pixel_scale
from jaxbp.app.data.images import Mnist
from jaxbp.app.data.own import File
from jaxbp.app.data.scale import Scale, fallen_together, standard_scale
from jaxbp.app.task import measure
from jaxbp.layer import InputError

RAMP = (np.arange(100) - 49.5) / np.std(np.arange(100))


@pytest.mark.parametrize(
    "column",
    [
        np.arange(1700000000, 1700000100),
        np.arange(1700000000, 1700000100).astype(np.float64),
        1700000000 + np.arange(100) / 1024,
        np.arange(100) + 2**53,
        np.arange(100) - 2**62,
        np.arange(100).astype(np.uint64) + np.uint64(2**63),
        np.arange(100) * 1e300,
        np.arange(100) * 1e-200,
        -np.arange(100)[::-1] - 1e15,
    ],
)
def test_neighbours_far_from_zero_stay_apart(column):
    scale = standard_scale(column[:, None])
    x = scale.apply(column[:, None])
    assert x.dtype == np.float32
    assert len(np.unique(x)) == 100
    np.testing.assert_allclose(x[:, 0], RAMP, atol=1e-6)
    again = Scale.from_json(json.loads(json.dumps(scale.to_json())))  # of every bit
    np.testing.assert_array_equal(again.apply(column[:, None]), x)
    there = column.astype(np.float64)
    error = 2e-6 * np.ptp(there) + np.spacing(np.abs(there).max())
    np.testing.assert_allclose(scale.undo(x)[:, 0], there, rtol=0, atol=error)


@pytest.mark.parametrize("value", [0.1, -3, 1e300, 2**60 + 1, 0.0])
def test_a_column_that_never_changes_is_zero(value):
    raw = np.full((7, 2), value)
    raw[:, 1] = np.arange(7)
    scale = standard_scale(raw)
    x = scale.apply(raw)
    np.testing.assert_array_equal(x[:, 0], np.zeros(7))
    assert len(np.unique(x[:, 1])) == 7
    assert scale.apply(raw[:1] + 1)[0, 0] == (value + 1 != value)  # only shifted


def write_csv(path, rows, header="t,flag,label"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def test_time_stamps_in_a_csv_are_different_inputs(tmp_path):
    """Integers that float64 cannot hold are no exception, not even beside real numbers."""
    for start in (1700000000, 2**60):
        rows = [(start + i, i % 7 / 8, i % 2) for i in range(100)]
        data = File(path=write_csv(tmp_path / "x.csv", rows), standardize=True).load()
        x = np.concatenate([data.x, data.test_x])
        assert len(np.unique(x[:, 0])) == 100
        assert len(np.unique(x[:, 1])) == 7
        assert data.notes == ()
        given = File(path=write_csv(tmp_path / "x.csv", rows), standardize=False).load()
        assert given.notes[0].startswith("column 1 (t) (100 different values, ")


def test_targets_far_from_zero_come_back(tmp_path):
    rows = [(i % 10, i, 1700000000 + i / 4) for i in range(100)]
    data = File(path=write_csv(tmp_path / "x.csv", rows), targets="values").load()
    y = data.target_scale.undo(np.concatenate([data.y, data.test_y]))
    np.testing.assert_allclose(np.sort(y[:, 0]), 1700000000 + np.arange(100) / 4, atol=1e-4, rtol=0)


def test_columns_that_fall_together_are_named():
    raw = np.column_stack([np.arange(50) + 2**26, np.arange(50), np.full(50, 3)])
    assert fallen_together(raw.astype(np.float32), raw) == (
        "column 1 (50 different values, 7 in float32): --data.standardize keeps them apart",
    )


def test_differences_that_float64_cannot_hold():
    with pytest.raises(InputError, match="whose differences are float64 numbers"):
        standard_scale(np.asarray([[1e308], [-1e308]]))


def test_r2_far_from_zero_is_summed_wide():
    y = np.float32(4096) + np.arange(8, dtype=np.float32)[:, None] / 1024
    guess = np.float32(4096) + np.zeros((8, 1), np.float32)
    d = np.arange(8) / 1024
    expected = 1 - np.sum(d**2) / np.sum((d - d.mean()) ** 2)
    assert measure("values", y, guess) == pytest.approx(expected, rel=1e-12)
    assert measure("values", y[:1], guess[:1]) is None  # a single target does not differ
    assert measure("values", y, guess * np.inf) is None


# --- images -----------------------------------------------------------------------------------------

BYTES = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
BYTES[0, 0, :2] = 0, 255


def mnist(path, x, test_x=None, labels=(0, 1, 2, 0, 1, 2)):
    test_x = x[:2] if test_x is None else test_x
    np.savez(path, x_train=x, y_train=np.asarray(labels), x_test=test_x, y_test=np.asarray(labels[:2]))
    return Mnist(path=str(path))


@pytest.mark.parametrize(
    "as_given",
    [
        lambda b: b,
        lambda b: b.astype(np.int64),
        lambda b: b / 255,
        lambda b: (b / 255).astype(np.float32),
        lambda b: b > 100,
        lambda b: (b > 100).astype(np.uint8),
        lambda b: (b > 100).astype(np.float64),
    ],
)
def test_images_come_to_the_unit_interval_once(tmp_path, as_given):
    raw = as_given(BYTES)
    data = mnist(tmp_path / "m.npz", raw).load()
    binary = len(np.unique(raw)) == 2
    expected = (BYTES > 100).astype(np.float32) if binary else (BYTES / 255).astype(np.float32)
    np.testing.assert_array_equal(data.x[..., 0], expected)
    # What is predicted goes the same way, in whichever of the forms that say themselves what they are.
    for given in (raw, raw[..., None], raw.reshape(6, 12), BYTES / 255 if not binary else BYTES > 100):
        np.testing.assert_array_equal(data.inputs(given, "new"), data.x)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            BYTES.astype(np.float32),
            "expected images of real numbers in [0, 1], got float32 from 0 to 255; divide them by 255, "
            "or give whole numbers such as uint8",
        ),
        (
            BYTES / 127.5 - 1,
            "expected images of real numbers in [0, 1], got float64 from -1 to 1; bring them to bytes, "
            "0 … 255, or to real numbers in [0, 1]",
        ),
        (
            BYTES.astype(np.int16) * 2,
            "expected images of whole numbers in 0 … 255, got int16 from 0 to 510; bring them to bytes, "
            "0 … 255, or to real numbers in [0, 1]",
        ),
        (
            BYTES.astype(np.int16) - 3,
            "expected images of whole numbers in 0 … 255, got int16 from -3 to 252; bring them to bytes, "
            "0 … 255, or to real numbers in [0, 1]",
        ),
    ],
)
def test_images_on_another_scale_are_refused(tmp_path, raw, message):
    path = tmp_path / "m.npz"
    with pytest.raises(InputError) as error:
        mnist(path, raw).load()
    assert str(error.value) == f"{path}: x_train: {message}"


def test_both_parts_are_on_one_scale(tmp_path):
    with pytest.raises(InputError, match=r"x_test: expected images on the scale of those to train on"):
        mnist(tmp_path / "m.npz", BYTES, BYTES[:2] / 255).load()


def test_a_dark_image_is_on_the_scale_of_the_network():
    dark = np.zeros((1, 2, 2), np.uint8)
    dark[0, 0, 0] = 1
    assert pixel_scale(dark, "x", trained_on=Scale(divide=255.0)).apply(dark).max() == np.float32(1 / 255)
    assert pixel_scale(dark, "x", trained_on=Scale()).apply(dark).max() == 1


def test_an_image_of_another_shape_is_another_image():
    x = np.zeros((2, 4, 6, 3), np.float32)
    data = Dataset("x", x, np.int32([0, 1]), x, np.int32([0, 1]), 2, image=(4, 6, 3), pixels=True)
    for one in (data, data.flat()):
        for shape in ((5, 4, 6, 3), (5, 72), (4, 6, 3), (72,)):
            assert one.inputs(np.zeros(shape), "f").shape[1:] == one.shape
        for shape in ((5, 3, 4, 6), (5, 6, 4, 3), (5, 12, 6), (5, 4, 6), (5, 71), (), (0, 72)):
            with pytest.raises(InputError) as error:
                one.inputs(np.zeros(shape), "f")
            says = (
                "at least one row, got none"
                if 0 in shape
                else (f"inputs of shape [4, 6, 3], or rows of 72 numbers, got shape {list(shape)}")
            )
            assert str(error.value) == f"f: expected {says}"
