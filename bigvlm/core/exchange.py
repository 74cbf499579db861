"""All pairs of a sharded batch, reduced over rows and over columns without ever holding a matrix of pairs.

``reduce_pairs`` is one map-reduce: a function of a small tile of pairs gives partial results per row and per column, a
monoid says how partial results combine. What the other devices have arrives in one of two ways:

- gathered: every device gets all rows and all columns, and visits the pairs of its own rows and those of its own columns.
  Nothing has to go home (on TPUs a reduce-scatter of gradients is an all-reduce: four times what the embeddings are in
  bfloat16), for which the similarity of each pair is made twice.
- by a ring: columns travel, tile by tile, past the rows that stay; their results follow them, and come home with them.

Shapes: B the global batch, b = B/n one shard's part of it, D width; r, c the rows and columns of one tile.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.sharding import PartitionSpec as P

from bigvlm.core import mesh as meshes
from bigvlm.core.devices import chip
from bigvlm.core.parts import RecipeError

log = logging.getLogger(__name__)

EXCHANGES = ('auto', 'ring', 'all_gather')
WIRES = (None, 'float32', 'bfloat16')
GATHER_BUDGET = 256 * 2**20  # bytes per device that an all-gather chosen by 'auto' may occupy
HOP_SECONDS = 5e-6           # what a hop costs however little it carries; an assumption, not measured
CPU_HOP_SECONDS = 4e-4       # the same where devices are threads of one CPU, and the FLOP/s of one:
CPU_FLOPS = 1.5e10           # both measured roughly, 8 devices on 2 cores (docs/losses.md)

Tree = Any
TileFn = Callable[[Tree, Tree], tuple[Tree, Tree]]


class Monoid(NamedTuple):
    """How partial results about the same items combine: over tiles and over devices."""
    empty: Callable[[Tree], Tree]            # shapes -> the neutral element
    merge: Callable[[Tree, Tree], Tree]      # associative, commutative


SUM = Monoid(partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype)), partial(jax.tree.map, jnp.add))


class Route(NamedTuple):
    """How rows and columns meet: over which mesh axes (none: one device), by which exchange, in tiles of at most which size."""
    axes: tuple[str, ...]
    exchange: str
    tile: int
    order: tuple[int, ...] = ()   # in which a ring visits the shards: from neighbour to neighbour


def check(exchange: str, tile: int, wire: str | None = None) -> None:
    """Raises RecipeError unless all are valid options of a loss over pairs."""
    if exchange not in EXCHANGES:
        raise RecipeError(f'exchange: found {exchange!r}; valid: {", ".join(EXCHANGES)}')
    if not isinstance(tile, int) or tile < 1:
        raise RecipeError(f'tile: found {tile!r}; valid: an integer of at least 1')
    if wire not in WIRES:
        raise RecipeError(f'wire: found {wire!r}; valid: float32, bfloat16 or None (as the products take them)')


def route(batch: int, width: int, dtype, *, exchange: str = 'auto', tile: int = 1024,
          gather_budget: int = GATHER_BUDGET) -> Route:
    """The route for a batch on the current mesh (``jax.set_mesh``); no mesh or one shard means no collective.

    ``dtype`` is what embeddings have on the wire. The ring goes from neighbour to neighbour if ``mesh.activate`` says
    where devices are. Raises RecipeError for an unknown exchange, a tile below 1, or a batch that the mesh does not divide.
    """
    check(exchange, tile)
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in meshes.batch_axes(mesh) if mesh.shape[a] > 1)
    n = math.prod(mesh.shape[a] for a in axes)
    if batch % n:
        raise RecipeError(f'batch: {batch} examples do not divide over {n} shards of the batch; take a multiple of {n}')
    if exchange == 'auto' and axes:
        exchange = _choose(batch, width, n, jnp.dtype(dtype).itemsize, gather_budget, meshes.wires())
    return Route(axes, exchange, tile, meshes.ring_order(axes) if axes else ())


@lru_cache  # so that each choice is logged once
def _choose(batch: int, width: int, n: int, itemsize: int, budget: int, wires: meshes.Wires | None) -> str:
    """Gathering, if it fits ``budget`` and is not predicted to be slower."""
    gathered, ring = 2 * batch * width * itemsize, batch // n * width * (itemsize + 4)
    if gathered > budget:
        chosen, why = 'ring', 'gathering exceeds the budget'
    elif times := wires and predicted_seconds(batch, width, n, itemsize, wires):
        chosen = min(times, key=times.get)
        why = 'predicted beyond the products: ' + ', '.join(f'{way} {1e3 * s:.3f} ms' for way, s in times.items())
    else:
        chosen, why = 'all_gather', 'it fits, and the speed of the links is not known'
    log.info('exchange: %s for %d x %d over %d shards: %s; gathering holds %.1f MiB a device (budget %.1f MiB), a ring %.1f MiB '
             'in %d hops', chosen, batch, width, n, why, gathered / 2**20, budget / 2**20, ring / 2**20, n)
    return chosen


def predicted_seconds(batch: int, width: int, n: int, itemsize: int, wires: meshes.Wires) -> dict[str, float] | None:
    """What each exchange adds to three products of all pairs in one pass with gradients, if everything reached its peak.

    Gathering (of rows and columns) uses all links, but nothing is computed meanwhile, and it makes a fourth product. A ring
    uses one link in one direction for columns and their float32 gradients, hop by hop beside the products of the hop: only
    what takes longer than they do is added; between slices or nodes a hop goes from one device to one other over the
    network, and all hops wait for it. On a CPU only the product and the hops count. None for an unknown kind of device.
    """
    facts, b = chip(wires.kind), batch // n
    if wires.kind == 'cpu':
        return {'all_gather': 2 * b * batch * width / CPU_FLOPS, 'ring': n * CPU_HOP_SECONDS}
    if facts is None:
        return None
    item, slowest = 2 * width * itemsize, facts.link
    gather = (batch - b) * item / (wires.links * facts.link) + 2 * b * batch * width / facts.flops
    if wires.groups > 1:
        gather += (batch - batch / wires.groups) * item / (n / wires.groups * facts.network)
        slowest = min(slowest, facts.network)
    hop = HOP_SECONDS + b * width * (itemsize + 4) / slowest
    return {'all_gather': gather, 'ring': n * max(0., hop - 6 * b * b * width / facts.flops)}


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
    """Reduces all pairs of rows and columns; called on each shard (see ``on_shards``).

    ``rows`` and ``cols`` are pytrees of this shard's arrays [b,…] and [k,…]; k may differ from b (keys of a queue, say),
    and items may be arrays of any rank (the tokens of an example). ``tile_fn(rows_r, cols_c)`` gets r rows, c columns and
    returns what those pairs contribute to each row [r,…] and to each column [c,…]; these need not come from the same
    similarity. Returns the complete results for this shard's rows and columns, [b,…] and [k,…].

    Tiles are the largest divisors of b and k up to the route's. Memory beyond arguments and results: a few tiles, and all
    rows and columns if they are gathered.
    """
    row_tiles, col_tiles = _cut(rows, way.tile), _cut(cols, way.tile)
    to_rows, to_cols = jax.eval_shape(tile_fn, _at(row_tiles, 0), _at(col_tiles, 0))

    def empty(part):
        # Loop carries must be marked as differing between shards from the start.
        return jax.tree.map(lambda x: lax.pcast(x, way.axes, to='varying'), over.empty(part)) if way.axes else over.empty(part)

    def blank(part, tiles):
        return empty(jax.tree.map(lambda x: jax.ShapeDtypeStruct((_count(tiles), *x.shape), x.dtype), part))

    if way.axes and way.exchange != 'ring':
        def everywhere(tiles):
            return jax.tree.map(lambda x: rearrange(lax.all_gather(x, way.axes), 's n t ... -> (s n) t ...'), tiles)
        return (_paste(_one_sided(lambda row, col: tile_fn(row, col)[0], row_tiles, everywhere(col_tiles), over, empty(to_rows))),
                _paste(_one_sided(lambda col, row: tile_fn(row, col)[1], col_tiles, everywhere(row_tiles), over, empty(to_cols))))

    def meet(acc, cols_c):
        """All of this shard's rows and one tile of columns: (``acc`` [n,r,…] with what rows get, what columns get [c,…])."""
        def row_tile(carry, tile):
            (acc, to_cols), (i, rows_r) = carry, tile
            row_part, col_part = tile_fn(rows_r, cols_c)
            return (_put(acc, over.merge(_at(acc, i), row_part), i), over.merge(to_cols, col_part)), None
        return lax.scan(row_tile, (acc, empty(to_cols)), (jnp.arange(_count(row_tiles)), row_tiles))[0]

    acc = blank(to_rows, row_tiles)
    if way.axes:
        acc, col_acc = _ring(meet, acc, col_tiles, blank(to_cols, col_tiles), empty(to_cols), over, way)
    else:
        acc, col_acc = lax.scan(meet, acc, col_tiles)
    return _paste(acc), _paste(col_acc)


