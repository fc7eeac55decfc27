"""The pictures of a run: curves and confusion matrix, drawn without a display."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.app.task import Metric

INK, GREY = "#222222", "#8a8a8a"
TRAIN, TEST = "#1f5fa8", "#d1622b"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
}


@contextmanager
def figure_at(path: Path, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """A figure that is saved at the end of the block; no state of pyplot is touched."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        figure = Figure(*args, layout="constrained", **kwargs)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path)


def draw_curves(
    path: Path, history: Sequence[dict[str, Any]], title: str, metric: Metric, held_out: bool = True
) -> None:
    """Loss (logarithmic) and metric by epoch, for the training and the held-out part.

    Where there is a validation part too, a line stands at the epoch that it chose. In a run of few epochs
    the training loss is drawn inside them too, from each record's `losses`.
    """
    epochs = [record["epoch"] for record in history]
    inside = any("losses" in record for record in history)
    marker = "o" if inside or len(epochs) == 1 else ""
    with figure_at(path, figsize=(9, 3.6)) as figure:
        figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10, color=GREY)
        left, right = figure.subplots(1, 2, sharex=True)
        for axes, name, text in ((left, "loss", "Loss"), (right, metric.key, _title(metric))):
            parts = [(name, "training", TRAIN)] + [(f"test_{name}", "held out", TEST)] * held_out
            if f"valid_{name}" in history[0]:
                parts.insert(1, (f"valid_{name}", "validation", GREY))
            for key, label, color in parts:
                if key == "loss" and inside:
                    axes.plot(*_by_step(history), color=color, label=label, linewidth=1.8)
                    continue
                values = _numbers(record[key] for record in history)
                axes.plot(epochs, values, color=color, label=label, linewidth=1.8, marker=marker)
            axes.set_title(text)
            axes.set_xlabel("epoch")
            axes.margins(x=0.02)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend()
        values = np.concatenate([_by_step(history)[1], _numbers(r["test_loss"] for r in history)])
        values = values[np.isfinite(values)]
        if values.size and values.min() > 0 and values.max() > 5 * values.min():
            left.set_yscale("log")
            _plain_log_ticks(left)
        keys = (metric.key, f"test_{metric.key}")
        lowest = np.nanmin(_numbers([0.95, *(record[k] for record in history for k in keys)]))
        right.set_ylim(max(lowest - 0.05, -0.02), 1.01)
        if metric.key == "accuracy":
            right.yaxis.set_major_formatter(_percent)
        kept, when = history[-1], "at the end"
        if "valid_loss" in kept:
            kept, when = min(history, key=lambda record: _or_inf(record["valid_loss"])), "where kept"
            for axes in (left, right):
                axes.axvline(kept["epoch"], color=GREY, linewidth=0.8, linestyle="--")
        score = metric.short(kept[keys[1]])
        right.set_title(f"{score} {when}", loc="right", color=TEST if held_out else TRAIN)


def _by_step(history: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, with what is between them, and the mean loss of every stretch of steps."""
    at, values = [], []
    for record in history:
        losses = record.get("losses", [record["loss"]])
        at.append(record["epoch"] - 1 + (np.arange(len(losses)) + 0.5) / len(losses))
        values.append(_numbers(losses))
    return np.concatenate(at), np.concatenate(values)


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Values of an axis; NaN, which is not drawn, where there is none."""
    return np.asarray([np.nan if value is None else value for value in values], np.float64)


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None or not np.isfinite(value) else value


def plain(text: str) -> str:
    """A name as it is: matplotlib would read `$` as mathematics."""
    return text.replace("$", r"\$")


def _title(metric: Metric) -> str:
    return metric.title[0].upper() + metric.title[1:]


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:g}%" if value <= 1 else ""


