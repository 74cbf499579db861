"""Retrieval from a modern Hopfield network whose store is the global batch: softmax attention, streamed.

For CLOOB (arXiv 2110.11316; the network: arXiv 2008.02217, one step of its update). It works like flash attention (arXiv
2205.14135) across devices: running maximum, sum and weighted sum per state, tiles recomputed in the backward pass, no
array of B×B or b×b elements. Global arrays, the mesh of the context, products and sums as in ``core/pairwise.py``.

Shapes: B global batch, b one shard's part, S states of an example, D width; r, c rows and columns of a tile.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bigvlm.core.exchange import SUM, on_shards, reduce_pairs
from bigvlm.core.streaming import SOFT, Plan, plan, soft


def retrieve(states_BSD: jax.Array, stored_BD: jax.Array, beta: jax.Array | float, **options: Any) -> jax.Array:
    """Σ_j softmax_j(beta · state_is · stored_j) stored_j, float32 [B, S, D] (float64 for float64).

    Differentiable in all three; B is the number of patterns stored, too. ``options``: exchange, tile, dtype, wire,
    gather_budget of ``streaming.plan``. Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    if states_BSD.ndim != 3 or stored_BD.ndim != 2:
        raise ValueError(f'states and stored patterns must be [B, S, D] and [B, D]; found {states_BSD.shape}, {stored_BD.shape}')
    how = plan(states_BSD, stored_BD, **options)
    return _retrieve(how, states_BSD, stored_BD, how.scalar(beta))


def _forward(how: Plan, items, beta):
    states, stored = items

    def tile(x_rSD, y_cD):
        l_rSc = beta * how.product('rsd,cd->rsc', x_rSD, y_cD)
        return soft(l_rSc, 2, lambda weight_rSc: how.product('rsc,cd->rsd', weight_rSc, y_cD)), ()

    part, _ = reduce_pairs(tile, how.travelling(states), how.travelling(stored), SOFT, how.way)
    return (part.means, part.log_sum_exp), ()


def _backward(how: Plan, items, beta):
    """(∂/∂(states, stored), ∂/∂beta) of Σ cotangent · retrieved."""
    def tile(row, y_cD):
        x_rSD, lse_rS, ct_rSD, mean_rS = row  # mean: of what weights' cotangents are, under the weights
        sim_rSc = how.product('rsd,cd->rsc', x_rSD, y_cD)
        p_rSc = jnp.exp(beta * sim_rSc - lse_rS[..., None])
        g_rSc = p_rSc * (how.product('rsd,cd->rsc', ct_rSD, y_cD) - mean_rS[..., None])  # ∂/∂logits
        to_rows = beta * how.product('rsc,cd->rsd', g_rSc, y_cD), (g_rSc * sim_rSc).sum((1, 2))
        return to_rows, beta * how.product('rsc,rsd->cd', g_rSc, x_rSD) + how.product('rsc,rsd->cd', p_rSc, ct_rSD)

    states, stored, lse, retrieved, ct = items
    row = how.travelling(states), lse, ct, (ct * retrieved).sum(-1)
    (dstates, dbeta), dstored = reduce_pairs(tile, row, how.travelling(stored), SUM, how.way)
    return (dstates.astype(states.dtype), dstored.astype(stored.dtype)), how.total(dbeta)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _retrieve(how: Plan, states, stored, beta):
    return _fwd(how, states, stored, beta)[0]


def _fwd(how, states, stored, beta):
    (retrieved, lse), _ = on_shards(partial(_forward, how), how.way.axes)((states, stored), beta)
    return retrieved, (states, stored, beta, lse, retrieved)


def _bwd(how, saved, ct):
    states, stored, beta, lse, retrieved = saved
    items = states, stored, lse, retrieved, ct
    (dstates, dstored), dbeta = on_shards(partial(_backward, how), how.way.axes)(items, beta)
    return dstates, dstored, dbeta


_retrieve.defvjp(_fwd, _bwd)
