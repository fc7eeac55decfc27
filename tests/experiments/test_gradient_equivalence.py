import pytest

import jaxbp as bp
from experiments import gradient_equivalence


@pytest.mark.parametrize(
    ("layer", "shape"), [gradient_equivalence.ROWS[0], gradient_equivalence.ROWS[-2]]
)
def test_the_table_holds_the_promised_errors(layer, shape) -> None:
    ((name, by_hand, autodiff),) = gradient_equivalence.table([(layer, shape)])
    assert repr(layer) in name
    assert by_hand[0] <= 1e-10
    assert by_hand[1] <= 1e-5
    assert autodiff <= 1e-5


def test_a_wrong_layer_stands_out() -> None:
    class Wrong(bp.Tanh):
        def pull(self, params, saved, dy):
            return 1.001 * dy * (1 - saved * saved), ()

    ((_, by_hand, autodiff),) = gradient_equivalence.table([(Wrong(), (3, 4))])
    assert by_hand[0] > 1e-4
    assert autodiff <= 1e-5
