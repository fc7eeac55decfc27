"""From e^{x²} to a trained network: the lecture notes, in their order, on their numbers.

    python experiments/notes.py [FOLDER]

writes FOLDER/notes.html (to read from top to bottom), with a picture of four paths, and
FOLDER/network.html (the worked example, to click through). Every number on them is computed here.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import Chain, Dense, Layer, Sigmoid, SquaredError, explain_function
from jaxbp.explain import Explainer
from jaxbp.explain.notes import cross_entropy, notes_explainer, slips
from jaxbp.explain.page import descent, write_page
from jaxbp.explain.render import big, figure
from jaxbp.explain.report import forward_table, gradient_table, savings
from jaxbp.explain.symbols import mathml, name

EPOCHS, EPSILON, RATE = 1000, 1e-3, 1.0

Section = tuple[str, str, str]  # heading, what to notice (both HTML), what is shown (text)

EXAMPLES: list[Callable[[Any], Any]] = [
    lambda x: jnp.exp(x**2),
    lambda x: jnp.exp(jnp.exp(x**2)),
    lambda x: 1 / jnp.exp(x**2),
]


def thin(x: Any, y: Any, w1: Any, w2: Any, w3: Any) -> Any:
    """One neuron a layer."""
    s = jax.nn.sigmoid
    return (y - s(w3 * s(w2 * s(w1 * x)))) ** 2


def formula(*parts: str) -> str:
    """MathML elements as one formula."""
    return f"<math>{''.join(parts)}</math>"


def slope(of: str, by: str, d: str = "d") -> str:
    """A derivative as a fraction."""
    above, below = (f'<mrow><mo lspace="0" rspace="0">{d}</mo>{mathml(name(n))}</mrow>' for n in (of, by))
    return f"<mfrac>{above}{below}</mfrac>"


def chain_sections() -> list[Section]:
    """1. Name each stage, and multiply."""
    made = []
    for k, f in enumerate(EXAMPLES):
        e = explain_function(f, 1.0)
        (route,) = e.derivatives[0].routes
        pairs = list(zip(route.nodes, ("x", *route.nodes), strict=False))[::-1]
        product = "<mo>⋅</mo>".join(slope(*pair) for pair in pairs)
        written = "<mo>⋅</mo>".join(mathml(e.in_inputs(part)) for part in route.formulas[::-1])
        rule = formula(slope(e.output, "x"), "<mo>=</mo>", product, "<mo>=</mo>", written)
        note = (
            "Give every stage a name, differentiate each by the one before, and multiply: "
            if not k
            else "The same, with one stage more: "
            if k == 1
            else "The last stage is now a quotient, whose derivative brings a minus sign and a square: "
        )
        heading = f"The chain rule: {formula(mathml(e.in_inputs(name(e.output))))}"
        made.append((heading, f"{note}{rule}.", e.text()))
    return made


def thin_section() -> Section:
    """2. One neuron a layer: one path."""
    stages = ("a1", "h1", "a2", "h2", "a3", "ŷ", "L")
    e = explain_function(thin, 1.0, 0.5, 0.3, -0.4, 0.8, names=stages)
    return (
        "A thin network",
        "One neuron a layer, so one path leads from each weight to the loss, and ∂L/∂w is one product. "
        "The further a weight is from the loss, the longer its product.",
        f"{e.flow()}\n\n{e.text()}",
    )


def at_random(net: Layer, x: Any) -> Any:
    """Parameters for inputs like `x`, drawn with NumPy."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(x))
    return jax.tree.map(lambda leaf: 0.5 * random.normal(size=leaf.shape), shapes)


def path_section() -> Section:
    """3. Many neurons: many paths, and their sum."""
    net = Chain(Dense(2), Sigmoid(), Dense(3), Sigmoid(), Dense(1), Sigmoid())
    x = np.random.default_rng(0).normal(size=2)
    e = Explainer(net, at_random(net, x), x, np.ones(1), SquaredError()).weight("w121")
    return (
        "A real network: the sum over paths",
        "The next layer has three neurons, so there are three paths from w121 to the loss. Along each "
        "path the derivatives multiply; over the paths, the products add.",
        e.text(),
    )


def growth_section() -> Section:
    """4. Paths multiply with depth; one backward pass does not."""
    rows = ["layers of 10   paths from one weight   multiplications one by one   in one backward pass"]
    for depth in (1, 2, 3, 5, 8):
        layers = [part for _ in range(depth) for part in (Dense(10), Sigmoid())]
        net = Chain(*layers, Dense(2))
        params = at_random(net, np.ones(4))
        s = Explainer(net, params, np.ones(4), np.ones(2), SquaredError()).weight("w111", 1).savings
        rows.append(f"{depth:>12} {big(s.paths):>23} {big(s.one_by_one):>28} {big(s.one_pass):>22}")
    return (
        "Going backwards re-uses work",
        "Paths multiply with every layer: their number grows exponentially with depth. But the "
        "products share their ends: from the loss back, each edge is multiplied just once.",
        "\n".join(rows),
    )


