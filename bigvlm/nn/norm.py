"""Batch norm (Ioffe & Szegedy, arXiv 1502.03167) over groups of examples that neither the mesh nor micro-batches change.

B examples, C features, … places within an example (rows and columns of an image; none for vectors). Examples are cut into
K blocks of J·G: example (k, j, g), the last index the fastest, belongs to group (k, g), so that a group has J examples.
"""

import math
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bigvlm.core.parts import RecipeError


class BatchNorm(nn.Module):
    """[B, …, C] -> the same shape and dtype; statistics are float32 (float64 of float64).

    Fields:
        group: examples whose statistics are taken together, 0 for all that are given: in an objective's ``loss`` the global batch.
        momentum: what running statistics keep of themselves at an update (PyTorch's momentum is what they take in: 1 minus this).
        epsilon: added to the variance.
        scale_init: of the learned scale; with zeros a residual branch starts as nothing.
        affine: whether scale and bias are learned at all.
        blocks: equal stretches of consecutive examples that are cut first; a group lies within one of them.

    Which examples form a group: of a block of b, every b/group-th. A micro-batch, which holds every N-th example of the
    batch, is then made of whole groups, the same as without micro-batches, as long as blocks·group divides its size.
    Blocks are for speed: if the devices that the batch is split over divide ``blocks``, statistics need no communication;
    the groups are those of ``blocks`` devices with batch norm on each (for group = batch / blocks), on any mesh.
    As few as ``group`` examples or fewer are one group: shapes are traced with two.

    In training a group is normalised by its own mean and biased variance, and running statistics (collection
    ``batch_stats``) move, once a call, towards the mean of all groups' (of the unbiased variance, as in PyTorch).
    Otherwise the running ones are used. Raises RecipeError if the examples are not made of whole groups.
    """
    group: int = 0
    momentum: float = .9
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    affine: bool = True
    blocks: int = 1

    @nn.compact
    def __call__(self, x, train: bool):
        features, wide = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,), wide)
        running_variance = self.variable('batch_stats', 'var', jnp.ones, (features,), wide)
        mean, variance = running_mean.value, running_variance.value
        cut = dict(k=1, g=1)
        if train:
            cut = _cut(x.shape[0], self.group, self.blocks)
        x_KJGC = rearrange(x, '(k j g) ... c -> k j g ... c', **cut)
        if train:
            mean, variance = _statistics(x_KJGC.astype(wide), mean)
            if not self.is_initializing():
                count = x_KJGC.size // mean.size
                running_mean.value = self._moved(running_mean.value, mean)
                running_variance.value = self._moved(running_variance.value, variance * (count / max(count - 1, 1)))
        factor = lax.rsqrt(variance + self.epsilon)
        if self.affine:
            factor = factor * self.param('scale', self.scale_init, (features,)).astype(wide)
        y_KJGC = (x_KJGC.astype(wide) - mean) * factor
        if self.affine:
            y_KJGC = y_KJGC + self.param('bias', nn.initializers.zeros, (features,)).astype(wide)
        return rearrange(y_KJGC.astype(x.dtype), 'k j g ... c -> (k j g) ... c')

    def _moved(self, old_C, now):
        """A running statistic after one update by the groups' ``now``. Linear in it: micro-batches' updates can be averaged."""
        mean_C = lax.stop_gradient(now).mean(tuple(range(now.ndim - 1)))
        return (self.momentum * old_C + (1. - self.momentum) * mean_C).astype(old_C.dtype)


def _cut(examples: int, group: int, blocks: int) -> dict[str, int]:
    """The numbers of blocks and of groups in each."""
    if not group or examples <= group:
        return dict(k=1, g=1)
    if examples % (group * blocks):
        raise RecipeError(f'group: {examples} examples (of a micro-batch) are not {blocks} equal blocks of groups of {group}; '
                          f'valid: a divisor of {examples // math.gcd(examples, blocks)}, or 0')
    return dict(k=blocks, g=examples // (group * blocks))


def _statistics(x_KJGC, near_C):
    """(mean, biased variance) of every group, to be broadcast against ``x_KJGC``.

    One pass over the data, and one sum over devices, of differences from ``near_C``, the running mean: squares of those
    lose less by rounding than squares of values far from zero.
    """
    over = (1, *range(3, x_KJGC.ndim - 1))
    near_C = lax.stop_gradient(near_C)
    offset = x_KJGC - near_C
    first, second = offset.mean(over, keepdims=True), jnp.square(offset).mean(over, keepdims=True)
    variance = jnp.maximum(second - jnp.square(first), 0.)
    return checkpoint_name(near_C + first, 'statistics'), checkpoint_name(variance, 'statistics')
