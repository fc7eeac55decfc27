"""The rows of the bench, each declared once: what is measured, at which size on which platform.

A row has a size for the CPU, one for an accelerator and one at which every contestant is verified
against float64; `build` makes a problem of any of them. To add a row, add it to `ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import optax

from jaxbp import models
from jaxbp.bench.problem import Problem, Projection, Size, normal, whole
from jaxbp.layer import InputError, Layer, map_leaves
from jaxbp.layers import GRU, LSTM, Attention, BatchNorm, Conv, ConvTranspose, GroupNorm, Head
from jaxbp.losses import LinearCrossEntropy, SoftmaxCrossEntropy
from jaxbp.precision import Precision, with_precision


@dataclass(frozen=True)
class Row:
    """`check` is small; `torch` and `flax` name the rivals' module in `torch_rivals` and `flax_rivals`.

    `series` names the axis along which rows of one `family` cost more and more, `at` the place on it:
    such rows are for a plot, and run when they are named.
    """

    name: str
    build: Callable[[Size], Problem]
    check: Size
    cpu: Size | None = None
    gpu: Size | None = None
    torch: str | None = None
    flax: str | None = None
    careful: bool = False
    series: str | None = None
    at: int | None = None
    note: str = field(default="", compare=False)

    @property
    def family(self) -> str:
        return self.name.partition("@")[0]

    @property
    def quantity(self) -> str:
        """What of `jaxbp.beyond` is measured, if any."""
        return self.check.get("quantity", "")

    def size(self, platform: str) -> Size | None:
        return self.cpu if platform == "cpu" else self.gpu


def at_dtype(net: Layer, size: Size) -> Layer:
    """`net` in the row's dtype: parameters in float32, products and activations in `dtype`."""
    dtype = size.get("dtype", "float32")
    return net if dtype == "float32" else with_precision(net, Precision("float32", dtype, dtype))


def _layer(net: Layer, plain: Layer, x: tuple[int, ...], y: tuple[int, ...], size: Size) -> Problem:
    """Forward, dx and dw of a layer, given the error that arrives."""
    dtype = size.get("dtype", "float32")
    net, plain = at_dtype(net, size), at_dtype(plain, size)
    return Problem(
        net, Projection(), normal(1, x, dtype), normal(2, y, dtype), plain=(plain, Projection())
    )


def mlp(size: Size) -> Problem:
    first, *widths = size["widths"]
    net = models.mlp(*widths)
    return _layer(net, net, (size["batch"], first), (size["batch"], widths[-1]), size)


def recurrent(size: Size) -> Problem:
    cell = {"lstm": LSTM, "gru": GRU}[size["cell"]](size["H"])
    x = (size["B"], size["T"], size["D"])
    return _layer(cell, cell, x, (*x[:2], size["H"]), size)


