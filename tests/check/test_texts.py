"""What is said is the same on every JAX and Python: the words, the places, the counts, the digits."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gallery import exhibits, texts
from jaxbp.check.digits import error_words, noise_words, pair_words
from jaxbp.check.measure import worst
from jaxbp.check.program import all_ops, read
from jaxbp.check.report import Leaf, Report

EXHIBITS = {exhibit.name: exhibit for exhibit in exhibits()}
SAID = Path(__file__).parent / "texts"
SUBSET = {  # a right gradient's cases, and a fault each whose text names a place, a tie, a loop
    "dense": "dx with w instead of its transpose",
    "convolution": "dk reversed",
    "recurrence": "the recurrent path",
    "masked mean": "division by the count",
}


def without_line_numbers(text: str) -> str:
    return re.sub(r"\.py:\d+", ".py:#", text)


@pytest.mark.parametrize("name", SUBSET)
def test_the_report_is_as_it_was_written_down(name) -> None:
    """To write them anew: delete the file and run this test twice."""
    exhibit, fault = EXHIBITS[name], SUBSET[name]
    text = texts.checked(exhibit.fn, exhibit.args, exhibit.faults[fault][0])
    same_as_written(f"{name}, {fault}", without_line_numbers(text))


@pytest.mark.parametrize("name", ["planar arm", "returns", "safe norm"])
def test_the_explanation_is_as_it_was_written_down(name) -> None:
    same_as_written(f"explained {name}", texts.explained(EXHIBITS[name]))


def same_as_written(name: str, text: str) -> None:
    path = SAID / f"{name}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        pytest.fail(f"{path} was missing, and has been written")
    assert text + "\n" == path.read_text(encoding="utf-8")


def test_places_in_expressions_of_many_lines_and_in_comprehensions() -> None:
    def fn(x, w):
        first = jnp.tanh(  # line 1
            x @ w  # line 2
        )
        doubled = [v * 2.0 for v in (first, x)]  # line 4
        cubed = {k: v**3 for k, v in enumerate(doubled)}[0]  # line 5
        chosen = jnp.where(  # line 6
            cubed > 0,
            jnp.sin(cubed),  # line 8
            cubed,
        )
        return (
            chosen  # line 12
            .sum(0)  # line 13
        )  # fmt: skip

    start = fn.__code__.co_firstlineno
    found = {}
    for op in all_ops(read(fn, (jnp.ones((3, 3)), jnp.ones((3, 3)))).scope):
        found.setdefault(op.name, (op.place.line - start, op.place.expression))
    assert found["dot_general"] == (2, "x @ w")
    assert found["tanh"] == (1, "")
    assert found["mul"] == (4, "v * 2.0")
    assert found["integer_pow"] == (5, "v**3")
    assert found["sin"] == (8, "jnp.sin(cubed)")
    assert found["select_n"] == (6, "")
    assert found["reduce_sum"] == (13, "sum(0)")


# --- digits -------------------------------------------------------------------------------------------


def test_rounding_is_said_by_its_power_of_ten() -> None:
    assert {noise_words(v, "float32") for v in (0.0, 1.2e-7, 7.7e-7)} == {"<1e-06"}
    assert noise_words(1.1e-6, "float32") == "<1e-05"
    assert noise_words(0.0, "float64") == "<1e-15"
    assert noise_words(0.004, "bfloat16") == noise_words(0.0, "bfloat16") == "<1e-02"
    assert noise_words(0.0, "int32") == "0"
    assert noise_words(np.nan, "float32") == "nan"
    assert error_words(3e-8, "float32", "right") == "<1e-06"
    assert error_words(0.123, "float32", "wrong") == "0.12"


def test_rounding_does_not_order_the_arguments() -> None:
    def leaf(path: str, verdict: str, error: float) -> Leaf:
        return Leaf(path, (2,), "float64", verdict, error, 1e-16)

    right = str(Report("f", [leaf("w", "right", 1e-17), leaf("x", "right", 9e-17)]))
    assert right.index("\n  w ") < right.index("\n  x ")
    wrong = str(Report("f", [leaf("w", "wrong", 0.1), leaf("x", "wrong", 0.9)]))
    assert wrong.index("\n  x ") < wrong.index("\n  w ")


def test_two_numbers_have_the_digits_that_tell_them_apart() -> None:
    assert pair_words(-0.342927, -0.344737) == "-0.34293, expected -0.34474"
    assert pair_words(-2.48598, -6.05146) == pair_words(-2.48597, -6.05146) == "-2.486, expected -6.051"
    assert pair_words(1.00001, 1.0) == "1.00001, expected 1"
    assert pair_words(np.inf, 2.0) == "inf, expected 2"
    assert pair_words(0.0, 2.0) == "0, expected 2"
    assert pair_words(1.0, 1.0) == "1, expected 1"


def test_of_equal_differences_the_first_is_the_worst() -> None:
    true = np.asarray([[0.0, 6.60381], [-8.47389, 1.0]])
    assert worst(true[::-1, ::-1] + 0.0, true) == (0, 1)
    turned = np.asarray([[0.0, -8.47389 * (1 - 1e-8)], [6.60381 * (1 + 1e-8), 1.0]])
    assert worst(turned, true) == (0, 1)
    assert worst(np.asarray([1.0, np.nan, 9.0]), np.zeros(3)) == (1,)
    assert worst(np.asarray([1.0, 1.01]), np.zeros(2)) == (1,)
    assert worst(np.zeros(2), np.zeros(2)) == (0,)
