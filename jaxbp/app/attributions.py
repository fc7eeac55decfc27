"""What in images speaks for their class: the maps of `jaxbp.beyond`, as colours and as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.app.compiled import compiled
from jaxbp.app.data import Dataset
from jaxbp.app.pictures import GREY, INK, TEST, figure_at, plain
from jaxbp.app.task import Task, labels
from jaxbp.layer import InputError, Layer

EXAMPLES = 10  # in the picture of a run: the first of each of so many classes
COLOURS = "RdBu_r"  # red speaks for the class, blue against it


def are_images(data: Dataset) -> bool:
    """Whether inputs are images of one class each, every class with an output of its own."""
    whole = bool(data.image) and math.prod(data.image) == math.prod(data.shape)
    return whole and data.kind == "classes" and data.outputs == len(data.names) > 1


def as_images(data: Dataset, x: np.ndarray) -> np.ndarray:
    """Inputs `[n, …]` as `[n, height, width, 3]`, as they were before they were scaled, in [0, 1]."""
    raw = data.scale.undo(np.asarray(x).reshape(len(x), *(data.given or data.shape)))
    raw = raw.reshape(len(x), *data.image)
    light = np.clip(raw / max(float(raw.max()), 1e-12), 0, 1)
    return np.broadcast_to(light if light.shape[-1] == 3 else 1 - light[..., :1], (*light.shape[:-1], 3))


def black(data: Dataset) -> np.ndarray:
    """A black image as the network takes it: what "integrated" begins at."""
    zeros = np.zeros((1, math.prod(data.shape)), np.uint8 if data.pixels else np.float32)
    return data.inputs(zeros, "black")[0]


def as_colours(data: Dataset, maps: np.ndarray) -> np.ndarray:
    """Maps `[n, …]` as `[n, height, width, 3]`: channels added up, each by its own largest entry."""
    import matplotlib

    sums = np.asarray(maps, np.float64).reshape(len(maps), *data.image).sum(axis=-1)
    largest = np.abs(sums).max(axis=(1, 2), keepdims=True)
    return matplotlib.colormaps[COLOURS](0.5 + sums / (2 * np.where(largest > 0, largest, 1)))[..., :3]


def attributed(net: Layer) -> Any:
    """`(params, x, classes, black) -> (outputs, {rule: map})`, all rules in one compiled program."""
    from jaxbp.beyond import attributions

    maps = attributions(net)
    return compiled(lambda params, x, *rest: (net(params, x), maps(params, x, *rest)))


def draw_attributions(path: Path, task: Task, params: Any) -> None:
    """Some held-out images, the first of each class, and what in each speaks for its class.

    Nothing is drawn where inputs are no images, or what the network gives are no outputs of classes.
    """
    data = task.data
    if not are_images(data):
        return
    truth = np.asarray(labels(data.test_y))
    present = [int(k) for k in np.unique(truth)[:EXAMPLES]]
    x = np.asarray(data.test_x)[[int(np.flatnonzero(truth == k)[0]) for k in present]]
    classes = np.asarray(present, np.int32)
    try:
        outputs, maps = attributed(task.net)(params, x, classes, black(data))
    except InputError:  # a network of one's own that gives something else
        return
    predicted = np.asarray(outputs).argmax(axis=1)
    _draw(path, data, (x, maps), classes, predicted)


def _draw(path: Path, data: Dataset, arrays: Any, classes: np.ndarray, predicted: np.ndarray) -> None:
    from jaxbp.beyond import ATTRIBUTIONS

    x, maps = arrays
    strips = {"input": as_images(data, x)}
    strips |= {name: as_colours(data, np.asarray(maps[name])) for name in ATTRIBUTIONS if name in maps}
    height, width, count = *data.image[:2], len(x)
    tall = 0.75 * height / width
    with figure_at(path, figsize=(0.75 * count + 1.6, (tall + 0.06) * len(strips) + 0.9)) as figure:
        words = "What speaks for the class (red) and against it (blue); each map by its own largest entry"
        figure.suptitle(words, x=0.01, ha="left", fontsize=10, color=GREY)
        rows = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
        for axes, (name, images) in zip(rows, strips.items(), strict=True):
            axes.imshow(_side_by_side(images), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        for i, (true, guess) in enumerate(zip(classes, predicted, strict=True)):
            right, name = true == guess, plain(data.names[true])
            said = name if right else f"{name}\ntaken for {plain(data.names[guess])}"
            style = {"color": INK if right else TEST, "fontsize": 9 if right else 7}
            rows[0].text(i * (width + 1) + width / 2, -1, said, ha="center", va="bottom", **style)


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """`[n, height, width, 3]` as one image, with a white line between two."""
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
    return np.concatenate(list(framed), axis=1)[:, :-1]


__all__ = ["are_images", "as_colours", "as_images", "attributed", "black", "draw_attributions"]
