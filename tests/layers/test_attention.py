"""What the harness does not see of attention: who sees whom, equal forms, torch and Flax, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import Attention, InputError, Train
from tests.proof import normal

B, T, S, F = 3, 4, 5, 8
X = normal(1, (B, T, F), "float64")
MEMORY = normal(2, (B, S, F), "float64")
DY = normal(3, (B, T, F), "float64")


def params_for(layer, x=X):
    params = layer.init(jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure, [p + normal(i, p.shape, "float64", 0.3) for i, p in enumerate(leaves)]
    )


def close(got, expected, tolerance=1e-10):
    got, expected = np.asarray(got), np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def sees(layer, x=X):
    """`[T, S]`: which output changes with which input, from the error that comes back."""
    params = params_for(layer)
    _, saved = layer.forward(params, x)

    def one(t):
        dx = layer.backward(params, saved, jnp.zeros_like(DY).at[:, t].set(DY[:, t]))[1]
        return jnp.abs(dx["x"] if isinstance(dx, dict) else dx).max((0, 2)) > 0

    return np.asarray(jax.vmap(one)(jnp.arange(T)))


def test_who_sees_whom() -> None:
    everything = np.ones((T, T), bool)
    np.testing.assert_array_equal(sees(Attention(2)), everything)
    np.testing.assert_array_equal(sees(Attention(2, causal=True)), np.tril(everything))
    band = np.abs(np.subtract.outer(range(T), range(T))) < 2
    np.testing.assert_array_equal(sees(Attention(2, window=2)), band)
    np.testing.assert_array_equal(sees(Attention(2, window=2, causal=True)), np.tril(band))


def test_a_row_that_sees_nothing_is_the_bias_and_sends_no_error_back() -> None:
    layer = Attention(2)
    params, mask = params_for(layer), jnp.array([[1] * T, [0] * T, [1, 1, 0, 0]], bool)
    y, saved = layer.forward(params, {"x": X, "mask": mask})
    close(y[1], jnp.tile(params["b_o"], (T, 1)))
    grads, dx = layer.backward(params, saved, DY)
    assert not dx["x"][1].any()
    assert dx["mask"] is None
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_hidden_key_is_a_key_that_is_not_there() -> None:
    layer = Attention(2)
    params = params_for(layer, (X, MEMORY))
    mask = jnp.tile(jnp.array([True, True, True, False, False]), (B, 1))
    y = layer(params, {"x": X, "memory": MEMORY, "mask": mask})
    close(y, layer(params, (X, MEMORY[:, :3])))


def test_memory_that_is_x_is_self_attention() -> None:
    layer = Attention(2, rotary=True, causal=True)
    params = params_for(layer)
    y, saved = layer.forward(params, X)
    y_pair, saved_pair = layer.forward(params, (X, X))
    close(y, y_pair)
    grads, dx = layer.backward(params, saved, DY)
    grads_pair, dxs = layer.backward(params, saved_pair, DY)
    close(dx, dxs[0] + dxs[1])
    jax.tree.map(close, grads, grads_pair)


def test_grouped_queries_are_repeated_keys_and_values() -> None:
    grouped, full = Attention(4, kv_heads=2, bias=False), Attention(4, bias=False)
    params = params_for(grouped)
    size = F // 4

    def repeat(w):
        return jnp.repeat(w.reshape(F, 2, size), 2, axis=1).reshape(F, F)

    wide = {**params, "w_k": repeat(params["w_k"]), "w_v": repeat(params["w_v"])}
    y, saved = grouped.forward(params, X)
    y_full, saved_full = full.forward(wide, X)
    close(y, y_full)
    grads, dx = grouped.backward(params, saved, DY)
    grads_full, dx_full = full.backward(wide, saved_full, DY)
    close(dx, dx_full)
    close(grads["w_k"], grads_full["w_k"].reshape(F, 2, 2, size).sum(2).reshape(F, 2 * size))


def test_rotary_sees_distances_only() -> None:
    """The same tokens later in the sequence read the same from each other."""
    layer = Attention(2, causal=True, rotary=True, window=2)
    params, same = params_for(layer), jnp.tile(X[:, :1], (1, T, 1)) * 0 + X[:, :1]
    shifted = jnp.concatenate([same, X], axis=1)
    close(layer(params, shifted)[:, -2:], layer(params, shifted[:, 2:])[:, -2:])


@pytest.mark.parametrize("fields", [{}, {"rotary": True, "kv_heads": 1}, {"window": 2}])
def test_one_place_after_another_is_the_whole_sequence(fields) -> None:
    layer = Attention(2, causal=True, **fields)
    params = params_for(layer)
    cache = layer.start(params, B, T + 2, "float64")
    first, cache = layer.advance(params, cache, X[:, :2])  # a prompt of two
    ys = [first]
    for t in range(2, T):
        y, cache = layer.advance(params, cache, X[:, t : t + 1])
        ys.append(y)
    close(jnp.concatenate(ys, axis=1), layer(params, X))


def test_dropout_keeps_the_mean_and_needs_a_key() -> None:
    layer = Attention(2, dropout=0.5)
    params = params_for(layer)
    run = jax.jit(jax.vmap(lambda k: layer.forward(params, X, Train(k))[0]))
    ys = run(jax.random.split(jax.random.key(1), 4000))
    close(ys.mean(0), layer(params, X), 0.05)
    assert float(ys.std(0).max()) > 0.1
    with pytest.raises(InputError, match="pass mode=Train"):
        layer.forward(params, X, Train())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(0), "heads must be a positive integer"),
        (lambda: Attention(4, kv_heads=3), "do not divide 4 heads"),
        (lambda: Attention(4, window=0), "window must be"),
        (lambda: Attention(4, dropout=1.0), "dropout must be in"),
        (lambda: params_for(Attention(3)), "3 heads do not divide 8 features"),
        (lambda: params_for(Attention(8, rotary=True)), "even number of features a head"),
        (lambda: params_for(Attention(2), X[0, 0]), "time, features"),
        (lambda: params_for(Attention(2), X.astype(int)), "floating"),
        (lambda: params_for(Attention(2), {"x": X, "padding": X}), "expected x, memory and mask"),
        (lambda: params_for(Attention(2), (X, MEMORY[:2])), "expected memory"),
        (lambda: params_for(Attention(2), {"x": X, "mask": jnp.ones((B, T))}), "boolean mask"),
        (lambda: params_for(Attention(2), {"x": X, "mask": jnp.ones((T, T), bool)}), r"\[3, 4\] or"),
        (lambda: Attention(2)(params_for(Attention(2)), X[..., :4]), "expected 8 features"),
        (lambda: Attention(2).start(params_for(Attention(2)), 1, 2, "float64"), "only causal"),
    ],
)
def test_bad_input(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("case", ["self", "causal", "cross", "padding"])
def test_agrees_with_torch(case) -> None:
    torch = pytest.importorskip("torch")
    layer = Attention(2, causal=case == "causal")
    memory = MEMORY if case == "cross" else X
    params = params_for(layer, (X, memory))
    other = torch.nn.MultiheadAttention(F, 2, batch_first=True, dtype=torch.float64)

    def tensor(a, grad=False):
        return torch.tensor(np.asarray(a), requires_grad=grad)

    with torch.no_grad():
        other.in_proj_weight.copy_(tensor(np.concatenate([params[n].T for n in ("w_q", "w_k", "w_v")])))
        b_q, b_v = params["b_q"], params["b_v"]
        other.in_proj_bias.copy_(tensor(np.concatenate([b_q, np.zeros(F), b_v])))
        other.out_proj.weight.copy_(tensor(params["w_o"].T))
        other.out_proj.bias.copy_(tensor(params["b_o"]))
    exists = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1]], bool)
    hidden = tensor(~exists) if case == "padding" else None
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1) if case == "causal" else None
    x, m = tensor(X, True), tensor(memory, True)
    y_torch, _ = other(x, m, m, key_padding_mask=hidden, attn_mask=ahead, need_weights=False)
    (y_torch * tensor(DY)).sum().backward()

    parts = {"x": X, "memory": memory}
    if case == "padding":
        parts["mask"] = jnp.asarray(exists)
    y, saved = layer.forward(params, parts)
    grads, dx = layer.backward(params, saved, DY)
    close(y, y_torch.detach())
    close(dx["x"], x.grad)
    close(dx["memory"], m.grad)
    theirs = np.split(other.in_proj_weight.grad.numpy(), 3)
    for name, g in zip(("w_q", "w_k", "w_v"), theirs, strict=True):
        close(grads[name], g.T)
    b_q, b_k, b_v = np.split(other.in_proj_bias.grad.numpy(), 3)
    close(grads["b_q"], b_q)
    close(grads["b_v"], b_v)
    assert np.abs(b_k).max() < 1e-12  # why there is no b_k
    close(grads["w_o"], other.out_proj.weight.grad.numpy().T)
    close(grads["b_o"], other.out_proj.bias.grad.numpy())


@pytest.mark.parametrize("fields", [{"kv_heads": 2}, {"kv_heads": 1, "causal": True}, {"window": 2}])
def test_the_core_agrees_with_torchs_scaled_dot_product(fields) -> None:
    """Grouped queries, and a sliding window as a mask; the projections around it are products."""
    torch = pytest.importorskip("torch")
    layer = Attention(4, **fields, bias=False)
    params, kv_heads, size = params_for(layer), fields.get("kv_heads", 4), F // 4
    x, *ws = (torch.tensor(np.asarray(a), requires_grad=True) for a in (X, *params.values()))
    w = dict(zip(params, ws, strict=True))

    def heads(name, count):
        return (x @ w[name]).reshape(B, T, count, size).transpose(1, 2)

    apart = torch.tensor(np.abs(np.subtract.outer(range(T), range(T))))
    o = torch.nn.functional.scaled_dot_product_attention(
        heads("w_q", 4),
        heads("w_k", kv_heads),
        heads("w_v", kv_heads),
        attn_mask=apart < 2 if "window" in fields else None,
        is_causal=layer.causal,
        enable_gqa=True,
    )
    y_torch = o.transpose(1, 2).reshape(B, T, F) @ w["w_o"]
    (y_torch * torch.tensor(np.asarray(DY))).sum().backward()
    y, saved = layer.forward(params, X)
    grads, dx = layer.backward(params, saved, DY)
    close(y, y_torch.detach())
    close(dx, x.grad)
    for name in params:
        close(grads[name], w[name].grad)


def test_agrees_with_flax() -> None:
    linen = pytest.importorskip("flax.linen")
    layer, size = Attention(2, causal=True), F // 2
    params = params_for(layer)
    other = linen.MultiHeadDotProductAttention(2, dtype=jnp.float64, param_dtype=jnp.float64)
    names = {"q": "query", "k": "key", "v": "value"}
    theirs = {
        full: {
            "kernel": params[f"w_{n}"].reshape(F, 2, size),
            "bias": params.get(f"b_{n}", jnp.zeros(F)).reshape(2, size),
        }
        for n, full in names.items()
    }
    theirs["out"] = {"kernel": params["w_o"].reshape(2, size, F), "bias": params["b_o"]}
    mask = jnp.tril(jnp.ones((T, T), bool))[None, None]

    def run(p, x):
        return other.apply({"params": p}, x, mask=mask)

    y_flax, vjp = jax.vjp(jax.jit(run), theirs, X)
    expected, dx_flax = vjp(DY)
    y, saved = layer.forward(params, X)
    grads, dx = layer.backward(params, saved, DY)
    close(y, y_flax)
    close(dx, dx_flax)
    for n, full in names.items():
        close(grads[f"w_{n}"], expected[full]["kernel"].reshape(F, F))
    for n in "qv":
        close(grads[f"b_{n}"], expected[names[n]]["bias"].reshape(F))
    close(grads["w_o"], expected["out"]["kernel"].reshape(F, F))
    close(grads["b_o"], expected["out"]["bias"])
