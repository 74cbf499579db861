"""Sinkhorn's algorithm: entropic optimal transport over the global batch, and balanced assignments to prototypes.

Over the batch the plan is never a matrix: it is exp(l_ij + f_i + g_j) of logits l that tiles compute anew from embeddings,
and two vectors of potentials f, g. Each half of an iteration (rows scaled to equal mass, then columns) is one pass over the
pairs in which log-sum-exps are streamed (``exchange.reduce_pairs``; by all-gather each pass gathers anew). Nothing here has a
gradient.

Shapes: B global batch, E width, K prototypes; r, c rows and columns of a tile.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import on_shards, reduce_pairs
from bigvlm.core.parts import RecipeError
from bigvlm.core.streaming import SOFT, Plan, ids, plan, soft


class Targets(NamedTuple):
    """Target distributions over the columns for each row, and over the rows for each column; all [B].

    Both follow from one unnormalised matrix q_ij = exp(l_ij + row_i + col_j), see ``weights``: normalised over columns,
    row_i drops out and q is the plan that began with rows; over rows, the one that began with columns.
    """
    row: jax.Array           # potentials of rows in the plan whose iterations begin with columns
    col: jax.Array           # potentials of columns in the plan whose iterations begin with rows
    row_entropy: jax.Array   # of each row's target distribution, in nats
    col_entropy: jax.Array


def check(iterations: int) -> None:
    """Raises RecipeError unless it is a number of iterations."""
    if not isinstance(iterations, int) or iterations < 1:
        raise RecipeError(f'iterations: found {iterations!r}; valid: an integer of at least 1')


def targets(rows_BE: jax.Array, cols_BE: jax.Array, scale: jax.Array | float, *, iterations: int,
            others_only: bool = False, **options: Any) -> Targets:
    """Row-normalised transport plans both ways, of logits l_ij = scale · rows_i·cols_j (minus cost over λ).

    As OTTER (arXiv 2112.09445): for the rows' targets ``iterations`` times [rows to mass 1/B, columns to mass 1/B], then
    rows to 1; for the columns' targets the same of the transposed logits. Both plans use the same passes, 2 · iterations,
    and one more for entropies. ``others_only``: no mass on the diagonal. ``options``: exchange, tile, dtype, wire,
    gather_budget of ``streaming.plan``. Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    check(iterations)
    if rows_BE.ndim != 2 or cols_BE.ndim != 2 or (others_only and rows_BE.shape[0] < 2):
        raise ValueError(f'rows and columns must be [B, E] both, others_only needs B > 1; found {rows_BE.shape}, {cols_BE.shape}')
    rows_BE, cols_BE, scale = lax.stop_gradient((rows_BE, cols_BE, scale))
    how = plan(rows_BE, cols_BE, **options)
    id_B, zero_B = ids(len(rows_BE)), jnp.zeros(len(rows_BE), how.sum_dtype)
    local = partial(_iterate, how, len(rows_BE), iterations, others_only)
    found, _ = on_shards(local, how.way.axes)(((rows_BE, id_B, zero_B), (cols_BE, id_B, zero_B)), how.scalar(scale))
    return lax.stop_gradient(Targets(*found))


def weights(row_side, col_side, row_id, col_id, *, scale: float, others_only: bool = False) -> jax.Array:
    """The matrix q of ``Targets`` for a tile, [r, c]: with bound options a target function for ``pairwise.softmax``.

    Sides are (rows_BE, targets.row) and (cols_BE, targets.col), stop-gradient.
    """
    (x_rE, f_r), (y_cE, g_c) = row_side, col_side
    l_rc = scale * jnp.einsum('re,ce->rc', x_rE, y_cE, precision=lax.Precision.HIGHEST)
    if others_only:
        l_rc = jnp.where(row_id[:, None] == col_id[None, :], -jnp.inf, l_rc)
    return jnp.exp(l_rc + f_r[:, None] + g_c[None, :])


def _iterate(how: Plan, batch: int, iterations: int, others_only: bool, items, scale):
    """(potentials and entropies of this shard's rows and columns, ()); see ``Targets``."""
    (x, row_id, row_zero), (y, col_id, col_zero) = items
    x, y, mass = how.travelling(x), how.travelling(y), jnp.log(how.scalar(batch))

    def softmaxes(row, col, sums):
        """Over the columns of l + col for each row, over the rows of l + row for each column."""
        def tile(rows, cols):
            (x_rE, row_id, row_r), (y_cE, col_id, col_c) = rows, cols
            l_rc = scale * how.product('re,ce->rc', x_rE, y_cE)
            if others_only:
                l_rc = jnp.where(row_id[:, None] == col_id[None, :], -jnp.inf, l_rc)
            over_cols, over_rows = l_rc + col_c[None, :], l_rc + row_r[:, None]
            return soft(over_cols, 1, partial(sums, over_cols, 1)), soft(over_rows, 0, partial(sums, over_rows, 0))
        return reduce_pairs(tile, (x, row_id, row), (y, col_id, col), SOFT, how.way)

    def half(row, col):
        return (-mass - part.log_sum_exp for part in softmaxes(row, col, lambda l, axis, weight: ()))

    def iteration(potentials, _):
        # Rows first: col -> row -> col. Columns first: row -> col -> row. The same two passes serve both.
        return tuple(half(*half(*potentials))), None

    def expected(l, axis, weight):
        return jnp.where(weight > 0, weight * l, 0.).sum(axis)

    (row, col), _ = lax.scan(iteration, (row_zero, col_zero), length=iterations)
    entropies = (part.log_sum_exp - part.means for part in softmaxes(row, col, expected))
    return (row, col, *entropies), ()


def balanced(scores_BK: jax.Array, scale: float, iterations: int = 3) -> jax.Array:
    """Assignments of examples to prototypes [B, K], rows summing to 1, prototypes of nearly equal mass; no gradient.

    exp(scale · scores) with ``iterations`` times [prototypes to mass 1/K, examples to mass 1/B] (SwAV, arXiv 2006.09882),
    in logarithms. The scores are an array of the batch already, sharded over it; sums over the batch are the compiler's.
    """
    check(iterations)
    l_BK = lax.stop_gradient(scale * scores_BK.astype(jnp.promote_types(jnp.float32, scores_BK.dtype)))

    def iteration(row_B, _):
        col_K = -jax.nn.logsumexp(l_BK + row_B[:, None], axis=0)
        return -jax.nn.logsumexp(l_BK + col_K, axis=1), None
    row_B, _ = lax.scan(iteration, jnp.zeros_like(l_BK[:, 0]), length=iterations - 1)
    col_K = -jax.nn.logsumexp(l_BK + row_B[:, None], axis=0)
    return jax.nn.softmax(l_BK + col_K, axis=1)
