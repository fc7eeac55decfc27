"""What a check has to say: verdicts leaf by leaf, findings, and how they are shown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp.check.digits import error_words, noise_words, pair_words

ADVICE = {
    "sign": "Negate it.",
    "scale": "Look for a factor that was left out or put in twice.",
    "transpose": "Check the order of the axes in the product that makes this cotangent.",
    "flip": "Check the direction: a kernel or a time axis is run through the wrong way round.",
    "missing-sum": "Sum over every axis along which the argument was broadcast.",
    "missing-path": "The value is used there too: add the error that comes back along that path.",
    "extra-path": "That path is in the sum more than once: add it once.",
    "wrong-point": "Take the derivative at the value that the forward pass used; save that one.",
    "wrong-activation": "Use the derivative of the function that the forward pass computes.",
    "missing-rows": "Every entry of the cotangent has to contribute, each exactly once.",
    "swapped": "Return the cotangents in the order of the arguments.",
    "zero": "This cotangent is 0 although the function depends on the argument.",
    "stale": "A backward pass is linear in the cotangent: multiply by it, once.",
    "noise": "The formula is right in exact arithmetic, but loses its digits in this dtype.",
    "nan": "Guard the operation named, in forward and backward alike.",
    "shape": "A cotangent has exactly the shape of its argument.",
    "dtype": "A cotangent has exactly the dtype of its argument.",
    "structure": "Return cotangents with exactly the structure of the arguments.",
    "forward": "Make the rule's forward pass return what the function returns.",
    "jit": "The rule looks at values or at state while it is traced; make it a pure function of arrays.",
    "vmap": "Write the rule for the axes that it is given; do not count on the batch's shape.",
    "nondeterministic": "Make the rule a pure function: no state, no clock, no unseeded randomness.",
    "untested": "Give arguments, or a cotangent, for which the true gradient is not zero.",
    "unknown": "See the evidence.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: at which argument, of which kind, in words, and the numbers.

    `by` says what of the checker found it.
    """

    path: str
    cause: str
    detail: str
    evidence: dict[str, Any] = field(default_factory=dict)
    by: str = ""

    @property
    def advice(self) -> str:
        return self.evidence.get("advice") or ADVICE.get(self.cause, "")


@dataclass(frozen=True)
class Leaf:
    """The verdict on one cotangent. `verdict`: right, noisy, wrong or untested.

    `error` is the largest difference over the largest true entry, `floor` the same for autodiff's own
    gradient in the working dtype, both against float64. `worst` is the index of the largest
    difference, where the rule says `got` and the oracle `expected`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    verdict: str
    error: float
    floor: float
    worst: tuple[int, ...] = ()
    got: float = math.nan
    expected: float = math.nan
    where: str = "as given"


@dataclass(eq=False)
class Report:
    """The result of `check_gradients`. `ok` is what `assert_gradients` asks for.

    `tried` are the arguments that were looked at: as given, with other values, larger ones, …
    `in_jax` is false for a rule in NumPy or torch, which was called with numbers and never traced.
    """

    target: str
    leaves: list[Leaf] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0
    in_jax: bool = True
    pictures: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """No fault was found, and at least one cotangent was really tested."""
        wrong = any(leaf.verdict == "wrong" for leaf in self.leaves)
        tested = any(leaf.verdict in ("right", "noisy") for leaf in self.leaves)
        return not wrong and tested and all(f.cause == "untested" for f in self.findings)

    @property
    def verdict(self) -> str:
        if self.ok:
            return "noisy" if any(leaf.verdict == "noisy" for leaf in self.leaves) else "right"
        only_untested = all(f.cause == "untested" for f in self.findings)
        return "untested" if only_untested and not self._wrong() else "wrong"

    def _wrong(self) -> bool:
        return any(leaf.verdict == "wrong" for leaf in self.leaves)

    @property
    def cause(self) -> str | None:
        """The cause of the first finding, if there is one."""
        return self.findings[0].cause if self.findings else None

    @property
    def worst(self) -> Leaf | None:
        return max(self.leaves, key=lambda leaf: (math.isnan(leaf.error), leaf.error), default=None)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        from jaxbp.check.show import html

        return html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values only, ready for JSON."""
        return {
            "target": self.target,
            "ok": self.ok,
            "verdict": self.verdict,
            "leaves": [_plain(asdict(leaf)) for leaf in self.leaves],
            "findings": [{**_plain(asdict(f)), "advice": f.advice} for f in self.findings],
            "notes": list(self.notes),
            "tried": list(self.tried),
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 3),
        }

    def heat_map(self, folder: str | Path, path: str | None = None) -> Path:
        """Write a PNG of where a leaf differs (the worst one by default) and return its path.

        `folder` is where to put it, or the file itself where it ends in `.png`.
        """
        from jaxbp.check.show import heat_map

        return heat_map(self, Path(folder), path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


_HEAD = Leaf("argument", (), "", "", 0.0, 0.0)


def text(report: Report) -> str:
    """A few lines when right; when wrong, a table, the causes in words, and what to try."""
    head = {
        "right": "the gradient is right",
        "noisy": "the gradient is right, as far as this dtype can tell",
        "wrong": "THE GRADIENT IS WRONG",
        "untested": "NOTHING WAS TESTED",
    }[report.verdict]
    lines = [f"{report.target}: {head}", ""]
    for i, finding in enumerate(report.findings, 1):
        where = f" {finding.path}" if finding.path else ""
        lines += [f"  {i}. {finding.cause}{where}", f"     {finding.detail}"]
        place = finding.evidence.get("source")
        if place and place.partition(": ")[0] not in finding.detail:
            lines.append(f"     → {place}")
        lines += [f"     What to try: {finding.advice}", ""]
    lines += _table(report.leaves)
    lines += [f"  note: {note}" for note in report.notes]
    if report.tried and report.verdict in ("right", "noisy"):
        lines.append(f"  tried: {', '.join(report.tried)}")
    lines.append(f"  ({report.evaluations} gradient evaluations, {report.seconds:.1f} s)")
    return "\n".join(lines)


def _order(leaf: Leaf) -> float:
    """The largest error first; those that are right stay in the order of the arguments."""
    if leaf.verdict == "right":
        return 0.0
    return -1.0 if math.isnan(leaf.error) else -leaf.error


def _table(leaves: list[Leaf]) -> list[str]:
    shown = [leaf for leaf in leaves if leaf.verdict != "right"] or leaves
    shown = sorted(shown, key=_order)[:12]
    width = max((len(leaf.path) for leaf in (*shown, _HEAD)), default=0)
    lines = [f"  {'argument':<{width}}  verdict   error     noise floor"] if shown else []
    for leaf in shown:
        size = error_words(leaf.error, leaf.dtype, leaf.verdict)
        floor = noise_words(leaf.floor, leaf.dtype)
        line = f"  {leaf.path:<{width}}  {leaf.verdict:<8}  {size:<8}  {floor:<8}"
        if leaf.verdict in ("wrong", "noisy") and not math.isnan(leaf.expected):
            index, values = ",".join(map(str, leaf.worst)), pair_words(leaf.got, leaf.expected)
            line += f"  worst at [{index}]: {values} ({leaf.where})"
        lines.append(line.rstrip())
    if len(leaves) > len(shown):
        rest = "right" if any(leaf.verdict != "right" for leaf in shown) and len(shown) < 12 else "more"
        lines.append(f"  and {len(leaves) - len(shown)} {rest}")
    if any(leaf.verdict in ("wrong", "noisy") for leaf in shown):
        lines.append("  (error: largest difference over largest true entry)")
    return lines
