"""Most cases are one-dimensional: the code knows axes only as a list, and one axis compiles fast.

Two of the ways to run are enough for most of them; the first of each rank also runs eagerly.
"""

from jaxbp import Chain, Conv, ConvTranspose, ReLU, Residual, Stack
from tests.proof import Case, further

L = (2, 9, 4)  # sequences
A = (2, 5, 4, 4)  # images
V = (1, 3, 4, 3, 2)  # volumes


CASES = [
    Case(Conv(6, (3,)), L),
    Case(Conv(3, (3, 2)), A, modes=("jit", "vmap")),
    *further(
        Case(Conv(6, (3,)), L, scale=1e-4),
        Case(Conv(6, (3,)), L, scale=1e4),
        Case(Conv(6, (3,)), (1, 1, 4), note="length-1-batch-1"),
        Case(Conv(6, (3,)), (5, 4), note="no-batch"),
        Case(Conv(6, (3,)), (2, 1, 5, 4), note="two-batch-axes"),
        Case(Conv(6, (2,), stride=3, padding="VALID"), L, note="stride-over-kernel"),
        Case(Conv(6, (4,), stride=2, padding="VALID", bias=False), L),
        Case(Conv(6, (3,), stride=2, dilation=2), L, note="stride-and-dilation-share-a-factor"),
        Case(Conv(6, (3,), stride=2, dilation=3), L),
        Case(Conv(6, (3,), stride=4, dilation=6, padding=7), L),
        Case(Conv(6, (3,), padding=((3, 0),)), L, note="causal"),
        Case(Conv(6, (2,), padding=((-2, -1),)), L, note="crops"),
        Case(Conv(6, (3,), groups=2, stride=2), L),
        Case(Conv(6, (3,)), (0, 9, 4), note="empty-batch"),
        Case(Conv(8, (3,), groups=4), L, note="depthwise-times-2"),
        Case(Conv(36, (3,), groups=12), (2, 9, 24), note="blocks-of-groups"),
        Case(Conv(4, (3,), groups=4, dilation=2, bias=False), L, note="depthwise"),
        Case(Conv(6, (1,)), L, note="pointwise"),
        Case(Conv(4, 3, stride=(2, 3), dilation=(1, 2), groups=2), A),
        Case(Conv(3, 1, stride=2, padding="VALID"), A, note="stride-over-kernel"),
        Case(Conv(3, (2, 3, 2), stride=(1, 2, 1)), V, note="volume"),
        Case(Stack(Residual(Chain(Conv(4, (3,)), ReLU())), 2), L, depth=8),
    ),
    Case(ConvTranspose(6, (3,), stride=2), L),
    *further(
        Case(ConvTranspose(6, (3,), stride=2), L, scale=1e-4),
        Case(ConvTranspose(6, (3,), stride=2), L, scale=1e4),
        Case(ConvTranspose(6, (3,)), (1, 1, 4), note="length-1-batch-1"),
        Case(ConvTranspose(6, (3,)), (5, 4), note="no-batch"),
        Case(ConvTranspose(6, (3,), padding="VALID", bias=False), L),
        Case(ConvTranspose(6, (2,), stride=3, padding="VALID"), L, note="stride-over-kernel"),
        Case(ConvTranspose(6, (2,), stride=3), L, note="stride-over-kernel"),
        Case(ConvTranspose(6, (3,), stride=2, dilation=2), L),
        Case(ConvTranspose(6, (3,), stride=2, padding=((1, 0),)), L, note="as-torch-with-output-padding"),
        Case(ConvTranspose(6, (3,), padding=((2, -3),)), L),
        Case(ConvTranspose(6, (4,), stride=2, groups=2), L),
        Case(ConvTranspose(4, (3,), groups=4), L, note="depthwise"),
        Case(ConvTranspose(24, (3,), stride=2, groups=12), (2, 5, 36), note="blocks-of-groups"),
        Case(ConvTranspose(3, (3, 2), stride=2), (1, 3, 2, 2), note="image"),
        Case(Stack(Residual(ConvTranspose(4, (3,))), 2), L, depth=6),
    ),
]
