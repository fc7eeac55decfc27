import pytest

import jaxbp as bp
from experiments import gradient_equivalence
from jaxbp.layer import leaves

STACK, TIED = (row for row in gradient_equivalence.ROWS if isinstance(row[0], bp.Stack | bp.Tied))


def test_every_layer_has_a_row() -> None:
    rows = gradient_equivalence.ROWS
    there = {type(part) for layer, _ in rows for part in (layer, *(leaf for _, leaf in leaves(layer)))}
    public = {getattr(bp, name) for name in bp.__all__}
    layers = {kind for kind in public if isinstance(kind, type) and issubclass(kind, bp.Layer)}
    assert layers - there == {bp.Layer, bp.Auto, bp.Concat}  # no layer, autodiff's own, no arithmetic


@pytest.mark.parametrize(("layer", "shape"), [STACK, TIED])
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
