"""Looking tokens up, with a gradient that is reduce-scattered where the table is stored in parts.

B batch, L tokens, V vocabulary, W width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bigvlm.core import mesh as mesh_lib


class Embed(nn.Module):
    """int32 ids [B, L] -> vectors [B, L, W] in ``dtype``. ``stored`` is how the table [V, W] is stored (None: not known)."""
    vocab: int
    width: int
    dtype: Any
    table_init: Any
    stored: P | None = None

    @nn.compact
    def __call__(self, ids_BL):
        table_VW = self.param('embedding', self.table_init, (self.vocab, self.width)).astype(self.dtype)
        split = [d for d, axes in enumerate(self.stored or ()) if axes == 'fsdp']
        mesh = jax.sharding.get_abstract_mesh()
        whole = mesh.empty or mesh.manual_axes or not split or any(axes not in (None, 'fsdp') for axes in self.stored)
        return table_VW[ids_BL] if whole else _look_up(split[0], table_VW, ids_BL)


def _gradient(dimension: int, shape: tuple[int, int], g_BLW, ids_BL):
    """Every device adds up what its own tokens ask of the table, and the sums go to where the table's parts are.

    Left to itself the compiler all-reduces the whole table's gradient: it sees a scatter, whose result it cannot split.
    """
    axes = mesh_lib.batch_axes(jax.sharding.get_abstract_mesh())
    others = tuple(a for a in axes if a != 'fsdp')

    def local(g_bLW, ids_bL):
        d_VW = jnp.zeros(shape, g_bLW.dtype).at[ids_bL].add(g_bLW)
        part = jax.lax.psum_scatter(d_VW, 'fsdp', scatter_dimension=dimension, tiled=True)
        return jax.lax.psum(part, others) if others else part
    out = P(*('fsdp' if d == dimension else None for d in range(2)))
    return jax.shard_map(local, in_specs=(P(axes), P(axes)), out_specs=out, axis_names=set(axes))(g_BLW, ids_BL)


def _look_up(dimension: int, table_VW, ids_BL):
    @jax.custom_vjp
    def look_up(table_VW, ids_BL):
        return table_VW[ids_BL]

    def forward(table_VW, ids_BL):
        return look_up(table_VW, ids_BL), ids_BL

    def backward(ids_BL, g_BLW):
        return _gradient(dimension, table_VW.shape, g_BLW, ids_BL), None
    look_up.defvjp(forward, backward)
    return look_up(table_VW, ids_BL)
