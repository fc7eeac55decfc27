"""A pytest plugin: the `gradients` fixture, and a table of everything that it checked.

    def test_my_rule(gradients):
        gradients(my_custom_vjp_function, x, w)

fails with the report as its message. The terminal summary then lists each check, its largest error
and its noise floor, also for those that passed: a gradient that was only just right can be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Row = tuple[str, str, str, str, str]
ROWS = pytest.StashKey[list[Row]]()
PROPERTY = "jaxbp_gradients"


@pytest.fixture
def gradients(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Any:
    """`gradients(target, *args, **options)`: `jaxbp.assert_gradients`, entered in the summary's table."""
    from jaxbp.check.digits import error_words, noise_words
    from jaxbp.check.verify import check_gradients
    from jaxbp.layer import InputError

    rows: list[Row] = []
    request.node.user_properties.append((PROPERTY, rows))

    def check(target: Any, *args: Any, **options: Any) -> Any:
        try:
            report = check_gradients(target, *args, **options)
        except InputError as error:
            name = getattr(target, "__name__", type(target).__name__)
            rows.append((request.node.nodeid, name, "not run", "nan", "nan"))
            pytest.fail(f"could not be checked: {error}", pytrace=False)
        worst = report.worst
        size = error_words(worst.error, worst.dtype, worst.verdict) if worst else "nan"
        floor = noise_words(worst.floor, worst.dtype) if worst else "nan"
        rows.append((request.node.nodeid, report.target, report.verdict, size, floor))
        if not report.ok:
            pytest.fail(str(report), pytrace=False)
        return report

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table; nothing where the fixture was not used."""
    rows = [
        row
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, found in getattr(report, "user_properties", ())
        if name == PROPERTY
        for row in found
    ]
    if not rows:
        return
    terminalreporter.section("gradients")
    width = min(60, max(len(row[1]) for row in rows))
    terminalreporter.line(f"{'checked':<{width}}  {'verdict':<8}  error     noise floor  test")
    for test, target, verdict, error, floor in rows:
        line = f"{target[:width]:<{width}}  {verdict:<8}  {error:<8}  {floor:<11}  {test}"
        terminalreporter.line(line, red=verdict in ("wrong", "not run"), green=verdict == "right")
