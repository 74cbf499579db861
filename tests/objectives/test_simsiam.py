"""SimSiam against its formula with batch norm written out: value, gradient, what stops the gradient, collapse."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams
import toy_rounds
from toy_rounds import unit

from bigvlm.core.parts import RecipeError
from bigvlm.objectives.simsiam import SimSiam

B, C = 16, 5
RNG = np.random.default_rng(0)
BATCH = {'views/0': RNG.normal(size=(B, C)), 'views/1': RNG.normal(size=(B, C))}
OBJECTIVE = SimSiam(projector=7, bottleneck=4)


def batch_norm(x, p):
    return (x - x.mean(0)) / jnp.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5) * p['scale'] + p['bias']


def formula(params):
    p = params['objective']

    def heads(x):
        for i in range(3):
            x = batch_norm(x @ p[f'project_{i}']['kernel'], p[f'project_norm_{i}'])
            x = jnp.maximum(x, 0.) if i < 2 else x
        hidden = jnp.maximum(batch_norm(x @ p['squeeze']['kernel'], p['squeeze_norm']), 0.)
        return jax.lax.stop_gradient(x), hidden @ p['predict']['kernel'] + p['predict']['bias']
    (z1, p1), (z2, p2) = (heads(BATCH[f'views/{i}'] @ params['towers']['image']) for i in (0, 1))
    return -.5 * ((unit(p1) * unit(z2)).sum(1) + (unit(p2) * unit(z1)).sum(1)).mean()


@pytest.fixture(scope='module')
def wanted():
    params, _ = toy_rounds.setting(OBJECTIVE, BATCH)
    loss, gradient = toy_rounds.dense(formula, params)
    gradient['towers']['text'] = np.zeros_like(params['towers']['text'])
    return loss, gradient


@pytest.mark.parametrize('mesh,micro', [('data', 1), ('tensor', 2)])
def test_equals_formula(mesh, micro, wanted):
    params, collections = toy_rounds.setting(OBJECTIVE, BATCH)
    loss, metrics, updated, gradient = toy_rounds.run(OBJECTIVE, params, collections, BATCH, mesh, micro)
    assert streams.error((loss, gradient), wanted) < 1e-10
    assert streams.error(metrics['loss_B'].mean(), loss) < 1e-12
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(collections)))


def test_std_tells_a_collapse():
    """About 1/√D for vectors in all directions; 0 if the projector gives one point for all."""
    objective = SimSiam(projector=64, bottleneck=8)
    features = {k: jnp.float32(RNG.normal(size=(256, 64))) for k in ('first_BW', 'second_BW')}
    variables = fast.jit(lambda: objective.init(jax.random.key(0), features, method='loss'))()

    @fast.jit
    def std(variables):
        return objective.apply(variables, features, method='loss', mutable=['batch_stats'])[0][1]['std']
    assert std(variables) == pytest.approx(1 / 8, rel=.1)
    norm = variables['params']['project_norm_2']
    variables['params']['project_norm_2'] = {'scale': 0. * norm['scale'], 'bias': norm['bias'] + 1.}
    assert std(variables) < 1e-6


def test_reads_and_refuses():
    assert OBJECTIVE.towers() == {'views/0': ('image_tower', 'image'), 'views/1': ('image_tower', 'image')}
    for field, value in (('projector', 0), ('bottleneck', 0), ('group', -1)):
        with pytest.raises(RecipeError, match=f'{field}: found .*; valid: '):
            SimSiam(**{field: value})
