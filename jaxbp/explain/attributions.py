"""The page's last section, of an image: what in it speaks for its class, by rules of `jaxbp.beyond`."""

from __future__ import annotations

import base64
import html
from io import BytesIO
from typing import Any

import jax
import numpy as np

from jaxbp.explain.example import Example


def section(explainer: Example, data: Any) -> str:
    """HTML: the image and a map a rule, with a sentence each; nothing where examples are no images.

    `data` is the `Dataset` that the example is of. In float64, like all of the page. Red speaks for the
    class and blue against it, each map by its own largest entry.
    """
    from jaxbp.app.attributions import are_images, as_colours, as_images, attributed, black
    from jaxbp.app.task import labels
    from jaxbp.beyond import ATTRIBUTIONS

    if not are_images(data):
        return ""
    with jax.enable_x64(True):
        start = np.asarray(black(data), explainer.x.dtype)
        own = np.asarray(labels(explainer.y), np.int32)
        both = [np.asarray(a) for a in (explainer.x, start[None])]
        outputs, maps = attributed(explainer.net)(explainer.params, explainer.x, own, start)
        nothing = explainer.net(explainer.params, both[1])
    true, guess = int(own[0]), int(np.argmax(np.asarray(outputs)[0]))
    name, z, dark = data.names[true], float(outputs[0, true]), float(nothing[0, true])
    says = {rule: ATTRIBUTIONS[rule].says for rule in ATTRIBUTIONS if rule in maps}
    sums = {rule: float(np.sum(np.asarray(maps[rule]))) for rule in says}
    if "relevance" in says:
        says["relevance"] += (
            f" Its parts add up to {_number(sums['relevance'])}; the output is {_number(z)}."
        )
    if "integrated" in says:
        says["integrated"] += (
            f" Its parts add up to {_number(sums['integrated'])}; "
            f"the output is {_number(z)} here and {_number(dark)} for a black image."
        )
    right = "takes it for that, too" if guess == true else f"takes it for {data.names[guess]}"
    figures = [
        _figure(as_images(data, both[0])[0], "image", f"Its class is {name}; the network {right}.")
    ]
    figures += [_figure(as_colours(data, np.asarray(maps[r]))[0], r, says[r]) for r in says]
    title = html.escape(f"What in this image speaks for {name}")
    return (
        '<section id="attributions" aria-labelledby="attributions-h">\n'
        f'<h2 id="attributions-h">{title}</h2>\n'
        f'<p class="quiet">Of the output for {html.escape(name)}, {_number(z)}: red speaks for it, blue '
        "against it, each map by its own largest entry.</p>\n"
        f'<div class="maps">{"".join(figures)}</div>\n</section>\n'
    )


def _figure(colours: np.ndarray, name: str, says: str) -> str:
    """One picture with its name and a sentence; pixels stay pixels, however large it is shown."""
    from matplotlib.image import imsave

    file = BytesIO()
    imsave(file, np.ascontiguousarray(colours), format="png")
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    about = "the image" if name == "image" else f"{name}: a map of the image"
    return (
        f'<figure><img src="data:image/png;base64,{encoded}" alt="{html.escape(about)}">'
        f"<figcaption><b>{html.escape(name)}</b> {html.escape(says)}</figcaption></figure>\n"
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
