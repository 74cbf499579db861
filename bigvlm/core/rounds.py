"""Rounds: the gradient of a global-batch loss, exact under micro-batching (the GradCache identity, arXiv 2101.06983).

Per-example rounds run per micro-batch; everything that needs other examples runs once, on the global batch:

    features  (per example)  ->  select, pairs (global)  ->  features2 (per pair)  ->  loss (global)

With N micro-batches: the per-example rounds without gradient, one global loss and its cotangents, then one
vector-Jacobian product per micro-batch, walking the rounds in reverse. Nothing is approximated: the sum of the products
is the full batch's gradient, provided that no per-example round depends on the shape of the batch.

Micro-batches take every N-th example, so that each device keeps its own (contiguous ones would all-gather the batch),
and gradients are summed over the devices once, not once a micro-batch (see ``_summed_once``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P

from bigvlm.core import mesh
from bigvlm.core.parts import RecipeError


class Rounds(NamedTuple):
    """Pure functions. Collections are the variables that modules carry besides parameters (queues, batch statistics).

    Attributes:
        features: (params, collections, batch) -> (features, collections); arrays lead with the batch axis.
        loss: (params, collections, features, features2, teacher) -> (scalar, (metrics, collections)).
        select: (params, collections, features) -> selection: indices, no gradient. None, like ``pairs`` and ``features2``,
            when there is no second round.
        pairs: (params, collections, features, selection) -> pairs; a differentiable gather over the global batch.
        features2: (params, collections, pairs) -> (features2, collections).
        prepare: (batch) -> batch, before everything, once, on the global batch; no gradient. None to leave it as it is.
    """
    features: Callable
    loss: Callable
    select: Callable | None = None
    pairs: Callable | None = None
    features2: Callable | None = None
    prepare: Callable | None = None


def value_and_grad(rounds: Rounds, params: Any, collections: Any, batch: Any, *, micro: int = 1, teacher: Callable | None = None):
    """((loss, metrics, collections), d loss / d params), the same whatever ``micro`` is.

    ``teacher``: features of the batch under other parameters, as ``teacher(features_of)`` with ``features_of(params)``
    computing them without gradient, micro-batched like the rest.
    """
    if rounds.prepare is not None:
        batch = jax.lax.stop_gradient(rounds.prepare(batch))

    def features_of(other_params):
        return jax.lax.stop_gradient(_forward(rounds.features, other_params, collections, batch, micro)[0])

    taught = teacher(features_of) if teacher is not None else None
    if micro == 1:
        return _whole(rounds, params, collections, batch, taught)
    return _micro_batched(rounds, params, collections, batch, taught, micro)


def _whole(rounds, params, collections, batch, taught):
    def loss_of(params):
        features, updated = rounds.features(params, collections, batch)
        features2 = None
        if rounds.features2 is not None:
            selection = jax.lax.stop_gradient(rounds.select(params, updated, features))
            pairs = rounds.pairs(params, updated, features, selection)
            features2, updated = rounds.features2(params, updated, pairs)
        loss, (metrics, updated) = rounds.loss(params, updated, features, features2, taught)
        return loss, (metrics, updated)
    (loss, (metrics, updated)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return (loss, metrics, updated), gradient


def _micro_batched(rounds, params, collections, batch, taught, micro):
    # First pass, no gradient; collections are carried through and committed once.
    features, after_features = _forward(rounds.features, params, collections, batch, micro)
    features2, pairs, after = None, None, after_features
    if rounds.features2 is not None:
        selection = rounds.select(params, after_features, features)
        pairs, pairs_vjp = _vjp(lambda f: rounds.pairs(params, after_features, f, selection), features)
        features2, after = _forward(rounds.features2, params, after_features, pairs, micro)

    # One global loss.
    floats, rest = _split((features, features2))
    def loss_of(params, floats):
        return rounds.loss(params, after, *_merge(floats, rest), taught)
    loss, loss_vjp, (metrics, updated) = jax.vjp(loss_of, params, floats, has_aux=True)
    gradient, d_floats = loss_vjp(jnp.ones_like(loss))
    d_features, d_features2 = _merge(d_floats, jax.tree.map(lambda _: None, rest))

    # Second pass: every micro-batch starts from the collections that the first pass saw, and its writes are discarded.
    if rounds.features2 is not None:
        gradient, d_pairs = _backward(rounds.features2, params, after_features, pairs, d_features2, gradient, micro)
        d_features = jax.tree.map(lambda a, b: b if a is None else a if b is None else a + b, d_features, pairs_vjp(d_pairs),
                                  is_leaf=lambda x: x is None)
    gradient, _ = _backward(rounds.features, params, collections, batch, d_features, gradient, micro, inputs_too=False)
    return (loss, metrics, updated), gradient


def _forward(function, params, collections, inputs, micro):
    """``function`` over the micro-batches in turn -> (outputs in global order, collections)."""
    if micro == 1:
        return function(params, collections, inputs)
    start = _averaged(collections)
    def body(carried, piece):
        outputs, updated = function(params, carried, piece)
        return {**updated, **start}, (outputs, _averaged(updated))
    collections, (outputs, found) = jax.lax.scan(body, collections, _cut(inputs, micro))
    return _join(outputs), {**collections, **jax.tree.map(lambda old, new: old + (new - old).mean(0), start, found)}


def _averaged(collections):
    """The running statistics of batch norm: each micro-batch moves what the step began with, and the mean of what they
    make of it counts, which is one update by the mean of all groups, whatever ``micro`` is. Others are carried from one to the next."""
    return {name: collections[name] for name in ('batch_stats',) if name in collections}


def _backward(function, params, collections, inputs, cotangents, gradient, micro, inputs_too=True):
    """Adds the vector-Jacobian products of all micro-batches to ``gradient`` -> (gradient, cotangents of the inputs)."""
    axes = () if jax.tree.leaves(collections) else _summed_once()
    floats, rest = _split(inputs)
    pieces = _cut((floats, rest, _split(cotangents)[0]), micro)

    def run(params, pieces):
        # Per-example rounds need no other shard's examples. Parameters that count as different on every shard have a
        # gradient of their own there, which is summed over the micro-batches first and over the shards last.
        own = jax.tree.map(lambda x: jax.lax.pcast(x, axes, to='varying'), params) if axes else params

        def body(carry, piece):
            collections, gradient = carry
            floats, rest, d_outputs = piece
            def outputs_of(params, floats):
                outputs, updated = function(params, collections, _merge(floats, rest))
                return _split(outputs)[0], updated
            _, vjp, updated = jax.vjp(outputs_of, own, floats, has_aux=True)
            d_params, d_floats = vjp(d_outputs)
            carried = {**updated, **_averaged(collections)}
            return (carried, jax.tree.map(jnp.add, gradient, d_params)), (d_floats if inputs_too else None)
        (_, total), d_floats = jax.lax.scan(body, (collections, jax.tree.map(jnp.zeros_like, own)), pieces)
        return jax.lax.psum(total, axes) if axes else total, d_floats

    if axes:
        run = jax.shard_map(run, in_specs=(P(), P(None, axes)), out_specs=(P(), P(None, axes)), axis_names=set(axes))
    total, d_floats = run(params, pieces)
    gradient = jax.tree.map(jnp.add, gradient, total)
    return gradient, _merge(_join(d_floats), jax.tree.map(lambda _: None, rest)) if inputs_too else None


def _summed_once() -> tuple[str, ...]:
    """Mesh axes over which gradients are summed once a step instead of once a micro-batch.

    With fsdp only the slow network between slices: over ``data`` a gradient that is split already is cheap, and gathered
    weights that the compiler shares between micro-batches are not.
    """
    current = jax.sharding.get_abstract_mesh()
    if current.empty:
        return ()
    names = ('replica',) if current.shape.get('fsdp', 1) > 1 else ('replica', 'data')
    return tuple(a for a in names if current.shape.get(a, 1) > 1 and a not in current.manual_axes)


def _vjp(function, inputs):
    """``function(inputs)`` and its vjp, on the floating-point leaves only; other leaves get the cotangent None."""
    floats, rest = _split(inputs)
    def differentiable(floats):
        out_floats, out_rest = _split(function(_merge(floats, rest)))
        return out_floats, out_rest
    out_floats, vjp, out_rest = jax.vjp(differentiable, floats, has_aux=True)
    def pull(cotangents):
        (d_floats,) = vjp(_split(cotangents)[0])
        return _merge(d_floats, jax.tree.map(lambda _: None, rest))
    return _merge(out_floats, out_rest), pull


def _split(tree):
    """(leaves that have a gradient, the others): two trees of the same shape with None in the other's places."""
    def is_float(x):
        return x is not None and jnp.issubdtype(x.dtype, jnp.floating)
    return (jax.tree.map(lambda x: x if is_float(x) else None, tree), jax.tree.map(lambda x: None if is_float(x) else x, tree))


def _merge(first, second):
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)


def _cut(tree, micro: int):
    """[B, …] -> [micro, B/micro, …]; micro-batch n holds the examples n, n+micro, n+2·micro, …"""
    def cut(x):
        if x.shape[0] % micro:
            raise RecipeError(f'micro: {micro} micro-batches do not divide {x.shape[0]} examples or pairs')
        return rearrange(x, '(b n) ... -> n b ...', n=micro)
    return mesh.constrain_batch(jax.tree.map(cut, tree), leading=1)


def _join(tree):
    return mesh.constrain_batch(jax.tree.map(lambda x: rearrange(x, 'n b ... -> (b n) ...'), tree))
