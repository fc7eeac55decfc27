"""A trained run from Python: its network, its parameters, and predictions on the scale of its data.

run = jaxbp.load_run("runs/digits_mlp")
run.predict(x)                 # of every input the class, by its name, or the values
run.net(run.params, run.inputs(x))
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbp.app import report
from jaxbp.app.compiled import use_cache
from jaxbp.app.config import Config
from jaxbp.app.data import Dataset
from jaxbp.app.data.description import FILE, describe, described, differences, read_description
from jaxbp.app.data.scale import At
from jaxbp.app.task import Task, as_values, make_task, task_of
from jaxbp.layer import InputError, Layer, PyTree
from jaxbp.weights import load_params


@dataclasses.dataclass(frozen=True)
class Run:
    """What `jaxbp train` left in a folder; nothing outside of it is needed."""

    path: Path
    config: Config
    task: Task
    params: PyTree

    @property
    def net(self) -> Layer:
        """The network, for `net(params, inputs(x))` and all else that layers can do."""
        return self.task.net

    @property
    def data(self) -> Dataset:
        """What is known of the data that it was trained on: scales, columns, classes; no examples."""
        return self.task.data

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classes are called; none where values are predicted."""
        return self.data.names if self.data.kind == "classes" else ()

    def inputs(self, x: Any, what: str = "x", at: At | None = None) -> np.ndarray:
        """Inputs `[n, …]` (or one) in the numbers of the original data, as the network takes them.

        Warns where they cannot be in those numbers: all of another size than what it was trained on.
        Raises `InputError` for another shape, and for what is not a finite number.
        """
        if np.issubdtype(self.data.x.dtype, np.integer):
            raise InputError(f"{self.path}: is a network for text; jaxbp sample lets it go on with one")
        raw = np.asarray(x)
        taken = self.data.inputs(raw, what, at)
        note = self.data.of_another_size(raw, what)
        if note:
            warnings.warn(note, stacklevel=2)
        return taken

    def outputs(self, x: Any, what: str = "x", at: At | None = None) -> np.ndarray:
        """What the network gives for `inputs(x)`, in float64: `[n, outputs]`."""
        return np.asarray(self._compiled(self.params, self.inputs(x, what, at)), np.float64)

    def predict(self, x: Any) -> np.ndarray:
        """Of every input the likeliest class `[n]`, by its name; or the values `[n, outputs]`.

        Inputs and values are in the numbers of the original data: what `train` scaled is scaled here.
        """
        if self.data.kind == "classes":
            return np.asarray(self.classes)[self.probabilities(x).argmax(axis=-1)]
        return self.data.target_scale.undo(np.asarray(as_values(self.task.loss, self.outputs(x))))

    def probabilities(self, x: Any) -> np.ndarray:
        """Of every input the probability of each class, in the order of `classes`: `[n, classes]`."""
        if self.data.kind != "classes":
            raise InputError(f"{self.path}: predicts values, which have no probabilities")
        return probabilities(self.outputs(x))

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.net)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.config.model.name} of {self.config.data.name})"


def load_run(path: str | Path) -> Run:
    """The run in a folder, such as `runs/digits_mlp`; its training data need not be there.

    Raises `InputError` for a folder that is no run, damaged files, and a network of one's own
    (`model.name = "my_module:build"`) whose module cannot be imported.
    """
    folder = Path(path)
    task, params = reload(folder)
    return Run(folder, report.open_run(folder), task, params)


def keep_programs(path: str | Path) -> None:
    """For a command about a run: keep what it compiles for the next one, if the run's config says so."""
    if report.open_run(Path(path)).run.cache:
        use_cache()


def reload(path: str | Path) -> tuple[Task, Any]:
    """A run's task, without examples, and trained parameters: nothing outside of its folder is read."""
    folder = Path(path)
    config, known = report.open_run(folder), read_description(folder)
    if known is not None:
        return _with_params(folder, task_of(config, described(known)))
    try:
        return _with_params(folder, make_task(config))
    except InputError as error:
        raise InputError(
            f"{path}: has no {FILE} (it was trained before there was one), so its data is needed: {error}"
        ) from None


def with_examples(path: str | Path) -> tuple[Task, Any]:
    """The same with the data itself, which must still be the run's."""
    folder = Path(path)
    config, known = report.open_run(folder), read_description(folder)
    try:
        task = make_task(config)
    except InputError as error:
        raise InputError(
            f"{path}: the held-out examples are needed and not in the run: {error}"
        ) from None
    others = differences(known, describe(task.data)) if known else []
    if others:
        raise InputError(
            f"{path}: the data is no longer that of the run: {'; '.join(others)}; what was held out is "
            "then not known (predict needs no data)"
        )
    return _with_params(folder, task)


def _with_params(folder: Path, task: Task) -> tuple[Task, Any]:
    like = jax.eval_shape(task.init, jax.random.key(0))
    return task, load_params(folder / "params.safetensors", like)


def probabilities(prediction: np.ndarray) -> np.ndarray:
    """Softmax of logits, of a single one its sigmoid; a distribution is left as it is."""
    if prediction.shape[-1] == 1:
        prediction = np.concatenate([np.zeros_like(prediction), prediction], axis=-1)
    elif (prediction >= 0).all() and np.allclose(prediction.sum(axis=-1), 1, atol=1e-5):
        return prediction
    e = np.exp(prediction - prediction.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
