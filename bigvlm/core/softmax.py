"""Cross-entropy over all pairs (see ``pairwise``): a statistics pass over tiles, and another that makes the gradients.

Statistics and gradients are made per direction: rows look at columns, columns at rows, and each perhaps at further keys.

Shapes: B global batch, b one shard's part, D width; K further keys, Q batches of them; r, c rows and columns of a tile.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import GATHER_BUDGET, SUM, Monoid, on_shards, reduce_pairs, total
from bigvlm.core.pairs import (Items, Keys, Plan, Target, counted, further_items, identity, in_a_row, make_items, make_plan, matmul,
                               some, targets, travelling)
from bigvlm.core.parts import RecipeError

DIRECTIONS = {'both': (True, True), 'rows': (True, False), 'cols': (False, True)}
ROWS, COLS = 1, 0  # a direction is the axis of a tile over which one row, or one column, sums


def softmax(rows_BD: jax.Array, cols_BD: jax.Array, scale: jax.Array | float, *, target: Target = identity,
            rows_side: Any = None, cols_side: Any = None, smoothing: float | jax.Array = 0., exchange: str = 'auto',
            tile: int = 1024, dtype: Any = None, wire: str | None = None, gather_budget: int = GATHER_BUDGET,
            directions: str = 'both', exclude: Target | None = None, more_cols: Keys | None = None, more_rows: Keys | None = None
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Symmetric cross-entropy of ``scale * rows @ cols.T``: ½(mean over rows + mean over columns).

    A row's target distribution is (1-ε)·q/Σq + ε/C with q = ``target``, ε = ``smoothing`` and C the number of columns that
    count for it (B, if nothing below is given); a column's likewise over its rows (with ``equal_labels`` this is UniCL,
    arXiv 2204.03610: weights 1/|P(i)|, both directions). Sides are pytrees of arrays [B,…].

    Args:
        smoothing: a number, or one per example [B] for its row and its column, without gradient.
        directions: 'both'; 'rows': only rows look at columns, the loss is the mean over rows; 'cols': the other way round.
        exclude: a function like ``target`` that is true for pairs that do not count at all, in either direction.
        more_cols: further columns, for rows only; ``more_rows``: further rows, for columns only.

    Metrics, without gradient: ``accuracy``, how often some positive beats every negative, averaged over the directions;
    ``loss_B``, each example's part of the loss, ½(cross-entropy of its row + of its column), or that of the one direction,
    whose mean is the loss.
    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    if directions not in DIRECTIONS:
        raise RecipeError(f'directions: found {directions!r}; valid: {", ".join(DIRECTIONS)}')
    more = more_cols, more_rows
    for looks, name, keys in zip(DIRECTIONS[directions], ('more_cols', 'more_rows'), more):
        _check_keys(name, keys, rows_BD, looks)
    plan = make_plan(rows_BD, cols_BD, target, exchange, tile, dtype, wire, gather_budget,
                     sum(keys.x.size // keys.x.shape[-1] for keys in more if keys is not None))
    masked = exclude is not None or any(keys is not None for keys in more)
    plan = plan._replace(exclude=exclude, directions=DIRECTIONS[directions], masked=masked)
    smoothing_B = None
    if isinstance(smoothing, (int, float)):
        check_smoothing(smoothing)
        plan = plan._replace(smoothing=smoothing)
    else:
        if smoothing.shape != rows_BD.shape[:1]:
            raise ValueError(f'smoothing must be a number or [B]; found {smoothing.shape} for {rows_BD.shape[0]} examples')
        smoothing_B = lax.stop_gradient(smoothing).astype(plan.sum_dtype)
    loss, accuracy, loss_B = _softmax(plan, *make_items(rows_BD, cols_BD, rows_side, cols_side), jnp.asarray(scale, plan.sum_dtype),
                                      smoothing_B, tuple(None if keys is None else further_items(keys) for keys in more))
    return loss, lax.stop_gradient({'accuracy': accuracy, 'loss_B': loss_B})


def check_smoothing(smoothing: float) -> None:
    if not 0. <= smoothing < 1.:
        raise RecipeError(f'smoothing: found {smoothing}; valid: 0 <= smoothing < 1')


def _check_keys(name: str, keys: Keys | None, rows_BD: jax.Array, looks: bool) -> None:
    if keys is None:
        return
    if not looks:
        raise ValueError(f'{name}: nothing looks at them; directions leaves that one out')
    if keys.x.ndim not in (2, 3) or keys.x.shape[-1] != rows_BD.shape[-1]:
        raise ValueError(f'{name}: keys must be [K, D] or [Q, B, D]; found {keys.x.shape} for rows {rows_BD.shape}')


class Stats(NamedTuple):
    """What cross-entropy needs to know of one row (or column) of logits l with targets q; all [·]."""
    positive: jax.Array   # max of l where q > 0
    negative: jax.Array   # max of l elsewhere
    exp: jax.Array        # Σ exp(l - max l)
    weight: jax.Array     # Σ q
    hit: jax.Array        # Σ q l
    logits: jax.Array     # Σ l
    count: Any = None     # how many l count; None: all there are

    @property
    def shift(self) -> jax.Array:
        """max l; 0 where there is no logit yet, to keep differences of infinities away."""
        largest = jnp.maximum(self.positive, self.negative)
        return jnp.where(jnp.isneginf(largest), 0., largest)


class Norms(NamedTuple):
    """What the backward pass needs to know of one row (or column); both [·]."""
    log_sum_exp: jax.Array
    weight: jax.Array


def norms_of(stats: Stats) -> Norms:
    return Norms(stats.shift + jnp.log(stats.exp), stats.weight)


def tile_stats(l_rc: jax.Array, q_rc: jax.Array, axis: int, keep_rc: jax.Array | None = None) -> Stats:
    """Of the rows of a tile (``axis`` 1) or of its columns (``axis`` 0), to be merged by ``STATS``; of pairs that ``keep_rc`` keeps."""
    count, seen_rc, shift = None, l_rc, l_rc.max(axis, keepdims=True)
    if keep_rc is not None:
        count = keep_rc.sum(axis).astype(l_rc.dtype)
        q_rc, seen_rc, l_rc = jnp.where(keep_rc, q_rc, 0.), jnp.where(keep_rc, l_rc, -jnp.inf), jnp.where(keep_rc, l_rc, 0.)
        largest = seen_rc.max(axis, keepdims=True)
        shift = jnp.where(jnp.isneginf(largest), 0., largest)
    return Stats(positive=jnp.where(q_rc > 0, seen_rc, -jnp.inf).max(axis),
                 negative=jnp.where(q_rc > 0, -jnp.inf, seen_rc).max(axis),
                 exp=jnp.exp(seen_rc - shift).sum(axis), weight=q_rc.sum(axis), hit=(q_rc * l_rc).sum(axis),
                 logits=l_rc.sum(axis), count=count)


def _empty_stats(shapes: Stats) -> Stats:
    return SUM.empty(shapes)._replace(**{k: jnp.full(s.shape, -jnp.inf, s.dtype) for k, s in
                                         (('positive', shapes.positive), ('negative', shapes.negative))})


def _merge_stats(a: Stats, b: Stats) -> Stats:
    both = SUM.merge(a, b)._replace(positive=jnp.maximum(a.positive, b.positive),
                                    negative=jnp.maximum(a.negative, b.negative))
    def rescaled(s):  # the shift of nothing, 0, may be above the other's: its exponential could overflow, and 0·inf is no number
        return s.exp * jnp.exp(jnp.minimum(s.shift - both.shift, 0.))
    return both._replace(exp=rescaled(a) + rescaled(b))


STATS = Monoid(_empty_stats, _merge_stats)
_SOME = some(STATS)


def logit_gradient(l_rc: jax.Array, q_rc: jax.Array, norms: Norms, axis: int, smoothing: float | jax.Array, count: int | jax.Array
                   ) -> jax.Array:
    """∂(Σ of the cross-entropies of rows, ``axis`` 1, or columns, 0)/∂l_rc; ``count``: of logits that each is over.

    ``smoothing`` and ``count`` are numbers, or one per row (or column).
    """
    log_sum_exp, weight = (jnp.expand_dims(x, axis) for x in norms)
    smoothing, count = (jnp.expand_dims(x, axis) if jnp.ndim(x) else x for x in (smoothing, count))
    return jnp.exp(l_rc - log_sum_exp) - (1 - smoothing) * q_rc / weight - smoothing / count


class Known(NamedTuple):
    """What is known of one row (or column) after the forward pass, all [·]; None where it is the plan's for all."""
    norms: Norms
    smoothing: Any
    count: Any


