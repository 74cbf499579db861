"""What the losses over all pairs share: the items that meet, which pairs are positives, what is static about a call.

Shapes: B global batch, b one shard's part, D width; K further keys, Q batches of them; r, c rows and columns of a tile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from bigvlm.core.exchange import Monoid, Route, check, route

Target = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
FURTHER = -1  # the index of a key that is not in the batch


def identity(row_side, col_side, row_id, col_id) -> jax.Array:
    """An example's only positive is itself (CLIP). As ``exclude``: an example does not meet itself (SimCLR)."""
    return row_id[:, None] == col_id[None, :]


def equal_labels(row_side, col_side, row_id, col_id) -> jax.Array:
    """Examples of the same label are positives of each other (UniCL); side: int [B], -1 (or no side) is no label."""
    same = identity(None, None, row_id, col_id)
    if row_side is None or col_side is None:
        return same
    return same | ((row_side[:, None] == col_side[None, :]) & (row_side[:, None] >= 0))


def equal_hashes(row_side, col_side, row_id, col_id) -> jax.Array:
    """Examples whose hashes agree in all words are positives of each other; side: [B, words], or none."""
    same = identity(None, None, row_id, col_id)
    if row_side is None or col_side is None:
        return same
    return same | (row_side[:, None] == col_side[None, :]).all(-1)


class Mixed(NamedTuple):
    """The side of ``mixed``, given for the rows or for the columns, whichever are mixtures; both [B]."""
    partner: jax.Array   # int: the index in the global batch of what each was mixed with
    share: jax.Array     # of itself in the mixture, 0 to 1; the partner has the rest


def mixed(row_side: Mixed | None, col_side: Mixed | None, row_id, col_id) -> jax.Array:
    """What mixes two examples has both as positives, by their shares λ·itself + (1-λ)·partner (mixup; ZeroVL, arXiv 2112.09331).

    With the reversed batch, ``partner`` is B-1, …, 0. Keys of a queue are nobody's partner.
    """
    if row_side is None:
        return mixed(col_side, None, col_id, row_id).T
    share_r1, partner_r1 = row_side.share[:, None], row_side.partner[:, None]
    return share_r1 * identity(None, None, row_id, col_id) + (1 - share_r1) * (partner_r1 == col_id[None, :])


class Keys(NamedTuple):
    """Further columns for rows (or rows for columns) that get no gradient: K of them, or Q batches, as a queue has them.

    They have the index ``FURTHER``, so that they are negatives of all, unless ``target`` finds positives by their ``side``.
    The mesh must divide K, or the batch of [Q, B, …], which then stay where they are.
    """
    x: jax.Array         # [K, D] or [Q, B, D]
    side: Any = None     # arrays for ``target`` and ``exclude``, [K, …] or [Q, B, …]
    counts: Any = None   # bool [K] or [Q, B]: those that count; None: all


class Items(NamedTuple):
    """One side of the pairs: embeddings [·,D], arrays for the targets [·,…], indices in the global batch [·]."""
    x: jax.Array
    side: Any
    id: jax.Array
    counts: Any = None   # bool [·]: those that count; None: all


class Plan(NamedTuple):
    """What is static about one call."""
    way: Route
    batch: int
    dtype: Any          # of matrix products
    wire: Any           # of embeddings on their way
    sum_dtype: Any      # of everything that is added up
    target: Target
    smoothing: float = 0.
    exclude: Target | None = None
    directions: tuple[bool, bool] = (True, True)   # whether rows look at columns, columns at rows
    masked: bool = False                           # whether some pairs may not count


def some(over: Monoid) -> Monoid:
    """For sides of which one gets nothing: the same over tuples of no or one part."""
    return Monoid(lambda parts: tuple(map(over.empty, parts)), lambda a, b: tuple(map(over.merge, a, b)))


def make_plan(rows_BD, cols_BD, target, exchange, tile, dtype, wire, gather_budget, keys: int = 0) -> Plan:
    """``keys``: how many further ones there are: an exchange chosen by 'auto' counts them.

    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    if rows_BD.ndim != 2 or rows_BD.shape != cols_BD.shape:
        raise ValueError(f'rows and columns must be [B, D] both; found {rows_BD.shape} and {cols_BD.shape}')
    input_dtype = jnp.promote_types(rows_BD.dtype, cols_BD.dtype)
    check(exchange, tile, wire)
    dtype = jnp.dtype(dtype or input_dtype)
    wire = jnp.dtype(wire or dtype)
    batch, width = rows_BD.shape
    way = route(batch + keys, width, wire, exchange=exchange, tile=tile, gather_budget=gather_budget)
    return Plan(way, batch, dtype, wire, jnp.promote_types(jnp.float32, input_dtype), target)


def make_items(rows_BD, cols_BD, rows_side, cols_side) -> tuple[Items, Items]:
    ids_B = jnp.arange(rows_BD.shape[0], dtype=jnp.int32)
    return Items(rows_BD, rows_side, ids_B), Items(cols_BD, cols_side, ids_B)


def further_items(keys: Keys) -> Items:
    """Keys as items of arrays [B, Q, …], split over the mesh on their first axis as batches are; [K, 1, …] for [K, …]."""
    x = keys.x if keys.x.ndim == 3 else keys.x[None]
    def batch_first(part):
        part = part if keys.x.ndim == 3 else part[None]
        return rearrange(part, 'q b ... -> b q ...')
    ids = jnp.full(x.shape[:2], FURTHER, jnp.int32)
    side, counts = jax.tree.map(batch_first, (keys.side, keys.counts))
    return lax.stop_gradient(Items(rearrange(x, 'q b d -> b q d'), side, rearrange(ids, 'q b -> b q'), counts))


def in_a_row(items: Items) -> Items:
    """One shard's further items [b, Q, …] as [b·Q, …]."""
    return jax.tree.map(lambda x: rearrange(x, 'b q ... -> (b q) ...'), items)


def travelling(items: Items, plan: Plan) -> Items:
    """Embeddings are cast before they are sent, not after, and those that stay alike."""
    return items._replace(x=items.x.astype(plan.wire))


def matmul(spec: str, a: jax.Array, b: jax.Array, plan: Plan) -> jax.Array:
    precision = lax.Precision.HIGHEST if plan.dtype in (jnp.float32, jnp.float64) else None
    return jnp.einsum(spec, a.astype(plan.dtype), b.astype(plan.dtype), precision=precision,
                      preferred_element_type=plan.sum_dtype)


def targets(rows: Items, cols: Items, plan: Plan) -> jax.Array:
    return plan.target(rows.side, cols.side, rows.id, cols.id).astype(plan.sum_dtype)


def counted(rows: Items, cols: Items, plan: Plan) -> jax.Array | None:
    """Which pairs of a tile count, bool [r, c]; None if all do."""
    if not plan.masked:
        return None
    keep_rc = jnp.ones((rows.x.shape[0], cols.x.shape[0]), bool)
    if plan.exclude is not None:
        keep_rc &= ~plan.exclude(rows.side, cols.side, rows.id, cols.id).astype(bool)
    if rows.counts is not None:
        keep_rc &= rows.counts[:, None]
    if cols.counts is not None:
        keep_rc &= cols.counts[None, :]
    return keep_rc
