"""A toy tower that carries a count of examples seen through micro-batches, and whose output depends on it."""

import jax.numpy as jnp
from flax import linen as nn

from bigvlm.nn.encoded import Encoded


class RunningMean(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x_BLC, *, mask=None, keys_B=None, train=False, layers=()):
        seen = self.variable('statistics', 'seen', lambda: jnp.zeros(()))
        pooled_BD = nn.Dense(self.width)(x_BLC.astype(jnp.float32).mean(axis=tuple(range(1, x_BLC.ndim - 1))))
        pooled_BD = pooled_BD * (1. + .1 * seen.value)
        if train and not self.is_initializing():
            seen.value = seen.value + len(x_BLC)
        return Encoded(pooled_BD)
