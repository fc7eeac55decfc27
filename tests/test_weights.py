"""A model moves to torch or Flax and back with its weights, and gives the same outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    GRU,
    LSTM,
    RNN,
    Attention,
    Auto,
    AvgPool,
    BatchNorm,
    Branch,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    InputError,
    LayerNorm,
    MaxPool,
    ReLU,
    Residual,
    RMSNorm,
    Stack,
    Train,
)
from jaxbp.models import gpt
from jaxbp.oracle import relative_error
from jaxbp.weights import from_flax, from_torch, load_params, save_params, to_flax, to_torch
from tests.proof import by_hand, like, normal


def start(net, x, seed=0):
    """Random parameters (variances positive), none at its start."""
    params = jax.jit(net.init)(jax.random.key(seed), x)
    moved = jax.tree.map(jnp.add, params, like(seed + 1, params, 0.3))
    return jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.abs(a) + 0.5 if path[-1] == jax.tree_util.DictKey("var") else a, moved
    )


def channels_first(a):
    return np.moveaxis(np.asarray(a), -1, 1) if a.ndim > 2 else np.asarray(a)


def compare(pairs, bar=1e-10):
    for name, got, reference in pairs:
        assert relative_error(got, reference) <= bar, name


# --- torch ------------------------------------------------------------------------------------------


def torch_passes(module, state, x, dy):
    """Output, gradients by name, and error of the input, in float64 with channels first."""
    torch = pytest.importorskip("torch")
    module = module.double().train()
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    inputs = torch.from_numpy(np.array(channels_first(x))).requires_grad_()
    y = module(inputs)
    y.backward(torch.from_numpy(np.array(channels_first(dy))))
    grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return y.detach().numpy(), grads, inputs.grad.numpy()


def torch_cases():
    nn = pytest.importorskip("torch").nn
    return {
        "dense": (Dense(5), nn.Linear(4, 5), (3, 4)),
        "conv1": (Conv(6, (3,), stride=2, padding=1), nn.Conv1d(4, 6, 3, 2, 1), (2, 7, 4)),
        "conv2": (
            Conv(6, 3, stride=2, padding=2, dilation=2, groups=2),
            nn.Conv2d(4, 6, 3, 2, 2, 2, 2),
            (2, 7, 6, 4),
        ),
        "conv3": (Conv(2, (2, 2, 2), padding="VALID"), nn.Conv3d(3, 2, 2), (1, 3, 4, 3, 3)),
        "transpose": (
            ConvTranspose(6, 3, stride=2, padding=((1, 0), (1, 0)), groups=2),
            nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2),
            (2, 4, 3, 4),
        ),
        "layernorm": (LayerNorm(), nn.LayerNorm(5), (3, 5)),
        "rmsnorm": (RMSNorm(), nn.RMSNorm(5, eps=1e-5), (3, 5)),
        "groupnorm": (GroupNorm(2), nn.GroupNorm(2, 6), (3, 4, 5, 6)),
        "batchnorm": (BatchNorm(), nn.BatchNorm2d(6), (3, 4, 5, 6)),
        "maxpool": (MaxPool(3, 2, 1), nn.MaxPool2d(3, 2, 1), (2, 7, 6, 4)),
        "avgpool": (AvgPool(3, 2, 1, count_include_pad=True), nn.AvgPool2d(3, 2, 1), (2, 7, 6, 4)),
        "avgpool-entries": (
            AvgPool(3, 2, 1),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            (2, 7, 6, 4),
        ),
        "globalpool": (
            GlobalAvgPool(),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            (2, 7, 6, 4),
        ),
    }


NAMES = ["dense", "conv1", "conv2", "conv3", "transpose"]
NAMES += ["layernorm", "rmsnorm", "groupnorm", "batchnorm"]


POOLS = ["maxpool", "avgpool", "avgpool-entries", "globalpool"]


@pytest.mark.parametrize("name", [*NAMES, *POOLS])
def test_torch_agrees_in_value_and_every_gradient(name: str) -> None:
    layer, module, shape = torch_cases()[name]
    x = normal(1, shape, "float64")
    params = start(layer, x)
    run = jax.jit(lambda p, v, d: by_hand(layer, p, v, d, Train()))
    dy = normal(2, jax.eval_shape(lambda: layer.forward(params, x, Train())[0]).shape, "float64")
    y, dparams, dx = run(params, x, dy)
    state = {k.removeprefix("0."): v for k, v in to_torch(layer, params).items()}
    there = torch_passes(module, state, x, dy)
    grads = {k.removeprefix("0."): v for k, v in to_torch(layer, dparams).items()}
    names = set(there[1])
    assert names == {k for k in grads if not k.startswith("running")}
    compare([("y", channels_first(y), there[0]), ("dx", channels_first(dx), there[2])])
    compare([(k, grads[k], there[1][k]) for k in names])


def first_output(module):
    """A torch module that returns a tuple, as one of `x` alone that returns its first entry."""
    torch = pytest.importorskip("torch")

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            attends = isinstance(module, torch.nn.MultiheadAttention)
            return (module(x, x, x, need_weights=False) if attends else module(x))[0]

    return First()


def both_ways(cell, *sizes):
    return Chain(*(Branch(cell(n), cell(n, reverse=True), merge="concat") for n in sizes))


def torch_sequences():
    nn = pytest.importorskip("torch").nn
    deep = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    return {
        "rnn": (RNN(6), nn.RNN(4, 6, batch_first=True), ["inner"]),
        "lstm": (LSTM(6), nn.LSTM(4, 6, batch_first=True), ["inner"]),
        "gru": (GRU(6), nn.GRU(4, 6, batch_first=True), ["inner"]),
        "deep-lstm": (
            both_ways(LSTM, 6, 6),
            nn.LSTM(4, 6, **deep),
            ["inner.l0", "inner.l0_reverse", "inner.l1", "inner.l1_reverse"],
        ),
        "deep-gru": (both_ways(GRU, 6, 6), nn.GRU(4, 6, **deep), None),
        "attention": (Attention(2), nn.MultiheadAttention(4, 2, batch_first=True), ["inner"]),
        "attention-without-bias": (
            Attention(2, bias=False),
            nn.MultiheadAttention(4, 2, bias=False, batch_first=True),
            ["inner"],
        ),
    }


SEQUENCES = ["rnn", "lstm", "gru", "deep-lstm", "deep-gru", "attention", "attention-without-bias"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_layer_comes_over_from_torch_and_goes_back(name: str) -> None:
    torch = pytest.importorskip("torch")
    net, module, modules = torch_sequences()[name]
    module = first_output(module).double()
    x, dy = normal(1, (3, 5, 4), "float64"), None
    params = from_torch(net, start(net, x), module.state_dict(), modules=modules)
    dy = normal(2, jax.eval_shape(net, params, x).shape, "float64")
    inputs = torch.from_numpy(np.array(x)).requires_grad_()
    out = module(inputs)
    out.backward(torch.from_numpy(np.array(dy)))
    y, dparams, dx = jax.jit(lambda p, v, d: by_hand(net, p, v, d, Train()))(params, x, dy)
    compare([("y", y, out.detach()), ("dx", dx, inputs.grad)])
    modules = modules or ["inner.l0", "inner.l0_reverse", "inner.l1", "inner.l1_reverse"]
    grads = to_torch(net, dparams, modules=modules)
    assert set(grads) == {name for name, _ in module.named_parameters()}
    one_bias = {k: v for k, v in grads.items() if "in_proj_bias" not in k and "bias_hh" not in k}
    theirs = dict(module.named_parameters())
    compare([(k, v, theirs[k].grad) for k, v in one_bias.items()])
    with torch.no_grad():
        module.load_state_dict(
            {k: torch.from_numpy(v.copy()) for k, v in to_torch(net, params, modules=modules).items()}
        )
        compare([("y again", module(inputs), out.detach())])


def test_a_transformer_comes_over_from_torch() -> None:
    """Pre-norm blocks in a `Stack`, embedding, learned positions and head, each where torch has it."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(7, 4), nn.Embedding(6, 4)
            gelu = nn.GELU(approximate="tanh")
            settings = {"dropout": 0.0, "activation": gelu, "batch_first": True, "norm_first": True}
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 16, **settings) for _ in "ab")
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 7, bias=False)

        def forward(self, ids):
            h = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
            ahead = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
            for block in self.blocks:
                h = block(h, src_mask=ahead)
            return self.head(self.norm(h))

    module = Model().double()
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn_like(p)  # biases start at 0
    tied = gpt(7, depth=2, heads=2, features=4, length=6)
    net = Chain(*tied.layers)  # a head with a table of its own
    block = ("norm1", "self_attn", "norm2", "linear1", "linear2")
    names = [f"blocks.{i}.{part}" for i in range(2) for part in block]
    modules = ["tokens", "places", *names, "norm", "head"]
    ids = jnp.array([[1, 4, 4, 2, 0], [0, 6, 1, 3, 3]])
    like_ = jax.tree.map(lambda a: a.astype("float64"), net.init(jax.random.key(0), ids))
    params = from_torch(net, like_, module.state_dict(), modules=modules)
    theirs = module(torch.from_numpy(np.array(ids))).detach()
    compare([("y", net(params, ids), theirs)])
    halved = {k: v.bfloat16() for k, v in module.state_dict().items()}  # as many checkpoints are
    rough = from_torch(net, like_, halved, modules=modules)
    compare([("y", net(rough, ids), theirs)], 0.05)


