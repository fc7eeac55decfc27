"""What every edit of a program does to the gradient, in one table: a row an edit, a column an entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis.claims import columns, effects, points, telling, usable
from jaxbp.check.edits import coupled, handed_on, recompute, turns
from jaxbp.check.edits.branches import forgotten_in_one
from jaxbp.check.edits.carries import dropped
from jaxbp.check.edits.edit import Edge, Edited
from jaxbp.check.edits.moves import moves
from jaxbp.check.edits.record import record
from jaxbp.check.edits.selections import exchanged_lookups, selections
from jaxbp.check.edits.sites import Sites
from jaxbp.check.edits.solves import solves
from jaxbp.check.edits.together import Together, alike, same_line, weighted
from jaxbp.check.guesses import formulas, masks, products, shadows, stages, stretches

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

KINDS = ("edges", "coupled", "formulas", "guesses", "shadows", "rows", "exchanged", "halves", "bypasses")


@dataclass(eq=False)
class Table:
    """`effects[n]` is what `choices[n]` does at `points`; `columns[i]` are the entries of leaf `i`.

    `rows(edits, point)` gives weights and given values for some of them.
    """

    sites: Sites
    edited: Edited
    choices: list[Any]
    rows: Callable[..., tuple[np.ndarray, np.ndarray]]
    points: list[int]
    effects: np.ndarray
    columns: dict[int, np.ndarray]
    starts: list[int]


# --- the tables ---------------------------------------------------------------------------------------


def table(case: Case, kind: str) -> Table | None:
    """The effects of every edit of a kind, computed once in a case."""
    if kind not in case.cache:
        try:
            case.cache[kind] = _build(case, kind)
        except Exception as error:  # a diagnosis must not hide the verdict
            case.cache[kind] = None
            case.notes.append(f"the search among {kind} failed: {type(error).__name__}: {error}"[:300])
    return case.cache[kind]


def sites_of(case: Case) -> Sites:
    """The sites of the oracle's program, found once."""
    if "sites" not in case.cache:
        case.cache["sites"] = Sites(case.oracle.program, case.paths)
    return case.cache["sites"]


def recorded(case: Case) -> list[dict[int, np.ndarray]]:
    """The values at the points of the tables."""
    if "record" not in case.cache:
        case.cache["record"] = record(case.oracle.program, [case.points[q][0] for q in points(case)])
    return case.cache["record"]


def _build(case: Case, kind: str) -> Table | None:
    at = points(case)
    if case.oracle.method != "reverse" or not at or not usable(case):
        return None
    sites = sites_of(case)
    if kind == "guesses":
        return _guesses(case, sites, at)
    if kind == "formulas":
        known = recorded(case)
        return _given(case, sites, at, formulas.guesses(sites, known[0]), [{} for _ in known])
    if kind == "shadows":
        known = recorded(case)
        made = [*shadows.guesses(sites, known[0]), *stages.guesses(sites, known[0])]
        return _given(case, sites, at, made, [{} for _ in known])
    if kind == "edges":
        return _weighted(case, sites, at, sites.edges(), groups=True)
    if kind == "rows":
        return _weighted(case, sites, at, sites.rows(), groups=False)
    if kind == "coupled":
        others = [
            *coupled.own_entries(sites),
            *selections(sites),
            *moves(sites),
            *solves(sites),
            *forgotten_in_one(sites),
            *dropped(sites),
            *turns.wrong_way(sites),
        ]
        return _switched(
            case, sites, at, others, Edited(case.oracle, others=others), more=exchanged_lookups(others)
        )
    if kind == "exchanged":
        pairs = handed_on.exchanged(sites)
        parts = [part for pair in pairs for part in pair.parts]
        return _switched(case, sites, at, parts, Edited(case.oracle, others=parts), pairs)
    if kind == "halves":
        others = list(handed_on.half_handed_on(sites))
        return _switched(case, sites, at, others, Edited(case.oracle, others=others))
    changes = recompute.bypasses(sites)
    return _switched(case, sites, [telling(case)], changes, Edited(case.oracle, changes=changes))


