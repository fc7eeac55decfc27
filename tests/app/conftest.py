"""Small data and small runs, made once."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxbp.cli import main

SMALL = """
[data]
name = "file"
path = "{data}"

[model]
name = "mlp"
hidden = [5]
dropout = 0.1

[optimizer]
name = "adam"
learning_rate = 0.05

[train]
epochs = 4
batch_size = 16
checkpoint_every = 2
prove = false
"""


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    """An .npz with 60 points of three well-separated classes in six dimensions."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 6)) + 4 * np.eye(6)[y]
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory, blobs) -> Path:
    """A config of a run that takes a second."""
    path = tmp_path_factory.mktemp("configs") / "small.toml"
    path.write_text(SMALL.format(data=blobs))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small) -> Path:
    """The folder of a finished run of `small`."""
    folder = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"):
        assert main(["train", str(small), "--run.folder", str(folder)]) == 0
    return folder / "small"
