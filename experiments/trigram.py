"""The baseline that a character model has to beat: a trigram model with back-off, on the same split.

    python experiments/trigram.py [--path TEXT]

prints its loss on the held-out part in nats a character, the unit of `jaxbp train`'s loss. The
probability of a byte after two others backs off to that after one, to that of the byte alone, and to
1/256, each weighted by how often the longer context was followed by something new (Witten and Bell
1991):

    P(c | ab) = (n(abc) + t(ab) P(c | b)) / (n(ab) + t(ab))       t(ab): different bytes seen after ab
"""

from __future__ import annotations

import argparse

import numpy as np

from jaxbp.app.text import VOCABULARY, read_parts


def trigram_probabilities(train: np.ndarray, text: np.ndarray) -> np.ndarray:
    """`P(c | ab)` of every byte of `text` from its third on, from the counts of `train`."""
    probability = np.full(len(text) - 2, 1 / VOCABULARY)
    for order in (0, 1, 2):
        seen, wanted = grams(train, order + 1), grams(text[2 - order :], order + 1)
        counts = np.bincount(seen, minlength=VOCABULARY ** (order + 1))
        table = counts.reshape(-1, VOCABULARY)
        total, kinds = table.sum(axis=1), (table > 0).sum(axis=1)
        context = wanted // VOCABULARY
        weight = total[context] + kinds[context]
        longer = (counts[wanted] + kinds[context] * probability) / np.maximum(weight, 1)
        probability = np.where(weight > 0, longer, probability)
    return probability


def grams(text: np.ndarray, size: int) -> np.ndarray:
    """Every run of `size` bytes as one number."""
    codes = np.zeros(len(text) - size + 1, np.int64)
    for i in range(size):
        codes = codes * VOCABULARY + text[i : len(text) - size + 1 + i]
    return codes


def trigram_loss(train: np.ndarray, held_out: np.ndarray) -> float:
    """The mean of `-log P` over `held_out`, in nats a character."""
    return float(-np.mean(np.log(trigram_probabilities(train, held_out))))


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss of a trigram model with back-off.")
    parser.add_argument("--path", default="", help="a file or folder; default: the standard library")
    parser.add_argument("--test-share", type=float, default=0.1)
    arguments = parser.parse_args()
    train, held_out = read_parts(arguments.path, arguments.test_share)
    loss = trigram_loss(train, held_out)
    print(f"{len(train):,} bytes to count, {len(held_out):,} held out: {loss:.4f} nats a character")


if __name__ == "__main__":
    main()
