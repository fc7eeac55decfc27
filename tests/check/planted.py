"""A slip that is planted in a right gradient: what is right is not blamed, the slip is named."""

from collections.abc import Callable
from typing import Any

import jaxbp

Slip = tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any], str, str]


def must_be_named(planted: Slip) -> None:
    """`(fn, args, hand, cause, words)`: `hand(*args, dy, slip)`, and words of it (`a|b`: or)."""
    fn, args, hand, cause, words = planted
    right = jaxbp.check_gradients(fn, *args, gradient=lambda *a: hand(*a, slip=False))
    assert right.ok, str(right)
    report = jaxbp.check_gradients(fn, *args, gradient=lambda *a: hand(*a, slip=True))
    assert report.cause == cause, str(report)
    said = " ".join(finding.detail for finding in report.findings)
    assert any(word in said for word in words.split("|")), str(report)
    assert not [note for note in report.notes if "failed" in note], report.notes
