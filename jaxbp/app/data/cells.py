"""A .csv as rows of cells, read by Python's csv module; every fault is named by line and column.

Cells are separated by commas, semicolons or tabs, quoted or not, with any line endings. The first row is
a header if it is a row of words: no cell of it is a number. Nothing else is ever left out but blank
lines, and lines are counted as an editor counts them, those included.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.app.data.labels import MISSING
from jaxbp.app.data.scale import WHOLE, column
from jaxbp.layer import InputError

SEPARATORS = "\t;,"
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class Cells:
    """Rows of text, each with the line that it begins in; `names` are those of a header, if any."""

    path: Path
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    width: int

    def at(self, row: int, j: int | None = None) -> str:
        """A place as an editor counts."""
        return f"line {self.lines[row]}" + ("" if j is None else f", {column(j, self.names)}")

    def text(self, j: int) -> np.ndarray:
        """A column as words."""
        return np.asarray([row[j] for row in self.rows])

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        """`[rows, columns]` of: int64, float64, or Python's numbers where both are too coarse."""
        table = [self._column(j) for j in columns]
        whole = [isinstance(one[0], int) for one in table]
        sizes = [max(map(abs, one)) for one, is_whole in zip(table, whole, strict=True) if is_whole]
        limit = 2**63 if all(whole) else WHOLE + 1
        fitting = np.int64 if all(whole) else np.float64
        return np.asarray(table, fitting if max(sizes, default=0) < limit else object).T

    def _column(self, j: int) -> list[Any]:
        """The numbers of a column: integers if all are written so."""
        cells = [row[j] for row in self.rows]
        together = "".join(cells)
        try:
            values = list(map(float, cells))
        except ValueError:
            values = [math.nan]
        if "_" in together or not together.isascii() or not all(map(math.isfinite, values)):
            row = next(i for i, cell in enumerate(cells) if not is_number(cell))
            raise InputError(f"{self.path}: {self.at(row, j)}: {self._no_number(row, j)}")
        signless = together.replace("-", "").replace("+", "")
        return list(map(int, cells)) if signless.isdigit() else values

    def _no_number(self, row: int, j: int) -> str:
        """What is wrong with a cell, and what to do."""
        cell = self.rows[row][j]
        if not cell:
            return "expected a number, got an empty cell; fill it in, or remove the row or the column"
        said = f"expected a number, got {cell!r}"
        if re.fullmatch(r"[+-]?\d[\d.]*,\d+", cell):
            return f"{said}; write a decimal point and no thousands separator"
        if len(cell.split()) > 1 and all(map(is_number, cell.split())):
            return f"{said}; separate columns by commas, semicolons or tabs"
        if cell in MISSING:
            return f"{said}, which says that it is missing; fill it in, or remove the row or the column"
        if self.names and cell[0].isalpha() and not any(is_number(each[j]) for each in self.rows):
            return (
                f"{said}; a column of words is no input: data.skip leaves it out, data.target says that "
                "it is the label"
            )
        if row == 0 and not self.names and any(letter.isalpha() for letter in cell):
            return f"{said} (no header either: in one, no cell is a number)"
        return said


def read_cells(path: Path) -> Cells:
    """The cells of a .csv, all rows of the same length."""
    rows, lines = _rows(path, _decoded(path))
    if not rows:
        raise InputError(f"{path}: expected rows of numbers, got none")
    names: tuple[str, ...] = ()
    if _is_header(rows[0]):
        names = tuple(cell.lstrip("# ") for cell in rows[0])
        rows, lines = rows[1:], lines[1:]
        if not rows:
            raise InputError(f"{path}: expected rows of numbers, got none below the header")
    width = len(names or rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            given = "the header has" if names else f"line {lines[0]} has"
            raise InputError(f"{path}: line {line}: expected {width} columns, as {given}, got {len(row)}")
    return Cells(path, names, rows, lines, width)


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}: expected UTF-8, got UTF-16; save it as “CSV UTF-8”")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: line {line}: expected text, got bytes that are not UTF-8; save it as “CSV UTF-8”"
        ) from None


def _rows(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    """The rows that are not blank, stripped, and the lines in which they begin."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_separator(text), skipinitialspace=True, strict=True
    )
    rows, lines, ended = [], [], 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if len(cells) > 1 or any(cells):
                rows.append(cells)
                lines.append(ended + 1)
            ended = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}: line {ended + 1}: not a CSV: {error}") from None
    return rows, lines


def _separator(text: str) -> str:
    """Tabs, semicolons or commas, whichever stands in the first line that is not blank, in this order."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    plain = re.sub(r'"[^"]*"', "", first)
    return next((mark for mark in SEPARATORS if mark in plain.strip(" ")), ",")


def _is_header(row: Sequence[str]) -> bool:
    """Whether a row is one of words; marks such as `?` are not, and a cell may be empty (an index's)."""
    filled = [cell for cell in row if cell]
    return bool(filled) and all(any(map(str.isalpha, cell)) and not _is_float(cell) for cell in filled)


def is_number(cell: str) -> bool:
    """Whether a cell is a finite decimal number."""
    return bool(NUMBER.fullmatch(cell)) and math.isfinite(float(cell))


def _is_float(cell: str) -> bool:
    """Whether Python reads a number, `nan` and `inf` among them."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
