"""Objectives with global parts, as parts of a model: their parameters by name, the teacher, views; traced, nothing compiled."""

import jax
import jax.numpy as jnp
import tiny

from bigvlm import model as model_lib
from bigvlm.core import paths, rounds as rounds_lib

OBJECTIVES = dict(
    cloob=dict(name='loob', tile=4), otter=dict(name='transport', teacher='slow', tile=4),
    siam=dict(name='simsiam', projector=16, bottleneck=8), proto=dict(name='prototypes', prototypes=32, hidden=16, pieces=2),
    uni=dict(name='all_pairs', tile=8, dim=16, hidden=16))
PARAMETERS = {
    'cloob': set(), 'otter': {'t', 't_plan'}, 'uni': {'t', 'b', 'image_head', 'text_head'}, 'proto': {'image_head', 'text_head'},
    'siam': {*(f'project_{i}' for i in range(3)), *(f'project_norm_{i}' for i in range(3)), 'squeeze', 'squeeze_norm', 'predict'}}


def test_in_one_model():
    batch = tiny.batch(16)
    batch |= {'views/0': batch['image'], 'views/1': batch['image']}
    model = model_lib.from_config(dict(towers=tiny.TOWERS, objectives=OBJECTIVES, fusion={}, decoders={}))
    few = jax.tree.map(lambda x: jnp.asarray(x[:2]), batch)
    variables = dict(jax.eval_shape(lambda: model.init(jax.random.key(0), {'pairs': few}, method='init_all')))
    params = variables.pop('params')
    assert {name: set(params.get(name, {})) for name in OBJECTIVES} == PARAMETERS
    assert {path.split('/')[1] for path in paths.flatten(variables)} == {'siam'}

    rounds = model_lib.rounds(model, jax.random.key(1), 'pairs', False)
    (loss, metrics, updated), gradient = jax.eval_shape(
        lambda p, c, b: rounds_lib.value_and_grad(rounds, p, c, b, micro=2, teacher=lambda features_of: {'slow': features_of(p)}),
        params, variables, batch)
    assert loss.shape == () and jax.tree.map(lambda x: x.shape, gradient) == jax.tree.map(lambda x: x.shape, params)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    assert {metrics[f'{name}/loss_B'].shape for name in OBJECTIVES} == {(16,)}