def _plain_log_ticks(axes: Any) -> None:
    """0.01, 0.1, 1 rather than powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_confusion(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """Counts of true (rows) against predicted (columns) classes; the wrong ones stand out."""
    size, right = len(counts), int(np.trace(counts))
    scale = 0.42 if size > 4 else 0.9
    with figure_at(path, figsize=(1.6 + scale * size, 1.6 + scale * size)) as figure:
        axes = figure.subplots()
        axes.grid(False)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        wrong = share * (1 - np.eye(size))
        shown = np.ones((size, size, 3))
        shown -= share[..., None] * np.eye(size)[..., None] * (1 - np.array([0.12, 0.37, 0.66])) * 0.9
        shown -= np.sqrt(wrong)[..., None] * (1 - np.array([0.82, 0.38, 0.17])) * 0.95
        axes.imshow(np.clip(shown, 0, 1), interpolation="nearest")
        for (i, j), n in np.ndenumerate(counts) if size <= 40 else ():
            if n:
                dark = shown[i, j].mean() < 0.62
                axes.text(
                    j, i, str(n), ha="center", va="center", color="white" if dark else INK, fontsize=9
                )
        axes.set(xlabel="predicted", ylabel="true", xticks=range(size), yticks=range(size))
        axes.set_xticklabels([plain(name) for name in names], rotation=_rotation(names, size))
        axes.set_yticklabels([plain(name) for name in names])
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_title(f"{right} of {counts.sum()} right", pad=10)


def _rotation(names: Sequence[str], size: int) -> int:
    """Degrees by which names below columns are turned, so that long ones do not meet."""
    return 90 if max(map(len, names)) > (10 if size <= 4 else 4) else 0


def draw_sweep(
    path: Path, histories: np.ndarray, members: Sequence[tuple[int, float]], title: str, metric: Metric
) -> None:
    """Training loss and held-out metric of all members, one colour a learning rate."""
    import matplotlib

    rates = sorted({rate for _, rate in members})
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(rates)))
    epochs = np.arange(1, histories.shape[1] + 1)
    with figure_at(path, figsize=(9, 3.8)) as figure:
        figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10, color=GREY)
        left, right = figure.subplots(1, 2, sharex=True)
        for (_, rate), history in zip(members, histories, strict=True):
            color = colors[rates.index(rate)]
            for axes, values in ((left, history[:, 0]), (right, history[:, 2])):
                axes.plot(epochs, values, color=color, linewidth=1.2, alpha=0.8)
        finite = histories[..., 0][np.isfinite(histories[..., 0])]
        if finite.size and finite.min() > 0 and finite.max() > 5 * finite.min():
            left.set_yscale("log")
            _plain_log_ticks(left)
        left.set_title("Training loss")
        right.set_title(f"Held-out {metric.title}")
        if metric.key == "accuracy":
            right.yaxis.set_major_formatter(_percent)
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.margins(x=0.02)
            axes.xaxis.get_major_locator().set_params(integer=True)
        for color, rate in zip(colors, rates, strict=True):
            right.plot([], [], color=color, label=f"η = {rate:g}")
        right.legend()


def draw_fit(
    path: Path, true: np.ndarray, predicted: np.ndarray, held_out: bool = True, name: str = ""
) -> None:
    """Predicted against true values of what has this `name`; perfect predictions lie on the diagonal."""
    low, high = (f(f(true), f(predicted)) for f in (min, max))
    with figure_at(path, figsize=(4.4, 4.4)) as figure:
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=GREY, linewidth=1)
        axes.scatter(true, predicted, s=14, color=TEST if held_out else TRAIN, alpha=0.7, linewidths=0)
        label = plain(name) and f" {plain(name)}"
        axes.set(xlabel=f"true{label}", ylabel=f"predicted{label}", aspect="equal")
        axes.set_title("Held-out examples" if held_out else "Training examples")


def draw_images(path: Path, true: np.ndarray, made: np.ndarray, count: int = 12) -> None:
    """The first images `[n, height, width, channels]`, and below each what the network makes of it."""
    count = min(count, len(true))
    top = max(float(true.max()), 1e-12)
    with figure_at(path, figsize=(0.75 * count + 0.6, 1.9)) as figure:
        rows = figure.subplots(2, count, squeeze=False)
        for row, images, label in zip(rows, (true, made), ("input", "output"), strict=True):
            for axes, image in zip(row, images[:count], strict=True):
                axes.imshow(np.clip(image / top, 0, 1).squeeze(), cmap="gray_r", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                for spine in axes.spines.values():
                    spine.set(visible=True, color="#dddddd")
            row[0].set_ylabel(label, rotation=0, ha="right", va="center")
