"""Texts token by token from a model's next-token logits: greedy, sampled from the likeliest (top-p), by beam search.

All take ``advance(ids, index, state) -> (logits, state)``: the logits [N, V] of what follows the tokens [N], which are number
``index`` of their texts. A state is a pytree; ``axes``, a prefix of it, says on which axis its leaves have the N texts. Pure and
jittable.

B texts to make, K beams of each, L length, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax import lax

Advance = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def greedy(advance: Advance, state: Any, batch: int, length: int, bos_id: int, eot_id: int) -> jax.Array:
    """The likeliest next token each time: int32 [B, L], with ``bos_id`` first and ``eot_id`` after the end."""
    return _one_by_one(advance, state, batch, length, bos_id, eot_id, lambda logits_BV, index: logits_BV.argmax(axis=1))


def sample(advance: Advance, state: Any, batch: int, length: int, bos_id: int, eot_id: int, key: jax.Array, p: float = .9,
           temperature: float = 1.) -> jax.Array:
    """Drawn from the fewest tokens whose probabilities sum to at least ``p`` (nucleus sampling, arXiv 1904.09751)."""
    def draw(logits_BV, index):
        return jax.random.categorical(jax.random.fold_in(key, index), nucleus(logits_BV / temperature, p))
    return _one_by_one(advance, state, batch, length, bos_id, eot_id, draw)


def nucleus(logits_BV: jax.Array, p: float) -> jax.Array:
    """-inf for all but the fewest tokens whose probabilities sum to at least ``p``; the likeliest always stays."""
    sorted_BV = -jnp.sort(-logits_BV, axis=1)
    before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV), axis=1) - jax.nn.softmax(sorted_BV)
    least_B = jnp.where(before_BV < p, sorted_BV, jnp.inf).min(axis=1)
    return jnp.where(logits_BV >= jnp.minimum(least_B, sorted_BV[:, 0])[:, None], logits_BV, -jnp.inf)


def _one_by_one(advance, state, batch, length, bos_id, eot_id, choose) -> jax.Array:
    def step(carry, index):
        ids_B, ended_B, state = carry
        logits_BV, state = advance(ids_B, index, state)
        next_B = jnp.where(ended_B, eot_id, choose(logits_BV, index)).astype(jnp.int32)
        return (next_B, ended_B | (next_B == eot_id), state), next_B
    first_B = jnp.full(batch, bos_id, jnp.int32)
    _, ids_LB = lax.scan(step, (first_B, jnp.zeros(batch, bool), state), jnp.arange(length - 1))
    return rearrange(jnp.concatenate([first_B[None], ids_LB]), 'l b -> b l')


def beam(advance: Advance, state: Any, batch: int, length: int, bos_id: int, eot_id: int, axes: Any, beams: int = 4,
         penalty: float = 1.) -> jax.Array:
    """The best of ``beams`` texts kept at each length: int32 [B, L]. Texts are compared by log-likelihood / tokens**penalty
    (Wu et al., arXiv 1609.08144, without their constant); those that ended stay in the beam."""
    def each(function, state):
        return jax.tree.map(lambda axis, part: jax.tree.map(lambda x: function(x, axis), part), axes, state)
    state = each(lambda x, axis: jnp.repeat(x, beams, axis=axis), state)

    def step(carry, index):
        ids_BKL, score_BK, tokens_BK, ended_BK, state = carry
        last_BK = lax.dynamic_index_in_dim(ids_BKL, index, axis=2, keepdims=False)
        logits_NV, state = advance(rearrange(last_BK, 'b k -> (b k)'), index, state)
        log_p_BKV = rearrange(jax.nn.log_softmax(logits_NV), '(b k) v -> b k v', k=beams)
        vocab = log_p_BKV.shape[-1]
        # A text that has ended goes on in one way, at no cost.
        only_end_V = jnp.where(jnp.arange(vocab) == eot_id, 0., -jnp.inf)
        total_BKV = score_BK[:, :, None] + jnp.where(ended_BK[:, :, None], only_end_V, log_p_BKV)
        length_BK = tokens_BK + ~ended_BK
        ranked_BKV = total_BKV / length_BK[:, :, None] ** penalty
        _, flat_BK = lax.top_k(rearrange(ranked_BKV, 'b k v -> b (k v)'), beams)
        beam_BK, token_BK = flat_BK // vocab, flat_BK % vocab

        def of_beam(x_BK):
            return jnp.take_along_axis(x_BK, beam_BK, axis=1)
        ids_BKL = jnp.take_along_axis(ids_BKL, beam_BK[:, :, None], axis=1)
        ids_BKL = lax.dynamic_update_index_in_dim(ids_BKL, token_BK.astype(jnp.int32), index + 1, axis=2)
        score_BK = jnp.take_along_axis(rearrange(total_BKV, 'b k v -> b (k v)'), flat_BK, axis=1)
        rows_N = rearrange(beam_BK + beams * jnp.arange(batch)[:, None], 'b k -> (b k)')
        state = each(lambda x, axis: jnp.take(x, rows_N, axis=axis), state)
        return (ids_BKL, score_BK, of_beam(length_BK), of_beam(ended_BK) | (token_BK == eot_id), state), None

    ids_BKL = jnp.full((batch, beams, length), eot_id, jnp.int32).at[:, :, 0].set(bos_id)
    # All beams begin alike: only the first counts, or they would stay alike.
    score_BK = repeat(jnp.where(jnp.arange(beams) == 0, 0., -jnp.inf), 'k -> b k', b=batch)
    carry = ids_BKL, score_BK, jnp.zeros((batch, beams), jnp.float32), jnp.zeros((batch, beams), bool), state
    (ids_BKL, score_BK, tokens_BK, _, _), _ = lax.scan(step, carry, jnp.arange(length - 1))
    best_B = (score_BK / jnp.maximum(tokens_BK, 1.) ** penalty).argmax(axis=1)
    return jnp.take_along_axis(ids_BKL, best_B[:, None, None], axis=1)[:, 0]
