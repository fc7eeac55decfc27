"""Norms and clipped gradients of single examples beside the libraries that make them: agreement and time.

    python experiments/beyond_peers.py

Peers: jax-privacy (`clipping.clipped_grad`), Opacus (`GradSampleModule`; "ghost" clipping, two backward
passes) and BackPACK (`BatchL2Grad`; norms alone). Those that are not installed are named. Each gets the
same parameters and examples, in float64 for the agreement and in float32 for the time, over that
of `value_and_grad` by hand in the same round: the median of rounds in turns.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import (
    Chain,
    Conv,
    Dense,
    Flatten,
    GroupNorm,
    MaxPool,
    ReLU,
    SoftmaxCrossEntropy,
    beyond,
    models,
    value_and_grad,
)

LOSS, LIMIT = SoftmaxCrossEntropy(), 1.0
NETS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "digits MLP, 256 examples": (models.mlp(128, 10), (64,), 256),
    "two convolutions, 64 images of 16 × 16": (
        Chain(
            Conv(16, 3), GroupNorm(4), ReLU(), MaxPool(2),
            Conv(32, 3), ReLU(), MaxPool(2), Flatten(), Dense(10),
        ),
        (16, 16, 3),
        64,
    ),
}  # fmt: skip
Run = Callable[[], tuple[Any, Any]]
"""`() -> (norms, the clipped mean as arrays in the order of the parameters)`; either may be `None`."""


def ours(net: Any, params: Any, x: Any, y: Any) -> dict[str, Run]:
    fn = jax.jit(beyond.clipped_gradient(net, LOSS, LIMIT))

    def clipped() -> tuple[Any, Any]:
        _, grads, norms = fn(params, x, y)
        jax.block_until_ready(grads)
        return norms, jax.tree.leaves(grads)

    plain = jax.jit(value_and_grad(net, LOSS))

    def unit() -> tuple[Any, Any]:
        jax.block_until_ready(plain(params, x, y))
        return None, None

    walk = beyond.record(net, LOSS)
    norms_of = jax.jit(lambda p, x, y: walk(p, x, y).norms())
    return {
        "plain step by hand": unit,
        "jaxbp, clipped": clipped,
        "jaxbp, norms": lambda: (norms_of(params, x, y).block_until_ready(), None),
    }


def jax_privacy(net: Any, params: Any, x: Any, y: Any) -> dict[str, Run]:
    clipping = importlib.import_module("jax_privacy.clipping")
    fn = jax.jit(
        clipping.clipped_grad(
            lambda p, x, y: LOSS(net(p, x), y),
            l2_clip_norm=LIMIT,
            normalize_by=float(len(x)),
            batch_argnums=(1, 2),
            return_grad_norms=True,
        )
    )

    def run() -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            grads, aux = fn(params, x, y)
        jax.block_until_ready(grads)
        return aux.grad_norms, jax.tree.leaves(grads)

    return {"jax-privacy, clipped": run}


def module_of(torch: Any, net: Any, params: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The network in torch, with its parameters copied in."""
    nn, parts, channels, image = torch.nn, [], shape[-1], len(shape) == 3
    side = shape[0] if image else 0
    with torch.no_grad():
        for layer, p in zip(net.layers, params, strict=True):
            match layer:
                case Dense():
                    w = np.asarray(p["w"])
                    if side:  # rows in the order of torch's channels
                        w = w.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(len(w), -1)
                    part = nn.Linear(*w.shape)
                    _fill(torch, part, weight=w.T, bias=p["b"])
                    channels, side = w.shape[1], 0
                case Conv():
                    w = np.asarray(p["w"]).transpose(3, 2, 0, 1)
                    part = nn.Conv2d(
                        w.shape[1], w.shape[0], w.shape[2:], padding=[k // 2 for k in w.shape[2:]]
                    )
                    _fill(torch, part, weight=w, bias=p["b"])
                    channels = w.shape[0]
                case GroupNorm():
                    part = nn.GroupNorm(layer.groups, channels)
                    _fill(torch, part, weight=p["scale"], bias=p["offset"])
                case MaxPool():
                    part, side = nn.MaxPool2d(2), side // 2
                case ReLU():
                    part = nn.ReLU()
                case _:
                    part = nn.Flatten()
            parts.append(part)
    return nn.Sequential(*parts).to(dtype)


def _fill(torch: Any, part: Any, **values: Any) -> None:
    for name, value in values.items():
        kept = torch.tensor(np.array(value, np.float64))
        part.to(torch.float64)
        getattr(part, name).data = kept


def _for_torch(torch: Any, x: Any, y: Any) -> tuple[Any, Any]:
    torch.set_num_threads(1)  # its threads wait for work by spinning, and so small a net has none for two
    x = np.asarray(x)
    x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
    return torch.tensor(x.copy()), torch.tensor(np.asarray(y), dtype=torch.int64)


def plain_torch(net: Any, params: Any, x: Any, y: Any) -> dict[str, Run]:
    torch = importlib.import_module("torch")
    a, b = _for_torch(torch, x, y)
    made = module_of(torch, net, params, x.shape[1:], a.dtype)

    def run() -> tuple[Any, Any]:
        made.zero_grad()
        torch.nn.functional.cross_entropy(made(a), b).backward()
        return None, None

    return {"plain step in torch": run}


def opacus(net: Any, params: Any, x: Any, y: Any) -> dict[str, Run]:
    torch = importlib.import_module("torch")
    grad_sample = importlib.import_module("opacus.grad_sample")
    a, b = _for_torch(torch, x, y)
    made = grad_sample.GradSampleModule(
        module_of(torch, net, params, x.shape[1:], a.dtype), loss_reduction="mean"
    )

    def run() -> tuple[Any, Any]:
        made.zero_grad()
        torch.nn.functional.cross_entropy(made(a), b).backward()
        samples = [p.grad_sample for p in made.parameters()]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
        share = (LIMIT / (norms + 1e-300)).clamp(max=1.0) / len(a)
        return norms.detach().numpy(), [
            torch.einsum("n,n...->...", share, g).detach().numpy() for g in samples
        ]

    return {"Opacus, clipped": run}


def opacus_ghost(net: Any, params: Any, x: Any, y: Any) -> dict[str, Run]:
    torch = importlib.import_module("torch")
    ghost = importlib.import_module("opacus.grad_sample.grad_sample_module_fast_gradient_clipping")
    a, b = _for_torch(torch, x, y)
    made = ghost.GradSampleModuleFastGradientClipping(
        module_of(torch, net, params, x.shape[1:], a.dtype),
        max_grad_norm=LIMIT,
        use_ghost_clipping=True,
        loss_reduction="mean",
    )

    def run() -> tuple[Any, Any]:
        made.zero_grad()
        losses = torch.nn.functional.cross_entropy(made(a), b, reduction="none")
        losses.mean().backward(retain_graph=True)
        norms = made.get_norm_sample().detach()
        share = (LIMIT / (norms + 1e-300)).clamp(max=1.0) / len(a)
        made.zero_grad()
        made.disable_hooks()
        (share * losses).sum().backward()
        made.enable_hooks()
        return norms.numpy(), [p.grad.numpy().copy() for p in made.parameters()]

    return {"Opacus, ghost clipping": run}


def backpack(net: Any, params: Any, x: Any, y: Any) -> dict[str, Run]:
    torch, pack = importlib.import_module("torch"), importlib.import_module("backpack")
    extensions = importlib.import_module("backpack.extensions")
    if any(isinstance(layer, GroupNorm) for layer in net.layers):
        raise NotImplementedError("BackPACK has no GroupNorm")
    a, b = _for_torch(torch, x, y)
    made = pack.extend(module_of(torch, net, params, x.shape[1:], a.dtype))
    loss = pack.extend(torch.nn.CrossEntropyLoss())

    def run() -> tuple[Any, Any]:
        made.zero_grad()
        with pack.backpack(extensions.BatchL2Grad()):
            loss(made(a), b).backward()
        squares = np.sum([p.batch_l2.numpy() for p in made.parameters()], axis=0)
        return len(a) * np.sqrt(squares), None

    return {"BackPACK, norms": run}


PEERS = (jax_privacy, plain_torch, opacus, opacus_ghost, backpack)


def runs_of(name: str, dtype: Any, say: Callable[[str], None]) -> dict[str, Run]:
    net, shape, batch = NETS[name]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batch, *shape)), jnp.asarray(rng.integers(0, 10, batch), jnp.int32)
    x = jnp.asarray(x, dtype)
    params = jax.tree.map(lambda p: p.astype(dtype), net.init(jax.random.key(0), x))
    runs = ours(net, params, x, y)
    for peer in PEERS:
        try:
            runs |= peer(net, params, x, y)
        except (ModuleNotFoundError, NotImplementedError) as error:
            say(f"  absent: {peer.__name__}: {error}")
    return runs


