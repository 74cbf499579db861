"""The mixture of two normal distributions against scikit-learn's, and what it says of a run's losses."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from bigvlm.core import mesh as meshes
from bigvlm.nn.noise import Noise, fit, posterior

B, SIZE = 64, 512


def losses(n, seed=0):
    """(losses, which are noise): a wide heap of high losses of three in ten."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(size=n) < .3
    return np.where(noise, rng.normal(5., 1., n), rng.normal(1.5, .5, n)), noise


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
def test_fit_equals_scikit_learn():
    x, _ = losses(700)
    start = dict(means_init=[[x.mean() - x.std()], [x.mean() + x.std()]], precisions_init=[[[1 / (x.var() + 1e-6)]]] * 2)
    theirs = GaussianMixture(2, reg_covar=1e-6, tol=0., max_iter=60, weights_init=[.5, .5], **start).fit(x[:, None])
    with jax.enable_x64(True):
        ours = fast.jit(fit)(x)
        found_N = posterior(ours, jnp.asarray(x))
    np.testing.assert_allclose(ours.weight, theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(ours.mean, theirs.means_[:, 0], rtol=1e-6)
    np.testing.assert_allclose(ours.variance, theirs.covariances_[:, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found_N, theirs.predict_proba(x[:, None])[:, 1], atol=1e-6)
    assert np.abs(np.asarray(ours.mean) - [1.5, 5.]).max() < .2, 'and it is the right one'
    in_float32 = fast.jit(fit)(x.astype(np.float32))
    np.testing.assert_allclose(jax.tree.leaves(in_float32), jax.tree.leaves(ours), rtol=1e-3)


def test_the_fit_of_equal_losses_is_finite():
    mixture = fast.jit(fit)(jnp.full((4, 8), 2.))
    assert all(np.isfinite(x).all() for x in mixture) and np.isfinite(posterior(mixture, jnp.array([0., 2., 9.]))).all()


def run(mesh=None):
    """The probabilities that each step's batch gets."""
    noise, found, truth = Noise(SIZE, B), [], []
    variables = noise.init(jax.random.key(0), jnp.zeros(2))
    step = fast.jit(lambda v, x: noise.apply(v, x, mutable=['queue']))
    for t in range(SIZE // B + 2):
        x, is_noise = losses(B, seed=t)
        x = x.astype(np.float32)
        probability_B, variables = step(variables, x if mesh is None else jax.device_put(x, meshes.batch_sharding(mesh)))
        found.append(np.asarray(probability_B))
        truth.append(is_noise)
    return np.array(found), np.array(truth)


def test_nothing_is_noise_until_enough_is_known_and_then_what_is_noise():
    found, truth = run()
    full = SIZE // B
    assert not found[:full].any()
    assert ((found[full:] > .5) == truth[full:]).mean() > .95
    with jax.set_mesh(mesh := meshes.make_mesh(dict(data=4, fsdp=2))):
        np.testing.assert_allclose(run(mesh)[0], found, atol=2e-3)


def test_no_gradient():
    x, _ = losses(SIZE + B)
    noise = Noise(SIZE, B)
    variables = {'queue': {'losses': {'loss': jnp.asarray(x[:SIZE], jnp.float32).reshape(-1, B), 'pushed': jnp.int32(SIZE // B)}}}

    def total(loss_B):
        return noise.apply(variables, loss_B, mutable=['queue'])[0].sum()
    value, gradient = jax.value_and_grad(total)(jnp.asarray(x[SIZE:], jnp.float32))
    assert value > 1 and not gradient.any()
