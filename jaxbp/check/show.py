"""A report as a page and as a picture."""

from __future__ import annotations

import html as escape
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxbp.layer import InputError

if TYPE_CHECKING:
    from jaxbp.check.report import Report

COLOURS = {"right": "#0a7d33", "noisy": "#8a6d00", "wrong": "#b3261e", "untested": "#666666"}


def html(report: Report) -> str:
    """For notebooks: the verdict, the findings, and a table of all leaves."""
    e = escape.escape
    head = f"<b>{e(report.target)}</b>: <b style='color:{COLOURS[report.verdict]}'>{report.verdict}</b>"
    items = "".join(
        f"<li><b>{e(f.cause)}</b> {e(f.path)}<br>{e(f.detail)}"
        + (f"<br><code>{e(str(f.evidence['source']))}</code>" if "source" in f.evidence else "")
        + f"<br><i>{e(f.advice)}</i></li>"
        for f in report.findings
    )
    rows = "".join(
        f"<tr><td>{e(leaf.path)}</td><td>{e(leaf.dtype)}{list(leaf.shape)}</td>"
        f"<td style='color:{COLOURS[leaf.verdict]}'>{leaf.verdict}</td>"
        f"<td>{leaf.error:.2g}</td><td>{leaf.floor:.2g}</td>"
        f"<td>{list(leaf.worst)}: {leaf.got:.6g}, expected {leaf.expected:.6g}</td></tr>"
        for leaf in report.leaves
    )
    columns = ("argument", "shape", "verdict", "error", "noise floor", "worst entry")
    header = "".join(f"<th style='text-align:left'>{c}</th>" for c in columns)
    notes = "".join(f"<li>{e(note)}</li>" for note in report.notes)
    return (
        f"<div>{head}<ol>{items}</ol><table><tr>{header}</tr>{rows}</table>"
        f"{'<ul>' + notes + '</ul>' if notes else ''}</div>"
    )


def heat_map(report: Report, folder: Path, path: str | None = None) -> Path:
    """Claimed, true and their difference, side by side, for a wrong leaf; returns the PNG's path."""
    if not report.pictures:
        raise InputError("heat_map: no leaf of this report is wrong")
    path = path or max(report.pictures, key=lambda p: _relative(*report.pictures[p]))
    if path not in report.pictures:
        raise InputError(f"heat_map: no wrong leaf {path!r} (wrong: {', '.join(report.pictures)})")
    from matplotlib.figure import Figure

    got, true = (_flat(a) for a in report.pictures[path])
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    limit = float(np.nanmax(np.abs(np.where(np.isfinite([got, true]), [got, true], 0)))) or 1.0
    image = None
    panels = (("the rule says", got), ("the truth", true), ("difference", got - true))
    for axis, (title, values) in zip(figure.subplots(1, 3), panels, strict=True):
        image = axis.imshow(
            values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axis.set_title(title)
        axis.set_xlabel("last axis")
        axis.set_ylabel("all other axes" if true.shape[0] > 1 else "")
    assert image is not None
    figure.colorbar(image, ax=figure.axes, label=f"cotangent of {path}")
    figure.suptitle(f"{report.target}: {path}")
    out = folder
    if folder.suffix != ".png":
        out = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', path).strip('-') or 'leaf'}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out


def _flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1, a.shape[-1]) if a.ndim > 1 else a.reshape(1, -1)


def _relative(got: np.ndarray, true: np.ndarray) -> float:
    return float(np.max(np.abs(got - true), initial=0.0) / (np.max(np.abs(true), initial=0.0) or 1.0))
