"""nCLIP's objective against its formula: value, gradient, pieces, what it learns, what evaluation compares."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import streams
import toy_rounds

from bigvlm.core.parts import RecipeError
from bigvlm.objectives.prototypes import Prototypes

B, C, K = 16, 5, 9
RNG = np.random.default_rng(0)
BATCH = dict(image=RNG.normal(size=(B, C)), text=RNG.normal(size=(B, C)))
OBJECTIVE = Prototypes(prototypes=K, hidden=7, temperature=.5, sharpness=.6, smoothness=1.7)


def entropy(p):
    return -(p * jnp.log(p)).sum(-1)


def formula(params, fixed=False):
    def assigned(name):
        p = params['objective'][f'{name}_head']
        hidden = jax.nn.gelu((BATCH[name] @ params['towers'][name]) @ p['hidden']['kernel'] + p['hidden']['bias'])
        return jax.nn.softmax(hidden @ p['out']['kernel'] / .5)
    p, q = assigned('image'), assigned('text')
    target = jax.lax.stop_gradient if fixed else lambda x: x
    cross = -.5 * (target(p) * jnp.log(q) + target(q) * jnp.log(p)).sum(1)
    sharp, smooth = .5 * (entropy(p) + entropy(q)), .5 * (entropy(p.mean(0)) + entropy(q.mean(0)))
    return (cross + .6 * sharp).mean() - 1.7 * smooth


@pytest.mark.parametrize('mesh,micro,changes', [('data', 2, {}), ('tensor', 1, dict(pieces=4, stop_gradient=True))])
def test_equals_formula(mesh, micro, changes):
    objective = OBJECTIVE.clone(**changes)
    params, collections = toy_rounds.setting(objective, BATCH)
    wanted = toy_rounds.dense(lambda p: formula(p, objective.stop_gradient), params)
    loss, metrics, _, gradient = toy_rounds.run(objective, params, collections, BATCH, mesh, micro)
    assert streams.error((loss, gradient), wanted) < 1e-11
    assert streams.error(metrics['loss_B'].mean(), loss) < 1e-12
    assert 1 < metrics['used'] < K and 0 < metrics['entropy'] < np.log(K)


def trained(x, **changes):
    """(objective, variables, metrics of 150 steps) from a nearly uniform start."""
    objective = Prototypes(prototypes=8, hidden=0, **changes)
    optimizer = optax.adam(.05)

    def update(carry, _):
        variables, state = carry
        (_, metrics), gradient = jax.value_and_grad(lambda v: objective.apply(v, x, method='loss'), has_aux=True)(variables)
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(variables, change), state), metrics

    def train():
        variables = jax.tree.map(lambda kernel: .01 * kernel, objective.init(jax.random.key(0), x, method='loss'))
        return jax.lax.scan(update, (variables, optimizer.init(variables)), length=150)
    (variables, _), metrics = fast.jit(train)()
    return objective, variables, {k: metrics[k][-1] for k in ('used', 'entropy', 'agreement')}


def test_learns_to_assign_and_why_smoothness():
    """Images and texts of 8 things, noisy: by the default weights both come to the same prototype, each thing to its own, and
    a match scores higher than others do. Without the last term several things share one."""
    rng = np.random.default_rng(1)
    thing_B = rng.integers(0, 8, 64)
    x = {f'{k}_BW': jnp.float32(np.eye(8)[thing_B] @ rng.normal(size=(8, 8)) + .1 * rng.normal(size=(64, 8))) for k in ('image', 'text')}
    objective, variables, metrics = trained(x)
    assert metrics['used'] > 7. and metrics['entropy'] < .3 and metrics['agreement'] > .95
    assert trained(x, smoothness=0.)[2]['used'] < 5.

    towers = {k: np.eye(8, dtype=np.float32) for k in ('image', 'text')}
    encode = toy_rounds.Encode(towers, {k[:-3]: v for k, v in x.items()})
    found = objective.apply(variables, encode, encode.batch, method='embed')
    np.testing.assert_array_equal(found['image_features_BD'], encode.batch['image'])  # not thousands of prototypes
    score = objective.apply(variables, found['image_BD'], found['text_BD'], method='score')
    p, q = (np.exp(found[k]) for k in ('image_BD', 'text_BD'))
    np.testing.assert_allclose(score[3, 5], .5 * (p[3] @ np.log(q[5]) + q[5] @ np.log(p[3])), rtol=1e-4)
    same = thing_B[:, None] == thing_B
    assert np.asarray(score)[same].mean() > np.asarray(score)[~same].mean() + 1.
    assert set(objective.apply(variables, encode, {'text': encode.batch['text']}, method='embed')) == {'text_BD'}


def test_refuses():
    for field, value in (('prototypes', 1), ('hidden', -1), ('pieces', 0), ('temperature', 0.)):
        with pytest.raises(RecipeError, match=f'{field}: found .*; valid: '):
            Prototypes(**{field: value})
    params, collections = toy_rounds.setting(OBJECTIVE, BATCH)
    with pytest.raises(RecipeError, match='pieces: 3 do not divide 16 examples'):
        toy_rounds.run(OBJECTIVE.clone(pieces=3), params, collections, BATCH)
