"""Token-wise late interaction (FILIP, arXiv 2111.07783, eq. 3-5): softmax contrast of two matrices of token-wise maxima.

    s_I(i, j) = mean over image i's tokens k of max over text j's tokens t of x_ik · y_jt        logits of the rows
    s_T(i, j) = mean over text j's tokens t of max over image i's tokens k of x_ik · y_jt        logits of the columns

Only real tokens count, in the means and in the maxima. The loss is ½(cross-entropy of the rows of scale·s_I + of the columns
of scale·s_T), streamed over tiles of pairs as in ``pairwise``: a tile's similarities are made, reduced to two numbers a pair,
and made again for the gradients. Forward and backward take four products of all tokens, one and three, and nothing is kept of
a pair in between.

Of tokens that share the largest similarity each gets an equal part of the maximum's gradient, as from ``jnp.max``. An example
without a real token counts with all of its tokens: the maximum of none is no number.

Shapes: B global batch, D width; n tokens of a row, m of a column; in a tile r rows, c columns, k and t their tokens.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import SUM, check, on_shards, reduce_pairs, route, total
from bigvlm.core.pairs import Plan, Target, identity, matmul, targets, travelling
from bigvlm.core.softmax import STATS, Norms, Stats, check_smoothing, logit_gradient, norms_of, tile_stats

BLOCK_BYTES = 64 * 2**20  # of the similarities of one tile: half of a v5e's vector memory, where its compiler keeps them


class Tokens(NamedTuple):
    """One side of the pairs."""
    x: jax.Array                # [·, tokens, D]
    share: jax.Array | None     # [·, tokens]: of a token in its example's mean, 0 for padding; None: all are real
    side: Any                   # arrays for the targets [·, …]
    id: jax.Array               # indices in the global batch [·]


def softmax(rows_BnD: jax.Array, cols_BmD: jax.Array, scale: jax.Array | float, *, rows_mask: jax.Array | None = None,
            cols_mask: jax.Array | None = None, target: Target = identity, rows_side: Any = None, cols_side: Any = None,
            smoothing: float = 0., exchange: str = 'auto', tile: int | None = None, dtype: Any = None, wire: str | None = None
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """½(mean over rows + mean over columns) of cross-entropies; the file's head has the logits, ``pairwise.softmax`` the rest.

    ``rows_mask`` [B, n] and ``cols_mask`` [B, m] are True for real tokens; None: all are. Widths of tokens are any; unit norm is
    the caller's. ``tile``: examples per side of a tile; None takes what keeps a tile's similarities below ``BLOCK_BYTES``.
    ``exchange='auto'`` is the ring: gathering makes the products of each direction apart, six in place of four, and holds all
    tokens. Metrics, without gradient: ``accuracy`` and ``loss_B``, as of ``pairwise.softmax``.
    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    check_smoothing(smoothing)
    _check_shapes(rows_BnD, cols_BmD, rows_mask, cols_mask)
    tile = default_tile(rows_BnD.shape[1], cols_BmD.shape[1]) if tile is None else tile
    check(exchange, tile, wire)
    plan = _plan(rows_BnD, cols_BmD, dtype)
    plan = plan._replace(target=target, smoothing=smoothing, wire=jnp.dtype(wire or plan.dtype), way=route(
        plan.batch, rows_BnD.shape[2], plan.dtype, exchange='ring' if exchange == 'auto' else exchange, tile=tile))
    ids_B = jnp.arange(plan.batch, dtype=jnp.int32)
    rows = Tokens(rows_BnD, _shares(rows_mask, plan.sum_dtype), rows_side, ids_B)
    cols = Tokens(cols_BmD, _shares(cols_mask, plan.sum_dtype), cols_side, ids_B)
    loss, accuracy, loss_B = _softmax(plan, rows, cols, jnp.asarray(scale, plan.sum_dtype))
    return loss, lax.stop_gradient({'accuracy': accuracy, 'loss_B': loss_B})


