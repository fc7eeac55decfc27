"""The interactive page: one HTML file, with everything in it that it needs.

The page computes no derivative. It gets, for a number of steps of training, every neuron's value and
error, every local derivative between the neurons that are shown, and every gradient, all from
`Explainer`; it multiplies along paths, adds, and shows.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbp.explain.attributions import section
from jaxbp.explain.example import Example
from jaxbp.explain.moment import Frame
from jaxbp.explain.page_data import page_data
from jaxbp.explain.seen import Seen
from jaxbp.layer import InputError

STEPS = 30
STYLES = ("page", "attributions")
# Parts of one function, in this order.
SCRIPTS = ("base", "paths", "drawing", "example", "walk", "why", "training", "asking", "controls")


def descent(explainer: Example, steps: int = STEPS, rate: float = 1.0) -> list[Frame]:
    """Plain gradient descent on this example, `w := w - η ∂L/∂w`, from the parameters at hand."""
    mask = explainer.net.trainable(explainer.params)
    with jax.enable_x64(True):
        params, frames = explainer.params, []
        for step in range(steps + 1):
            value, grads = explainer.both(params)
            if not np.isfinite(value):
                break
            frames.append(Frame(str(step), params))
            params = jax.tree.map(lambda w, g, yes: w - rate * g if yes else w, params, grads, mask)
    return frames


def write_page(
    file: Any,
    explainer: Example,
    weight: str | None = None,
    *,
    frames: Sequence[Frame] | None = None,
    rate: float | None = None,
    title: str = "",
    about: str = "",
    open_at: int = 0,
    say: Callable[[str], None] | None = None,
    data: Any = None,
) -> None:
    """Write the page to `file` (a path), opened at `weight`.

    `frames` are the moments that the slider goes through (by default 30 steps of gradient descent on
    this example, from the parameters at hand, with learning rate `rate`, by default the explainer's);
    the page opens at number `open_at`, which should be the one at hand. `say` is told how far it is.
    `data` is the `Dataset` that the example is of: its classes get their names, and where it is one of
    images, the page shows the example as one, and in its last section what in it speaks for its class.
    """
    path = Path(file)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    options = {"title": title, "about": about, "open_at": open_at, "say": say, "data": data}
    path.write_text(page(explainer, weight, frames=frames, rate=rate, **options), "utf-8")


def page(
    explainer: Example,
    weight: str | None = None,
    *,
    frames: Sequence[Frame] | None = None,
    rate: float | None = None,
    title: str = "",
    about: str = "",
    open_at: int = 0,
    say: Callable[[str], None] | None = None,
    data: Any = None,
) -> str:
    """The page as text."""
    own, rate = frames is None, explainer.rate if rate is None else rate
    frames = descent(explainer, rate=rate) if frames is None else frames
    about = about or (
        f"The slider takes steps of plain gradient descent on this one example, with η = {rate:g}."
        if own
        else "The slider goes through the epochs of training."
    )
    title = title or "Why this weight has this gradient"
    seen = Seen() if data is None else Seen.of(data)
    shown = page_data(explainer, weight, frames, rate, seen, say)
    try:
        encoded = json.dumps({**shown, "open": open_at}, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InputError(
            "page: some values or derivatives are not finite, so there is nothing to draw "
            f"(L = {explainer.graph.value})"
        ) from None
    assets = files("jaxbp.explain") / "assets"
    parts = {
        "STYLE": "".join((assets / f"{name}.css").read_text("utf-8") for name in STYLES),
        "SCRIPT": script(),
        "DATA": encoded.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        "TITLE": html.escape(title),
        "ABOUT": html.escape(about),
        "NET": html.escape(f"{explainer.net}, {explainer.loss}"),
        "MORE": "" if data is None else section(explainer, data),
    }
    template = (assets / "page.html").read_text("utf-8")
    return re.sub(r"{{([A-Z]+)}}", lambda place: parts[place[1]], template)


def script() -> str:
    """The page's program, from its parts."""
    assets = files("jaxbp.explain") / "assets"
    parts = [(assets / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();"