def _parts(rows: Items, cols: Items, scale, plan: Plan):
    """Of a tile: similarities, logits, targets, and which pairs count (None: all)."""
    sim_rc = matmul('rd,cd->rc', rows.x, cols.x, plan)
    return sim_rc, scale * sim_rc, targets(rows, cols, plan), counted(rows, cols, plan)


def _forward(plan: Plan, items, scale):
    """((what the backward pass needs to know of rows and columns, the loss of each example), (loss, accuracy))."""
    rows, cols, smoothing_b, more = items
    rows, cols = travelling(rows, plan), travelling(cols, plan)

    def stats_of(axis, rows, cols):
        _, l_rc, q_rc, keep_rc = _parts(rows, cols, scale, plan)
        return tile_stats(l_rc, q_rc, axis, keep_rc)

    def tile(rows, cols):
        return tuple((stats_of(axis, rows, cols),) if looks else () for axis, looks in zip((ROWS, COLS), plan.directions))

    def known(stats):
        return Known(norms_of(stats), smoothing_b, stats.count)

    def cross_entropy(s: Stats):
        # Targets sum to one, so the log-sum-exp comes out of the sum over pairs.
        smoothing, count = _spread(plan, known(s))
        return known(s).norms.log_sum_exp - ((1 - smoothing) * s.hit / s.weight + smoothing / count * s.logits)

    stats = list(reduce_pairs(tile, rows, cols, _SOME, plan.way))
    for i, (axis, own, keys) in enumerate(zip((ROWS, COLS), (rows, cols), more)):
        if keys is not None:
            # Those that travel are the batch's; keys, which may be many more, stay.
            part = reduce_pairs(lambda keys, own, axis=axis: ((), (stats_of(axis, *_ordered(axis, own, keys)),)),
                                travelling(in_a_row(keys), plan), own, _SOME, plan.way)[1]
            stats[i] = _SOME.merge(stats[i], part)
    found = [s for part in stats for s in part]
    loss_b = sum(map(cross_entropy, found))
    won_b = sum((s.positive > s.negative).astype(plan.sum_dtype) for s in found)
    values = tuple(total(x, plan.way.axes) / (len(found) * plan.batch) for x in (loss_b, won_b))
    return (tuple(known(*part) if part else None for part in stats), loss_b / len(found)), values


