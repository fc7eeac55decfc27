from jaxbp import AvgPool, Chain, Conv, GlobalAvgPool, MaxPool, Stack
from tests.proof import Case, further

L = (2, 9, 3)
A = (2, 5, 6, 3)


CASES = [
    Case(MaxPool((2,)), L),
    Case(AvgPool((2,)), L),
    Case(GlobalAvgPool(), L),
]
CASES += further(
    Case(MaxPool((2,)), L, scale=1e-4),
    Case(MaxPool((2,)), L, scale=1e4),
    Case(MaxPool((3,), 1, "SAME"), L),
    Case(MaxPool((3,), 2, 1), L),
    Case(MaxPool((2,), 4), L, note="stride-over-window"),
    Case(MaxPool((1,)), (1, 1, 3), note="length-1-batch-1"),
    Case(MaxPool((4,), 1, ((3, 0),)), L, note="causal"),
    Case(MaxPool((2,)), (4, 3), note="no-batch"),
    Case(MaxPool(2), A),
    Case(MaxPool((3, 2), (2, 1), "SAME"), A),
    Case(MaxPool((2, 2, 1)), (1, 2, 4, 3, 2), note="volume"),
    Case(Stack(MaxPool((3,), 1, "SAME"), 2), L, depth=2),
    Case(AvgPool((2,)), L, scale=1e-4),
    Case(AvgPool((2,)), L, scale=1e4),
    Case(AvgPool((3,), 1, "SAME"), L),
    Case(AvgPool((3,), 1, "SAME", count_include_pad=True), L),
    Case(AvgPool((2,), 4), L, note="stride-over-window"),
    Case(AvgPool((1,)), (1, 1, 3), note="length-1-batch-1"),
    Case(AvgPool((4,), 1, ((3, 0),)), L, note="causal"),
    Case(AvgPool((2,)), (4, 3), note="no-batch"),
    Case(AvgPool(2), A),
    Case(AvgPool((3, 2), (2, 1), 1), A),
    Case(AvgPool((3, 2), (2, 1), 1, count_include_pad=True), A),
    Case(AvgPool((2, 2, 1)), (1, 2, 4, 3, 2), note="volume"),
    *(Case(GlobalAvgPool(), shape) for shape in [A, (1, 1, 3), (1, 1, 1, 1), (2, 2, 2, 2, 3)]),
    *(Case(GlobalAvgPool(), A, scale=scale) for scale in (1e-4, 1e-2, 1e2, 1e4)),
    Case(GlobalAvgPool(), (1, 5, 6, 3), note="batch-1"),
    Case(GlobalAvgPool(), (2, 9, 1), note="one-channel"),
    Case(GlobalAvgPool(), (2, 1, 3), note="length-1"),
    Case(Chain(Conv(2, (3,)), GlobalAvgPool()), L, depth=2),
    Case(Stack(AvgPool((3,), 1, "SAME"), 2), L, depth=2),
)
