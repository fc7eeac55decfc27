"""The exercises in order: what is asked, with which shapes it is tried, and the hints."""

from __future__ import annotations

from jaxbp.explain.exercises import forwards
from jaxbp.explain.exercises.exercise import Exercise

_EXERCISES = [
    Exercise(
        "chain", "The chain rule along one path: e^{x²}", forwards.chain, {"x": ()},
        "Two stages, h1 = x² and y = e^{h1}, both numbers. Behind y comes a loss L, and you are told\n"
        "dy = ∂L/∂y. What is dx = ∂L/∂x?",
        ("Name the stages: h1 = x², y = e^{h1}. What is ∂y/∂h1, and what is ∂h1/∂x?",
         "The error of x is dy times every derivative on its way: dy · ∂y/∂h1 · ∂h1/∂x.",
         "∂h1/∂x is 2x, and ∂y/∂h1 is y itself."),
    ),
    Exercise(
        "tower", "One stage more: e^{e^{x²}}", forwards.tower, {"x": ()},
        "Three stages, h1 = x², h2 = e^{h1}, y = e^{h2}. Given dy = ∂L/∂y, what is dx = ∂L/∂x?",
        ("There are three stages now, h1, h2 and y, and so three factors besides dy.",
         "The derivative of e^u is e^u: at the second stage u is h1, at the third it is h2.",
         "Compute h1, h2 and y first, as the forward pass does, then multiply from the back: "
         "dy · y · h2 · 2x."),
    ),
    Exercise(
        "reciprocal", "A quotient: 1/e^{x²}", forwards.reciprocal, {"x": ()},
        "Three stages, h1 = x², h2 = e^{h1}, y = 1/h2. Given dy = ∂L/∂y, what is dx = ∂L/∂x?",
        ("The last stage is y = 1/h2. What is its derivative by h2?",
         "d(1/u)/du = -1/u²; mind the sign and the square.",
         "The other two factors are those of the first exercise."),
    ),
    Exercise(
        "sigmoid", "The sigmoid", forwards.sigmoid, {"a": (5,)},
        "Every neuron of a layer: h_i = σ(a_i) = 1/(1 + e^{-a_i}). Given dy_i = ∂L/∂h_i, what is\n"
        "da_i = ∂L/∂a_i? In the notes this is δ_i, once the loss is behind it.",
        ("Each entry has its own path, so dy meets the derivative entry by entry (no sum).",
         "By the quotient rule σ' = e^{-a}/(1 + e^{-a})². Can you write that in h alone?",
         "1 - h is e^{-a}/(1 + e^{-a}); so σ' is h times something."),
    ),
    Exercise(
        "softmax", "Softmax: outputs that are coupled", forwards.softmax, {"a": (3, 4)},
        "ŷ_i = e^{a_i} / Σ_k e^{a_k} in every row (a row is one example). Given dy_i = ∂L/∂ŷ_i, what is\n"
        "da_i = ∂L/∂a_i? The notes slip here.",
        ("How many outputs does one a_i change? Every one of them has a path back to it.",
         "∂ŷ_i/∂a_i = ŷ_i(1 - ŷ_i), and ∂ŷ_k/∂a_i = -ŷ_k ŷ_i for k ≠ i: leaving the second out "
         "is the slip in the notes.",
         "Sum over k: da_i = ŷ_i (dy_i - Σ_k dy_k ŷ_k), row by row of the batch."),
    ),
    Exercise(
        "cross-entropy", "Softmax and cross-entropy in one", forwards.cross_entropy,
        {"a": (3, 4), "y": (3, 4)},
        "L = -Σ_i y_i log ŷ_i with ŷ = softmax(a), summed over the rows; every row of the target y sums\n"
        "to 1 (and need not be 0 or 1). dy is a single number: what comes behind L. What is da = ∂/∂a?",
        ("log ŷ_i = a_i - log Σ_k e^{a_k}. One path to a_i is through its own term, one through the sum.",
         "The derivative of log Σ_k e^{a_k} by a_i is softmax(a)_i.",
         "Where Σ_i y_i = 1 the two paths add to softmax(a) - y; do not forget dy, a single number."),
        fixed=("y",),
    ),
    Exercise(
        "dense", "A dense layer", forwards.dense, {"x": (5, 3), "w": (3, 4), "b": (4,)},
        "y_i = Σ_j x_j w_ji + b_i in every row of a batch; w is [in, out], transposed to the notes' W.\n"
        "dy is the δ of this layer. What are dx = ∂L/∂x, dw = ∂L/∂w and db = ∂L/∂b?",
        ("The shapes tell almost everything: dx is [batch, in], dw is [in, out], db is [out].",
         "w_ji stands in the output i of every example: its error is a sum over the batch, of δ_i met "
         "with what the layer saw, x_j.",
         "One of x and w is transposed in each of the two products; db is dy summed over an axis."),
    ),
    Exercise(
        "two-layer", "A network of two layers", forwards.two_layer,
        {"x": (5, 3), "w1": (3, 4), "b1": (4,), "w2": (4, 2), "b2": (2,)},
        "a1 = x w1 + b1, h1 = σ(a1), y = h1 w2 + b2 (the last layer's a2). dy is δ2 = ∂L/∂a2. Carry the\n"
        "error back to δ1 = ∂L/∂a1 and to x, and let each δ meet what its layer saw.",
        ("Go backwards layer by layer: dense, sigmoid, dense. You have written each of them.",
         "The error at h1 is δ2 w2ᵀ; the error at a1 is that times h1(1 - h1).",
         "Every weight gradient is (what the layer saw)ᵀ δ: h1 for w2, x for w1."),
    ),
    Exercise(
        "layer-norm", "Layer normalisation", forwards.layer_norm,
        {"x": (3, 5), "scale": (5,), "offset": (5,)},
        "In every row: mean μ = Σ_i x_i / n, variance v = Σ_i (x_i - μ)² / n, n_i = (x_i - μ)/√(v + ε),\n"
        "y_i = scale_i n_i + offset_i. Given dy_i = ∂L/∂y_i, what are dx, dscale and doffset?",
        ("x reaches y along three ways: directly, through the mean, and through the variance.",
         "Write dn = dy · scale for the error of the normalised values n, and r = 1/√(v + ε).",
         "All three together: dx = r (dn - mean(dn) - n · mean(dn · n)), means over the last axis."),
    ),
    Exercise(
        "convolution", "A convolution", forwards.convolution, {"x": (7, 2), "w": (3, 2, 4)},
        "y_t = Σ_k x_{t+k} w_k, where w_k is a matrix [in, out]: one dense layer, slid along time, and\n"
        "shared by all places. Given dy_t = ∂L/∂y_t, what are dx and dw?",
        ("Output t sees x_t … x_{t+width-1}. Which outputs does one x_s reach?",
         "Each k is a dense layer on a shifted slice of x: dw_k is (that slice)ᵀ dy.",
         "dx gets dy w_kᵀ added at the slice k … k + steps, for each k: the additions overlap."),
    ),
    Exercise(
        "attention", "Attention", forwards.attention, {"q": (4, 3), "k": (5, 3), "v": (5, 2)},
        "Scores s_ij = q_i · k_j / √d, weights p_i = softmax(s_i) over places j, y_i = Σ_j p_ij v_j.\n"
        "q is [queries, d], k is [places, d], v is [places, features]. What are dq, dk and dv?",
        ("Name the stages: scores s, weights p = softmax(s), y = p v. Go back through them.",
         "From y = p v come dv = pᵀ dy and dp = dy vᵀ; ds from dp is your softmax exercise, row by row.",
         "dq is ds k, dk is dsᵀ q; both carry the factor 1/√d."),
    ),
    Exercise(
        "bptt", "Backpropagation through time", forwards.recurrence,
        {"x": (5, 2), "w_x": (2, 3), "w_h": (3, 3), "b": (3,)},
        "h_t = tanh(a_t), a_t = x_t w_x + h_{t-1} w_h + b, from h_0 = 0: the same layer in every step.\n"
        "Every h_t is an output; dy_t = ∂L/∂h_t along that path alone. What are dx, dw_x, dw_h and db?",
        ("h_t is used twice: as an output, and in the next step. Its error is the sum of both.",
         "Walk t from the last to the first, carrying the error that step t + 1 handed to h_t.",
         "δ_t = (dy_t + carried)(1 - h_t²); then carried = δ_t w_hᵀ, and the weights add up over t."),
    ),
    Exercise(
        "training-step", "A whole training step of the notes' network", forwards.training_loss,
        {"w1": (4, 3), "b1": (3,), "w2": (3, 2), "b2": (2,), "x": (4,), "y": (2,)},
        "a1 = x w1 + b1, h1 = σ(a1), a2 = h1 w2 + b2, ŷ = softmax(a2), L = Σ_i (y_i - ŷ_i)², for one\n"
        "example. Take one step of gradient descent, w := w - η ∂L/∂w and b := b - η ∂L/∂b; η is `rate`.",
        ("Forward first, keeping h1 and ŷ; then backward: loss, softmax, dense, sigmoid, dense.",
         "∂L/∂ŷ = -2(y - ŷ); the softmax couples the outputs; δ meets what the layer saw.",
         "Every parameter moves against its gradient, biases too: b := b - rate ∂L/∂b."),
        fixed=("x", "y"), function="step",
    ),
]  # fmt: skip
LADDER: dict[str, Exercise] = {exercise.name: exercise for exercise in _EXERCISES}