def worked_sections(explainer: Explainer) -> list[Section]:
    """5. The two passes, the gradients of the worked example, and its slips."""
    paths = "\n\n".join(explainer.weight(w, reference=True).text() for w in ("w212", "w131", "w222"))
    tables = f"{gradient_table(explainer)}\n\n{savings(explainer)}"
    figure_ = (
        '<img src="w131.svg" alt="The four paths from w131 to the loss, with a factor on every edge">'
    )
    return [
        (
            "The two passes",
            "The worked example is a 4-4-2 network: sigmoid, then softmax, squared error, all biases 0. "
            "Forward propagation goes from the input to the loss, backpropagation from the loss to the "
            'input. (<a href="network.html">The same to click through.</a>)',
            forward_table(explainer),
        ),
        (
            "Three weights, path by path",
            "Every output of the softmax depends on every a2, so each weight has a path through ŷ1 and "
            f"one through ŷ2, and a weight of the first layer has four.{figure_}",
            paths,
        ),
        (
            "All gradients",
            "What one backward pass gives: every δ met with what its layer saw.",
            tables,
        ),
        (
            "With cross-entropy",
            "The same network with another loss. What arrives at a2 is then softmax(a2) - y.",
            cross_entropy(explainer),
        ),
        ("The slips in the notes", "Where the printed figures differ, and why.", slips(explainer)),
    ]


def train_section(explainer: Explainer) -> Section:
    """6. Iterate until a number of epochs or until the loss is below ε."""
    frames = descent(explainer, EPOCHS, RATE)
    losses = [explainer.at(frames[k].params).graph.value for k in (0, 1)]
    lines = [f"epoch {k:>4}   L = {figure(v, 9)}" for k, v in enumerate(losses)]
    low, high = 0, len(frames) - 1
    while (
        low < high
    ):  # the loss of this descent falls at every step, so the first below ε can be bisected
        middle = (low + high) // 2
        if explainer.at(frames[middle].params).graph.value < EPSILON:
            high = middle
        else:
            low = middle + 1
    end = explainer.at(frames[low].params)
    lines.append(f"epoch {low:>4}   L = {figure(end.graph.value, 9)}  < ε = {EPSILON:g}, so it stops")
    lines.append(
        f"\nŷ = {', '.join(figure(float(v)) for v in np.ravel(end.graph.predicted))} for y = 1, 0"
    )
    return (
        "Training",
        "Over and over: compute ŷ, compute L, go back, and move every parameter against its gradient, "
        f"w := w - η ∂L/∂w and b := b - η ∂L/∂b with η = {RATE:g}. Stop after {EPOCHS} epochs, or once "
        f"L is below ε = {EPSILON:g}.",
        "\n".join(lines),
    )


def sections(explainer: Explainer) -> list[Section]:
    """The whole walk."""
    return [
        *chain_sections(),
        thin_section(),
        path_section(),
        growth_section(),
        *worked_sections(explainer),
        train_section(explainer),
    ]


STYLE = """
:root { color-scheme: light dark; }
body { font: 17px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
p { max-width: 46rem; }
img { display: block; max-width: 100%; margin: 1rem auto; background: #fff; border-radius: 8px; }
pre { overflow-x: auto; white-space: pre-wrap; padding: 1rem; border: 1px solid #8886;
  border-radius: 8px; font-size: .82rem; line-height: 1.45; }
h2 { margin-top: 2.2rem; }
nav a { display: inline-block; margin-right: .8rem; }
@media (prefers-color-scheme: dark) { a { color: #8ab4f8; } }
@media screen and (max-width: 62rem) { pre { white-space: pre; } } /* columns stay columns */
@media print { section { break-inside: avoid-page; } }
"""


def render(parts: list[Section]) -> str:
    """The walk as one HTML file without dependencies."""
    links = "".join(f'<a href="#s{k}">{k}. {h}</a>' for k, (h, _, _) in enumerate(parts, 1))
    body = "".join(
        f'<section id="s{k}"><h2>{k}. {heading}</h2><p>{note}</p>'
        f'<pre tabindex="0">{html.escape(shown)}</pre></section>'
        for k, (heading, note, shown) in enumerate(parts, 1)
    )
    rule = (
        f"<math><mfrac><mrow><mo>∂</mo>{mathml(name('L'))}</mrow><mrow><mo>∂</mo>{mathml(name('w'))}</mrow>"
        "</mfrac><mo>=</mo><munder><mo>∑</mo><mtext>paths</mtext></munder><munder><mo>∏</mo><mtext>edges</mtext>"
        f"</munder><mfrac><mrow><mo>∂</mo>{mathml(name('b'))}</mrow><mrow><mo>∂</mo>{mathml(name('a'))}</mrow>"
        "</mfrac></math>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Backpropagation by hand</title><style>{STYLE}</style></head><body>"
        f"<h1>Backpropagation by hand</h1><p>{rule}: a derivative is a sum over paths of products "
        "along each. "
        '<a href="network.html">The worked example to click through</a>.</p>'
        f"<nav>{links}</nav>{body}</body></html>"
    )


def main(folder: Path) -> None:
    """Write both pages."""
    folder.mkdir(parents=True, exist_ok=True)
    explainer = notes_explainer()
    explainer.weight("w131").png(folder / "w131.svg")
    (folder / "notes.html").write_text(render(sections(explainer)), "utf-8")
    write_page(folder / "network.html", explainer, "w212", title="The notes' 4-4-2 network")
    print(f"written: {folder / 'notes.html'}, {folder / 'network.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "notes"))