def test_a_convolutional_network_comes_over_from_torch() -> None:
    nn = pytest.importorskip("torch").nn
    net = Chain(
        Conv(4, 3, padding=1, bias=False),
        BatchNorm(),
        ReLU(),
        MaxPool(2),
        Flatten(),
        Dense(7),
        ReLU(),
        Dense(3),
    )
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * 3 * 2, 7), nn.ReLU(), nn.Linear(7, 3),
    ).double()  # fmt: skip
    x = normal(1, (5, 6, 4, 2), "float64")
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    params = from_torch(net, params, module.state_dict(), x=x)
    dy = normal(2, (5, 3), "float64")
    y, dparams, dx = jax.jit(lambda p, v, d: by_hand(net, p, v, d, Train()))(params, x, dy)
    there = torch_passes(module, {}, x, dy)
    keys = [k for k in module.state_dict() if not k.endswith("tracked")]
    modules = list(dict.fromkeys(k.rpartition(".")[0] for k in keys))
    grads = to_torch(net, dparams, x=x, modules=modules)
    compare([("y", y, there[0]), ("dx", channels_first(dx), there[2])])
    compare([(k, grads[k], g) for k, g in there[1].items()])
    back = to_torch(net, params, x=x, modules=modules)
    assert list(back) == keys
    for key, value in back.items():
        np.testing.assert_array_equal(value, module.state_dict()[key].numpy())


