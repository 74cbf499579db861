"""The sigmoid loss over all pairs (see ``pairwise``): a sum over pairs, so one pass gives the loss and its gradients.

Shapes: B global batch, b one shard's part, D width; r, c rows and columns of a tile.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import GATHER_BUDGET, SUM, on_shards, reduce_pairs, total
from bigvlm.core.pairs import Items, Plan, Target, identity, make_items, make_plan, matmul, targets, travelling


def sigmoid(rows_BD: jax.Array, cols_BD: jax.Array, scale: jax.Array | float, bias: jax.Array | float, *,
            target: Target = identity, rows_side: Any = None, cols_side: Any = None, exchange: str = 'auto',
            tile: int = 1024, dtype: Any = None, wire: str | None = None, gather_budget: int = GATHER_BUDGET
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-1/B Σi Σj log σ(m_ij (scale·x_i·y_j + bias)), m = +1 where ``target`` > 0, else -1 (SigLIP, arXiv 2303.15343).

    Metrics, without gradient: ``positive`` and ``negative``, the mean logit of positive and of negative pairs (0 if there
    are none); ``loss_B``, each row's sum over the columns, -Σj log σ(m_ij (scale·x_i·y_j + bias)), whose mean is the loss.
    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    plan = make_plan(rows_BD, cols_BD, target, exchange, tile, dtype, wire, gather_budget)
    loss, positive, negative, loss_B = _sigmoid(plan, *make_items(rows_BD, cols_BD, rows_side, cols_side),
                                                jnp.asarray(scale, plan.sum_dtype), jnp.asarray(bias, plan.sum_dtype))
    return loss, lax.stop_gradient({'positive': positive, 'negative': negative, 'loss_B': loss_B})

class Sums(NamedTuple):
    """Sums over the pairs of one row, all [·]."""
    loss: jax.Array
    positive: jax.Array    # logits of the positive pairs
    positives: jax.Array   # their number
    negative: jax.Array
    negatives: jax.Array


def _sigmoid_pass(plan: Plan, items, scalars, *, with_grads: bool):
    """((each row's loss, (drows, dcols)), ((loss, mean positive logit, mean negative logit), (dscale, dbias))); without
    gradients there is nothing in their places."""
    scale, bias = scalars

    def tile(rows: Items, cols: Items):
        sim_rc = matmul('rd,cd->rc', rows.x, cols.x, plan)
        l_rc = scale * sim_rc + bias
        positive = targets(rows, cols, plan) > 0
        sign = jnp.where(positive, 1., -1.).astype(plan.sum_dtype)
        sums = Sums(jax.nn.softplus(-sign * l_rc).sum(1),
                    jnp.where(positive, l_rc, 0.).sum(1), positive.sum(1).astype(plan.sum_dtype),
                    jnp.where(positive, 0., l_rc).sum(1), (~positive).sum(1).astype(plan.sum_dtype))
        if not with_grads:
            return (sums, ()), ()
        g_rc = -sign * jax.nn.sigmoid(-sign * l_rc)  # B ∂loss/∂l
        to_rows = matmul('rc,cd->rd', g_rc, cols.x, plan), (g_rc * sim_rc).sum(1), g_rc.sum(1)
        return (sums, to_rows), matmul('rc,rd->cd', g_rc, rows.x, plan)

    rows, cols = items
    (sums_b, to_rows), dcols = reduce_pairs(tile, travelling(rows, plan), travelling(cols, plan), SUM, plan.way)
    sums = jax.tree.map(lambda x: total(x, plan.way.axes), sums_b)
    values = (sums.loss / plan.batch, sums.positive / jnp.maximum(sums.positives, 1.),
              sums.negative / jnp.maximum(sums.negatives, 1.))
    if not with_grads:
        return (sums_b.loss, ()), (values, ())
    drows, dscale, dbias = to_rows
    to_x = scale / plan.batch
    to_both = (to_x * drows).astype(rows.x.dtype), (to_x * dcols).astype(cols.x.dtype)
    return (sums_b.loss, to_both), (values, tuple(total(x, plan.way.axes) / plan.batch for x in (dscale, dbias)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid(plan: Plan, rows: Items, cols: Items, scale, bias):
    only_value = partial(_sigmoid_pass, plan, with_grads=False)
    (loss_B, _), (values, _) = on_shards(only_value, plan.way.axes)((rows, cols), (scale, bias))
    return *values, loss_B


def _sigmoid_fwd(plan, rows, cols, scale, bias):
    both = partial(_sigmoid_pass, plan, with_grads=True)
    (loss_B, to_x), (values, to_scalars) = on_shards(both, plan.way.axes)((rows, cols), (scale, bias))
    return (*values, loss_B), (to_x, to_scalars)


def _sigmoid_bwd(plan, saved, cotangent):
    ct = cotangent[0]  # of the loss; metrics have no gradient
    (drows, dcols), (dscale, dbias) = saved
    return (Items((ct * drows).astype(drows.dtype), None, None), Items((ct * dcols).astype(dcols.dtype), None, None),
            ct * dscale, ct * dbias)


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)
