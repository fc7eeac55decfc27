"""How good is the gradient checker: planted faults found and named, right gradients left in peace.

    python experiments/checker_gallery.py [--only NAME …] [--float32] [--numpy] [--json FILE]
        [--cases FOLDER]

Runs `jaxbp.check_gradients` over the gallery, and beside it `jax.test_util.check_grads`,
`chex.assert_numerical_grads` and, where installed, `torch.autograd.gradcheck`, all with their defaults.
The others say only that a gradient is wrong, so there is no column of causes for them.

`--numpy` runs the faults whose rules can be written in NumPy, so: nothing of them is traced. What each
fault is called is printed, and what of the checker found that.

`--cases` checks the files of a folder instead, by this checker alone: each a module with `f`, `args()`
and the rules `right` and `wrong` (`FORM = "pair"` for one to be run as `(forward, backward)`). Whether a
cause is the one that its docstring expects is for a reader to say, so the finding is printed beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

import jaxbp
from experiments.gallery import exhibits
from experiments.gallery.common import Exhibit
from experiments.gallery.correct import cases
from experiments.gallery.in_numpy import in_numpy

Tester = Callable[[Callable[..., Any], tuple[Any, ...], Callable[..., Any]], None]


def with_rule(fn: Callable[..., Any], hand: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with the hand-written gradient as its `custom_vjp`."""

    @jax.custom_vjp
    def ruled(*args: Any) -> Any:
        return fn(*args)

    def backward(args: Any, dy: Any) -> tuple[Any, ...]:
        grads = hand(*args, dy)
        return grads if isinstance(grads, tuple) else (grads,)

    ruled.defvjp(lambda *args: (fn(*args), args), backward)
    return ruled


def jax_check_grads(fn: Any, args: tuple[Any, ...], hand: Any) -> None:
    from jax.test_util import check_grads

    check_grads(jax.jit(with_rule(fn, hand)), args, order=1, modes=["rev"])


def chex_numerical(fn: Any, args: tuple[Any, ...], hand: Any) -> None:
    import chex

    chex.assert_numerical_grads(jax.jit(with_rule(fn, hand)), args, order=1, modes=["rev"])


def torch_gradcheck(fn: Any, args: tuple[Any, ...], hand: Any) -> None:
    """As `torch.autograd.gradcheck` demands, in float64."""
    import torch

    fn, hand = jax.jit(fn), jax.jit(hand)  # thousands of calls follow

    class Ruled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            ctx.kept = [jnp.asarray(t.detach().numpy()) for t in tensors]
            return torch.tensor(np.asarray(fn(*ctx.kept), np.float64))

        @staticmethod
        def backward(ctx: Any, *dy: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            grads = hand(*ctx.kept, jnp.asarray(dy[0].detach().numpy()))
            grads = grads if isinstance(grads, tuple) else (grads,)
            return tuple(None if g is None else torch.tensor(np.asarray(g, np.float64)) for g in grads)

    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in args]
    torch.autograd.gradcheck(Ruled.apply, tensors)


def testers() -> dict[str, Tester]:
    """What can be run here."""
    found: dict[str, Tester] = {
        "jax.test_util.check_grads": jax_check_grads,
        "chex.assert_numerical_grads": chex_numerical,
    }
    try:
        import torch  # noqa: F401
    except ImportError:
        return found
    return {**found, "torch.autograd.gradcheck": torch_gradcheck}