def test_a_stack_is_so_many_modules_in_a_row() -> None:
    nn = pytest.importorskip("torch").nn
    net = Chain(Dense(3), Stack(Residual(Chain(Dense(3), ReLU())), 2))
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    x = normal(1, (5, 4), "float64")
    params = from_torch(net, start(net, x), module.state_dict())
    first, a, b = (m.weight.detach().numpy().T for m in module)
    np.testing.assert_array_equal(params[0]["w"], first)
    np.testing.assert_array_equal(params[1][0]["w"], np.stack([a, b]))


# --- Flax -------------------------------------------------------------------------------------------


def flax_cases():
    nn = pytest.importorskip("flax.linen")
    return {
        "dense": (Dense(5), nn.Dense(5), (3, 4)),
        "conv1": (Conv(6, (3,), stride=2), nn.Conv(6, (3,), 2), (2, 7, 4)),
        "conv2": (
            Conv(6, 3, stride=2, dilation=2, groups=2),
            nn.Conv(6, (3, 3), 2, kernel_dilation=2, feature_group_count=2),
            (2, 7, 6, 4),
        ),
        "conv3": (
            Conv(2, (2, 2, 2), padding="VALID"),
            nn.Conv(2, (2, 2, 2), padding="VALID"),
            (1, 3, 4, 3, 3),
        ),
        "transpose": (ConvTranspose(6, 3, stride=2), nn.ConvTranspose(6, (3, 3), (2, 2)), (2, 4, 3, 4)),
        "transpose-valid": (
            ConvTranspose(6, (2,), stride=3, padding="VALID"),
            nn.ConvTranspose(6, (2,), (3,), padding="VALID"),
            (2, 4, 4),
        ),
        "layernorm": (LayerNorm(), nn.LayerNorm(1e-5, use_fast_variance=False), (3, 5)),
        "rmsnorm": (RMSNorm(), nn.RMSNorm(1e-5), (3, 5)),
        "groupnorm": (GroupNorm(2), nn.GroupNorm(2, epsilon=1e-5, use_fast_variance=False), (3, 4, 5, 6)),
        "batchnorm": (
            BatchNorm(),
            nn.BatchNorm(False, momentum=0.9, use_fast_variance=False),
            (3, 4, 5, 6),
        ),
    }


