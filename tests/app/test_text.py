"""Text data, and the trigram baseline, against counts by hand."""

import numpy as np
import pytest

from experiments.trigram import trigram_loss, trigram_probabilities
from jaxbp import InputError
from jaxbp.app.text import decode, encode, read_parts, standard_library, windows


def test_windows_predict_every_byte_but_the_first_once() -> None:
    x, y = windows(np.arange(11, dtype=np.uint8), 4)
    np.testing.assert_array_equal(x, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(y, [[1, 2, 3, 4], [5, 6, 7, 8]])


def test_a_text_too_short_for_a_window() -> None:
    with pytest.raises(InputError, match="more than 4 bytes"):
        windows(np.arange(4, dtype=np.uint8), 4)


def test_the_standard_library_is_split_by_files_and_always_alike() -> None:
    train, held = read_parts()
    assert 0.02 < held.size / (train.size + held.size) < 0.25
    again = read_parts()
    np.testing.assert_array_equal(held, again[1])
    assert not any("test" in path.parts for path in standard_library())


def test_the_end_of_a_single_file_is_held_out(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    train, held = read_parts(str(tmp_path / "a.txt"), 0.2)
    assert (train[-1], held[0], held.size) == (79, 80, 20)


def test_bad_text(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_parts(str(tmp_path / "none"))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InputError, match="no bytes"):
        read_parts(str(tmp_path / "empty"))


def test_text_survives_the_tokens() -> None:
    assert decode(encode("δ_i = ∂L/∂a")) == "δ_i = ∂L/∂a"
    assert decode(np.array([255, 65])) == "�A"


def test_the_trigram_model_by_hand() -> None:
    train = encode("abab")  # after "ab": a once; after "b": a once; b, a: 2 of 4 each
    alone = (2 + 2 / 256) / 6  # P(a), two different bytes seen
    after_b = (1 + alone) / 2
    expected = (1 + after_b) / 2
    np.testing.assert_allclose(trigram_probabilities(train, encode("aba")), [expected])


def test_trigram_probabilities_add_up_to_one() -> None:
    train = encode("the cat sat on the mat")
    total = sum(trigram_probabilities(train, np.array([*encode("at"), c])) for c in range(256))
    np.testing.assert_allclose(total, 1)
    assert trigram_loss(train, train) < np.log(256)
