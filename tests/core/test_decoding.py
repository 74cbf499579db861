"""Decoding against all texts spelled out: a model whose next-token logits are a table of the last two tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast
from bigvlm.core import decoding

V, L, BOS, EOT, B = 5, 5, 1, 0, 3
TABLE = np.random.default_rng(3).normal(size=(B, V, V, V)) * 1.5


def log_p(b, before, last):
    logits = TABLE[b, before, last]
    return logits - np.log(np.exp(logits).sum())


def advance(ids_N, index, state):
    """Remembers the token before, and which text it is of, as a cache would."""
    of_N, before_1N = state['of'], state['before']
    return jnp.asarray(TABLE, jnp.float32)[of_N, before_1N[0], ids_N], dict(of=of_N, before=ids_N[None])


def state():
    return dict(of=jnp.arange(B), before=jnp.full((1, B), BOS))


AXES = dict(of=0, before=1)


def texts(b):
    """{ids after BOS: (log-likelihood, tokens)} of every text that ends within L - 1 tokens or is cut there."""
    found = {}
    for ids in itertools.product(range(V), repeat=L - 1):
        stop = ids.index(EOT) + 1 if EOT in ids else L - 1
        ids = ids[:stop] + (EOT,) * (L - 1 - stop)
        whole = (BOS, BOS, *ids)
        found[ids] = sum(log_p(b, whole[i], whole[i + 1])[ids[i]] for i in range(stop)), stop
    return found


def test_greedy_takes_the_likeliest_token_each_time():
    ids_BL = np.asarray(fast.jit(lambda s: decoding.greedy(advance, s, B, L, BOS, EOT))(state()))
    for b in range(B):
        before, last, ended = BOS, BOS, False
        for token in ids_BL[b, 1:]:
            wanted = EOT if ended else int(np.argmax(TABLE[b, before, last]))
            assert token == wanted
            before, last, ended = last, wanted, ended or wanted == EOT
    assert (ids_BL[:, 0] == BOS).all()


@pytest.mark.parametrize('penalty', [0., 1.])
def test_a_beam_as_wide_as_all_texts_finds_the_best(penalty):
    wide = fast.jit(lambda s: decoding.beam(advance, s, B, L, BOS, EOT, AXES, beams=V ** 3, penalty=penalty))
    ids_BL = np.asarray(wide(state()))
    for b in range(B):
        every = texts(b)
        best = max(every, key=lambda ids: every[ids][0] / every[ids][1] ** penalty)
        assert tuple(ids_BL[b, 1:]) == best


def test_one_beam_is_greedy():
    both = fast.jit(lambda s: (decoding.beam(advance, s, B, L, BOS, EOT, AXES, beams=1), decoding.greedy(advance, s, B, L, BOS, EOT)))
    one, greedy = both(state())
    np.testing.assert_array_equal(one, greedy)


def test_the_nucleus_is_the_fewest_tokens_that_reach_p():
    logits_BV = jnp.log(jnp.array([[.5, .3, .15, .05], [.05, .15, .3, .5]]))
    for p, kept in ((.4, 1), (.5, 1), (.6, 2), (.85, 3), (1., 4), (1e-9, 1)):
        found = np.isfinite(np.asarray(decoding.nucleus(logits_BV, p)))
        assert found.sum(1).tolist() == [kept, kept], p
        assert found[0, 0] and found[1, 3]


def test_sampling_follows_the_nucleus_and_its_probabilities():
    draw = fast.jit(jax.vmap(lambda key: decoding.sample(advance, state(), B, 2, BOS, EOT, key, p=.8)))
    ids_NB = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))[:, :, 1]
    for b in range(B):
        p_V = np.exp(log_p(b, BOS, BOS))
        order = np.argsort(-p_V)
        kept = order[:int(np.searchsorted(np.cumsum(p_V[order]), .8)) + 1]
        wanted = np.where(np.isin(np.arange(V), kept), p_V, 0.) / p_V[kept].sum()
        np.testing.assert_allclose(np.bincount(ids_NB[:, b], minlength=V) / 4000, wanted, atol=.03)
