"""What a run says while it runs: a bar on a terminal, a bounded number of plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbp.app.loop import milestones
from jaxbp.app.task import Task

LINES = 20  # inside the epochs of a run, where there is no terminal


class Reporter:
    """Progress through epochs `first … last`."""

    def __init__(self, console: Console, first: int, last: int, task: Task):
        self.console, self.first, self.last = console, first, last
        self.steps, self.examples, self.metric = task.steps, len(task.data.x), task.metric
        self.lines, self.bar, self.task = set(milestones(first, last)), None, None
        self.parts, self.part = max(LINES // (last - first + 1), 1), 0
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
        key = self.metric.key  # of the validation part where there is one: it is what decides
        score = self.metric.short(record.get(f"valid_{key}", record[f"test_{key}"]))
        text = (
            f"loss {record['loss']:<9.4g} {self.metric.title} {score:>6} "
            f"{record['examples_per_second']:>9,.0f} ex/s"
        )
        if math.isfinite(record.get("epsilon", math.inf)):
            text += f"  ε {record['epsilon']:.3g}"
        self.part = 0
        self._show(record["epoch"], text)

    def steps_done(self, epoch: int, step: int, loss: float, rate: float) -> None:
        """Show where an epoch that takes long stands; `epoch` are done, and `step` steps of the next."""
        at = f"step {step:>{len(str(self.steps))}}/{self.steps}"
        text = f"{at}  loss {loss:<9.4g} {rate:>9,.0f} ex/s"
        done, part = epoch + step / self.steps, step * self.parts // self.steps
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, text=text)
        elif part > self.part:
            left = (self.last - done) * self.examples / rate
            where = f"epoch {epoch + 1:>{self.width}}/{self.last}"
            self.console.print(f"{where}  {text}  {left:.0f} s left", highlight=False)
        self.part = part

    def members(self, number: int, scores: np.ndarray) -> None:
        """Show an epoch of a sweep; `scores: [members, (loss, test_loss, metric)]`."""
        loss, score = (a[np.isfinite(a)] for a in (scores[:, 0], scores[:, 2]))
        losses = f"{loss.min():.4g} to {loss.max():.4g}" if loss.size else "of no member finite"
        metrics = " to ".join(self.metric.short(f()) for f in (score.min, score.max) if score.size)
        self._show(number, f"loss {losses}, {self.metric.title} {metrics or self.metric.short(None)}")

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
def reporter(console: Console, first: int, last: int, task: Task) -> Iterator[Reporter]:
    """A `Reporter` whose bar is drawn while the block runs."""
    result = Reporter(console, first, last, task)
    if result.bar is None:
        yield result
    else:
        with result.bar:
            yield result
