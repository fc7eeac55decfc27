import jax
import numpy as np

from jaxbp import LinearCrossEntropy, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from tests.proof import LossCase, normal


def values(*shape):
    return lambda key: normal(key, shape, "float32")


def shares(*shape):
    return lambda key: np.random.default_rng(key).uniform(size=shape).astype("float32")


def bits(*shape):
    return labels(2, *shape)


def labels(classes, *shape):
    return lambda key: np.random.default_rng(key).integers(0, classes, shape, dtype="int32")


def with_ignored(classes, *shape):
    return lambda key: np.concatenate([[-1], labels(classes, *shape)(key)[1:]]).astype("int32")


def one_hot(classes, *shape):
    return lambda key: np.eye(classes, dtype="float32")[labels(classes, *shape)(key)]


def soft(*shape):
    return lambda key: jax.nn.softmax(normal(key, shape, "float32"))


LOSS_CASES = [
    *(
        case
        for reduction in ("mean", "sum")
        for case in (
            LossCase(SquaredError(reduction), (4, 3), values(4, 3), eager=True),
            LossCase(SquaredError(reduction), (3,), values(3), note="no-batch"),
            LossCase(SigmoidCrossEntropy(reduction), (4, 3), shares(4, 3), eager=True),
            LossCase(SigmoidCrossEntropy(reduction), (2, 4, 3), bits(2, 4, 3)),
            LossCase(SoftmaxCrossEntropy(reduction), (4, 3), labels(3, 4), eager=True),
            LossCase(SoftmaxCrossEntropy(reduction), (3,), labels(3), note="no-batch"),
            LossCase(SoftmaxCrossEntropy(reduction), (2, 4, 3), labels(3, 2, 4), note="sequence"),
            LossCase(SoftmaxCrossEntropy(reduction), (4, 3), one_hot(3, 4), note="one-hot"),
            LossCase(SoftmaxCrossEntropy(reduction), (4, 3), soft(4, 3), note="soft"),
            LossCase(SoftmaxCrossEntropy(reduction), (4, 3), shares(4, 3), note="not-summing-to-1"),
            LossCase(SoftmaxCrossEntropy(reduction, label_smoothing=0.1), (4, 3), labels(3, 4)),
            LossCase(
                SoftmaxCrossEntropy(reduction, label_smoothing=0.1), (4, 3), soft(4, 3), note="soft"
            ),
            LossCase(SoftmaxCrossEntropy(reduction, ignore=-1), (4, 3), with_ignored(3, 4)),
        )
    ),
    *(
        case
        for loss, target in ((SquaredError(), values), (SigmoidCrossEntropy(), shares))
        for case in (
            *(LossCase(loss, (4, 3), target(4, 3), scale=scale) for scale in (1e-4, 1e4)),
            *(
                LossCase(loss, shape, target(*shape), note=note)
                for shape, note in [
                    ((1, 3), "batch-1"),
                    ((4, 1), "one-output"),
                    ((1, 1), "one-by-one"),
                    ((1,), "one-entry"),
                    ((2, 4, 5), "sequence"),
                    ((2, 1, 2, 3), "three-batch-axes"),
                ]
            ),
        )
    ),
    LossCase(SoftmaxCrossEntropy(), (4, 3), labels(3, 4), scale=1e4),
    LossCase(SoftmaxCrossEntropy(), (4, 3), soft(4, 3), scale=1e-4),
    *(
        LossCase(
            LinearCrossEntropy(**fields),
            shapes,
            target,
            scale,
            note,
            eager=(fields, note, scale) == ({}, "", 1.0),
        )
        for fields, shapes, target, scale, note in (
            ({}, ((4, 5), (5, 3)), labels(3, 4), 1.0, ""),
            ({"reduction": "sum"}, ((4, 5), (5, 3)), labels(3, 4), 1.0, ""),
            ({}, ((5,), (5, 3)), labels(3), 1.0, "no-batch"),
            ({}, ((1, 5), (5, 3)), labels(3, 1), 1.0, "batch-1"),
            ({}, ((2, 4, 5), (5, 3)), labels(3, 2, 4), 1.0, "sequence"),
            ({}, ((4, 1), (1, 3)), labels(3, 4), 1.0, "one-feature"),
            ({}, ((4, 5), (5, 1)), labels(1, 4), 1.0, "one-class"),
            ({}, ((4, 5), (5, 3)), soft(4, 3), 1.0, "soft"),
            ({}, ((4, 5), (5, 3)), labels(3, 4), 1e-2, ""),
            ({}, ((4, 5), (5, 3)), labels(3, 4), 1e2, ""),
            ({"label_smoothing": 0.1}, ((4, 5), (5, 3)), labels(3, 4), 1.0, ""),
            ({"ignore": -1}, ((4, 5), (5, 3)), with_ignored(3, 4), 1.0, ""),
        )
    ),
    *(  # chunks that do not divide the rows, and one row at a time
        LossCase(LinearCrossEntropy(chunk=chunk, **fields), shapes, target, scale, f"{note}-in-chunks")
        for fields, shapes, target, scale, note, chunk in (
            ({}, ((7, 5), (5, 3)), labels(3, 7), 1.0, "labels", 3),
            ({}, ((7, 5), (5, 3)), labels(3, 7), 1e2, "labels", 4),
            ({}, ((7, 5), (5, 3)), labels(3, 7), 1e-2, "labels", 2),
            ({}, ((7, 5), (5, 3)), labels(3, 7), 1.0, "labels", 1),
            ({"reduction": "sum"}, ((2, 5, 4), (4, 3)), labels(3, 2, 5), 1.0, "sequence", 4),
            ({}, ((2, 5, 4), (4, 3)), soft(2, 5, 3), 1.0, "soft-sequence", 3),
            ({"label_smoothing": 0.1}, ((7, 5), (5, 3)), labels(3, 7), 1.0, "labels", 3),
            ({"label_smoothing": 0.1}, ((7, 5), (5, 3)), shares(7, 3), 1.0, "not-summing-to-1", 5),
            ({"ignore": -1}, ((7, 5), (5, 3)), with_ignored(3, 7), 1.0, "ignored", 3),
            ({"reduction": "sum"}, ((7, 1), (1, 3)), one_hot(3, 7), 1.0, "one-feature", 6),
            ({}, ((7, 5), (5, 1)), labels(1, 7), 1.0, "one-class", 3),
        )
    ),
]