FLAX_NAMES = [*NAMES, "transpose-valid"]


@pytest.mark.parametrize("name", FLAX_NAMES)
def test_flax_agrees_in_value_and_every_gradient(name: str) -> None:
    layer, module, shape = flax_cases()[name]
    x = normal(1, shape, "float64")
    params = start(layer, x)
    dy = normal(2, jax.eval_shape(lambda: layer.forward(params, x, Train())[0]).shape, "float64")
    y, dparams, dx = jax.jit(lambda p, v, d: by_hand(layer, p, v, d, Train()))(params, x, dy)
    variables = unnamed(to_flax(layer, params))

    def apply(weights, v):
        return flax_apply(module, {**variables, "params": weights}, v)[0]

    @jax.jit
    def there(weights, v, d):
        out, vjp = jax.vjp(apply, weights, v)
        return out, *vjp(d)

    out, dweights, dv = there(variables["params"], x, dy)
    grads = unnamed(to_flax(layer, dparams))["params"]
    compare([("y", y, out), ("dx", dx, dv)])
    assert set(grads) == set(dweights)
    compare([(k, grads[k], dweights[k]) for k in grads])


def test_pooling_agrees_with_flax() -> None:
    nn = pytest.importorskip("flax.linen")
    x = normal(1, (2, 7, 6, 4), "float64")
    window, strides = (3, 2), (2, 2)
    for layer, there in [
        (MaxPool(window, 2, "SAME"), lambda v: nn.max_pool(v, window, strides, "SAME")),
        (AvgPool(window, 2, "SAME", True), lambda v: nn.avg_pool(v, window, strides, "SAME")),
        (
            AvgPool(window, 2, "SAME"),
            lambda v: nn.avg_pool(v, window, strides, "SAME", count_include_pad=False),
        ),
    ]:
        with jax.numpy_dtype_promotion("standard"):
            y, vjp = jax.vjp(there, x)
        dy = normal(2, y.shape, "float64")
        with jax.numpy_dtype_promotion("standard"):
            (dx,) = vjp(dy)
        ours = by_hand(layer, (), x, dy, Train())
        compare([("y", ours[0], y), ("dx", ours[2], dx)])


