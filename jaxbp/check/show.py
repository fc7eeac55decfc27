"""A report as a page and as a picture."""

from __future__ import annotations

import base64
import html as escape
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.digits import error_words, noise_words, pair_words
from jaxbp.layer import InputError

if TYPE_CHECKING:
    from jaxbp.check.report import Finding, Leaf, Report

COLOURS = {"right": "#0a7d33", "noisy": "#8a6d00", "wrong": "#b3261e", "untested": "#666666"}


def html(report: Report) -> str:
    """For notebooks: the verdict, the findings, a table of all leaves, and the heat map of the worst."""
    e = escape.escape
    head = f"<b>{e(report.target)}</b>: <b style='color:{COLOURS[report.verdict]}'>{report.verdict}</b>"
    items = "".join(
        f"<li><b>{e(f.cause)}</b> {e(f.path)}<br>{e(f.detail)}"
        + (f"<br><code>{e(str(f.evidence['source']))}</code>" if _elsewhere(f) else "")
        + f"<br><i>{e(f.advice)}</i></li>"
        for f in report.findings
    )
    rows = "".join(
        f"<tr><td>{e(leaf.path)}</td><td>{e(leaf.dtype)}{list(leaf.shape)}</td>"
        f"<td style='color:{COLOURS[leaf.verdict]}'>{leaf.verdict}</td>"
        f"<td>{e(error_words(leaf.error, leaf.dtype, leaf.verdict))}</td>"
        f"<td>{e(noise_words(leaf.floor, leaf.dtype))}</td><td>{e(_entry(leaf))}</td></tr>"
        for leaf in report.leaves
    )
    columns = ("argument", "shape", "verdict", "error", "noise floor", "worst entry")
    header = "".join(f"<th style='text-align:left;padding-right:1em'>{c}</th>" for c in columns)
    notes = "".join(f"<li>{e(note)}</li>" for note in report.notes)
    return (
        f"<div>{head}{f'<ol>{items}</ol>' if items else ''}<table><tr>{header}</tr>{rows}</table>"
        f"{'<ul>' + notes + '</ul>' if notes else ''}{_picture(report)}</div>"
    )


def _elsewhere(finding: Finding) -> bool:
    """Whether the source line is not in the sentence already."""
    source = str(finding.evidence.get("source", ""))
    return bool(source) and source.partition(": ")[0] not in finding.detail


def _entry(leaf: Leaf) -> str:
    if math.isnan(leaf.expected):
        return ""
    return f"{list(leaf.worst)}: {pair_words(leaf.got, leaf.expected)} ({leaf.where})"


def _picture(report: Report) -> str:
    """The heat map inside the page, where matplotlib is there to draw it."""
    if not report.pictures:
        return ""
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        return ""
    path = worst_leaf(report)
    data = io.BytesIO()
    draw(report, path).savefig(data, format="png", dpi=80)
    source = base64.b64encode(data.getvalue()).decode()
    return f"<img alt='where {escape.escape(path)} differs' src='data:image/png;base64,{source}'>"


def worst_leaf(report: Report) -> str:
    return max(report.pictures, key=lambda p: _relative(*report.pictures[p]))


def heat_map(report: Report, folder: Path, path: str | None = None) -> Path:
    """Claimed, true and their difference, side by side, for a wrong leaf; returns the PNG's path."""
    if not report.pictures:
        raise InputError("heat_map: no leaf of this report is wrong")
    path = path or worst_leaf(report)
    if path not in report.pictures:
        raise InputError(f"heat_map: no wrong leaf {path!r} (wrong: {', '.join(report.pictures)})")
    out = folder
    if folder.suffix != ".png":
        out = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', path).strip('-') or 'leaf'}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(report, path).savefig(out, dpi=120)
    return out


def draw(report: Report, path: str) -> Any:
    """The figure: claim, truth and difference on one colour scale, the worst entry circled."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    got, true = (_flat(a) for a in report.pictures[path])
    leaf = next(leaf for leaf in report.leaves if leaf.path == path)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    limit = float(np.nanmax(np.abs(np.where(np.isfinite([got, true]), [got, true], 0)))) or 1.0
    difference = got - true
    row, column = np.unravel_index(
        int(np.argmax(np.where(np.isnan(difference), np.inf, abs(difference)))), got.shape
    )
    image = None
    panels = (("the rule says", got), ("the truth", true), ("difference", difference))
    for axis, (title, values) in zip(figure.subplots(1, 3), panels, strict=True):
        image = axis.imshow(
            values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axis.set_title(title)
        axis.set_xlabel("last axis" if len(leaf.shape) > 1 else "index")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        if len(true) == 1:
            axis.set_yticks([])
        elif title == "the rule says":
            axis.set_ylabel("axis 0" if len(leaf.shape) == 2 else "all other axes, in one")
        if title == "difference":
            axis.plot(column, row, "o", markersize=12, markerfacecolor="none", markeredgecolor="black")
    assert image is not None
    figure.colorbar(image, ax=figure.axes, label=f"cotangent of {path}")
    figure.suptitle(f"{report.target}: {path}, {leaf.where}; the largest difference is circled")
    return figure


def _flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1, a.shape[-1]) if a.ndim > 1 else a.reshape(1, -1)


def _relative(got: np.ndarray, true: np.ndarray) -> float:
    return float(np.max(np.abs(got - true), initial=0.0) / (np.max(np.abs(true), initial=0.0) or 1.0))