def _one_sided(give: Callable[[Tree, Tree], Tree], own: Tree, others: Tree, over: Monoid, empty: Tree) -> Tree:
    """What each of our own tiles gets from all others; tiles [n,t,…]."""
    def of_tile(_, own_t):
        return None, lax.scan(lambda acc, other_t: (over.merge(acc, give(own_t, other_t)), None), empty, others)[0]
    return lax.scan(of_tile, None, own)[1]


def _ring(meet, acc, cols, col_acc, late, over: Monoid, way: Route):
    """Tiles of columns travel once around the ring, their results one tile behind them. All arrays are [n,t,…] tiles.

    What a tile has given to its columns is sent off with the next one. So both permutes of a tile are independent of its
    matrix products, and the compiler can run them at the same time. What arrives takes the place of what was sent.
    """
    hops = list(zip(way.order, way.order[1:] + way.order[:1]))
    n = _count(cols)

    def send_off(col_acc, late, i):
        return _put(col_acc, _onward(over.merge(_at(col_acc, i), late), way.axes, hops), i)

    def step(carry, place):
        (cols, col_acc, late, acc), (i, before) = carry, place
        cols_c = _at(cols, i)
        cols = _put(cols, _onward(cols_c, way.axes, hops), i)
        col_acc = send_off(col_acc, late, before)
        acc, late = meet(acc, cols_c)
        return (cols, col_acc, late, acc), None

    places = jnp.tile(jnp.arange(n), len(hops))
    (_, col_acc, late, acc), _ = lax.scan(step, (cols, col_acc, late, acc), (places, jnp.roll(places, 1)))
    return acc, send_off(col_acc, late, n - 1)  # the last hop brings the results home


