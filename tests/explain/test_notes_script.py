"""`experiments/notes.py` walks from `e^{x²}` to the trained network, in the order of the notes."""

import re
from pathlib import Path
from runpy import run_path

import pytest

ORDER = [
    "2x e^{x²}", "2x e^{x²} e^{e^{x²}}", "-(1/(e^{x²})²) · 2x e^{x²}",
    "x → ·w1 → σ → h1 → ·w2 → σ → h2 → ·w3 → σ → ŷ → L", "3 paths lead from w121 to L",
    "Going backwards re-uses work", "0.947846, 0.802184, 0.890903, 0.908877",
    "-0.13037670618", "0.26092850985",
    "h13(1 - h13) = 0.0972, not 0.0979", "so it stops",
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    script = run_path(str(Path(__file__).parents[2] / "experiments" / "notes.py"))
    folder = tmp_path_factory.mktemp("notes")
    script["main"](folder)
    return folder


def test_the_walk_is_in_the_order_of_the_notes(written):
    text = (written / "notes.html").read_text("utf-8")
    position = 0
    for part in ORDER:
        assert part in text[position:], part
        position = text.index(part, position)


def test_its_links_lead_somewhere(written):
    text = (written / "notes.html").read_text("utf-8")
    for link in re.findall(r'(?:href|src)="([^"]+)"', text):
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in text
        elif not link.startswith("data:"):
            assert (written / link).is_file()
    assert not re.search(r"(?:src|href)\s*=\s*\"https?:", text)
