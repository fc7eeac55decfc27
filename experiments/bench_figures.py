"""README's tables and the plots of the bench, drawn from the JSON files of `jaxbp bench --json`.

    python experiments/bench_figures.py [FILE …] [--readme README.md] [--images experiments/images]

The tables go between the marks `<!-- bench -->` and `<!-- /bench -->` of the README; `bench_PLATFORM.png`
has by hand over each rival as bars, and the cost along each series where one was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from jaxbp.bench.rows import ROWS

HERE = Path(__file__).parent
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
COLOURS = {"by hand": "#1b6ca8", "jax.grad": "#c0392b", "jax.nn": "#8e44ad", "torch": "#e67e22",
           "torch.compile": "#b7950b", "flax": "#27ae60", "plain": "#7f8c8d"}  # fmt: skip
SERIES = {row.name: row for row in ROWS if row.series}


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`{row: {contestant: figure}}` in the order in which they were measured."""
    rows: dict[str, dict[str, Any]] = {}
    for figure in result["figures"]:
        rows.setdefault(figure["row"], {})[figure["contestant"]] = figure
    return rows


def title(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v and k in ("jax", "torch"))
    return f"{result['device']}, {versions}"


def markdown(result: dict[str, Any]) -> str:
    """One table: milliseconds by hand, and the ratio to every rival that ran."""
    rows = {name: figures for name, figures in rows_of(result).items() if name not in SERIES}
    rivals = [
        c for c in COLOURS if c != "by hand" and any(c in f and "ratio" in f[c] for f in rows.values())
    ]
    lines = [
        f"{title(result)}; medians of {result['rounds']} rounds in turns ({result['date']}); "
        f"a product runs at {result['peak_tflops']:.3g} TFLOP/s there ({result['peak_dtype']}).",
        "",
        "| row | by hand, ms | temp, MB | " + " | ".join(f"by hand / {rival}" for rival in rivals) + " |",
        "|---|---|---|" + "---|" * len(rivals),
    ]
    for name, figures in rows.items():
        ours = figures["by hand"]
        if "median_ms" not in ours:
            continue
        ratios = [figures.get(rival, {}).get("ratio") for rival in rivals]
        cells = [f"{r:.2f}" if r is not None else "–" for r in ratios]
        lines.append(
            f"| {name} | {ours['median_ms']:.2f} | {ours.get('temp_mb', 0):.0f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def write_tables(readme: Path, results: Sequence[dict[str, Any]]) -> None:
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{readme}: expected the marks {BEGIN} and {END}, got none")
    tables = "\n\n".join(map(markdown, results))
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: f"{BEGIN}\n{tables}\n{END}", text), encoding="utf-8")


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of ratios on a logarithmic axis, and a panel a series."""
    rows = rows_of(result)
    families: dict[str, list[str]] = {}
    for name in rows:
        if name in SERIES:
            families.setdefault(SERIES[name].family, []).append(name)
    bars = [
        (name, rival, figure["ratio"])
        for name, figures in rows.items()
        for rival, figure in figures.items()
        if "ratio" in figure and name not in SERIES
    ]
    height = max(3.5 if not families else 6.0, 0.2 * len(bars) + 2)
    fig = plt.figure(figsize=(14 if families else 7, height), layout="constrained")
    parts = fig.subfigures(1, 2 if families else 1, squeeze=False)[0]
    _bars(parts[0].subplots(), bars)
    if families:
        shape = -(-len(families) // 2), min(2, len(families))
        panels = list(parts[1].subplots(*shape, squeeze=False).flat)
        for axes in panels[len(families) :]:
            axes.remove()
        for axes, (family, names) in zip(panels, families.items(), strict=False):
            _series(axes, family, names, rows)
    present = [c for c in COLOURS if any(c in figures for figures in rows.values())]
    handles = [Line2D([], [], color=COLOURS[c], linewidth=6, label=c) for c in present]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    fig.suptitle(title(result))
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _bars(axes: Any, bars: list[tuple[str, str, float]]) -> None:
    y, last = 0.0, None
    ticks: dict[str, list[float]] = {}
    for name, rival, ratio in bars:
        y -= 1.0 if name == last else 1.7
        ticks.setdefault(name, []).append(y)
        axes.barh(y, ratio - 1, left=1, height=0.9, color=COLOURS[rival])
        right = ratio >= 1
        axes.annotate(
            f"{ratio:.2g}",
            (ratio, y),
            xytext=(3 if right else -3, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=7,
        )
        last = name
    axes.set_xscale("log")
    ratios = [r for *_, r in bars]
    axes.set_xlim(min([*ratios, 0.5]) / 1.6, max([*ratios, 2.0]) * 1.6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([sum(ys) / len(ys) for ys in ticks.values()], list(ticks))
    axes.set_xlabel("time by hand / time of the rival (left of 1: by hand is faster)")


def _series(axes: Any, family: str, names: list[str], rows: dict[str, Any]) -> None:
    """Milliseconds along one axis; a memory that does not fit leaves a point out."""
    for contestant, colour in COLOURS.items():
        points = sorted(
            (SERIES[name].at, rows[name][contestant]["median_ms"])
            for name in names
            if "median_ms" in rows[name].get(contestant, {})
        )
        axes.plot([at for at, _ in points], [ms for _, ms in points], marker="o", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(family, fontsize=10)
    axes.set_xlabel(SERIES[names[0]].series)
    axes.set_ylabel("ms")
    ats = sorted(SERIES[name].at or 0 for name in names)
    axes.set_xticks(ats, [str(at) for at in ats])
    axes.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="*", type=Path, help="default: all of experiments/benchmarks")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--images", type=Path, default=HERE / "images")
    args = parser.parse_args()
    files = args.file or sorted((HERE / "benchmarks").glob("*.json"))
    if not files:
        sys.exit("no results: run jaxbp bench --json experiments/benchmarks/FILE.json first")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    write_tables(args.readme, results)
    for file, result in zip(files, results, strict=True):
        draw(result, args.images / f"bench_{file.stem}.png")
        print(args.images / f"bench_{file.stem}.png")


if __name__ == "__main__":
    main()