def complains(tester: Tester, fn: Any, args: Any, hand: Any) -> bool:
    """Whether a tester raises, for whatever reason."""
    try:
        tester(fn, args, hand)
    except Exception:
        return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit 1 where a fault is missed or a right gradient is blamed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of exhibits")
    parser.add_argument("--json", type=Path, help="write every result to a file")
    parser.add_argument("--float32", action="store_true", help="with float64 off, as JAX is by default")
    parser.add_argument("--cases", type=Path, help="a folder of files with f, args, right and wrong")
    parser.add_argument(
        "--numpy", action="store_true", help="the faults that can be written in NumPy, so"
    )
    parser.add_argument("--without-others", action="store_true", help="jaxbp's checker alone")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", not options.float32)
    if options.cases:
        return _cases(sorted(options.cases.glob("*.py")), options.only)
    others = {} if options.without_others or options.numpy else testers()  # the others trace the rule
    if options.numpy:
        rows = list(_faults(options.only, others, [in_numpy(exhibit) for exhibit in exhibits()]))
    else:
        rows = [*_faults(options.only, others), *_right(options.only, others)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return _summary(rows, list(others))


def _cases(files: list[Path], only: list[str] | None) -> int:
    """Right and wrong rule of every file: verdict, causes, CPU seconds; 1 where a verdict is false."""
    failed, seconds = 0, {"right": [], "wrong": []}
    for file in files:
        if only and not file.stem.startswith(tuple(only)):
            continue
        made = importlib.util.spec_from_file_location(file.stem, file)
        if made is None or made.loader is None:
            raise SystemExit(f"{file}: not a Python file")
        case = importlib.util.module_from_spec(made)
        made.loader.exec_module(case)
        jax.clear_caches()
        for which, taken in seconds.items():
            rule, start = getattr(case, which), time.process_time()
            pair = getattr(case, "FORM", "gradient") == "pair"
            target = (lambda *a, f=case.f: (f(*a), a), lambda saved, dy, r=rule: r(*saved, dy))
            options = {} if pair else {"gradient": rule}
            report = jaxbp.check_gradients(target if pair else case.f, *_wide(case.args()), **options)
            taken.append(time.process_time() - start)
            bad = report.ok != (which == "right")
            failed += bad
            print(f"{'BAD' if bad else 'ok':<4} {file.stem:<34} {which:<6} {taken[-1]:6.1f} CPU s")
            for found in report.findings:
                by = f" [{found.by}]" if found.by else ""
                print(f"       {found.cause} {found.path}: {found.detail}{by}", flush=True)
    for which, taken in seconds.items():
        if taken:
            middle = sorted(taken)[len(taken) // 2]
            print(f"{which}: median {middle:.1f}, largest {max(taken):.1f} CPU s")
    print(f"{_size()}; {failed} verdicts are not right")
    return int(failed > 0)


def _size() -> str:
    files = [p.read_text().count("\n") for p in Path(jaxbp.__file__).parent.glob("check/**/*.py")]
    return f"the checker: {sum(files)} lines in {len(files)} files"


def _wide(args: Any) -> Any:
    """In float64, where that is on: arrays that a case captures are, too."""
    wide = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return jax.tree.map(lambda v: v.astype(float) if wide and v.dtype.kind == "f" else v, args)


def _faults(only: list[str] | None, others: dict[str, Tester], some: list[Exhibit] | None = None) -> Any:
    for exhibit in exhibits() if some is None else some:
        if only and exhibit.name not in only:
            continue
        jax.clear_caches()
        for label, (hand, causes) in exhibit.faults.items():
            start = time.process_time()
            report = jaxbp.check_gradients(exhibit.fn, *exhibit.args, gradient=hand)
            row = {
                "kind": "fault", "name": f"{exhibit.name}: {label}",
                "alarm": not report.ok, "cause": report.cause,
                "named": report.cause in causes, "seconds": time.process_time() - start,
                "by": report.findings[0].by if report.findings else "",
                "others": {n: complains(t, exhibit.fn, exhibit.args, hand) for n, t in others.items()},
            }  # fmt: skip
            mark = "named" if row["named"] else "found" if row["alarm"] else "MISSED"
            print(f"{mark:<7} {row['name']:<58} {report.cause or '':<16} {row['by']}", flush=True)
            yield row


def _right(only: list[str] | None, others: dict[str, Tester]) -> Any:
    for name, (fn, args, hand) in cases().items():
        if only and not name.startswith(tuple(only)):
            continue
        start = time.process_time()
        report = jaxbp.check_gradients(fn, *args, gradient=hand)
        print(f"{'quiet' if report.ok else 'ALARM':<7} {name:<58} {report.verdict}", flush=True)
        yield {
            "kind": "right", "name": name, "alarm": not report.ok, "cause": report.cause, "named": False,
            "seconds": time.process_time() - start,
            "others": {n: complains(t, fn, args, hand) for n, t in others.items()},
        }  # fmt: skip


def _summary(rows: list[dict[str, Any]], others: list[str]) -> int:
    faults = [r for r in rows if r["kind"] == "fault"]
    right = [r for r in rows if r["kind"] == "right"]
    found, false = sum(r["alarm"] for r in faults), sum(r["alarm"] for r in right)
    print(f"\n{'checker':<30} {'faults found':<16} {'right cause':<16} false alarms")
    named = sum(r["named"] for r in faults)
    shares = (_share(found, len(faults)), _share(named, len(faults)), _share(false, len(right)))
    print(f"{'jaxbp.check_gradients':<30} {shares[0]:<16} {shares[1]:<16} {shares[2]}")
    for name in others:
        a, b = (sum(r["others"][name] for r in group) for group in (faults, right))
        print(f"{name:<30} {_share(a, len(faults)):<16} {'-':<16} {_share(b, len(right))}")
    seconds = sorted(r["seconds"] for r in rows) or [0.0]
    print(f"\nCPU seconds a check: median {seconds[len(seconds) // 2]:.1f}, largest {seconds[-1]:.1f}")
    print(_size())
    for name, count in Counter(r["by"] for r in faults if r["named"]).most_common():
        print(f"  {count:>3} names by {name or 'the contract'}")
    return 0 if found == len(faults) and not false else 1


def _share(count: int, total: int) -> str:
    return f"{count}/{total} ({100 * count / total:.0f} %)" if total else "-"


if __name__ == "__main__":
    sys.exit(main())
