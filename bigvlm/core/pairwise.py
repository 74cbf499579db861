"""Losses over all pairs of the global batch: symmetric softmax (InfoNCE) and sigmoid (SigLIP), exact at any batch size.

Both stream over tiles of pairs (``exchange.reduce_pairs``) and bring their own gradients, so that no array of B×B or
b×b elements exists, forward or backward. They take global arrays and use the mesh of the context (``jax.set_mesh``);
without one the same code runs on one device. Matrix products run in ``dtype`` (default: the embeddings'), sums and
statistics in float32 (float64 for float64 embeddings). Embeddings are sent to other devices in ``wire`` (default: as
products take them). With ``wire='bfloat16'`` and products in float32 the loss is, on any mesh, that of embeddings rounded
to bfloat16, and half as much is sent. The gradients that a ring brings home are always float32: rounded to bfloat16 at each
of n hops they would be wrong by up to 0.5 % at n = 8 and 3 % at n = 256, since what each device adds is small beside the
sum (docs/losses.md). So that is no option.

Which pairs are positives is a function of small per-example arrays that travel with the embeddings:
``target(row_side, col_side, row_id, col_id) -> [r, c]``, non-negative, any scale, positive for at least one column of
each row and one row of each column. It gets no gradient. ``identity``, ``equal_labels`` and ``equal_hashes`` always
make an example its own positive.

Shapes: B global batch, b one shard's part, D width; r, c rows and columns of a tile.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import GATHER_BUDGET, SUM, Monoid, Route, check, on_shards, reduce_pairs, route, total
from bigvlm.core.parts import RecipeError

Target = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]


def identity(row_side, col_side, row_id, col_id) -> jax.Array:
    """An example's only positive is itself (CLIP)."""
    return row_id[:, None] == col_id[None, :]


def equal_labels(row_side, col_side, row_id, col_id) -> jax.Array:
    """Examples of the same label are positives of each other (UniCL); side: int [B], -1 (or no side) is no label."""
    same = identity(None, None, row_id, col_id)
    if row_side is None or col_side is None:
        return same
    return same | ((row_side[:, None] == col_side[None, :]) & (row_side[:, None] >= 0))


def equal_hashes(row_side, col_side, row_id, col_id) -> jax.Array:
    """Examples whose hashes agree in all words are positives of each other; side: [B, words]."""
    return identity(None, None, row_id, col_id) | (row_side[:, None] == col_side[None, :]).all(-1)


class Items(NamedTuple):
    """One side of the pairs: embeddings [·,D], arrays for the targets [·,…], indices in the global batch [·]."""
    x: jax.Array
    side: Any
    id: jax.Array


class Plan(NamedTuple):
    """What is static about one call."""
    way: Route
    batch: int
    dtype: Any          # of matrix products
    wire: Any           # of embeddings on their way
    sum_dtype: Any      # of everything that is added up
    target: Target
    smoothing: float = 0.


