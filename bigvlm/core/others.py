"""Log-sum-exp of an example's logits with all *other* examples of the global batch: the denominators of LOOB and MP-NCE.

Streamed over tiles of pairs (``exchange.reduce_pairs``) with its own gradient: no array of B×B or b×b elements exists.
An example may have several vectors (views), and each pair of a row's and a column's kind of vector its own scale and
offset. Global arrays, the mesh of the context, products and sums as in ``core/pairwise.py``.

Shapes: B global batch, b one shard's part, V and W vectors of a row's and of a column's example, D width; r, c rows and
columns of a tile.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bigvlm.core.exchange import SUM, on_shards, reduce_pairs
from bigvlm.core.streaming import SOFT, Plan, ids, plan, soft


def logsumexp_of_others(rows_BVD: jax.Array, cols_BWD: jax.Array, scale_VW: jax.Array | float,
                        offset_VW: jax.Array | float = 0., **options: Any) -> jax.Array:
    """log Σ_{j≠i} Σ_w exp(scale_vw · row_iv·col_jw + offset_vw), float32 [B, V] (float64 for float64).

    Differentiable in all four. ``options``: exchange, tile, dtype, wire, gather_budget of ``streaming.plan``; with V or W
    vectors per example a tile has that many times fewer examples.
    Raises RecipeError for impossible options, ValueError for shapes that do not fit and for a batch of one example.
    """
    if rows_BVD.ndim != 3 or cols_BWD.ndim != 3 or rows_BVD.shape[0] < 2:
        raise ValueError(f'rows and columns must be [B, V, D] and [B, W, D] with B > 1; found {rows_BVD.shape}, {cols_BWD.shape}')
    how, shape = plan(rows_BVD, cols_BWD, **options), (rows_BVD.shape[1], cols_BWD.shape[1])
    scale_VW, offset_VW = (jnp.broadcast_to(how.scalar(x), shape) for x in (scale_VW, offset_VW))
    return _others(how, rows_BVD, cols_BWD, scale_VW, offset_VW)


def _logits(how: Plan, rows, cols, scalars):
    """(similarities, logits, whether they are of one example) of a tile, all [r, V, c, W] or broadcast to it."""
    (x_rVD, row_id), (y_cWD, col_id), (scale_VW, offset_VW) = rows, cols, scalars
    sim_rVcW = how.product('rvd,cwd->rvcw', x_rVD, y_cWD)
    same = row_id[:, None, None, None] == col_id[None, None, :, None]
    return sim_rVcW, scale_VW[:, None] * sim_rVcW + offset_VW[:, None], same


def _forward(how: Plan, items, scalars):
    def tile(rows, cols):
        _, l_rVcW, same = _logits(how, rows, cols, scalars)
        return soft(jnp.where(same, -jnp.inf, l_rVcW), (2, 3)), ()

    (x, row_id), (y, col_id) = items
    part, _ = reduce_pairs(tile, (how.travelling(x), row_id), (how.travelling(y), col_id), SOFT, how.way)
    return part.log_sum_exp, ()


def _backward(how: Plan, items, scalars):
    """(∂/∂(rows, columns) [b, ·, D], ∂/∂(scale, offset) [V, W]) of Σ cotangent · log-sum-exp."""
    scale_VW, _ = scalars

    def tile(row, col):
        rows, (lse_rV, ct_rV) = row
        sim_rVcW, l_rVcW, same = _logits(how, rows, col, scalars)
        p_rVcW = jnp.where(same, 0., jnp.exp(l_rVcW - lse_rV[..., None, None])) * ct_rV[..., None, None]
        g_rVcW = scale_VW[:, None] * p_rVcW
        to_rows = (how.product('rvcw,cwd->rvd', g_rVcW, col[0]), (p_rVcW * sim_rVcW).sum(2), p_rVcW.sum(2))
        return to_rows, how.product('rvcw,rvd->cwd', g_rVcW, rows[0])

    ((x, row_id), known), (y, col_id) = items
    (dx, dscale, doffset), dy = reduce_pairs(tile, ((how.travelling(x), row_id), known), (how.travelling(y), col_id), SUM, how.way)
    return (dx.astype(x.dtype), dy.astype(y.dtype)), (how.total(dscale), how.total(doffset))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _others(how: Plan, rows, cols, scale, offset):
    return _fwd(how, rows, cols, scale, offset)[0]


def _fwd(how, rows, cols, scale, offset):
    items = (rows, ids(len(rows))), (cols, ids(len(cols)))
    lse_BV, _ = on_shards(partial(_forward, how), how.way.axes)(items, (scale, offset))
    return lse_BV, (rows, cols, scale, offset, lse_BV)


def _bwd(how, saved, ct_BV):
    rows, cols, scale, offset, lse_BV = saved
    items = ((rows, ids(len(rows))), (lse_BV, ct_BV)), (cols, ids(len(cols)))
    (drows, dcols), (dscale, doffset) = on_shards(partial(_backward, how), how.way.axes)(items, (scale, offset))
    return drows, dcols, dscale, doffset


_others.defvjp(_fwd, _bwd)