def scores(rows_MnD: jax.Array, cols_NmD: jax.Array, rows_mask: jax.Array | None = None, cols_mask: jax.Array | None = None
           ) -> tuple[jax.Array, jax.Array]:
    """(s_I, s_T), both [M, N], on one device; of no more pairs at once than a tile of the loss has."""
    plan = _plan(rows_MnD, cols_NmD, None)
    rows, cols = (Tokens(x, _shares(mask, plan.sum_dtype), None, None)
                  for x, mask in ((rows_MnD, rows_mask), (cols_NmD, cols_mask)))

    def against_all(row):
        def pair(col):
            row_1, col_1 = jax.tree.map(lambda x: x[None], (row, col))
            return tuple(mean_11[0, 0] for mean_11 in _interact(row_1, col_1, plan).means)
        return lax.map(pair, cols, batch_size=default_tile(rows_MnD.shape[1], cols_NmD.shape[1]) ** 2)
    return lax.map(against_all, rows)


def _plan(rows, cols, dtype) -> Plan:
    """What follows from the arrays alone."""
    input_dtype = jnp.promote_types(rows.dtype, cols.dtype)
    dtype = jnp.dtype(dtype or input_dtype)
    return Plan(None, rows.shape[0], dtype, dtype, jnp.promote_types(jnp.float32, input_dtype), identity)


def default_tile(n: int, m: int) -> int:
    """Examples per side whose n × m float32 similarities a pair stay below BLOCK_BYTES together; at least 1."""
    return max(1, int((BLOCK_BYTES / (4 * n * m)) ** .5))


def _check_shapes(rows_BnD, cols_BmD, rows_mask, cols_mask) -> None:
    (*rows, width), (*cols, other) = rows_BnD.shape, cols_BmD.shape
    if len(rows) != 2 or len(cols) != 2 or rows[0] != cols[0] or width != other:
        raise ValueError(f'rows must be [B, n, D] and columns [B, m, D]; found {rows_BnD.shape} and {cols_BmD.shape}')
    for mask, shape in ((rows_mask, rows), (cols_mask, cols)):
        if mask is not None and list(mask.shape) != shape:
            raise ValueError(f'a mask must be {shape}, True for real tokens; found {mask.shape}')


def _shares(mask, dtype) -> jax.Array | None:
    if mask is None:
        return None
    real = mask | ~mask.any(1, keepdims=True)
    return real.astype(dtype) / real.sum(1, keepdims=True).astype(dtype)


class Interaction(NamedTuple):
    """The similarities of a tile's tokens, and their maxima: over columns' tokens and over rows' tokens."""
    over_cols: tuple[jax.Array, jax.Array]   # padding of columns at -inf [k,r,t,c], max over t [k,r,c]
    over_rows: tuple[jax.Array, jax.Array]   # padding of rows at -inf [k,r,t,c], max over k [r,t,c]
    means: tuple[jax.Array, jax.Array]       # s_I, s_T [r,c]


def _interact(rows: Tokens, cols: Tokens, plan: Plan) -> Interaction:
    """Tokens lead and columns come last, so that both maxima are elementwise over whole vectors of pairs."""
    sim_krtc = matmul('rkd,ctd->krtc', rows.x, cols.x, plan)
    by_t = sim_krtc if cols.share is None else jnp.where(cols.share.T > 0, sim_krtc, -jnp.inf)
    by_k = sim_krtc if rows.share is None else jnp.where(rows.share.T[:, :, None, None] > 0, sim_krtc, -jnp.inf)
    best_krc, best_rtc = by_t.max(2), by_k.max(0)
    mean_I = best_krc.mean(0) if rows.share is None else (best_krc * rows.share.T[:, :, None]).sum(0)
    mean_T = best_rtc.mean(1) if cols.share is None else (best_rtc * cols.share.T).sum(1)
    return Interaction((by_t, best_krc), (by_k, best_rtc), (mean_I, mean_T))


