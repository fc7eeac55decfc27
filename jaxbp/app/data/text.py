"""Text: windows of a file, a folder, or the interpreter's own standard library, byte by byte."""

from __future__ import annotations

from jaxbp.app.data.dataset import Data, Dataset, TestShare
from jaxbp.app.data.description import fingerprint
from jaxbp.app.schema import Count, Whole
from jaxbp.app.text import VOCABULARY, read_parts, spread, windows


class Text(Data, frozen=True, kw_only=True):
    """Windows of a text, byte by byte; each predicts the byte after every one of its own."""

    name: str = "text"
    """which data set"""
    path: str = ""
    """a file, or a folder of files; by default the interpreter's own standard library"""
    length: Count = 128
    """bytes in a window"""
    test_share: TestShare = 0.1
    """share of the files (of a single file: of its end) that is held out"""
    train_bytes: Whole = 0
    """train on windows of so many bytes, spread evenly over the text; 0 for all"""
    test_bytes: Whole = 0
    """measure on windows of so many held-out bytes, spread evenly; 0 for all"""

    def load(self) -> Dataset:
        parts = read_parts(self.path, self.test_share)
        counts = (self.train_bytes // self.length, self.test_bytes // self.length)
        named = zip(("to train on", "held out"), parts, counts, strict=True)
        (x, y), (test_x, test_y) = (
            spread(*windows(text, self.length, part), count) for part, text, count in named
        )
        mark = fingerprint([x, test_x], [y, test_y])
        return Dataset("text", x, y, test_x, test_y, VOCABULARY, fingerprint=mark)
