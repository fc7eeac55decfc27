"""The lecture notes' 4-4-2 network, number by number: what the notes print, and what is true.

    python experiments/worked_example.py

Every true number comes from the hand-written backward pass in float64; the last column is what the
notes print. The slips are explained below the table, each with the number that shows it.
"""

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxbp import Dense, Sigmoid, Softmax, SoftmaxCrossEntropy, SquaredError, value_and_grad  # noqa: E402
from jaxbp.compose import Chain  # noqa: E402
from jaxbp.models import notes_network  # noqa: E402
from jaxbp.oracle import reference_value_and_grad, relative_error  # noqa: E402
from jaxbp.record import passed, recorded  # noqa: E402

ETA = 1.0


def walk() -> dict:
    """One forward and one backward pass, with everything that passed each layer."""
    net, params, x, y = notes_network()
    loss, seen = value_and_grad(recorded(net), SquaredError("sum"), passed)(params, x, y)
    first, sigmoid, second, softmax = seen
    return {
        "a1": first.y,
        "h1": sigmoid.y,
        "a2": second.y,
        "ŷ": softmax.y,
        "L": loss,
        "dL/dŷ": softmax.dy,
        "δ2": second.dy,
        "δ1": first.dy,
        "dW1": first.gradient["w"].T,
        "dW2": second.gradient["w"].T,
        "db1": first.gradient["b"],
        "db2": second.gradient["b"],
    }


def softmax_jacobian(a: jax.Array) -> jax.Array:
    """`∂ŷ_k/∂a_i` at `[k, i]`, one pull of the layer per output."""
    layer = Softmax()
    _, saved = layer.forward((), a)
    return jnp.stack([layer.pull((), saved, unit)[0] for unit in jnp.eye(a.size)])


def paths_w2(values: dict, i: int, j: int) -> dict[str, float]:
    """`∂L/∂w_2ij` path by path: one over every output `ŷ_k`, since softmax couples them."""
    jacobian = softmax_jacobian(values["a2"])
    return {
        f"via ŷ{k + 1}": float(values["dL/dŷ"][k] * jacobian[k, i - 1] * values["h1"][j - 1])
        for k in range(2)
    }


def paths_w1(values: dict, params: tuple, x: jax.Array, i: int, j: int) -> dict[str, float]:
    """`∂L/∂w_1ij` path by path: one over every pair of `a_2m` and `ŷ_k`."""
    jacobian, slope = softmax_jacobian(values["a2"]), values["h1"] * (1 - values["h1"])
    w2 = params[2]["w"].T
    return {
        f"a2{m + 1}→ŷ{k + 1}": float(
            values["dL/dŷ"][k] * jacobian[k, m] * w2[m, i - 1] * slope[i - 1] * x[j - 1]
        )
        for k in range(2)
        for m in range(2)
    }


def cross_entropy() -> tuple[float, jax.Array]:
    """`(L, ∂L/∂W2)` with cross-entropy on the logits instead of squared error on the softmax."""
    _, params, x, y = notes_network()
    net = Chain(Dense(4), Sigmoid(), Dense(2))
    loss, grads = value_and_grad(net, SoftmaxCrossEntropy("sum"))(params[:3], x, y)
    return float(loss), grads[2]["w"].T


def text(value: object) -> str:
    array = np.atleast_1d(np.asarray(value))
    return ", ".join(f"{v:.6f}" for v in array) if array.size > 1 else f"{array[0]:.12g}"


def rows() -> list[tuple[str, str, str]]:
    """`(quantity, true value, what the notes print)`."""
    _, params, x, _ = notes_network()
    v = walk()
    loss, dw2 = cross_entropy()
    w212 = float(params[2]["w"][1, 0])
    table = [
        ("a1", text(v["a1"]), "same"),
        ("h1", text(v["h1"]), "0.95, 0.80, 0.89, 0.91"),
        ("a2", text(v["a2"]), "1.66, 0.45"),
        ("ŷ", text(v["ŷ"]), "0.77, 0.23"),
        ("L", text(v["L"]), "–"),
        ("∂L/∂w212", text(v["dW2"][0, 1]), "-0.029, then -0.065"),
    ]
    table += [(f"  {name}", text(value), "") for name, value in paths_w2(v, 1, 2).items()]
    table += [
        ("w212 after one step", text(w212 - ETA * v["dW2"][0, 1]), "0.865"),
        ("∂L/∂w131", text(v["dW1"][2, 0]), "-6.4e-3"),
    ]
    table += [(f"  {name}", text(value), "") for name, value in paths_w1(v, params, x, 3, 1).items()]
    table += [
        ("∂L/∂w222", text(v["dW2"][1, 1]), "–"),
        ("with cross-entropy: L", text(loss), "–"),
        ("with cross-entropy: ∂L/∂W2 row 1", text(dw2[0]), "–"),
        ("with cross-entropy: ∂L/∂W2 row 2", text(dw2[1]), "–"),
    ]
    return table


def slips() -> list[str]:
    v = walk()
    y1, a21, a22, h13 = float(v["ŷ"][0]), float(v["a2"][0]), float(v["a2"][1]), float(v["h1"][2])
    own, other = paths_w2(v, 1, 2).values()
    db21 = float(v["db2"][0])
    return [
        f"∂ŷ1/∂a21 = ŷ1(1 - ŷ1) = {y1 * (1 - y1):.6f}. The notes multiply by a stray "
        f"(-a22) = {-a22:.6f}, a misread exponent e^-(a21 - a22) = {np.exp(-(a21 - a22)):.6f}.",
        f"Softmax couples its outputs: ∂ŷ2/∂a21 = -ŷ1ŷ2 = {-y1 * (1 - y1):.6f}. The notes drop this "
        f"path, so ∂L/∂w212 comes out at {own:.6f} instead of {own:.6f} + {other:.6f} = "
        f"{own + other:.6f}.",
        "The bias update has a minus sign, like the weights': "
        f"b21 := 0 - η·({db21:.6f}) = {-ETA * db21:.6f}.",
        "The printed step uses -0.065, where the line above it computed -0.029; with the true gradient "
        f"w212 becomes {0.8 - ETA * (own + other):.6f}.",
        f"h13(1 - h13) is {h13 * (1 - h13):.4f}, not 0.0979.",
    ]


def main() -> None:
    net, params, x, y = notes_network()
    print(f"{net} on x = {list(map(float, x))}, y = {list(map(float, y))}; squared error, η = {ETA:g}\n")
    table = rows()
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    print(f"{'quantity':<{widths[0]}}  {'true (float64)':<{widths[1]}}  printed in the notes")
    for name, true, printed in table:
        print(f"{name:<{widths[0]}}  {true:<{widths[1]}}  {printed}")
    print("\nThe slips in the notes:")
    for number, slip in enumerate(slips(), 1):
        print(f"{number}. {slip}")
    by_hand = value_and_grad(net, SquaredError("sum"))(params, x, y)[1]
    reference = reference_value_and_grad(net, SquaredError("sum"))(params, x, y)[1]
    pairs = zip(jax.tree.leaves(by_hand), jax.tree.leaves(reference), strict=True)
    error = max(relative_error(a, b) for a, b in pairs)
    print(f"\nlargest relative error of any gradient against jax.grad: {error:.1e}")


if __name__ == "__main__":
    main()
