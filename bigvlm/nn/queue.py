"""A FIFO of what earlier batches left behind (MoCo, arXiv 1911.05722): whole global batches, each example where the batch has it.

Q slots, B global batch, … the shape of one example's array.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from bigvlm.core import mesh
from bigvlm.core.parts import RecipeError

COLLECTION = 'queue'  # arrays [Q, B, …] of this collection are split over the mesh on their second axis, like batches


class Content(NamedTuple):
    """What a queue holds, in no particular order. Arrays are zeros where nothing has been pushed yet."""
    arrays: dict[str, jax.Array]   # {name: [Q, B, …]}
    counts_QB: jax.Array           # bool: which have been pushed

    @property
    def filled(self) -> jax.Array:
        """The share of the queue that has been pushed, a scalar."""
        return self.counts_QB.astype(jnp.float32).mean()


def check(size: int, batch: int, field: str = 'size') -> None:
    """Raises RecipeError naming ``field`` unless ``size`` examples are whole batches of ``batch``."""
    if batch < 1:
        raise RecipeError(f"batch: found {batch}; valid: the recipe's global batch, which a queue is made of")
    if size < batch or size % batch:
        raise RecipeError(f'{field}: found {size}; valid: a multiple of the global batch, {batch}')


class Queue(nn.Module):
    """The last ``size`` examples' arrays. ``queue({name: [B, …]}) -> Content`` as it was before, and pushes the new ones.

    Called in an objective's ``loss``, once, with the arrays of the global batch; they get no gradient. The oldest batch is
    overwritten. ``batch`` is the recipe's global batch: variables must have their shape before there is a batch of that size.
    The content is the same on every mesh: batches stay whole, and pushing moves nothing between devices.
    Raises RecipeError for a ``size`` that is not a multiple of ``batch``, and for batches of another size.
    """
    size: int
    batch: int

    @nn.compact
    def __call__(self, new: Mapping[str, jax.Array]) -> Content:
        check(self.size, self.batch)
        slots = self.size // self.batch
        stored = {name: self.variable(COLLECTION, name, self._empty, slots, x) for name, x in new.items()}
        pushed = self.variable(COLLECTION, 'pushed', lambda: jnp.zeros((), jnp.int32))  # batches, without end
        counts_QB = jnp.broadcast_to((jnp.arange(slots) < pushed.value)[:, None], (slots, self.batch))
        old = Content({name: variable.value for name, variable in stored.items()}, counts_QB)
        if not self.is_initializing():  # shapes are traced with a smaller batch, which leaves nothing behind
            for name, x in new.items():
                stored[name].value = self._with(stored[name].value, x, pushed.value % slots)
            pushed.value = pushed.value + 1
        return old

    def _empty(self, slots: int, x: jax.Array) -> jax.Array:
        return jnp.zeros((slots, self.batch, *x.shape[1:]), x.dtype)

    def _with(self, x_QB: jax.Array, new_B: Any, slot: jax.Array) -> jax.Array:
        if new_B.shape[0] != self.batch:
            where = f'objectives.{self.path[0]}.batch' if self.path else 'batch'
            raise RecipeError(f'{where}: found {self.batch}; the batch has {new_B.shape[0]} examples; valid: their number')
        new_B = lax.stop_gradient(new_B).astype(x_QB.dtype)
        return mesh.constrain_batch(lax.dynamic_update_index_in_dim(x_QB, new_B, slot, 0), leading=1)
