"""The nearest key of each row, found tile by tile: no array of all pairs, and no device ever holds all keys' similarities.

Shapes: B global batch, D width; K keys, Q batches of them; r, k rows and keys of a tile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import GATHER_BUDGET, Monoid, on_shards, reduce_pairs
from bigvlm.core.pairs import Keys, further_items, identity, in_a_row, make_plan, matmul, some, travelling


class Nearest(NamedTuple):
    """Of each row the key with the largest product, all [B, …]; -inf, zeros and -1 where no key counts."""
    score: jax.Array
    x: jax.Array       # [B, D], the key itself
    side: Any
    index: jax.Array   # among the keys, as they are flattened


def _none(shapes: Nearest) -> Nearest:
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return empty._replace(score=jnp.full_like(empty.score, -jnp.inf), index=jnp.full_like(empty.index, -1))


def _nearer(a: Nearest, b: Nearest) -> Nearest:
    """Of equally near ones the first, so that it does not matter in which order they are met."""
    first = (a.score > b.score) | (a.score == b.score) & (a.index <= b.index)
    return jax.tree.map(lambda a, b: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b), a, b)


NEAREST = some(Monoid(_none, _nearer))


def nearest(rows_BD: jax.Array, keys: Keys, *, exchange: str = 'auto', tile: int = 1024, dtype: Any = None, wire: str | None = None,
            gather_budget: int = GATHER_BUDGET) -> Nearest:
    """The key of the largest inner product with each row: the nearest by cosine, if both have unit length. No gradient.

    Raises RecipeError for impossible options.
    """
    rows_BD, keys = lax.stop_gradient((rows_BD, keys))
    plan = make_plan(rows_BD, rows_BD, identity, exchange, tile, dtype, wire, gather_budget, keys.x.size // keys.x.shape[-1])
    index = jnp.arange(keys.x.size // keys.x.shape[-1], dtype=jnp.int32).reshape(keys.x.shape[:-1])
    items = further_items(keys._replace(side=(index, keys.side)))

    def tile_nearest(keys, rows):
        score_rk = matmul('rd,kd->rk', rows, keys.x, plan)
        if keys.counts is not None:
            score_rk = jnp.where(keys.counts[None, :], score_rk, -jnp.inf)
        best_r = score_rk.argmax(1)
        (index, side), x = jax.tree.map(lambda part: part[best_r], (keys.side, keys.x))
        found = Nearest(score_rk.max(1), x, side, index)
        return (), (_nearer(found, _none(jax.eval_shape(lambda: found))),)  # of keys that do not count, nothing

    def local(items, _):
        rows, keys = items
        _, (found,) = reduce_pairs(tile_nearest, travelling(in_a_row(keys), plan), rows.astype(plan.wire), NEAREST, plan.way)
        return found, ()
    return on_shards(local, plan.way.axes)((rows_BD, items), ())[0]