def flax_apply(module, variables, x):
    """Flax promotes dtypes and ranks where it likes to."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return module.apply(variables, x, mutable=["batch_stats"])


def unnamed(variables):
    """The variables of the only module, as its own `apply` takes them."""
    return {name: next(iter(modules.values())) for name, modules in variables.items()}


def flax_sequences():
    nn = pytest.importorskip("flax.linen")
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return {
        "rnn": (RNN(6), nn.RNN(nn.SimpleCell(6, **wide)), "cell"),
        "lstm": (LSTM(6), nn.RNN(nn.OptimizedLSTMCell(6, **wide)), "cell"),
        "gru": (GRU(6), nn.RNN(nn.GRUCell(6, **wide)), "cell"),
        "attention": (Attention(2), nn.MultiHeadDotProductAttention(2, **wide), ""),
        "attention-without-bias": (
            Attention(2, bias=False, head_features=3),
            nn.MultiHeadDotProductAttention(2, qkv_features=6, use_bias=False, **wide),
            "",
        ),
    }


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "attention", "attention-without-bias"])
def test_a_sequence_layer_comes_over_from_flax_and_goes_back(name: str) -> None:
    net, module, place = flax_sequences()[name]
    x = normal(1, (3, 5, 4), "float64")
    made = jax.jit(module.init)(jax.random.key(0), x)
    made = jax.tree.map(lambda p, n: p + n, made, like(3, made, 0.3))  # biases start at 0
    params = from_flax(net, start(net, x), made, modules=[place])
    compare([("y", jax.jit(net.__call__)(params, x), jax.jit(module.apply)(made, x))])
    back = to_flax(net, params, modules=[place or "there"])["params"]
    back = {"params": back if place else back["there"]}
    assert jax.tree.structure(back) == jax.tree.structure(made)
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(made)]
    pairs = zip(keys, jax.tree.leaves(back), jax.tree.leaves(made), strict=True)
    for path, ours, theirs in pairs:  # the bias of the keys changes nothing, and is not kept
        if "key" not in str(path) or "bias" not in str(path):
            np.testing.assert_array_equal(ours, theirs)


def test_running_statistics_move_as_in_flax() -> None:
    nn = pytest.importorskip("flax.linen")
    layer = BatchNorm(momentum=0.8)
    x = normal(1, (4, 3, 6), "float64")
    params = start(layer, x)
    _, saved = layer.forward(params, x, Train())
    moved = layer.update_statistics(params, saved)
    module = nn.BatchNorm(False, momentum=0.8, use_fast_variance=False)
    _, after = flax_apply(module, unnamed(to_flax(layer, params)), x)
    for name in ("mean", "var"):
        np.testing.assert_allclose(moved[name], after["batch_stats"][name], rtol=1e-12)


def test_a_network_comes_over_from_flax_and_goes_back() -> None:
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=True, epsilon=1e-5)(x)
            x = nn.Conv(3, (1, 1))(nn.relu(x))
            return nn.Dense(2)(x.mean(axis=(1, 2)))

    net = Chain(Conv(4, 3), BatchNorm(), ReLU(), Conv(3, 1), GlobalAvgPool(), Dense(2))
    x = normal(1, (2, 5, 4, 3), "float32")
    variables = Model().init(jax.random.key(3), x)
    params = from_flax(net, start(net, x), variables)
    assert relative_error(net(params, x), Model().apply(variables, x)) < 1e-6
    back = to_flax(net, params)
    assert sorted(back["params"]) == sorted(variables["params"])
    there = {**variables}
    jax.tree.map(np.testing.assert_array_equal, back, there)


# --- what does not fit ------------------------------------------------------------------------------


NET = Chain(Conv(2, (3,)), ReLU(), Dense(3))
X = jax.ShapeDtypeStruct((1, 5, 4), "float32")
STATE = {
    "a.weight": np.zeros((2, 4, 3), "float32"),
    "a.bias": np.zeros(2, "float32"),
    "b.weight": np.zeros((3, 2), "float32"),
    "b.bias": np.zeros(3, "float32"),
}


def test_modules_by_name_may_stand_in_any_order() -> None:
    turned = {key: STATE[key] + np.float32(1) for key in reversed(STATE)}
    params = from_torch(NET, start(NET, X), turned, modules=["a", "b"])
    np.testing.assert_array_equal(params[0]["w"], np.ones((3, 4, 2)))
    np.testing.assert_array_equal(params[2]["b"], np.ones(3))


def test_numbers_in_names_count_as_numbers() -> None:
    """`10` comes after `2`, with gaps and whichever function sorted the dictionary."""
    net, x = Chain(*(Dense(3) for _ in range(12))), jnp.ones((1, 3))
    torch = {f"{2 * i}.{k}": np.full(s, i, "float32") for i in range(12) for k, s in DENSE.items()}
    flax = {f"Dense_{i}": {"kernel": np.full((3, 3), i), "bias": np.full(3, i)} for i in range(12)}
    nested = {"block": {f"layers_{i}": v for i, v in enumerate(flax.values())}}
    start_ = start(net, x)
    for params in (
        from_torch(net, start_, torch),
        from_torch(net, start_, dict(sorted(torch.items()))),
        from_torch(net, start_, dict(reversed(torch.items()))),
        from_flax(net, start_, {"params": flax}),
        from_flax(net, start_, {"params": jax.tree.map(lambda a: a, flax)}),
        from_flax(net, start_, {"params": jax.tree.map(lambda a: a, nested)}),
    ):
        for i, p in enumerate(params):
            np.testing.assert_array_equal(p["w"], np.full((3, 3), i))
            np.testing.assert_array_equal(p["b"], np.full(3, i))


DENSE = {"weight": (3, 3), "bias": (3,)}


def test_a_sorted_dictionary_is_read_by_what_fits_or_not_at_all() -> None:
    """Sorted, `BatchNorm_0` and `Conv_0` come before `Conv_1` and `Dense_0`, wherever they stand."""
    net = Chain(Conv(4, 3), ReLU(), Conv(4, 3), BatchNorm(), GlobalAvgPool(), Dense(2))
    x = normal(1, (2, 5, 4, 4), "float32")
    params = start(net, x)
    turned = jax.tree.map(lambda a: a, to_flax(net, params))
    assert list(turned["params"]) == ["BatchNorm_0", "Conv_0", "Conv_1", "Dense_0"]
    jax.tree.map(np.testing.assert_array_equal, from_flax(net, start(net, x, 5), turned), params)
    same = Chain(Dense(3), Dense(3))
    there = {"params": {k: {"kernel": np.ones((3, 3)), "bias": np.ones(3)} for k in ("head", "body")}}
    params = start(same, jnp.ones((1, 3)))
    from_flax(same, params, there)  # in the order of creation
    with pytest.raises(InputError, match=r"may be body or head: their dictionary is sorted.* as modules"):
        from_flax(same, params, jax.tree.map(lambda a: a, there))
    from_flax(same, params, there, modules=["head", "body"])


def test_a_flattened_image_needs_its_shape() -> None:
    x = jax.ShapeDtypeStruct((1, 6, 4, 2), "float32")
    for body in ((Conv(3, 3), ReLU(), Flatten()), (Conv(3, 3), MaxPool(2), Chain(Flatten()))):
        net = Chain(*body, Dense(5))
        params = net.init(jax.random.key(0), x)
        state = to_torch(net, params, x=x)
        jax.tree.map(np.testing.assert_array_equal, from_torch(net, params, state, x=x), params)
        for way in (lambda n, p, s: from_torch(n, p, s), lambda n, p, s: to_torch(n, p)):
            with pytest.raises(InputError, match=r"Dense\(5\) comes after a Flatten .* as x"):
                way(net, params, state)
    one = Chain(Conv(3, (6, 4), padding="VALID"), Flatten(), Dense(5))  # a single position
    params = one.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, from_torch(one, params, to_torch(one, params)), params)


@pytest.mark.parametrize(
    ("state", "modules", "says"),
    [
        ({k: v for k, v in STATE.items() if k != "b.bias"}, None, "b has weight"),
        ({k: v for k, v in STATE.items() if k[0] == "a"}, None, "2 layers with parameters here"),
        ({**STATE, "a.weight": np.zeros((2, 3, 3), "float32")}, None, r"a.weight of shape \[2, 3, 3\]"),
        (STATE, ["a", "c"], "no module c"),
        ({**STATE, "a.extra": np.zeros(1)}, None, "a has bias, extra, weight"),
        ({**STATE, "a.bias": np.zeros(3)}, None, r"bias of shape \[2\], got a.bias of shape \[3\]"),
    ],
)
def test_what_does_not_fit_is_named(state, modules, says) -> None:
    with pytest.raises(InputError, match=says):
        from_torch(NET, start(NET, X), state, modules=modules)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Attention(2, kv_heads=1), "grouped queries have no counterpart"),
        (Attention(2, rotary=True), "rotary positions have no counterpart"),
        (Attention(2, head_features=3), "no head_features of its own"),
        (Auto(lambda p, x: p["a"] * x, lambda key, x: {"a": jnp.ones(())}), "Auto has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_named(layer, says) -> None:
    params = layer.init(jax.random.key(0), jnp.ones((2, 3, 4)))
    with pytest.raises(InputError, match=says):
        to_torch(layer, params)


def test_flax_needs_its_collection() -> None:
    with pytest.raises(InputError, match="params"):
        from_flax(NET, start(NET, X), {"Dense_0": {}})


# --- safetensors ------------------------------------------------------------------------------------


DTYPES = """bool int2 int4 int8 int16 int32 int64 uint2 uint4 uint8 uint16 uint32 uint64 bfloat16 float16
float32 float64 complex64 complex128 float4_e2m1fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz
float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"""


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)], ids=str)
def test_a_file_keeps_dtypes_and_shapes(tmp_path, shape) -> None:
    pytest.importorskip("safetensors")
    numbers = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2 + (shape == ()))
    params = {name: jnp.asarray(numbers.astype(jnp.dtype(name))) for name in DTYPES.split()}
    save_params(tmp_path / "all.safetensors", params)
    back = load_params(tmp_path / "all.safetensors", jax.eval_shape(lambda: params))
    for name, saved in params.items():
        assert (back[name].dtype.name, back[name].shape) == (name, shape)
        assert np.asarray(back[name]).tobytes() == np.asarray(saved).tobytes()


def test_a_file_keeps_float64_where_jax_does_not_compute_in_it(tmp_path) -> None:
    pytest.importorskip("safetensors")
    params = {"w": np.array([1 + 2**-40, -3.0]), "n": np.array(2**40), "b": np.array(True)}
    save_params(tmp_path / "wide.safetensors", params)
    like_ = {"w": jax.ShapeDtypeStruct((2,), "bfloat16"), "n": np.int32(0), "b": np.array(False)}
    with jax.enable_x64(False):
        back = load_params(tmp_path / "wide.safetensors", like_)
        half = load_params(tmp_path / "wide.safetensors", like_, dtype="float16")
        same = load_params(tmp_path / "wide.safetensors", like_, dtype="like")
    jax.tree.map(np.testing.assert_array_equal, back, params)
    dtypes = [[tree[k].dtype.name for k in "wnb"] for tree in (back, half, same)]
    assert dtypes == [
        ["float64", "int64", "bool"],
        ["float16", "int64", "bool"],
        ["bfloat16", "int32", "bool"],
    ]


def test_what_cannot_be_saved_is_named(tmp_path) -> None:
    pytest.importorskip("safetensors")
    for params, says in [
        ({"a": jax.random.key(0)}, r"a: a random key \(key<fry>\) cannot be saved"),
        ({"a": np.array(["b"])}, r"a: expected an array of numbers, got <U1"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, r"two parameters are called a\.b"),
    ]:
        with pytest.raises(InputError, match=says):
            save_params(tmp_path / "none.safetensors", params)
        assert not (tmp_path / "none.safetensors").exists()


def test_a_file_gives_back_what_went_in(tmp_path) -> None:
    pytest.importorskip("safetensors")
    params = start(NET, X)
    save_params(tmp_path / "net.safetensors", params)
    like_ = jax.eval_shape(NET.init, jax.random.key(0), X)
    back = load_params(tmp_path / "net.safetensors", like_)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    other = Chain(Conv(3, (3,)), ReLU(), Dense(3))
    with pytest.raises(InputError, match=r"0\.b: expected shape \[3\], got \[2\]"):
        load_params(tmp_path / "net.safetensors", jax.eval_shape(other.init, jax.random.key(0), X))
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="truncated or not safetensors"):
        load_params(tmp_path / "cut.safetensors", like_)
    with pytest.raises(InputError, match="no such file"):
        load_params(tmp_path / "none.safetensors", like_)


@pytest.mark.parametrize("norm", [BatchNorm(), LayerNorm()], ids=repr)
def test_a_norm_after_a_flattened_image_is_turned_with_it(norm) -> None:
    """What it keeps of every entry, and the rows of the Dense behind it."""
    nn = pytest.importorskip("torch").nn
    net = Chain(Conv(3, 3, padding=1), Flatten(), norm, Dense(4))
    theirs = nn.BatchNorm1d(72) if norm == BatchNorm() else nn.LayerNorm(72)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), theirs, nn.Linear(72, 4)).double()
    rng = np.random.default_rng(3)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor += pytest.importorskip("torch").from_numpy(rng.random(tuple(tensor.shape)))
    x = normal(1, (5, 6, 4, 2), "float64")
    params = from_torch(net, net.init(jax.random.key(0), x), module.state_dict(), x=x)
    expected = module.eval()(pytest.importorskip("torch").from_numpy(channels_first(x).copy()))
    compare([("y", net(params, x), expected.detach().numpy())])
    for key, value in to_torch(net, params, x=x, modules=["0", "2", "3"]).items():
        np.testing.assert_array_equal(value, module.state_dict()[key].numpy())


def test_groups_after_a_flattened_image_are_refused() -> None:
    net, x = Chain(Conv(4, 3), Flatten(), GroupNorm(2), Dense(3)), jnp.ones((1, 2, 3, 2))
    with pytest.raises(InputError, match=r"layers\[2\]: GroupNorm\(2\) comes after a Flatten"):
        to_torch(net, net.init(jax.random.key(0), x), x=x)
