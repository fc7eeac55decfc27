"""Training images moved and mirrored at random, inside the compiled step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.app.config import Config
from jaxbp.app.data import Dataset
from jaxbp.layer import InputError


def make_augment(config: Config, data: Dataset) -> Callable[[Any, Any], Any] | None:
    """`augment(key, x) -> x` of a batch, as `train.shift` and `train.flip` ask; `None` for neither."""
    shift, flip, image = config.train.shift, config.train.flip, data.image
    if not shift and not flip:
        return None
    if not image:
        raise InputError(
            f'train.shift and train.flip: expected data of images, got data.name "{data.name}"'
        )
    if config.model.reproduces:
        raise InputError("train.shift and train.flip: an autoencoder's targets would not move along")

    def augment(key: Any, x: Any) -> Any:
        return change(key, x.reshape(-1, *image), shift, flip).reshape(x.shape)

    return augment


def change(key: Any, x: Any, shift: int, flip: bool) -> Any:
    """Images `[n, height, width, channels]`, each moved by up to `shift` pixels both ways (what comes in
    is 0) and, with `flip`, every other one mirrored left to right."""
    moves, mirror = jax.random.split(key)
    count = x.shape[0]
    if shift:
        wide = jnp.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        start = jax.random.randint(moves, (count, 2), 0, 2 * shift + 1)

        def crop(one: Any, at: Any) -> Any:
            return jax.lax.dynamic_slice(one, (at[0], at[1], 0), x.shape[1:])

        x = jax.vmap(crop)(wide, start)
    if flip:
        chosen = jax.random.bernoulli(mirror, shape=(count, 1, 1, 1))
        x = jnp.where(chosen, x[:, :, ::-1], x)
    return x
