"""The rows in PyTorch: modules as its users write them, with our weights, eager or compiled.

`MODULES` has one builder a name: `build(torch, problem) -> (module, names of its parts in our layers'
order)`. Weights go there and gradients are compared through `jaxbp.weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax

from jaxbp.bench.contestants import AbsentError, Contestant, Gradients, Prepared
from jaxbp.bench.problem import Problem, Projection
from jaxbp.layer import leaves
from jaxbp.layers import GRU, Attention, ConvTranspose
from jaxbp.weights import to_torch

Built = tuple[Any, list[str] | None]


def _mlp(torch: Any, problem: Problem) -> Built:
    shapes = [p["w"].shape for p in problem.params if isinstance(p, dict)]
    parts = [part for i, o in shapes for part in (torch.nn.Linear(i, o), torch.nn.ReLU())]
    return torch.nn.Sequential(*parts[:-1]), [str(2 * i) for i in range(len(shapes))]


def _recurrent(torch: Any, problem: Problem) -> Built:
    cell: Any = problem.net
    kind = torch.nn.GRU if isinstance(cell, GRU) else torch.nn.LSTM

    class Sequence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(problem.x.shape[-1], cell.features, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.cell(x)[0]

    return Sequence(), ["cell"]


def _convolution(torch: Any, problem: Problem) -> Built:
    layer: Any = problem.net
    features, kernel = problem.params["w"].shape[-1], layer.kernel
    if isinstance(layer, ConvTranspose):
        s = layer.stride
        if (kernel - s) % 2:
            raise AbsentError("SAME is not symmetric, and torch cuts at the other end")
        module = torch.nn.ConvTranspose2d(problem.x.shape[-1], features, kernel, s, (kernel - s) // 2)
        return _on_images(torch, module), ["inner"]
    out = -(-problem.x.shape[1] // layer.stride)
    total = max((out - 1) * layer.stride + (kernel - 1) * layer.dilation + 1 - problem.x.shape[1], 0)
    even = total % 2 == 0
    module: Any = torch.nn.Conv2d(
        problem.x.shape[-1], features, kernel, layer.stride,
        padding=total // 2 if even else 0, dilation=layer.dilation, groups=layer.groups,
    )  # fmt: skip
    if even:
        return _on_images(torch, module), ["inner"]
    pad = torch.nn.ZeroPad2d((total // 2, total - total // 2) * 2)  # more at the end, as SAME has it
    return _on_images(torch, torch.nn.Sequential(pad, module)), ["inner.1"]


def _on_images(torch: Any, inner: Any) -> Any:
    """`inner` on `NHWC`: a view as channels first, in the memory format that is fast there."""

    class Images(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner.to(memory_format=torch.channels_last)

        def forward(self, x: Any) -> Any:
            y = self.inner(x.permute(0, 3, 1, 2))
            return y.permute(0, 2, 3, 1) if y.ndim == 4 else y

    return Images()


def _lenet(torch: Any, problem: Problem) -> Built:
    nn, (_, *positions, channels) = torch.nn, problem.x.shape
    side = positions[0] // 4
    inner = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return _on_images(torch, inner), [f"inner.{i}" for i in (0, 3, 7, 9, 11)]


def _resnet(torch: Any, problem: Problem) -> Built:
    """`models.resnet` with one block a stage; where it halves an image, SAME pads at the end alone."""
    nn, widths = torch.nn, (16, 32, 64)

    class Block(nn.Module):
        def __init__(self, into: int, width: int) -> None:
            super().__init__()
            stride, self.skip = 1 if into == width else 2, nn.Identity()
            if stride == 2:
                self.skip = nn.Sequential(nn.Conv2d(into, width, 1, 2, bias=False), nn.BatchNorm2d(width))
            self.pad = nn.ZeroPad2d((1, 1) * 2 if stride == 1 else (0, 1) * 2)
            self.conv1 = nn.Conv2d(into, width, 3, stride, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

        def forward(self, x: Any) -> Any:
            h = nn.functional.relu(self.norm1(self.conv1(self.pad(x))))
            return nn.functional.relu(self.norm2(self.conv2(h)) + self.skip(x))

    first = nn.Conv2d(problem.x.shape[-1], widths[0], 3, padding=1, bias=False)
    blocks = [Block(into, width) for into, width in zip((16, *widths), widths, strict=False)]
    inner = nn.Sequential(
        first, nn.BatchNorm2d(widths[0]), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10),
    )  # fmt: skip
    names = ["inner.0", "inner.1"]
    for i in (3, 4, 5):
        parts = ("conv1", "norm1", "conv2", "norm2", *(() if i == 3 else ("skip.0", "skip.1")))
        names += [f"inner.{i}.{part}" for part in parts]
    return _on_images(torch, inner), [*names, "inner.8"]


def _self_attention(torch: Any, features: int, heads: int) -> Any:
    """Causal self-attention: three projections in one, the fused kernel, the projection back."""
    nn = torch.nn

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_proj_weight = nn.Parameter(torch.empty(3 * features, features))
            self.in_proj_bias = nn.Parameter(torch.empty(3 * features))
            self.out_proj = nn.Linear(features, features)

        def forward(self, x: Any) -> Any:
            qkv = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in qkv.chunk(3, -1))
            o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out_proj(o.transpose(1, 2).flatten(2))

    return SelfAttention()


def _attention(torch: Any, problem: Problem) -> Built:
    layer = next(leaf for _, leaf in leaves(problem.net) if isinstance(leaf, Attention))
    module = torch.nn.Sequential(_self_attention(torch, problem.x.shape[-1], layer.heads))
    return module, ["0"]


def _linear_ce(torch: Any, problem: Problem) -> Built:
    vocabulary, features = problem.params["w"].shape
    return torch.nn.Sequential(torch.nn.Linear(features, vocabulary, bias=False)), ["0"]


def _char_lstm(torch: Any, problem: Problem) -> Built:
    nn, table, weight = torch.nn, problem.params[0]["w"], problem.params[-1]["w"]
    features = weight.shape[-1]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters = nn.Embedding(*table.shape)
            self.cell = nn.LSTM(table.shape[-1], features, batch_first=True)
            self.head = nn.Linear(features, weight.shape[0], bias=False)

        def forward(self, ids: Any) -> Any:
            return self.head(self.cell(self.letters(ids))[0])

    return Model(), ["letters", "cell", "head"]


def _gpt(torch: Any, problem: Problem) -> Built:
    nn, table, places = torch.nn, problem.params[0]["w"], problem.params[1]["p"]
    heads = next(leaf.heads for _, leaf in leaves(problem.net) if isinstance(leaf, Attention))
    features, stacked = table.shape[1], problem.params[2]
    depth = jax.tree.leaves(stacked)[0].shape[0]
    gelu = nn.GELU(approximate="tanh")

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
            self.attention = _self_attention(torch, features, heads)
            self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

        def forward(self, h: Any) -> Any:
            h = h + self.attention(self.norm1(h))
            return h + self.down(gelu(self.up(self.norm2(h))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(*table.shape), nn.Embedding(*places.shape)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.norm = nn.LayerNorm(features)

        def forward(self, ids: Any) -> Any:
            h = self.tokens(ids) + self.places.weight[: ids.shape[1]]
            for block in self.blocks:
                h = block(h)
            return nn.functional.linear(self.norm(h), self.tokens.weight)

    parts = ("norm1", "attention", "norm2", "up", "down")
    names = [f"blocks.{i}.{part}" for i in range(depth) for part in parts]
    return Model(), ["tokens", "places", *names, "norm"]


MODULES: dict[str, Callable[[Any, Problem], Built]] = {
    "mlp": _mlp,
    "recurrent": _recurrent,
    "convolution": _convolution,
    "attention": _attention,
    "linear_ce": _linear_ce,
    "lenet": _lenet,
    "resnet": _resnet,
    "char_lstm": _char_lstm,
    "gpt": _gpt,
}


class Torch(Contestant):
    """A module under autograd; bfloat16 by autocast, the optimizer that of Optax."""

    def __init__(self, compiled: bool = False):
        self.name, self.compiled = "torch.compile" if compiled else "torch", compiled

    def gradients(self, row: Any, problem: Problem) -> Gradients:
        torch, module, loss, x, y, _ = self._built(row, problem)
        for part in module.modules():  # gradients are compared in evaluation; steps are timed in training
            part.train(not isinstance(part, torch.nn.BatchNorm2d))
        loss(x, y).backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        found = _compared({name: _numpy(g) for name, g in grads.items()})
        return {**found, "x": _numpy(x.grad)} if problem.has_dx else found

    def expected(self, row: Any, problem: Problem, exact: Gradients) -> Gradients:
        """float64 gradients under the names that torch gives them."""
        module, names = MODULES[row.torch](_torch(), problem)
        structure = jax.tree_util.tree_structure(problem.params)
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(problem.params)]
        tree = jax.tree_util.tree_unflatten(structure, [exact[path] for path in paths])
        moving = {name for name, _ in module.named_buffers()}  # running statistics have no gradient
        given = to_torch(problem.net, tree, x=problem.x, modules=names)
        theirs = _compared({name: array for name, array in given.items() if name not in moving})
        return {**theirs, "x": exact["x"]} if problem.has_dx else theirs

    def prepare(self, row: Any, problem: Problem) -> Prepared:
        torch, module, loss, x, y, _ = self._built(row, problem)
        wait = torch.cuda.synchronize if x.is_cuda else lambda: None
        if problem.work == "gradient":

            def run() -> None:
                module.zero_grad(set_to_none=True)
                x.grad = None
                loss(x, y).backward()
                wait()

            return Prepared(run)
        update = _optimizer(torch, module, problem)
        size = problem.batch or len(x)

        def epoch() -> None:
            order = torch.randperm(len(x), device=x.device) if problem.batch else None
            for start in range(0, len(x), size):
                rows = slice(None) if order is None else order[start : start + size]
                update.zero_grad(set_to_none=True)
                loss(x[rows], y[rows]).backward()
                update.step()
            wait()

        return Prepared(epoch)

    def _built(self, row: Any, problem: Problem) -> Any:
        torch = _torch()
        if row.torch is None:
            raise AbsentError("no module for this row")
        where = "cpu" if jax.default_backend() == "cpu" else "cuda"
        if where == "cuda" and not torch.cuda.is_available():
            raise AbsentError("torch sees no GPU")
        module, names = MODULES[row.torch](torch, problem)
        state = to_torch(problem.net, problem.params, x=problem.x, modules=names)
        module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
        module = module.to(where)
        low = problem.x.dtype == "bfloat16" or _computes_low(problem)
        x = torch.from_numpy(np.array(problem.x, "float32" if problem.has_dx else None)).to(where)
        if problem.has_dx:
            x = x.to(torch.bfloat16 if low else torch.float32).requires_grad_()
        y = torch.from_numpy(np.array(problem.y, "float32" if _is_projection(problem) else "int64"))
        forward = torch.compile(module) if self.compiled else module

        def loss(x: Any, y: Any) -> Any:
            with torch.autocast(where, torch.bfloat16, enabled=low):
                prediction = forward(x)
            if _is_projection(problem):
                return (prediction.float() * y).sum()
            return torch.nn.functional.cross_entropy(prediction.flatten(0, -2).float(), y.flatten())

        return torch, module, loss, x, y.to(where), names


def _torch() -> ModuleType:
    try:
        import torch
    except ModuleNotFoundError:
        raise AbsentError("torch is not installed") from None
    return torch


def _is_projection(problem: Problem) -> bool:
    return isinstance(problem.loss, Projection)


def _computes_low(problem: Problem) -> bool:
    return any(
        getattr(getattr(leaf, "precision", None), "compute", None) == "bfloat16"
        for _, leaf in leaves(problem.net)
    )


def _optimizer(torch: Any, module: Any, problem: Problem) -> Any:
    fused = next(module.parameters()).is_cuda
    if problem.tx is optax.adamw:
        return torch.optim.AdamW(module.parameters(), lr=problem.rate, weight_decay=1e-4, fused=fused)
    return torch.optim.SGD(module.parameters(), lr=problem.rate)


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _compared(grads: Gradients) -> Gradients:
    """Without what has no counterpart: a second bias, and the keys' bias, whose gradient is 0."""
    kept = {}
    for name, grad in grads.items():
        if "bias_hh" in name:
            continue
        if name.endswith("in_proj_bias"):
            q, _, v = np.split(grad, 3)
            grad = np.concatenate([q, v])
        kept[name] = grad
    return kept
