"""What losses that stream over pairs share: how one call goes about it, and softmaxes in parts that merge.

A softmax over the columns of one row is kept as its largest logit, the sum of exponentials relative to it, and sums that
these weight (as in flash attention, arXiv 2205.14135). Parts of it from different tiles and devices merge by ``SOFT``, a
monoid for ``exchange.reduce_pairs``.

Shapes: B global batch, b one shard's part; r, c rows and columns of a tile.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bigvlm.core.exchange import GATHER_BUDGET, Monoid, Route, check, route


class Plan(NamedTuple):
    """What is static about one call."""
    way: Route
    dtype: Any          # of matrix products
    wire: Any           # of arrays on their way to other devices
    sum_dtype: Any      # of everything that is added up

    def product(self, spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        precision = lax.Precision.HIGHEST if self.dtype in (jnp.float32, jnp.float64) else None
        return jnp.einsum(spec, a.astype(self.dtype), b.astype(self.dtype), precision=precision,
                          preferred_element_type=self.sum_dtype)

    def travelling(self, x: jax.Array) -> jax.Array:
        """Arrays are cast before they are sent, not after, and those that stay alike."""
        return x.astype(self.wire)

    def scalar(self, x: jax.Array | float) -> jax.Array:
        return jnp.asarray(x, self.sum_dtype)

    def total(self, x_b: jax.Array) -> jax.Array:
        """The sum over the global batch [b, ...] -> [...], equal on every shard."""
        return lax.psum(x_b.sum(0), self.way.axes) if self.way.axes else x_b.sum(0)


def plan(rows: jax.Array, cols: jax.Array, *, exchange: str = 'auto', tile: int = 1024, dtype: Any = None,
         wire: str | None = None, gather_budget: int = GATHER_BUDGET) -> Plan:
    """For rows and columns [B, …] of the global batch; several vectors per example count as that many rows of a tile.

    ``dtype`` is that of products (default: the arrays'), ``wire`` that of what is sent (default: as products take it).
    Raises RecipeError for impossible options, ValueError for shapes that do not fit.
    """
    if rows.shape[0] != cols.shape[0] or rows.shape[-1] != cols.shape[-1]:
        raise ValueError(f'rows and columns must be [B, …, D] both; found {rows.shape} and {cols.shape}')
    check(exchange, tile, wire)
    input_dtype = jnp.promote_types(rows.dtype, cols.dtype)
    dtype = jnp.dtype(dtype or input_dtype)
    wire = jnp.dtype(wire or dtype)
    vectors = max(math.prod(x.shape[1:-1]) for x in (rows, cols))
    way = route(cols.shape[0], math.prod(cols.shape[1:]), wire, exchange=exchange, tile=max(1, tile // vectors),
                gather_budget=gather_budget)
    return Plan(way, dtype, wire, jnp.promote_types(jnp.float32, input_dtype))


def ids(batch: int) -> jax.Array:
    """Which example of the global batch each row or column is, int32 [B]."""
    return jnp.arange(batch, dtype=jnp.int32)


class Soft(NamedTuple):
    """Part of a softmax over columns; all of the rows' shape, ``sums`` perhaps with further axes."""
    largest: jax.Array   # logit; -inf where there is none
    exp: jax.Array       # Σ exp(l - largest)
    sums: Any            # of what exp(l - largest) weights

    @property
    def log_sum_exp(self) -> jax.Array:
        return self.largest + jnp.log(self.exp)

    @property
    def means(self) -> Any:
        """The sums under the softmax's own weights."""
        return jax.tree.map(lambda x: x / _over(self.exp, x), self.sums)


def soft(l: jax.Array, axis: int | tuple[int, ...], sums: Callable[[jax.Array], Any] = lambda weight: ()) -> Soft:
    """Of the logits of one tile; -inf is no logit. ``sums`` gets exp(l - largest), of l's shape."""
    largest = l.max(axis, keepdims=True)
    weight = jnp.exp(l - jnp.where(jnp.isneginf(largest), 0., largest).astype(l.dtype))
    return Soft(largest.squeeze(axis), weight.sum(axis), sums(weight))


def _over(x: jax.Array, y: jax.Array) -> jax.Array:
    return x.reshape(*x.shape, *(1,) * (y.ndim - x.ndim))


def _each(function: Callable[..., Soft]) -> Callable:
    """Over trees of parts: columns (or rows) may get none."""
    return partial(jax.tree.map, function, is_leaf=lambda x: isinstance(x, Soft))


def _empty(shapes: Soft) -> Soft:
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return zero._replace(largest=jnp.full(shapes.largest.shape, -jnp.inf, shapes.largest.dtype))


def _merge(a: Soft, b: Soft) -> Soft:
    largest = jnp.maximum(a.largest, b.largest)
    shift = jnp.where(jnp.isneginf(largest), jnp.zeros_like(largest), largest)
    of_a, of_b = (jnp.exp(x.largest - shift) for x in (a, b))  # 0 for a part without logits
    add = partial(jax.tree.map, lambda x, y: _over(of_a, x) * x + _over(of_b, y) * y)
    return Soft(largest, add(a.exp, b.exp), add(a.sums, b.sums))


SOFT = Monoid(_each(_empty), _each(_merge))