def _spread(plan: Plan, known: Known):
    """(smoothing, over how many): numbers, or one per row (or column)."""
    return (plan.smoothing if known.smoothing is None else known.smoothing), (plan.batch if known.count is None else known.count)


def _ordered(axis, own, keys):
    """(rows, columns) of a direction's own items and their further keys."""
    return (own, keys) if axis == ROWS else (keys, own)


def _backward(plan: Plan, items, scale):
    """∂loss/∂(rows, columns) [b,D] and ∂loss/∂scale, for a cotangent of one."""
    (rows, row_known), (cols, col_known), more = items
    row, col = (travelling(rows, plan), row_known), (travelling(cols, plan), col_known)

    def gradient_of(rows, cols, knowns):
        """(similarities, number of terms · ∂loss/∂logits) of a tile; ``knowns``: of rows and of columns, None if they do not look."""
        sim_rc, l_rc, q_rc, keep_rc = _parts(rows, cols, scale, plan)
        g_rc = sum(logit_gradient(l_rc, q_rc, known.norms, axis, *_spread(plan, known))
                   for axis, known in zip((ROWS, COLS), knowns) if known is not None)
        return sim_rc, g_rc if keep_rc is None else jnp.where(keep_rc, g_rc, 0.)

    def tile(row, col):
        (rows, row_known), (cols, col_known) = row, col
        sim_rc, g_rc = gradient_of(rows, cols, (row_known, col_known))
        return ((matmul('rc,cd->rd', g_rc, cols.x, plan), (g_rc * sim_rc).sum(1)),
                matmul('rc,rd->cd', g_rc, rows.x, plan))

    def key_tile(axis, keys, own):
        own, known = own
        sim_rc, g_rc = gradient_of(*_ordered(axis, own, keys), (known, None) if axis == ROWS else (None, known))
        spec = 'ok,kd->od' if axis == ROWS else 'ko,kd->od'
        return (), (matmul(spec, g_rc, keys.x, plan), (g_rc * sim_rc).sum(axis))

    (drows, dscale), dcols = reduce_pairs(tile, row, col, SUM, plan.way)
    found = {ROWS: drows, COLS: dcols}
    for axis, own, keys in zip((ROWS, COLS), (row, col), more):
        if keys is not None:
            _, (down, dscale_b) = reduce_pairs(partial(key_tile, axis), travelling(in_a_row(keys), plan), own, SUM, plan.way)
            found[axis], dscale = found[axis] + down, dscale + dscale_b
    terms = sum(plan.directions) * plan.batch
    to_x = scale / terms
    return (to_x * found[ROWS], to_x * found[COLS]), total(dscale, plan.way.axes) / terms


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(plan: Plan, rows: Items, cols: Items, scale, smoothing_B, more):
    return _softmax_fwd(plan, rows, cols, scale, smoothing_B, more)[0]


def _softmax_fwd(plan, rows, cols, scale, smoothing_B, more):
    (knowns, loss_B), values = on_shards(partial(_forward, plan), plan.way.axes)((rows, cols, smoothing_B, more), scale)
    return (*values, loss_B), (rows, cols, scale, more, knowns)


def _softmax_bwd(plan, saved, cotangent):
    rows, cols, scale, more, (row_known, col_known) = saved
    items = (rows, row_known), (cols, col_known), more
    (drows, dcols), dscale = on_shards(partial(_backward, plan), plan.way.axes)(items, scale)
    ct = cotangent[0]  # of the loss; metrics have no gradient
    return (Items((ct * drows).astype(rows.x.dtype), None, None),
            Items((ct * dcols).astype(cols.x.dtype), None, None), ct * dscale, None, None)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)
