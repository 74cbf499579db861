"""All pairs of a sharded batch, reduced over rows and over columns without ever holding a matrix of pairs.

``reduce_pairs`` is one map-reduce: a function of a small tile of pairs gives partial results per row and per column, a
monoid says how partial results combine. Every device keeps its rows; the columns of the others reach it in one
all-gather, or chunk by chunk around a ring. Column results go home the same way, by a reduce-scatter or with the ring.

Shapes: B the global batch, b = B/n one shard's part of it, D width; r, c the rows and columns of one tile.
"""

import logging
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.sharding import PartitionSpec as P

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError

log = logging.getLogger(__name__)

EXCHANGES = ('auto', 'ring', 'all_gather')
GATHER_BUDGET = 256 * 2**20  # bytes per device that an all-gather chosen by 'auto' may occupy

Tree = Any
TileFn = Callable[[Tree, Tree], tuple[Tree, Tree]]


class Monoid(NamedTuple):
    """How partial results about the same items combine: over tiles, over hops and over devices."""
    empty: Callable[[Tree], Tree]                            # shapes -> the neutral element
    merge: Callable[[Tree, Tree], Tree]                      # associative, commutative
    scatter: Callable[[Tree, tuple[str, ...]], Tree]         # [B,…] partial on every device -> [b,…], complete


SUM = Monoid(
    empty=partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype)),
    merge=partial(jax.tree.map, jnp.add),
    scatter=lambda tree, axes: jax.tree.map(lambda x: lax.psum_scatter(x, axes, tiled=True), tree))


class Route(NamedTuple):
    """How columns reach rows: over which mesh axes (none: one device), by which exchange, in tiles of which size."""
    axes: tuple[str, ...]
    exchange: str
    tile: int


def check(exchange: str, tile: int) -> None:
    """Raises RecipeError unless both are valid options of ``route``."""
    if exchange not in EXCHANGES:
        raise RecipeError(f'exchange: found {exchange!r}; valid: {", ".join(EXCHANGES)}')
    if not isinstance(tile, int) or tile < 1:
        raise RecipeError(f'tile: found {tile!r}; valid: an integer of at least 1')


def route(batch: int, width: int, dtype, *, exchange: str = 'auto', tile: int = 1024,
          gather_budget: int = GATHER_BUDGET) -> Route:
    """The route for a batch on the current mesh (``jax.set_mesh``); no mesh or one shard means no collective.

    The tile is the largest divisor of b that is at most ``tile``: batches with b prime and large are slow.
    Raises RecipeError for an unknown exchange, a tile below 1, or a batch that the mesh does not divide.
    """
    check(exchange, tile)
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in meshes.batch_axes(mesh) if mesh.shape[a] > 1)
    n = math.prod(mesh.shape[a] for a in axes)
    if batch % n:
        raise RecipeError(f'batch: {batch} examples do not divide over {n} shards of the batch; take a multiple of {n}')
    b = batch // n
    if exchange == 'auto' and axes:
        exchange = _choose(batch, width, n, jnp.dtype(dtype).itemsize, gather_budget)
    return Route(axes, exchange, max(t for t in range(1, min(tile, b) + 1) if b % t == 0))


@lru_cache  # so that each choice is logged once
def _choose(batch: int, width: int, n: int, itemsize: int, budget: int) -> str:
    """Both move the same bytes; all-gather holds B·D of them (and as many float32 gradients), a ring takes n hops."""
    gathered = batch * width * (itemsize + 4)
    chosen = 'all_gather' if gathered <= budget else 'ring'
    log.info('exchange: %s for %d x %d over %d shards: gathering holds %.1f MiB a device (budget %.1f MiB), '
                 'a ring %.1f MiB but %d hops a pass', chosen, batch, width, n, gathered / 2**20, budget / 2**20,
                 2 * gathered / n / 2**20, n)
    return chosen