def convolution(size: Size) -> Problem:
    size = {"kernel": 3, "stride": 1, "groups": 1, "dilation": 1, "transposed": False, **size}
    if size["transposed"]:
        net: Layer = ConvTranspose(size["features"], size["kernel"], stride=size["stride"])
        side = size["side"] * size["stride"]
    else:
        spread = {key: size[key] for key in ("stride", "groups", "dilation")}
        net = Conv(size["features"], size["kernel"], **spread)
        side = -(-size["side"] // size["stride"])
    x = (size["batch"], size["side"], size["side"], size["channels"])
    return _layer(net, net, x, (size["batch"], side, side, size["features"]), size)


def attention(size: Size) -> Problem:
    x = (size["B"], size["T"], size["H"] * size["D"])
    net = Attention(size["H"], causal=True)
    return _layer(net, plain_attention(net), x, x, size)


def linear_cross_entropy(size: Size) -> Problem:
    n, vocabulary, dtype = size["N"], size["V"], size.get("dtype", "float32")
    net, plain = (at_dtype(Head(vocabulary, deferred), size) for deferred in (True, False))
    x, y = normal(1, (n, size["D"]), dtype), whole(2, (n,), vocabulary)
    return Problem(net, LinearCrossEntropy(), x, y, plain=(plain, SoftmaxCrossEntropy()))


def images(size: Size) -> Problem:
    net = at_dtype({"lenet": models.lenet, "resnet": models.resnet}[size["net"]](), size)
    net = map_leaves(_grouped, net) if size.get("quantity") else net
    x = normal(1, (size["batch"], size["side"], size["side"], size["channels"]))
    y = whole(2, (size["batch"],), 10)
    return _of(Problem(net, SoftmaxCrossEntropy(), x, y, "step", rate=0.05), size)


def text(size: Size) -> Problem:
    shape, vocabulary = (size["B"], size["T"]), size["V"]
    ids, y = whole(1, shape, vocabulary), whole(2, shape, vocabulary)
    deferred = size.get("deferred", False)
    loss = LinearCrossEntropy() if deferred else SoftmaxCrossEntropy()

    def make(deferred: bool) -> Layer:
        if size["net"] == "lstm":
            return models.char_lstm(vocabulary, features=size["H"], deferred=deferred)
        given = {key: size[key] for key in ("depth", "heads", "features")}
        return models.gpt(vocabulary, **given, length=size["T"], deferred=deferred)

    plain = at_dtype(plain_attention(make(False)), size), SoftmaxCrossEntropy()
    net = at_dtype(make(deferred), size)
    return _of(Problem(net, loss, ids, y, "step", plain, optax.adamw, 3e-4), size)


def digits(size: Size) -> Problem:
    x, y = normal(1, (size["N"], 64)), whole(2, (size["N"],), 10)
    return Problem(models.mlp(128, 10), SoftmaxCrossEntropy(), x, y, "epoch", rate=0.1, batch=32)


def vectors(size: Size) -> Problem:
    x, y = normal(1, (size["batch"], 64)), whole(2, (size["batch"],), 10)
    return _of(Problem(models.mlp(128, 10), SoftmaxCrossEntropy(), x, y), size)


def _of(problem: Problem, size: Size) -> Problem:
    """The same with the size's quantity in place of a step, if it names one."""
    if "quantity" not in size:
        return problem
    return replace(problem, work="gradient", quantity=size["quantity"])


def _grouped(leaf: Layer) -> Layer:
    """A norm that looks at one example alone."""
    return GroupNorm(8) if isinstance(leaf, BatchNorm) else leaf


def plain_attention(net: Layer) -> Layer:
    """`net` with attention as its formula: the form that autodiff is given."""

    def whole(leaf: Layer) -> Layer:
        return replace(leaf, implementation="whole") if isinstance(leaf, Attention) else leaf

    return map_leaves(whole, net)


BF16 = {"dtype": "bfloat16"}
GPT2 = {"net": "gpt", "V": 50257, "depth": 12, "heads": 12, "features": 768, "deferred": True}
SMALL_GPT = {"net": "gpt", "V": 61, "depth": 2, "heads": 3, "features": 24, "B": 2, "T": 19}
CPU_GPT = {"net": "gpt", "V": 256, "depth": 4, "heads": 4, "features": 128}
CONV = {"batch": 3, "side": 9, "channels": 8, "features": 12}


def _conv(name: str, cpu: Size | None, gpu: Size | None = None, **kind: Any) -> Row:
    check = {**CONV, **kind}
    if kind.get("groups"):
        check |= {"features": 8, "groups": min(kind["groups"], 8)}
    cpu = None if cpu is None else {**kind, "batch": 32, **cpu}
    gpu = None if gpu is None else {**kind, "batch": 256, **BF16, **gpu}
    return Row(f"conv_{name}", convolution, check, cpu, gpu, torch="convolution", flax="convolution")


def _plane(side: int, channels: int, features: int | None = None, **more: Any) -> Size:
    return {"side": side, "channels": channels, "features": features or channels, **more}


def _beyond() -> tuple[Row, ...]:
    """What `jaxbp.beyond` makes of a walk, in plain steps."""
    lenet = {"net": "lenet", "batch": 128, "side": 28, "channels": 1}
    resnet = {"net": "resnet", "batch": 128, "side": 32, "channels": 3}
    gpt2 = {**GPT2, **BF16, "deferred": False}
    rows: tuple[tuple[str, str, Callable[[Size], Problem], Size, Size | None, Size | None], ...] = (
        ("gpt", "clipped", text, SMALL_GPT, {**CPU_GPT, "features": 256, "B": 8, "T": 64}, None),
        ("gpt2_T128", "clipped", text, SMALL_GPT, None, {**gpt2, "B": 16, "T": 128}),
        ("gpt2_T1024", "clipped", text, SMALL_GPT, None, {**gpt2, "B": 8, "T": 1024}),
        ("digits", "statistics", vectors, {"batch": 9}, {"batch": 256}, {"batch": 256}),
        (
            "char_lstm", "norms", text, {"net": "lstm", "B": 3, "T": 11, "V": 23, "H": 9},
            {"net": "lstm", "B": 32, "T": 128, "V": 256, "H": 256}, None,
        ),
        ("resnet", "clipped", images, {**resnet, "batch": 3, "side": 8}, resnet, resnet),
        ("lenet", "factors", images, {**lenet, "batch": 3, "side": 8}, lenet, lenet),
        ("lenet", "diagonal", images, {**lenet, "batch": 3, "side": 8}, lenet, lenet),
    )  # fmt: skip

    def sized(size: Size | None, quantity: str) -> Size | None:
        return None if size is None else {**size, "quantity": quantity}

    return tuple(
        Row(
            f"beyond_{name}_{quantity}", build, {**check, "quantity": quantity},
            sized(cpu, quantity), sized(gpu, quantity), note="in plain steps: by hand / plain",
        )
        for name, quantity, build, check, cpu, gpu in rows
    )  # fmt: skip


_ATTENTION = {"B": 2, "T": 70, "H": 3, "D": 8}
ROWS: tuple[Row, ...] = (
    Row("digits_epoch", digits, {"N": 40}, {"N": 1437}, {"N": 1437}, "mlp"),
    Row(
        "mlp", mlp, {"widths": (11, 7, 5), "batch": 9},
        {"widths": (784, 1024, 1024, 1024, 10), "batch": 512},
        {"widths": (4096,) * 5, "batch": 8192, **BF16}, "mlp", "mlp",
    ),
    Row(
        "lstm_T128", recurrent, {"cell": "lstm", "B": 3, "T": 11, "D": 5, "H": 7},
        {"cell": "lstm", "B": 32, "T": 128, "D": 64, "H": 256},
        {"cell": "lstm", "B": 64, "T": 128, "D": 256, "H": 512}, "recurrent",
    ),
    Row(
        "lstm_T512", recurrent, {"cell": "lstm", "B": 3, "T": 11, "D": 5, "H": 7},
        {"cell": "lstm", "B": 32, "T": 512, "D": 64, "H": 128},
        {"cell": "lstm", "B": 128, "T": 512, "D": 128, "H": 1024, **BF16}, "recurrent",
    ),
    Row(
        "gru_T128", recurrent, {"cell": "gru", "B": 3, "T": 11, "D": 5, "H": 7},
        {"cell": "gru", "B": 32, "T": 128, "D": 64, "H": 256},
        {"cell": "gru", "B": 64, "T": 128, "D": 256, "H": 512}, "recurrent",
    ),
    _conv("3x3_14", _plane(14, 32, 64)),
    _conv("3x3_32", _plane(32, 64), _plane(32, 64)),
    _conv("5x5_32", _plane(32, 3, 32), kernel=5),
    _conv("stride2", _plane(28, 64), _plane(28, 256), stride=2),
    _conv("1x1", _plane(28, 64, 128), _plane(28, 256, 1024), kernel=1),
    _conv("dilated", _plane(28, 64), dilation=2),
    _conv("transposed", _plane(14, 64, 32), kernel=4, stride=2, transposed=True),
    _conv("depthwise", _plane(28, 64, groups=64), _plane(28, 256, groups=256), groups=8),
    _conv("grouped8", _plane(28, 64), _plane(28, 256), groups=8),
    *(
        Row(
            f"attention_T{length}", attention, _ATTENTION, {"B": 1, "T": length, "H": 4, "D": 64},
            {"B": batch, "T": length, "H": 16, "D": 64, **BF16} if batch else None,
            "attention", careful=True,
        )
        for length, batch in ((512, 0), (2048, 4), (4096, 0))
    ),
    Row(
        "attention_T8192", attention, _ATTENTION, None, {"B": 1, "T": 8192, "H": 16, "D": 64, **BF16},
        "attention", careful=True,
    ),
    Row(
        "linear_ce", linear_cross_entropy, {"N": 37, "D": 12, "V": 130},
        {"N": 2048, "D": 256, "V": 32000}, {"N": 8192, "D": 768, "V": 50257, **BF16}, "linear_ce",
    ),
    Row(
        "lenet", images, {"net": "lenet", "batch": 5, "side": 8, "channels": 1},
        {"net": "lenet", "batch": 128, "side": 28, "channels": 1},
        {"net": "lenet", "batch": 512, "side": 28, "channels": 1}, "lenet",
    ),
    Row(
        "resnet", images, {"net": "resnet", "batch": 5, "side": 8, "channels": 3},
        {"net": "resnet", "batch": 64, "side": 32, "channels": 3},
        {"net": "resnet", "batch": 512, "side": 32, "channels": 3, **BF16}, "resnet",
    ),
    Row(
        "char_lstm", text, {"net": "lstm", "B": 3, "T": 11, "V": 23, "H": 9},
        {"net": "lstm", "B": 32, "T": 128, "V": 256, "H": 256},
        {"net": "lstm", "B": 128, "T": 256, "V": 256, "H": 1024, **BF16}, "char_lstm",
    ),
    Row("gpt_T128", text, SMALL_GPT, {**CPU_GPT, "B": 16, "T": 128}, None, "gpt"),
    Row("gpt_T1024", text, SMALL_GPT, {**CPU_GPT, "B": 2, "T": 1024}, None, "gpt"),
    Row(
        "gpt2_124M", text, {**SMALL_GPT, "deferred": True}, None, {**GPT2, "B": 16, "T": 1024, **BF16},
        "gpt", careful=True, note="16,384 tokens a step, AdamW",
    ),
    *_beyond(),
    # series, for the plot
    *(
        Row(
            f"attention@{length}", attention, _ATTENTION, {"B": 1, "T": length, "H": 4, "D": 64},
            {"B": 4, "T": length, "H": 16, "D": 64, **BF16}, "attention", series="length", at=length,
        )
        for length in (256, 512, 1024, 2048, 4096)
    ),
    *(
        Row(
            f"gpt@{depth}", text, SMALL_GPT, {**CPU_GPT, "depth": depth, "B": 4, "T": 128},
            {**GPT2, "depth": depth, "B": 8, "T": 1024, **BF16}, "gpt", series="depth", at=depth,
        )
        for depth in (1, 2, 4, 8)
    ),
    *(
        Row(
            f"mlp@{width}", mlp, {"widths": (11, 7, 5), "batch": 9},
            {"widths": (width,) * 4, "batch": 256}, {"widths": (4 * width,) * 4, "batch": 4096, **BF16},
            "mlp", series="width", at=width,
        )
        for width in (128, 256, 512, 1024)
    ),
    *(
        Row(
            f"linear_ce@{vocabulary}", linear_cross_entropy, {"N": 37, "D": 12, "V": 130},
            {"N": 1024, "D": 256, "V": vocabulary}, {"N": 8192, "D": 768, "V": vocabulary, **BF16},
            "linear_ce", series="vocabulary", at=vocabulary,
        )
        for vocabulary in (2000, 8000, 32000)
    ),
)  # fmt: skip


def choose(names: list[str], platform: str) -> tuple[list[Row], list[str]]:
    """The rows of these names (or patterns such as `conv_*`), and the names that have no size here.

    Without names: all but the series. Raises `InputError` for a name that is no row's, and if no row is
    left.
    """
    sized = [row for row in ROWS if row.size(platform) is not None]
    if not names:
        return [row for row in sized if row.series is None], []
    chosen: dict[str, Row] = {}
    without = []
    for name in names:
        if not any(fnmatchcase(row.name, name) for row in ROWS):
            known = ", ".join(dict.fromkeys(row.family for row in ROWS))
            raise InputError(f"row: expected one of {known}, or a pattern, got {name!r}")
        found = {row.name: row for row in sized if fnmatchcase(row.name, name)}
        chosen |= found
        without += [] if found else [name]
    if not chosen:
        raise InputError(f"row {', '.join(without)}: has no size for {platform}")
    return list(chosen.values()), without