def in_turns(runs: dict[str, Run], rounds: int = 7) -> dict[str, float]:
    """Median time of a call over that of the first contestant in the same round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began, calls = time.perf_counter(), 0
            while time.perf_counter() - began < 0.2:
                run()
                calls += 1
            times[name].append((time.perf_counter() - began) / calls)
    unit = np.asarray(times[next(iter(runs))])
    return {name: float(np.median(values / unit)) for name, values in times.items()}


def main() -> None:
    for name in NETS:
        print(name)
        with jax.enable_x64(True):
            runs = runs_of(name, jnp.float64, print)
            expected_norms, expected = runs["jaxbp, clipped"]()
            errors = {}
            for who, run in runs.items():
                norms, grads = run()
                error = 0.0 if norms is None else _off(norms, expected_norms)
                if grads is not None:  # whose order and layout are each library's own: by their lengths
                    pair = (sorted(float(np.sum(np.square(g))) for g in gs) for gs in (grads, expected))
                    error = max(error, _off(*pair))
                errors[who] = error
        ratios = in_turns(runs_of(name, jnp.float32, lambda _: None))
        for who, ratio in ratios.items():
            print(f"  {who:<24} {ratio:6.2f} plain steps   apart by {errors[who]:.0e}", flush=True)


def _off(got: Any, expected: Any) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


if __name__ == "__main__":
    main()
