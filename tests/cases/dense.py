from jaxbp import Dense, Dropout, Flatten, Precision
from tests.proof import Case

CASES = [
    Case(Dense(5), (3,), note="no-batch"),
    Case(Dense(5), (1, 3), note="batch-1"),
    Case(Dense(5), (4, 3)),
    Case(Dense(1), (4, 3), note="one-output"),
    Case(Dense(5), (4, 1), note="one-input"),
    Case(Dense(5), (2, 4, 3), note="two-batch-axes"),
    Case(Dense(5, bias=False), (4, 3)),
    Case(Dense(5, initializer="glorot"), (4, 3)),
    Case(Dense(5, initializer="he"), (4, 3)),
    Case(Dense(5, initializer="normal"), (4, 3)),
    Case(Dense(5, initializer="zeros"), (4, 3)),
    Case(Dense(5), (4, 3), scale=1e-4),
    Case(Dense(5), (4, 3), scale=1e4),
    Case(Dropout(0.3), (4, 6), train=True),
    Case(Dropout(0.3), (4, 6)),
    Case(Dropout(0.0), (4, 6), train=True),
    Case(Dropout(0.9), (2, 3, 5), train=True),
    Case(Flatten(), (4, 6)),
    Case(Flatten(), (4, 2, 3)),
    Case(Flatten(), (1, 2, 3, 1)),
]

MIXED = Dense(5, precision=Precision("float32", "bfloat16", "float32"))