def _pull_back(found: Interaction, rows: Tokens, cols: Tokens, g_I_rc, g_T_rc, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Σ g_I·s_I + g_T·s_T differentiated by the tokens of the rows [r,k,D] and of the columns [c,t,D]."""
    (by_t, best_krc), (by_k, best_rtc) = found.over_cols, found.over_rows
    n, _, m, _ = by_t.shape
    share_kr1 = 1 / n if rows.share is None else rows.share.T[:, :, None]
    share_tc = 1 / m if cols.share is None else cols.share.T
    wins_t, wins_k = by_t == best_krc[:, :, None], by_k == best_rtc
    to_krc = share_kr1 * g_I_rc / wins_t.sum(2).astype(plan.sum_dtype)
    to_rtc = share_tc * g_T_rc[:, None] / wins_k.sum(0).astype(plan.sum_dtype)
    g_krtc = (jnp.where(wins_t, to_krc[:, :, None], 0.) + jnp.where(wins_k, to_rtc, 0.)).astype(plan.dtype)
    return matmul('krtc,ctd->rkd', g_krtc, cols.x, plan), matmul('krtc,rkd->ctd', g_krtc, rows.x, plan)


def _forward(plan: Plan, items, scale):
    """((what the backward pass needs to know of rows and columns, the loss of each example), (loss, accuracy))."""
    def tile(rows: Tokens, cols: Tokens):
        q_rc = targets(rows, cols, plan)
        mean_I, mean_T = _interact(rows, cols, plan).means
        return tile_stats(scale * mean_I, q_rc, 1), tile_stats(scale * mean_T, q_rc, 0)

    def cross_entropy(s: Stats, norms: Norms):
        expected = (1 - plan.smoothing) * s.hit / s.weight + plan.smoothing / plan.batch * s.logits
        return norms.log_sum_exp - expected

    rows, cols = items
    stats = reduce_pairs(tile, travelling(rows, plan), travelling(cols, plan), STATS, plan.way)
    norms = tuple(map(norms_of, stats))
    loss_b = sum(map(cross_entropy, stats, norms))
    won_b = sum((s.positive > s.negative).astype(plan.sum_dtype) for s in stats)
    return (norms, loss_b / 2), tuple(total(x, plan.way.axes) / (2 * plan.batch) for x in (loss_b, won_b))


def _backward(plan: Plan, items, scale):
    """∂loss/∂(tokens of rows, of columns) and ∂loss/∂scale, for a cotangent of one."""
    def tile(row, col):
        (rows, row_norms), (cols, col_norms) = row, col
        q_rc = targets(rows, cols, plan)
        found = _interact(rows, cols, plan)
        mean_I, mean_T = found.means
        g_I = logit_gradient(scale * mean_I, q_rc, row_norms, 1, plan.smoothing, plan.batch)   # 2B ∂loss/∂l
        g_T = logit_gradient(scale * mean_T, q_rc, col_norms, 0, plan.smoothing, plan.batch)
        drows, dcols = _pull_back(found, rows, cols, g_I, g_T, plan)
        return (drows, (g_I * mean_I + g_T * mean_T).sum(1)), dcols

    (rows, row_norms), (cols, col_norms) = items
    (drows, dscale), dcols = reduce_pairs(tile, (travelling(rows, plan), row_norms),
                                          (travelling(cols, plan), col_norms), SUM, plan.way)
    to_x = scale / (2 * plan.batch)
    return (to_x * drows, to_x * dcols), total(dscale, plan.way.axes) / (2 * plan.batch)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(plan: Plan, rows: Tokens, cols: Tokens, scale):
    return _softmax_fwd(plan, rows, cols, scale)[0]


def _softmax_fwd(plan, rows, cols, scale):
    (norms, loss_B), values = on_shards(partial(_forward, plan), plan.way.axes)((rows, cols), scale)
    return (*values, loss_B), (rows, cols, scale, norms)


def _softmax_bwd(plan, saved, cotangent):
    rows, cols, scale, (row_norms, col_norms) = saved
    items = (rows, row_norms), (cols, col_norms)
    (drows, dcols), dscale = on_shards(partial(_backward, plan), plan.way.axes)(items, scale)
    ct = cotangent[0]  # of the loss; metrics have no gradient
    return (Tokens((ct * drows).astype(rows.x.dtype), None, None, None),
            Tokens((ct * dcols).astype(cols.x.dtype), None, None, None), ct * dscale)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)
