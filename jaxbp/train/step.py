"""One step, one epoch, one sweep: the compiled programs around a hand-written backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbp.layer import Eval, Gather, InputError, Layer, Mode, PyTree, Train, require_whole
from jaxbp.losses import Loss
from jaxbp.losses.base import require_loss
from jaxbp.train.batches import Batches
from jaxbp.train.passes import in_pieces, passes
from jaxbp.train.private import Private, private_passes
from jaxbp.train.update import Donating, Optimizer, update

SGD = optax.sgd(0.1)


def value_and_grad(
    net: Layer, loss: Loss, gather: Gather | None = None, *, with_saved: bool = False
) -> Callable[..., Any]:
    """`fn(params, x, y, mode=Eval()) -> (value, grads)`: the two passes of backpropagation.

    Like `jax.value_and_grad` of `loss(net(params, x), y)`, with the backward pass by hand. With a
    `gather`, `grads` is whatever it returns at each leaf, in the shape of the layer tree.

    Running statistics (`BatchNorm`) have no gradient and do not move here: they move in
    `net.update_statistics(params, saved)`, without which the network is evaluated with the statistics
    that it started with. `with_saved` returns what the forward pass kept, `(value, grads, saved)`, and
    `apply_updates(net, params, updates, saved)` does both. Training is `mode=Train(key)`.
    """
    require_loss("value_and_grad", net, loss)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> tuple[Any, ...]:
        found = passes(net, loss, params, x, y, mode, gather)
        return found if with_saved else found[:2]

    return fn


def apply_updates(net: Layer, params: PyTree, updates: PyTree, saved: PyTree) -> PyTree:
    """`w := w + u` for the parameters that are trained, and running statistics moved by the batch.

    The last line of a training loop of one's own, `optax.apply_updates` for a network that may have a
    `BatchNorm`; `updates` are what `tx.update(grads, state, params)` makes of the gradients, `saved` is
    what the forward pass kept:

        value, grads, saved = value_and_grad(net, loss, with_saved=True)(params, x, y, Train(key))
        updates, state = tx.update(grads, state, params)
        params = apply_updates(net, params, updates, saved)

    Statistics take no update, whatever an optimizer made one of (weight decay would shrink them).
    Raises `InputError` where `updates` are of another network.
    """
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, updates)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"apply_updates: expected updates shaped like the parameters, {shapes[0]}, got {shapes[1]}"
        )
    moved = net.update_statistics(params, saved)
    return jax.tree.map(
        lambda trained, new, old: new if trained else old,
        net.trainable(params),
        optax.apply_updates(params, updates),
        moved,
    )


def _update(
    net: Layer, loss: Loss, tx: Optimizer, accumulate: int = 1, private: Private | None = None
) -> Callable[..., Any]:
    """The step itself, not compiled: `w := w - η ∂L/∂w` and `b := b - η ∂L/∂b` where `tx` is SGD."""
    require_loss("make_step", net, loss)
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        raise InputError(f"make_step: expected an Optax optimizer such as optax.sgd(0.1), got {tx!r}")
    tx = tx.gradient_transformation() if isinstance(tx, optax.MultiSteps) else tx
    optimizer = optax.with_extra_args_support(tx)
    if private is None:
        both = in_pieces(net, loss, accumulate)
    else:
        both = private_passes(net, loss, private, accumulate)
    alone = private is not None and private.noise > 0  # one noisy gradient is all that may be seen

    def step(params: PyTree, opt_state: PyTree, x: PyTree, y: Any, mode: Mode, *present: Any) -> Any:
        def again(params: PyTree) -> tuple[Any, PyTree]:
            return both(params, x, y, mode, *present)[:2]

        value, grads, moved = both(params, x, y, mode, *present)
        given = (None, None, grads, None) if alone else (again, value, grads, (params, x, y, mode))
        params, finish = update(net, optimizer, params, opt_state, *given)
        trained = net.trainable(params)
        params = jax.tree.map(lambda yes, new, m: new if yes else m, trained, params, moved)
        return params, finish(params), value

    return step


def make_step(
    net: Layer,
    loss: Loss,
    tx: Optimizer = SGD,
    *,
    donate: bool = False,
    accumulate: int = 1,
    clip_examples: float | None = None,
    noise: float = 0.0,
    expected: float | int | None = None,
) -> Callable[..., Any]:
    """`step(params, opt_state, x, y, mode=Train()) -> (params, opt_state, value)`, compiled.

    `tx` is any Optax optimizer, `opt_state` starts as `tx.init(params)`; running statistics take no part
    in its arithmetic (`update.py`). A net that draws (`Dropout`) needs `mode=Train(key)` with a fresh key
    a step. With `donate`, the buffers of `params` and `opt_state` are re-used for the result, which
    saves their memory: hold on to the returned ones only.

    With `accumulate = n` the two passes go over the batch in `n` pieces, whose gradients are added up
    before the one update: what is saved for the backward pass is that of a piece (`passes.py`).

    With `clip_examples = C` every example's gradient is cut to length `C`, and with `noise = σ` the sum
    gets Gaussian noise of standard deviation `σ C` (`private.py`), from `mode`'s key. The divisor is the
    number of examples, or `expected`; a further argument of `step`, `present: [batch]`, says which rows
    count. `value` is without noise: it is not for others to see.
    """
    one = _update(net, loss, tx, accumulate, Private.of(clip_examples, noise, expected))

    def step(
        params: PyTree, opt_state: PyTree, x: PyTree, y: Any, mode: Mode = Train(), present: Any = None
    ) -> Any:
        if present is not None and clip_examples is None:
            raise InputError("present: expected clip_examples too; without it every row counts")
        return one(params, opt_state, x, y, mode, *(() if present is None else (present,)))

    return Donating(step) if donate else jax.jit(step)


def plan_epoch(key: Any, batches: Batches, shuffle: bool = True) -> tuple[Any, Any, Any]:
    """`(full, rest, keys)`: the rows that each step of an epoch takes, and its key.

    `full: [steps, batch_size]`; `rest` has the rows of a last step of another size, if there is one; one
    key for each step and for the rest.
    """
    shuffle_key, mode_key = jax.random.split(key)
    order = jax.random.permutation(shuffle_key, batches.count) if shuffle else jnp.arange(batches.count)
    cut = batches.full * batches.size
    full = order[:cut].reshape(batches.full, batches.size)
    return full, order[cut : batches.seen], jax.random.split(mode_key, batches.full + 1)


def plan_poisson(key: Any, batches: Batches) -> tuple[Any, Any, Any, Any]:
    """`(rows, present, keys, drawn)` of an epoch of Poisson batches.

    `rows: [steps, widest]` are the examples drawn for each step, filled up with rows that are not
    `present`; `drawn: [steps]` is how many there were: where that is more than `widest`, which is rarer
    than once in a million million steps, some are missing, and whoever called has to say so.
    """
    draw_key, mode_key = jax.random.split(key)

    def one(key: Any) -> tuple[Any, Any]:
        joins = jax.random.bernoulli(key, batches.rate, (batches.count,))
        return jnp.nonzero(joins, size=batches.widest, fill_value=0)[0], jnp.sum(joins)

    rows, drawn = jax.lax.map(one, jax.random.split(draw_key, batches.steps))
    present = jnp.arange(batches.widest)[None] < drawn[:, None]
    return rows, present, jax.random.split(mode_key, batches.steps), drawn


def steps_function(
    net: Layer,
    loss: Loss,
    tx: Optimizer,
    devices: Mesh | None = None,
    augment: Callable[[Any, Any], Any] | None = None,
    accumulate: int = 1,
    private: Private | None = None,
) -> Callable[..., Any]:
    """`run(params, opt_state, x, y, rows, keys, *present) -> (params, opt_state, losses)`, not compiled.

    A `scan` over the steps of `rows: [steps, batch]`, `x` and `y` being the whole data set; `augment(key,
    x)` may change a batch before the network sees it. Over a mesh
    of `devices` each batch is sharded: every device takes its share of the examples, and XLA adds up
    their gradients (and, in a BatchNorm, their statistics), so that the step is that of the whole batch.
    """
    one = _update(net, loss, tx, accumulate, private)

    def step(state: PyTree, part: Any, x: PyTree, y: Any) -> Any:
        rows, key, *present = part
        batch_x, batch_y = jax.tree.map(lambda a: jnp.take(a, rows, axis=0), (x, y))
        if devices is not None and rows.shape[0] % devices.size == 0:
            mesh = Mesh(
                devices.devices, devices.axis_names
            )  # with axes that XLA shards through by itself
            shares = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
            batch_x, batch_y = jax.lax.with_sharding_constraint((batch_x, batch_y), shares)
        if augment is not None:
            batch_x = augment(jax.random.fold_in(key, 1), batch_x)
        *state, value = one(*state, batch_x, batch_y, Train(key), *present)
        return tuple(state), value

    def run(params: PyTree, opt_state: PyTree, x: PyTree, y: Any, *parts: Any) -> Any:
        if parts[0].shape[0] == 1:  # a loop of one turn costs a compilation and gives nothing
            state, value = step((params, opt_state), [part[0] for part in parts], x, y)
            return *state, value[None]
        state, losses = jax.lax.scan(
            lambda state, part: step(state, part, x, y), (params, opt_state), parts
        )
        return *state, losses

    return run


def epoch_function(
    net: Layer,
    loss: Loss,
    tx: Optimizer,
    batch_size: int,
    shuffle: bool = True,
    devices: Mesh | None = None,
    augment: Callable[[Any, Any], Any] | None = None,
    drop_last: bool = False,
    accumulate: int = 1,
    private: Private | None = None,
    poisson: bool = False,
) -> Callable[..., Any]:
    """`epoch(params, opt_state, x, y, key) -> (params, opt_state, losses)`, not compiled.

    What `make_epoch` compiles and `make_sweep` maps over members; `x` and `y` are the whole data set.
    """
    require_whole("make_epoch", batch_size=batch_size)
    run = steps_function(net, loss, tx, devices, augment, accumulate, private)

    def drawn(params: PyTree, opt_state: PyTree, x: PyTree, y: Any, key: Any) -> Any:
        batches = Batches.of(net, _count(x, y), batch_size, poisson=True)
        rows, present, keys, drawn = plan_poisson(key, batches)
        *state, losses = run(params, opt_state, x, y, rows, keys, present)
        return *state, jnp.where(drawn > batches.widest, jnp.nan, losses)

    def epoch(params: PyTree, opt_state: PyTree, x: PyTree, y: Any, key: Any) -> Any:
        batches = Batches.of(net, _count(x, y), batch_size, drop_last)
        full, rest, keys = plan_epoch(key, batches, shuffle)
        state, losses = (params, opt_state), []
        for rows, part in ((full, keys[:-1]), (rest[None], keys[-1:])):
            if rows.size:
                *state, some = run(*state, x, y, rows, part)
                losses.append(some)
        return *state, jnp.concatenate(losses)

    return drawn if poisson else epoch


def make_epoch(
    net: Layer,
    loss: Loss,
    tx: Optimizer = SGD,
    batch_size: int = 32,
    *,
    shuffle: bool = True,
    donate: bool = False,
    devices: Mesh | None = None,
    drop_last: bool = False,
    accumulate: int = 1,
    clip_examples: float | None = None,
    noise: float = 0.0,
    poisson: bool = False,
) -> Callable[..., Any]:
    """`epoch(params, opt_state, x, y, key) -> (params, opt_state, losses)`: one compiled call.

    Shuffling, gathering the batches and all steps run on the device as a `scan`. Examples left over by
    `batch_size` are left out of the epoch with `drop_last`; else they make a last, smaller step, or, if
    too few for the network's statistics (`smallest_batch`), join the one before. `losses` has one entry
    a step. One compilation serves all epochs. `donate` and `accumulate` are those of `make_step`.

    With a one-dimensional mesh of `devices`, such as `jax.make_mesh((4,), ("batch",))`, every batch that
    their number divides is shared out among them; the result is that of one device, up to rounding.

    `clip_examples` and `noise` are `make_step`'s. With `poisson` batches, which they are for, every
    example joins each of the `count // batch_size` steps with probability `batch_size / count` (what
    `beyond.epsilon` takes for granted), and `batch_size` is the divisor. Rows are as many as a draw all
    but never exceeds; the loss of a step that did is NaN.
    """
    if poisson and clip_examples is None:
        raise InputError("poisson: expected clip_examples too; without it every row of a batch counts")
    private = Private.of(clip_examples, noise, batch_size if poisson else None)
    epoch = epoch_function(
        net,
        loss,
        tx,
        batch_size,
        shuffle,
        devices,
        drop_last=drop_last,
        accumulate=accumulate,
        private=private,
        poisson=poisson,
    )
    return Donating(epoch) if donate else jax.jit(epoch)


def batch_weights(count: int, batch_size: int) -> jax.Array:
    """The share of the examples that each step of an epoch saw: weights for averaging its losses."""
    return jnp.asarray(Batches(count, batch_size).shares)


def _count(x: PyTree, y: Any) -> int:
    """The number of examples, the same in every array."""
    counts = [leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves((x, y))]
    if len(set(counts)) != 1:
        raise InputError(f"x and y: expected the same number of examples, got {counts}")
    if not counts[0]:
        raise InputError("x and y: expected at least one example, got none")
    return counts[0]
