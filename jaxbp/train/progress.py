"""What a run says while it runs: a bar on a terminal, a bounded number of plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbp.train.loop import milestones


class Reporter:
    """Progress through epochs `first … last`."""

    def __init__(self, console: Console, first: int, last: int):
        self.console, self.first, self.last = console, first, last
        self.lines, self.bar, self.task = set(milestones(first, last)), None, None
        self.width = len(str(last))
        self.time = time.perf_counter()
        if console.is_terminal:
            columns = (
                TextColumn("epoch"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console)
            self.task = self.bar.add_task("train", total=last, completed=first - 1, text="compiling")

    def epoch(self, record: dict[str, Any]) -> None:
        """Show an epoch's record."""
        text = (
            f"loss {record['loss']:<9.4g} accuracy {record['test_accuracy']:6.1%} "
            f"{record['examples_per_second']:>9,.0f} ex/s"
        )
        self._show(record["epoch"], text)

    def members(self, number: int, scores: np.ndarray) -> None:
        """Show an epoch of a sweep; `scores: [members, (loss, test_loss, accuracy)]`."""
        loss, accuracy = scores[:, 0], scores[:, 2]
        text = (
            f"loss {np.nanmin(loss):.4g} to {np.nanmax(loss):.4g}, "
            f"accuracy {accuracy.min():.1%} to {accuracy.max():.1%}"
        )
        self._show(number, text)

    def _show(self, number: int, text: str) -> None:
        if number == self.first:
            self.time = time.perf_counter()
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=number, text=text)
        elif number in self.lines:
            left = (
                f"  {(self.last - number) * self._pace(number):.0f} s left" if number > self.first else ""
            )
            self.console.print(f"epoch {number:>{self.width}}/{self.last}  {text}{left}", highlight=False)

    def _pace(self, number: int) -> float:
        """Seconds an epoch, the first left out: it is slower, for once."""
        return (time.perf_counter() - self.time) / (number - self.first)


@contextmanager
def reporter(console: Console, first: int, last: int) -> Iterator[Reporter]:
    """A `Reporter` whose bar is drawn while the block runs."""
    result = Reporter(console, first, last)
    if result.bar is None:
        yield result
    else:
        with result.bar:
            yield result