def on_shards(local: Callable, axes: tuple[str, ...]) -> Callable:
    """``local(per_example, scalars) -> (per_example, scalars)`` run on each shard of the batch.

    Every mesh axis is manual inside: over the axes that do not split the batch all devices repeat the same work, which
    the replication check of shard_map proves. Nothing is differentiated through it; losses bring their own gradients.
    """
    if not axes:
        return local
    return jax.shard_map(local, in_specs=(P(axes), P()), out_specs=(P(axes), P()))


def total(x_b: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The sum over the global batch, equal on every shard."""
    return lax.psum(x_b.sum(), axes) if axes else x_b.sum()


def reduce_pairs(tile_fn: TileFn, rows: Tree, cols: Tree, over: Monoid, way: Route) -> tuple[Tree, Tree]:
    """Reduces all B×B pairs; called on each shard (see ``on_shards``).

    ``rows`` and ``cols`` are pytrees of this shard's arrays [b,…]. ``tile_fn(rows_r, cols_c)`` gets r rows, c columns
    and returns what those pairs contribute to each row [r,…] and to each column [c,…]. Returns the complete results for
    this shard's rows and columns, [b,…] each. Memory beyond that: one tile, and b (ring) or B (all-gather) columns.
    """
    first = partial(jax.tree.map, lambda x: x[:way.tile])
    row_part, col_part = jax.eval_shape(tile_fn, first(rows), first(cols))

    def empty(part, n_items):
        neutral = over.empty(jax.tree.map(lambda x: jax.ShapeDtypeStruct((n_items, *x.shape[1:]), x.dtype), part))
        # Loop carries must be marked as differing between shards from the start.
        return jax.tree.map(lambda x: lax.pcast(x, way.axes, to='varying'), neutral) if way.axes else neutral

    def visit(acc, chunk):
        return _visit(tile_fn, over, way.tile, rows, acc, chunk, empty(col_part, way.tile))

    b = jax.tree.leaves(rows)[0].shape[0]
    acc = empty(row_part, b)
    if not way.axes:
        return visit(acc, cols)
    if way.exchange == 'ring':
        return _ring(visit, acc, cols, empty(col_part, b), over, way.axes)
    gathered = jax.tree.map(lambda x: lax.all_gather(x, way.axes, tiled=True), cols)
    acc, col_acc = visit(acc, gathered)
    return acc, over.scatter(col_acc, way.axes)


def _visit(tile_fn, over: Monoid, tile: int, rows, acc, cols, empty_col):
    """All tiles of this shard's rows against a chunk of columns: (``acc`` with their contributions, the columns')."""
    cut = partial(jax.tree.map, lambda x: rearrange(x, '(n t) ... -> n t ...', t=tile))
    paste = partial(jax.tree.map, lambda x: rearrange(x, 'n t ... -> (n t) ...'))
    row_tiles = cut(rows)

    def column_tile(acc, cols_c):
        def row_tile(col_acc, row):
            rows_r, acc_r = row
            to_rows, to_cols = tile_fn(rows_r, cols_c)
            return over.merge(col_acc, to_cols), over.merge(acc_r, to_rows)

        col_acc, acc = lax.scan(row_tile, empty_col, (row_tiles, acc))
        return acc, col_acc

    acc, col_acc = lax.scan(column_tile, cut(acc), cut(cols))
    return paste(acc), paste(col_acc)


def _ring(visit, acc, cols, col_acc, over: Monoid, axes: tuple[str, ...]):
    """Chunks of columns travel once around the ring, their results one hop behind them.

    What a hop computes for a chunk is sent off in the next hop, after the chunk itself has gone. So both permutes of a
    hop are independent of its matrix products, and the compiler can run them at the same time.
    """
    n = lax.axis_size(axes)
    onward = partial(jax.tree.map, lambda x: lax.ppermute(x, axes, [(i, (i + 1) % n) for i in range(n)]))

    def hop(carry, _):
        cols, col_acc, late, acc = carry
        next_cols = onward(cols)
        col_acc = onward(over.merge(col_acc, late))
        acc, late = visit(acc, cols)
        return (next_cols, col_acc, late, acc), None

    (_, col_acc, late, acc), _ = lax.scan(hop, (cols, col_acc, col_acc, acc), length=n)
    return acc, onward(over.merge(col_acc, late))  # the last hop brings the results home
