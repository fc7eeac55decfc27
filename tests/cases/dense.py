from jaxbp import Chain, Dense, Dropout, Flatten, Stack
from tests.proof import Case, further

D = (4, 6)

CASES = [
    Case(Dense(5), (4, 3)),
    *further(
        Case(Dense(5), (4, 3), scale=1e-4),
        Case(Dense(5), (4, 3), scale=1e4),
        Case(Dense(5), (3,), note="no-batch"),
        Case(Dense(5), (1, 3), note="batch-1"),
        Case(Dense(5), (0, 3), note="empty-batch"),
        Case(Dense(1), (4, 3), note="one-output"),
        Case(Dense(5), (4, 1), note="one-input"),
        Case(Dense(1), (1, 1), note="one-by-one"),
        Case(Dense(5), (2, 4, 3), note="two-batch-axes"),
        Case(Dense(5), (2, 1, 2, 3), note="three-batch-axes"),
        Case(Dense(5, bias=False), (4, 3)),
        Case(Dense(5, bias=False), (2, 4, 3)),
        Case(Dense(17), (9, 33), note="larger"),
    ),
    Case(Dropout(0.3), D, train=True),
    *further(
        Case(Dropout(0.3), D, train=True, scale=1e-4),
        Case(Dropout(0.3), D, train=True, scale=1e4),
        Case(Dropout(0.3), D),
        Case(Dropout(0.0), D, train=True),
        Case(Dropout(0.9), (2, 3, 5), train=True),
        Case(Dropout(0.999), D, train=True, note="nothing-left"),
        Case(Dropout(0.3), (), train=True),
        Case(Dropout(0.3), (7,), train=True),
        Case(Dropout(0.3), (1, 6), train=True),
        Case(Dropout(0.3), (0, 6), train=True),
        Case(Dropout(0.3), (2, 1, 3, 2), train=True),
        Case(Stack(Chain(Dropout(0.3), Dense(6)), 2), D, train=True, depth=4),
    ),
    Case(Flatten(), (4, 2, 3)),
    *further(
        Case(Flatten(), (4, 2, 3), scale=1e-4),
        Case(Flatten(), (4, 2, 3), scale=1e4),
        Case(Flatten(), (4, 6)),
        Case(Flatten(), (4, 1)),
        Case(Flatten(), (1, 2, 3, 1)),
        Case(Flatten(), (1, 1)),
        Case(Flatten(), (0, 2, 3)),
        Case(Flatten(), (3, 2, 1, 2)),
        Case(Flatten(), (2, 3, 2, 1, 2)),
        Case(Flatten(), (5, 1, 7)),
        Case(Flatten(), (2, 5, 3)),
        Case(Stack(Chain(Flatten(), Dense(6)), 2), D, depth=2),
    ),
]