def softmax(rows_BD: jax.Array, cols_BD: jax.Array, scale: jax.Array | float, *, target: Target = identity,
            rows_side: Any = None, cols_side: Any = None, smoothing: float = 0., exchange: str = 'auto',
            tile: int = 1024, dtype: Any = None, wire: str | None = None, gather_budget: int = GATHER_BUDGET
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Symmetric cross-entropy of ``scale * rows @ cols.T``: ½(mean over rows + mean over columns).

    A row's target distribution is (1-ε)·q/Σq + ε/B with q = ``target`` and ε = ``smoothing``; a column's likewise over
    its rows (with ``equal_labels`` this is UniCL, arXiv 2204.03610: weights 1/|P(i)|, both directions).
    Sides are pytrees of arrays [B,…].
    Metrics, without gradient: ``accuracy``, how often some positive beats every negative, both directions averaged;
    ``loss_B``, each example's part of the loss, ½(cross-entropy of its row + of its column), whose mean is the loss.
    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    check_smoothing(smoothing)
    plan = _plan(rows_BD, cols_BD, target, exchange, tile, dtype, wire, gather_budget)._replace(smoothing=smoothing)
    loss, accuracy, loss_B = _softmax(plan, *_items(rows_BD, cols_BD, rows_side, cols_side), _scalar(scale, plan))
    return loss, lax.stop_gradient({'accuracy': accuracy, 'loss_B': loss_B})


def sigmoid(rows_BD: jax.Array, cols_BD: jax.Array, scale: jax.Array | float, bias: jax.Array | float, *,
            target: Target = identity, rows_side: Any = None, cols_side: Any = None, exchange: str = 'auto',
            tile: int = 1024, dtype: Any = None, wire: str | None = None, gather_budget: int = GATHER_BUDGET
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-1/B Σi Σj log σ(m_ij (scale·x_i·y_j + bias)), m = +1 where ``target`` > 0, else -1 (SigLIP, arXiv 2303.15343).

    Metrics, without gradient: ``positive`` and ``negative``, the mean logit of positive and of negative pairs (0 if there
    are none); ``loss_B``, each row's sum over the columns, -Σj log σ(m_ij (scale·x_i·y_j + bias)), whose mean is the loss.
    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    plan = _plan(rows_BD, cols_BD, target, exchange, tile, dtype, wire, gather_budget)
    loss, positive, negative, loss_B = _sigmoid(plan, *_items(rows_BD, cols_BD, rows_side, cols_side),
                                                _scalar(scale, plan), _scalar(bias, plan))
    return loss, lax.stop_gradient({'positive': positive, 'negative': negative, 'loss_B': loss_B})


def check_smoothing(smoothing: float) -> None:
    if not 0. <= smoothing < 1.:
        raise RecipeError(f'smoothing: found {smoothing}; valid: 0 <= smoothing < 1')


def _plan(rows_BD, cols_BD, target, exchange, tile, dtype, wire, gather_budget) -> Plan:
    if rows_BD.ndim != 2 or rows_BD.shape != cols_BD.shape:
        raise ValueError(f'rows and columns must be [B, D] both; found {rows_BD.shape} and {cols_BD.shape}')
    input_dtype = jnp.promote_types(rows_BD.dtype, cols_BD.dtype)
    check(exchange, tile, wire)
    dtype = jnp.dtype(dtype or input_dtype)
    wire = jnp.dtype(wire or dtype)
    way = route(*rows_BD.shape, wire, exchange=exchange, tile=tile, gather_budget=gather_budget)
    return Plan(way, rows_BD.shape[0], dtype, wire, jnp.promote_types(jnp.float32, input_dtype), target)


def _items(rows_BD, cols_BD, rows_side, cols_side) -> tuple[Items, Items]:
    ids_B = jnp.arange(rows_BD.shape[0], dtype=jnp.int32)
    return Items(rows_BD, rows_side, ids_B), Items(cols_BD, cols_side, ids_B)


def _scalar(x, plan: Plan) -> jax.Array:
    return jnp.asarray(x, plan.sum_dtype)


def _travelling(items: Items, plan: Plan) -> Items:
    """Embeddings are cast before they are sent, not after, and those that stay alike."""
    return items._replace(x=items.x.astype(plan.wire))


def _matmul(spec: str, a: jax.Array, b: jax.Array, plan: Plan) -> jax.Array:
    precision = lax.Precision.HIGHEST if plan.dtype in (jnp.float32, jnp.float64) else None
    return jnp.einsum(spec, a.astype(plan.dtype), b.astype(plan.dtype), precision=precision,
                      preferred_element_type=plan.sum_dtype)


def _targets(rows: Items, cols: Items, plan: Plan) -> jax.Array:
    return plan.target(rows.side, cols.side, rows.id, cols.id).astype(plan.sum_dtype)


# Softmax. The forward pass gathers statistics of each row and column, the backward pass recomputes the tiles. Statistics
# and gradients are made per direction: rows and columns may be given logits of their own, and each further columns.

class Stats(NamedTuple):
    """What cross-entropy needs to know of one row (or column) of logits l with targets q; all [·]."""
    positive: jax.Array   # max of l where q > 0
    negative: jax.Array   # max of l elsewhere
    exp: jax.Array        # Σ exp(l - max l)
    weight: jax.Array     # Σ q
    hit: jax.Array        # Σ q l
    logits: jax.Array     # Σ l

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


def tile_stats(l_rc: jax.Array, q_rc: jax.Array, axis: int) -> Stats:
    """Of the rows of a tile (``axis`` 1) or of its columns (``axis`` 0), to be merged by ``STATS``."""
    largest = l_rc.max(axis, keepdims=True)
    return Stats(positive=jnp.where(q_rc > 0, l_rc, -jnp.inf).max(axis),
                 negative=jnp.where(q_rc > 0, -jnp.inf, l_rc).max(axis),
                 exp=jnp.exp(l_rc - largest).sum(axis), weight=q_rc.sum(axis), hit=(q_rc * l_rc).sum(axis),
                 logits=l_rc.sum(axis))


def _empty_stats(shapes: Stats) -> Stats:
    return SUM.empty(shapes)._replace(**{k: jnp.full(s.shape, -jnp.inf, s.dtype) for k, s in
                                         (('positive', shapes.positive), ('negative', shapes.negative))})


def _merge_stats(a: Stats, b: Stats) -> Stats:
    both = SUM.merge(a, b)._replace(positive=jnp.maximum(a.positive, b.positive),
                                    negative=jnp.maximum(a.negative, b.negative))
    return both._replace(exp=a.exp * jnp.exp(a.shift - both.shift) + b.exp * jnp.exp(b.shift - both.shift))


STATS = Monoid(_empty_stats, _merge_stats)


def logit_gradient(l_rc: jax.Array, q_rc: jax.Array, norms: Norms, axis: int, smoothing: float, count: int) -> jax.Array:
    """∂(Σ of the cross-entropies of rows, ``axis`` 1, or columns, 0)/∂l_rc; ``count``: of logits that each is over."""
    log_sum_exp, weight = (jnp.expand_dims(x, axis) for x in norms)
    return jnp.exp(l_rc - log_sum_exp) - (1 - smoothing) * q_rc / weight - smoothing / count


def _softmax_forward(plan: Plan, items, scale):
    """((what the backward pass needs to know of rows and columns, the loss of each example), (loss, accuracy))."""
    def tile(rows: Items, cols: Items):
        l_rc = scale * _matmul('rd,cd->rc', rows.x, cols.x, plan)
        q_rc = _targets(rows, cols, plan)
        return tile_stats(l_rc, q_rc, 1), tile_stats(l_rc, q_rc, 0)

    def cross_entropy(s: Stats, norms: Norms):
        # Targets sum to one, so the log-sum-exp comes out of the sum over pairs.
        expected = (1 - plan.smoothing) * s.hit / s.weight + plan.smoothing / plan.batch * s.logits
        return norms.log_sum_exp - expected

    rows, cols = items
    stats = reduce_pairs(tile, _travelling(rows, plan), _travelling(cols, plan), STATS, plan.way)
    norms = tuple(map(norms_of, stats))
    loss_b = sum(map(cross_entropy, stats, norms))
    won_b = sum((s.positive > s.negative).astype(plan.sum_dtype) for s in stats)
    return (norms, loss_b / 2), tuple(total(x, plan.way.axes) / (2 * plan.batch) for x in (loss_b, won_b))


def _softmax_backward(plan: Plan, items, scale):
    """∂loss/∂(rows, columns) [b,D] and ∂loss/∂scale, for a cotangent of one."""
    def tile(row, col):
        (rows, row_norms), (cols, col_norms) = row, col
        sim_rc = _matmul('rd,cd->rc', rows.x, cols.x, plan)
        l_rc = scale * sim_rc
        q_rc = _targets(rows, cols, plan)
        g_rc = (logit_gradient(l_rc, q_rc, row_norms, 1, plan.smoothing, plan.batch)
                + logit_gradient(l_rc, q_rc, col_norms, 0, plan.smoothing, plan.batch))  # 2B ∂loss/∂l
        return ((_matmul('rc,cd->rd', g_rc, cols.x, plan), (g_rc * sim_rc).sum(1)),
                _matmul('rc,rd->cd', g_rc, rows.x, plan))

    (rows, row_norms), (cols, col_norms) = items
    (drows, dscale), dcols = reduce_pairs(tile, (_travelling(rows, plan), row_norms),
                                          (_travelling(cols, plan), col_norms), SUM, plan.way)
    to_x = scale / (2 * plan.batch)
    return (to_x * drows, to_x * dcols), total(dscale, plan.way.axes) / (2 * plan.batch)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(plan: Plan, rows: Items, cols: Items, scale):
    return _softmax_fwd(plan, rows, cols, scale)[0]


def _softmax_fwd(plan, rows, cols, scale):
    (norms, loss_B), values = on_shards(partial(_softmax_forward, plan), plan.way.axes)((rows, cols), scale)
    return (*values, loss_B), (rows, cols, scale, norms)


def _softmax_bwd(plan, saved, cotangent):
    rows, cols, scale, (row_norms, col_norms) = saved
    items = (rows, row_norms), (cols, col_norms)
    (drows, dcols), dscale = on_shards(partial(_softmax_backward, plan), plan.way.axes)(items, scale)
    ct = cotangent[0]  # of the loss; metrics have no gradient
    return (Items((ct * drows).astype(rows.x.dtype), None, None),
            Items((ct * dcols).astype(cols.x.dtype), None, None), ct * dscale)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


# Sigmoid. The loss is a sum over pairs, so one pass gives the loss and, when it is differentiated, the gradients.

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
        sim_rc = _matmul('rd,cd->rc', rows.x, cols.x, plan)
        l_rc = scale * sim_rc + bias
        positive = _targets(rows, cols, plan) > 0
        sign = jnp.where(positive, 1., -1.).astype(plan.sum_dtype)
        sums = Sums(jax.nn.softplus(-sign * l_rc).sum(1),
                    jnp.where(positive, l_rc, 0.).sum(1), positive.sum(1).astype(plan.sum_dtype),
                    jnp.where(positive, 0., l_rc).sum(1), (~positive).sum(1).astype(plan.sum_dtype))
        if not with_grads:
            return (sums, ()), ()
        g_rc = -sign * jax.nn.sigmoid(-sign * l_rc)  # B ∂loss/∂l
        to_rows = _matmul('rc,cd->rd', g_rc, cols.x, plan), (g_rc * sim_rc).sum(1), g_rc.sum(1)
        return (sums, to_rows), _matmul('rc,rd->cd', g_rc, rows.x, plan)

    rows, cols = items
    (sums_b, to_rows), dcols = reduce_pairs(tile, _travelling(rows, plan), _travelling(cols, plan), SUM, plan.way)
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