def _affordable(case: Case, sites: Sites, choices: list[Any], each: int, share: float = 1.0) -> list[Any]:
    """As many as a share of the budget allows, the most downstream first where it does not allow all."""
    room = max(0, int(share * (case.budget - case.used)) // max(each, 1))
    sizes = np.cumsum([getattr(c, "size", 1) for c in choices])
    allowed = int(np.searchsorted(sizes, room, side="right"))
    if allowed >= len(choices):
        return choices
    case.cut_short = True
    return sorted(choices, key=lambda c: -sites.rank[id(c.op)])[:allowed]


def _weighted(case: Case, sites: Sites, at: list[int], edges: list[Edge], groups: bool) -> Table | None:
    edges = _affordable(case, sites, edges, len(at), 0.5)
    if not edges:
        return None
    edited = Edited(case.oracle, edges)
    several: list[Any] = same_line(edges) if groups else []
    several += weighted(sites, edges, several) if groups else []
    several = _affordable(case, sites, several, len(at), 0.5)
    start = {id(edge): int(n) for edge, n in zip(edges, edited.starts, strict=False)}
    members = [[n] for n in range(edited.size)]
    members += [[start[id(edge)] for edge in group.parts] for group in several]
    weights = [0.0] * edited.size + [getattr(group, "weight", 0.0) for group in several]
    starts = list(start.values())

    def rows(some: Sequence[int], q: int, weight: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        thetas = np.tile(edited.neutral(), (len(some), 1))
        for row, n in enumerate(some):
            thetas[row, members[n]] = weights[n] if weight is None else weight
        return thetas, np.zeros((len(some), 0))

    made = effects(case, edited, lambda q: rows(range(len(members)), q), at)
    starts += range(edited.size, len(members))
    return Table(sites, edited, [*edges, *several], rows, at, made, columns(case, at), starts)


def _switched(
    case: Case,
    sites: Sites,
    at: list[int],
    choices: list[Any],
    edited: Edited,
    groups: list[Together] | None = None,
    more: Sequence[Together] = (),
) -> Table | None:
    """The table of edits that are there or not; with `groups`, of those several at once alone."""
    choices = _affordable(case, sites, choices, len(at)) if groups is None else choices
    if not choices:
        return None
    every = [*edited.others, *edited.changes]
    number = {id(c): n for n, c in enumerate(every)}
    members = [] if groups is not None else [[n] for n, c in enumerate(every) if c in choices]
    several = groups or [*alike([every[n] for (n,) in members]), *more]
    members += [[number[id(part)] for part in group.parts] for group in several]

    def rows(some: Sequence[int], q: int, weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        thetas = np.tile(edited.neutral(), (len(some), 1))
        for row, n in enumerate(some):
            thetas[row, members[n]] = weight
        return thetas, np.zeros((len(some), edited.room))

    alone = [] if groups is not None else [every[n] for (n, *more) in members if not more]
    kept = [*alone, *several]
    made = effects(case, edited, lambda q: rows(range(len(members)), q), at)
    return Table(sites, edited, kept, rows, at, made, columns(case, at), list(range(len(kept))))


def _guesses(case: Case, sites: Sites, at: list[int]) -> Table | None:
    """Guesses are looked at at one point; those that fit there are then tried at the others."""
    known = recorded(case)
    if not known[0]:
        return None
    found = stretches.find(sites, known[0])
    slopes = stretches.slopes(found, known)
    made = [*stretches.guesses(sites, found, known[0]), *products.guesses(sites, known[0])]
    made += masks.guesses(sites, known[0])
    return _given(case, sites, at, made, slopes)


def _given(
    case: Case, sites: Sites, at: list[int], made: list[Any], slopes: list[dict[int, np.ndarray]]
) -> Table | None:
    """The table of guesses that are given as arrays."""
    known, first = recorded(case), [telling(case)]
    known_first, slopes_first = known[at.index(first[0])], slopes[at.index(first[0])]
    groups = alike(made)  # of all: one turn's guess may look like another one there
    groups = _affordable(case, sites, groups, 1, 0.5)
    made = _worthwhile(made, known_first, slopes_first)
    made = _affordable(case, sites, made, 1, 0.5)
    if not made:
        return None
    parts = [part for group in groups for part in group.parts]
    slots = list({id(g.slot): g.slot for g in [*made, *parts]}.values())
    edited = Edited(case.oracle, others=slots)
    number = {id(slot): n for n, slot in enumerate(slots)}
    if edited.apart:
        made = [*made, *groups]

    def rows(some: Sequence[int], q: int, weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        thetas = np.tile(edited.neutral(), (len(some), 1))
        given = np.zeros((len(some), edited.room))
        for row, n in enumerate(some):
            for guess in getattr(made[n], "parts", [made[n]]):
                slot = number[id(guess.slot)]
                thetas[row, slot] = weight
                values = _finite(guess, known[at.index(q)], slopes[at.index(q)])
                start = edited.offsets[slot]
                given[row, start : start + values.size] = values.reshape(-1)
        return thetas, given

    block = max(1, 8_000_000 // max(edited.room, 1))
    parts = [
        effects(case, edited, lambda q, s=s: rows(range(s, min(s + block, len(made))), q), first)
        for s in range(0, len(made), block)
    ]
    return Table(
        sites,
        edited,
        made,
        rows,
        first,
        np.concatenate(parts),
        columns(case, first),
        list(range(len(made))),
    )


def _finite(guess: stretches.Guess, known: Any, slopes: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        values = np.asarray(guess.values(known, slopes))
        return np.asarray(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))


def _worthwhile(guesses: list[Any], known: Any, slopes: Any) -> list[Any]:
    """One guess, the first, of those with the same values in the same slot."""
    seen: set[tuple[int, bytes]] = set()
    kept = []
    for guess in guesses:
        key = (id(guess.slot), np.round(_finite(guess, known, slopes), 12).tobytes())
        if key not in seen:
            seen.add(key)
            kept.append(guess)
    return kept
