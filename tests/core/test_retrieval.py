"""Hopfield retrieval from the global batch: against dense softmax attention, value and gradient, on meshes."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams

from bigvlm.core.retrieval import retrieve

B, S, D, BETA = 24, 2, 5, 8.
RNG = np.random.default_rng(1)
STATES, STORED = streams.unit(RNG, B, S, D), streams.unit(RNG, B, D)
COTANGENT = RNG.normal(size=(B, S, D))


def dense(states, stored, beta):
    return jnp.einsum('bsj,jd->bsd', jax.nn.softmax(beta * jnp.einsum('bsd,jd->bsj', states, stored)), stored)


def both(function):
    def run(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.asarray(COTANGENT))
    return run


@pytest.fixture(scope='module')
def wanted():
    return streams.evaluate(both(dense), (STATES, STORED), (BETA,))


@pytest.mark.parametrize('mesh,way', streams.ROUTES[1:])
def test_equals_dense_attention(mesh, way, wanted):
    found = streams.evaluate(both(lambda *a: retrieve(*a, exchange=way, tile=7)), (STATES, STORED), (BETA,), mesh)
    assert streams.error(found, wanted) < 1e-12


def test_a_sharp_network_returns_what_it_stores():
    """With a large beta a stored pattern retrieves itself: logits of 1000 do not overflow float32."""
    x = jnp.asarray(STORED, jnp.float32)
    found = fast.jit(lambda x: retrieve(x[:, None], x, 1000., tile=5))(x)
    np.testing.assert_allclose(found[:, 0], x, atol=1e-6)


def test_no_array_of_all_pairs():
    batch, shard, tile = 8 * 26, 26, 13
    for way in ('ring', 'all_gather'):
        found = streams.sizes(jax.grad(lambda x, y: jnp.square(retrieve(x, y, 8., exchange=way, tile=tile)).sum(), (0, 1)),
                              (batch, 1, 7), (batch, 7))
        assert tile * tile in found and not found & {batch * batch, batch * shard, shard * shard}


def test_errors():
    with pytest.raises(ValueError, match='must be .B, S, D. and .B, D.'):
        retrieve(jnp.ones((4, 3)), jnp.ones((4, 3)), 1.)
