"""Kronecker factors and the Gauss-Newton diagonal of a lenet beside libraries: agreement and time.

    python experiments/curvature_peers.py [--batch 128]

Peers: kfac-jax (`BlockDiagonalCurvature`) and BackPACK (`KFAC`, `KFLR`, `DiagGGNExact`). Those that are
not installed are named. Agreement in float64, of what does not draw: the factors of all columns and the
exact diagonal. kfac-jax's factors are compared entry by entry. BackPACK lays images out as channels
first, so of its blocks `A ⊗ B` the traces and the Frobenius norms are compared, of its diagonals the
sums and lengths; and only the dense blocks, because of a convolution it takes another factor (it adds
the errors of all positions up, then squares). Times in float32, by processor time, over that of
`value_and_grad` by hand in the same round: the median of rounds in turns.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from experiments.beyond_peers import module_of
from jaxbp import Conv, Dense, SoftmaxCrossEntropy, beyond, models, value_and_grad

LOSS, NET = SoftmaxCrossEntropy(), models.lenet(10)
Run = Callable[[], Any]


def done(fn: Any, *args: Any) -> Run:
    return lambda: jax.block_until_ready(fn(*args))


def ours(params: Any, x: Any, y: Any) -> dict[str, Run]:
    sampled = jax.jit(beyond.kronecker_factors(NET, LOSS))
    return {
        "plain step by hand": done(jax.jit(value_and_grad(NET, LOSS)), params, x, y),
        "factors, 1 sample: jaxbp": lambda: jax.block_until_ready(
            sampled(params, x, y, key=jax.random.key(0))
        ),
        "factors, exact: jaxbp": done(
            jax.jit(beyond.kronecker_factors(NET, LOSS, kind="exact")), params, x, y
        ),
        "diagonal, exact: jaxbp": done(jax.jit(beyond.ggn_diagonal(NET, LOSS)), params, x, y),
    }


def plain_forward(params: Any, x: Any) -> Any:
    """The same network in the primitives that kfac-jax looks for."""
    for layer, p in zip(NET.layers, params, strict=True):
        match layer:
            case Conv():
                numbers = ("NHWC", "HWIO", "NHWC")
                x = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=numbers)
                x = x + p["b"]
            case Dense():
                x = x @ p["w"] + p["b"]
            case _:
                x = layer.forward(p, x)[0]
    return x


def kfac_jax(params: Any, x: Any, y: Any) -> dict[str, Run]:
    kfac = importlib.import_module("kfac_jax")
    matcher = importlib.import_module("kfac_jax._src.tag_graph_matcher")

    def evaluated(eqn: Any, values: list[Any]) -> list[Any]:  # 0.0.8 expects what JAX 0.9 returned here
        found = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
        return found if isinstance(found, list) else [found]

    setattr(matcher, "eval_jaxpr_eqn", evaluated)  # noqa: B010

    def loss(params: Any, batch: Any) -> Any:
        logits = plain_forward(params, batch[0])
        kfac.register_softmax_cross_entropy_loss(logits, batch[1])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1)
        return -jnp.mean(picked)

    estimator = kfac.BlockDiagonalCurvature(func=loss, params_index=0)
    args = (params, (x, y))
    with jax.numpy_dtype_promotion("standard"):
        estimator.finalize(args)
        state = estimator.init(jax.random.key(0), args, None, None, False)

    def fn(mode: str) -> Run:
        def update(params: Any, x: Any, y: Any, key: Any) -> Any:
            new = estimator.update_curvature_matrix_estimate(
                state, 0.0, 1.0, 1.0, len(x), key, (params, (x, y)), estimation_mode=mode
            )
            pairs = zip(estimator.blocks, new.blocks_states, strict=True)
            return [(s.factors[0].value, s.factors[1].value * block.fixed_scale()) for block, s in pairs]

        compiled = jax.jit(update)
        return lambda: jax.block_until_ready(compiled(params, x, y, jax.random.key(0)))

    return {
        "factors, 1 sample: kfac-jax": fn("ggn_curvature_prop"),
        "factors, exact: kfac-jax": fn("ggn_exact"),
    }


def backpack(params: Any, x: Any, y: Any) -> dict[str, Run]:
    torch, pack = importlib.import_module("torch"), importlib.import_module("backpack")
    extensions = importlib.import_module("backpack.extensions")
    torch.set_num_threads(1)  # as in beyond_peers.py
    a = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
    b = torch.tensor(np.asarray(y), dtype=torch.int64)
    made = module_of(torch, NET, params, x.shape[1:], a.dtype)
    criterion = torch.nn.CrossEntropyLoss()

    def plain() -> None:
        made.zero_grad()
        criterion(made(a), b).backward()

    extended, loss = (
        pack.extend(module_of(torch, NET, params, x.shape[1:], a.dtype)),
        pack.extend(criterion),
    )

    def fn(extension: Any, name: str) -> Run:
        def run() -> list[Any]:
            extended.zero_grad()
            with pack.backpack(extension):
                loss(extended(a), b).backward()
            return [getattr(p, name) for p in extended.parameters()]

        return run

    return {
        "plain step in torch": plain,
        "factors, 1 sample: BackPACK": fn(extensions.KFAC(mc_samples=1), "kfac"),
        "factors, exact: BackPACK": fn(extensions.KFLR(), "kflr"),
        "diagonal, exact: BackPACK": fn(extensions.DiagGGNExact(), "diag_ggn_exact"),
    }


def apart(runs: dict[str, Run]) -> dict[str, float]:
    """The largest relative difference from ours of what does not draw."""
    factors, diagonal = runs["factors, exact: jaxbp"](), runs["diagonal, exact: jaxbp"]()
    ours = {len(f.left): f for name, f in factors.items() if name.endswith(".w")}
    found = {}
    if "factors, exact: kfac-jax" in runs:  # weight and bias are one block: the last row and column
        pairs = [(a[:-1, :-1], b, ours[len(a) - 1]) for a, b in runs["factors, exact: kfac-jax"]()]
        found["factors, exact: kfac-jax"] = max(
            max(_off(a, f.left), _off(b, f.right)) for a, b, f in pairs
        )
    if "factors, exact: BackPACK" in runs:
        pairs = [pair for pair in runs["factors, exact: BackPACK"]() if len(pair) == 2]
        theirs = [[np.asarray(m) for m in pair] for pair in pairs[2:]]  # of the dense layers' weights
        found["factors, exact: BackPACK"] = max(
            _off(of(a) * of(b), of(ours[len(a)].left) * of(ours[len(a)].right))
            for b, a in theirs
            for of in (np.trace, np.linalg.norm)
        )
        theirs = [np.asarray(d) for d in runs["diagonal, exact: BackPACK"]()]
        mine = [np.asarray(p[k]) for p in diagonal if p for k in ("w", "b")]
        found["diagonal, exact: BackPACK"] = max(
            _off(of(d), of(m))
            for d, m in zip(theirs, mine, strict=True)
            for of in (np.sum, np.linalg.norm)
        )
    return found


def _off(got: Any, expected: Any) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def runs_of(batch: int, dtype: Any, say: Callable[[str], None]) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, 28, 28, 1)), dtype)
    y = jnp.asarray(rng.integers(0, 10, batch), jnp.int32)
    params = jax.tree.map(lambda p: p.astype(dtype), NET.init(jax.random.key(0), x))
    runs = ours(params, x, y)
    for peer in (kfac_jax, backpack):
        try:
            runs |= peer(params, x, y)
        except ModuleNotFoundError as error:
            say(f"absent: {peer.__name__}: {error}")
    return runs


def in_turns(runs: dict[str, Run], rounds: int = 7) -> dict[str, float]:
    """Median processor time of a call over that of the first contestant in the same round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began, calls = time.process_time(), 0
            while time.process_time() - began < 0.2:
                run()
                calls += 1
            times[name].append((time.process_time() - began) / calls)
    unit = np.asarray(times[next(iter(runs))])
    return {name: float(np.median(values / unit)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    if args.batch < 1:
        parser.error(f"--batch: expected at least 1 image, got {args.batch}")
    with jax.enable_x64(True):
        errors = apart(runs_of(16, jnp.float64, print))
    for name, ratio in sorted(in_turns(runs_of(args.batch, jnp.float32, lambda _: None)).items()):
        said = f"   apart by {errors[name]:.0e}" if name in errors else ""
        print(f"{name:<28} {ratio:6.2f} plain steps{said}", flush=True)


if __name__ == "__main__":
    main()
