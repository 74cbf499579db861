"""Which pairs of a batch are noise, by their losses: two normal distributions fitted to the losses of the last batches.

Networks learn clean pairs before they memorise noisy ones, so that losses fall apart into two heaps (DivideMix, arXiv
2002.07394). NLIP (arXiv 2212.07086) regularises pairs by their probability of being noise.

Q slots, B global batch, N = Q·B losses remembered.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigvlm.nn.queue import Queue

FLOOR = 1e-6  # added to variances: a component of equal losses would have none


class Mixture(NamedTuple):
    """Two normal distributions, all [2]: the clean pairs' first, which has the smaller mean."""
    weight: jax.Array
    mean: jax.Array
    variance: jax.Array


def fit(x_N: jax.Array, turns: int = 60) -> Mixture:
    """Expectation-maximisation on numbers (of any shape), from one standard deviation on either side of their mean.

    Nothing is drawn, and order does not matter, so that the fit is the same on every mesh.
    """
    mean, variance, least = x_N.mean(), x_N.var() + FLOOR, 10 * jnp.finfo(x_N.dtype).eps
    start = Mixture(jnp.full(2, .5, x_N.dtype), mean + jnp.sqrt(variance) * jnp.array([-1., 1.], x_N.dtype), jnp.full(2, variance))

    def turn(_, mixture):
        noise_N = posterior(mixture, x_N)

        def of(share_N):
            weight = share_N.sum() + least
            mean = (share_N * x_N).sum() / weight
            return Mixture(weight / x_N.size, mean, (share_N * jnp.square(x_N - mean)).sum() / weight + FLOOR)
        return jax.tree.map(lambda *parts: jnp.stack(parts), of(1 - noise_N), of(noise_N))
    found = jax.lax.fori_loop(0, turns, turn, start)
    return jax.tree.map(lambda x: x[jnp.argsort(found.mean)], found)


def posterior(mixture: Mixture, x: jax.Array) -> jax.Array:
    """The probability of each ``x`` to come from the second component, of the same shape."""
    def log_density(k):
        deviation = jnp.square(x - mixture.mean[k]) / mixture.variance[k]
        return jnp.log(mixture.weight[k]) - .5 * (jnp.log(mixture.variance[k]) + deviation)
    return jax.nn.sigmoid(log_density(1) - log_density(0))


class Noise(nn.Module):
    """``noise(loss_B) -> probability_B``: how likely each of the global batch's pairs is noise, without gradient.

    Fitted to the last ``size`` losses before this batch's, a multiple of the global batch ``batch`` (see ``Queue``). Until there
    are that many, nothing is known, and probabilities are 0.
    """
    size: int
    batch: int

    @nn.compact
    def __call__(self, loss_B: jax.Array) -> jax.Array:
        loss_B = jax.lax.stop_gradient(loss_B)
        known = Queue(self.size, self.batch, name='losses')({'loss': loss_B})
        return jax.lax.cond(known.counts_QB.all(), lambda: posterior(fit(known.arrays['loss']), loss_B), lambda: jnp.zeros_like(loss_B))
