"""A negative for each example out of the global batch, drawn in proportion to exp(similarity): streamed, without gradient.

Gumbel-max: the largest of similarity + Gumbel noise is a draw from the softmax. The noise of a pair is a function of the row's
seed and the column's number, so that it is the same on every mesh and in every tile.

B the global batch, D width; r, c rows and columns of a tile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigvlm.core.bits import mix
from bigvlm.core.exchange import Monoid, on_shards, reduce_pairs, route
from bigvlm.core.pairwise import Target, identity


class Best(NamedTuple):
    """The largest score so far and whose it is; both [·]."""
    score: jax.Array
    index: jax.Array


def _empty(shapes: Best) -> Best:
    return Best(jnp.full(shapes.score.shape, -jnp.inf, shapes.score.dtype), jnp.full(shapes.index.shape, -1, shapes.index.dtype))


def _merge(a: Best, b: Best) -> Best:
    # Of equal ones the lower number, so that the order of tiles does not matter; what is empty never wins.
    first = (a.score > b.score) | (a.score == b.score) & (a.index < b.index) & (a.index >= 0)
    return Best(jnp.where(first, a.score, b.score), jnp.where(first, a.index, b.index))


BEST = Monoid(_empty, _merge)


def draw(rows_BD: jax.Array, cols_BD: jax.Array, scale: jax.Array | float, seed_B: jax.Array, *, positive: Target = identity,
         side: Any = None, group: int = 0, exchange: str = 'auto', tile: int = 1024) -> tuple[jax.Array, jax.Array]:
    """(for each row the number of a column, for each column that of a row), int32 [B]: drawn with probability in proportion to
    exp(scale · row · column) among those that are no ``positive``.

    Args:
        scale: 0 draws uniformly.
        seed_B: uint32, one per example.
        side: pytree of arrays [B, …] that ``positive`` reads for rows and columns alike.
        group: if not 0, partners come from the same ``group`` consecutive examples (papers with per-device negatives).

    An example for which there is no negative gets -1.
    """
    batch = rows_BD.shape[0]
    way = route(*rows_BD.shape, rows_BD.dtype, exchange=exchange, tile=tile)
    ids_B = jnp.arange(batch, dtype=jnp.int32)

    def best(rows, cols):
        (row_x, row_side, row_id, row_seed), (col_x, col_side, col_id, col_seed) = rows, cols
        score_rc = scale * jnp.einsum('rd,cd->rc', row_x, col_x, preferred_element_type=jnp.float32)
        out_rc = positive(row_side, col_side, row_id, col_id) > 0
        if group:
            out_rc |= row_id[:, None] // group != col_id[None, :] // group

        def one(seed, other, axis):
            noisy_rc = jnp.where(out_rc, -jnp.inf, score_rc + gumbel(jnp.expand_dims(seed, axis), jnp.expand_dims(other, 1 - axis)))
            index = jnp.expand_dims(other, 1 - axis) * jnp.ones_like(out_rc, jnp.int32)
            place = noisy_rc.argmax(axis)
            score = noisy_rc.max(axis)
            found = jnp.take_along_axis(index, jnp.expand_dims(place, axis), axis).squeeze(axis)
            return Best(score, jnp.where(jnp.isneginf(score), -1, found))
        return one(row_seed, col_id, 1), one(col_seed, row_id, 0)

    def local(items, _):
        rows, cols = items
        return reduce_pairs(best, rows, cols, BEST, way), ()
    x_rows, x_cols = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (rows_BD, cols_BD))
    items = (x_rows, side, ids_B, seed_B), (x_cols, side, ids_B, seed_B ^ jnp.uint32(0x9E3779B9))
    (for_rows, for_cols), _ = on_shards(local, way.axes)(items, ())
    return for_rows.index, for_cols.index


def gumbel(seed: jax.Array, number: jax.Array) -> jax.Array:
    """Standard Gumbel noise that depends on (seed, number) alone, float32."""
    bits = mix(seed.astype(jnp.uint32) ^ mix(number.astype(jnp.uint32) * jnp.uint32(2) + jnp.uint32(1)))
    uniform = ((bits >> 8).astype(jnp.float32) + .5) * jnp.float32(2 ** -24)
    return -jnp.log(-jnp.log(uniform))
