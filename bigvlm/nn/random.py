"""Randomness per example: nothing drawn here depends on the shape of the batch.

Every draw comes from one key per example, ``keys_B``, folded with the layer and the place; so splitting a batch into
micro-batches, or over another mesh, changes no draw, and micro-batched gradients stay exact.
"""

import jax
import jax.numpy as jnp

# Places outside the layers; a layer's own are layer·4 + site.
EMBED_PLACE, PATCH_PLACE = 1 << 30, 1 << 31


def example_keys(key, id_B2, view: int):
    """One key per example: fold_in(key, source, index, view). ``id_B2`` uint32: (source number, index in it)."""
    def fold(ids):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, ids[0]), ids[1]), view)
    return jax.vmap(fold)(id_B2)


def dropout(x_BLW, rate: float, keys_B, place):
    """Dropout with a mask per example; ``place`` (layer and site) is folded into each example's key."""
    if rate == 0. or keys_B is None:
        return x_BLW
    def keep(key):
        return jax.random.bernoulli(jax.random.fold_in(key, place), 1. - rate, x_BLW.shape[1:])
    return jnp.where(jax.vmap(keep)(keys_B), x_BLW / (1. - rate), jnp.zeros((), x_BLW.dtype)).astype(x_BLW.dtype)


def drop_path(x_BLW, rate, keys_B, place):
    """Stochastic depth: drops an example's whole residual branch (Huang et al., arXiv 1603.09382). ``rate`` may be traced."""
    if keys_B is None:
        return x_BLW
    keep_B = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1. - rate))(keys_B)
    scaled = (x_BLW / (1. - rate)).astype(x_BLW.dtype)
    return jnp.where(keep_B[:, None, None], scaled, jnp.zeros((), x_BLW.dtype))


def patch_dropout(x_BLW, rate: float, keys_B):
    """Keeps a random subset of L·(1−rate) tokens of each example, in order (FLIP, arXiv 2212.00794)."""
    if rate == 0. or keys_B is None:
        return x_BLW
    length = x_BLW.shape[1]
    kept = max(1, round(length * (1. - rate)))

    def choose(key):
        return jnp.sort(jax.random.permutation(jax.random.fold_in(key, PATCH_PLACE), length)[:kept])
    index_BK = jax.vmap(choose)(keys_B)
    return jnp.take_along_axis(x_BLW, index_BK[:, :, None], axis=1)
