"""Log-sum-exps of other examples' logits: against the dense formula, value and gradient, on meshes; LOOB among them."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams

from bigvlm.core.others import logsumexp_of_others
from bigvlm.core.parts import RecipeError

B, V, W, D = 24, 2, 3, 5
RNG = np.random.default_rng(0)
ROWS, COLS = streams.unit(RNG, B, V, D), streams.unit(RNG, B, W, D)
SCALE, OFFSET = RNG.uniform(1., 9., (V, W)), RNG.normal(size=(V, W))
COTANGENT = RNG.normal(size=(B, V))


def dense(rows, cols, scale, offset):
    """The whole matrix, each example's own logits multiplied away."""
    logits = scale[:, None] * jnp.einsum('ivd,jwd->ivjw', rows, cols) + offset[:, None]
    return jnp.log((jnp.exp(logits) * (1. - np.eye(B)[:, None, :, None])).sum((2, 3)))


def both(function):
    """Its value and its gradients for a cotangent that differs from element to element."""
    def run(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.asarray(COTANGENT))
    return run


@pytest.fixture(scope='module')
def wanted():
    return streams.evaluate(both(dense), (ROWS, COLS), (SCALE, OFFSET))


@pytest.mark.parametrize('mesh,way', streams.ROUTES)
def test_equals_dense_formula(mesh, way, wanted):
    found = streams.evaluate(both(lambda *a: logsumexp_of_others(*a, exchange=way, tile=7)), (ROWS, COLS), (SCALE, OFFSET), mesh)
    assert streams.error(found, wanted) < 1e-12


def test_tiles_of_one_and_no_mesh(wanted):
    found = streams.evaluate(both(lambda *a: logsumexp_of_others(*a, tile=1)), (ROWS, COLS), (SCALE, OFFSET), None)
    assert streams.error(found, wanted) < 1e-12


def test_logits_far_below_zero_stay_finite():
    """A first tile without any logit (tile 1: the diagonal) beside logits of -200, whose exponentials are 0 in float32."""
    x = jnp.tile(jnp.array([[[1., 0.]]]), (4, 1, 1))
    lse = fast.jit(lambda x: logsumexp_of_others(x, -x, 200., tile=1))(x)
    np.testing.assert_allclose(lse, -200. + np.log(3.), rtol=1e-6)


def test_no_array_of_all_pairs():
    batch, shard, tile = 8 * 26, 26, 13
    for way in ('ring', 'all_gather'):
        found = streams.sizes(jax.grad(lambda x, y: logsumexp_of_others(x, y, 9., exchange=way, tile=tile).sum(), (0, 1)),
                              (batch, 1, 7), (batch, 1, 7))
        assert tile * tile in found and not found & {batch * batch, batch * shard, shard * shard}


def test_errors():
    x = jnp.ones((1, 1, 3))
    with pytest.raises(ValueError, match='with B > 1; found'):
        logsumexp_of_others(x, x, 1.)
    with pytest.raises(ValueError, match=r'found \(4, 1, 3\) and \(2, 1, 3\)'):
        logsumexp_of_others(jnp.ones((4, 1, 3)), jnp.ones((2, 1, 3)), 1.)
    with pytest.raises(RecipeError, match='exchange: found'):
        logsumexp_of_others(jnp.ones((4, 1, 3)), jnp.ones((4, 1, 3)), 1., exchange='rong')