def _onward(tree: Tree, axes: tuple[str, ...], hops: list[tuple[int, int]]) -> Tree:
    """Everything one hop on. Arrays of one number per item go together: small messages cost their latency."""
    leaves, shape = jax.tree.flatten(tree)
    parcels = defaultdict(list)
    for i, x in enumerate(leaves):
        parcels[(x.shape, x.dtype) if x.ndim == 1 else i].append(i)
    arrived = dict()
    for members in parcels.values():
        if len(members) == 1:
            arrived[members[0]] = lax.ppermute(leaves[members[0]], axes, hops)
        else:
            arrived |= zip(members, lax.ppermute(jnp.stack([leaves[i] for i in members]), axes, hops))
    return jax.tree.unflatten(shape, [arrived[i] for i in range(len(leaves))])


def _cut(tree: Tree, tile: int) -> Tree:
    """[b,…] into [n,t,…] with the largest t up to ``tile`` that divides b: slow where b is large and prime."""
    b = jax.tree.leaves(tree)[0].shape[0]
    t = max(t for t in range(1, min(tile, b) + 1) if b % t == 0)
    return jax.tree.map(lambda x: rearrange(x, '(n t) ... -> n t ...', t=t), tree)


def _paste(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: rearrange(x, 'n t ... -> (n t) ...'), tree)


def _count(tiles: Tree) -> int:
    return jax.tree.leaves(tiles)[0].shape[0]


def _at(tiles: Tree, i) -> Tree:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tiles)


def _put(tiles: Tree, tile: Tree, i) -> Tree:
    return jax.tree.map(lambda x, new: lax.dynamic_update_index_in_dim(x, new, i, 0), tiles, tile)
