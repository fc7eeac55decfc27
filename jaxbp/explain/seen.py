"""An example as people see it: a picture, the name of its class, and what the network takes it for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxbp.explain.example import Example

MOST = 128 * 128  # pixels that are drawn


@dataclass(frozen=True)
class Seen:
    """`image` is the input's shape as a picture, rows and columns first; `classes` and `columns` are the
    names of classes and inputs. Each is empty where there is none.
    """

    image: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: Any) -> Seen:
        """How the examples of a `Dataset` are seen."""
        one = data.y.ndim == 1 or data.y.shape[1:] == (data.outputs,)
        classes = data.names if data.kind == "classes" and one else ()
        return cls(data.image, classes, data.columns)

    def example(self, example: Example, inputs: list[int]) -> dict[str, Any]:
        """The picture's pixels from 0 to 1, the class, and where or what the `inputs` drawn are."""
        x, block, picture = np.asarray(jax.tree.leaves(example.x)[0]), example.graph.input, None
        if self.image and x.size == np.prod(self.image) and np.prod(self.image[:2]) <= MOST:
            pixels = x.reshape(*self.image[:2], -1).astype(np.float64)
            low, high = pixels.min(), pixels.max()
            pixels = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
            picture = {"pixels": np.round(pixels, 3).tolist(), "inputs": {}}
            for i in inputs:
                row, column = np.unravel_index(i, self.image)[:2]
                picture["inputs"][block.neuron(i)] = [int(row), int(column)]
        columns = self.columns if not picture and len(self.columns) == x.size else ()
        called = {block.neuron(i): columns[i] for i in inputs} if columns else {}
        return {"picture": picture, "label": self._label(example), "columns": called}

    def answer(self, example: Example) -> dict[str, Any] | None:
        """The class that the network gives the most, and how much of 1 it gives it."""
        from jaxbp.app.run import probabilities

        predicted = np.asarray(jax.tree.leaves(example.graph.predicted)[0], np.float64)
        number = len(self.classes)
        sizes = (1, 2) if number == 2 else (number,)  # of two classes one logit is enough
        if not number or predicted.size not in sizes or predicted.size != predicted.shape[-1]:
            return None
        shares = probabilities(predicted.reshape(1, -1))[0]
        best = int(np.argmax(shares))
        return {"label": self.classes[best], "share": float(shares[best])}

    def _label(self, example: Example) -> str | None:
        y = np.asarray(jax.tree.leaves(example.y)[0])
        if not self.classes or y.size not in (1, len(self.classes)):
            return None
        number = int(y.reshape(-1)[0]) if y.size == 1 else int(np.argmax(y))
        return self.classes[number] if 0 <= number < len(self.classes) else None
