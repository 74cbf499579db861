"""Contrast between views: SLIP's formula with its head, MoCo's with teacher and queue, both on a mesh in micro-batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_towers as toy

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.image_contrast import ImageContrast

B, I, D = 8, 6, 5
SIMCLR = dict(hidden=7, depth=3, out=4, temperature=.3, tile=3)
MOCO = SIMCLR | dict(depth=2, norm=False, teacher='slow', queue=16, batch=8)


def batch(seed):
    rng = np.random.default_rng(seed)
    view = rng.normal(size=(B, I))
    return {f'views/{i}': (view + .5 * rng.normal(size=(B, I))).astype(np.float32) for i in range(2)}


def setting(fields):
    objective = ImageContrast(**fields)
    weights = toy.towers(image=(I, D))
    params, collections = toy.init(objective, weights, batch(0))
    rng = np.random.default_rng(3)  # away from what biases and scales start as
    params['objective'] = jax.tree.map(lambda x: x + .2 * rng.normal(size=x.shape).astype(np.float32), params['objective'])
    return objective, params, collections


def head(p, x, norm):
    """By the formulas: dense, batch norm with the biased variance, ReLU."""
    depth = sum(name.startswith('layer') for name in p)
    for i in range(depth):
        x = x @ p[f'layer{i}']['kernel'] + p[f'layer{i}']['bias']
        if i < depth - 1:
            if norm:
                x = (x - x.mean(0)) / jnp.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5) * p[f'norm{i}']['scale'] + p[f'norm{i}']['bias']
            x = jnp.maximum(x, 0)
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def embeddings(params, data, norm):
    return [head(params['objective']['head'], jnp.tanh(data[f'views/{i}'] @ params['towers']['image']), norm) for i in range(2)]


def slip(params, data):
    """The loss of SLIP: logits to the other view first, then to the own kind without itself."""
    a, b = embeddings(params, data, True)
    total = 0.
    for q, other, own in ((a, b, a), (b, a, b)):
        logits = jnp.concatenate([q @ other.T, q @ own.T - 1e9 * jnp.eye(B)], 1) / .3
        total -= jnp.diagonal(nn.log_softmax(logits)[:, :B]).mean()
    return total / 2


def moco(params, teacher, data, queues):
    query, key = embeddings(params, data, False), embeddings(teacher, data, False)
    total = 0.
    for own, other in ((0, 1), (1, 0)):
        keys = jnp.concatenate([key[other], *queues[other]])
        total -= jnp.diagonal(nn.log_softmax(query[own] @ jax.lax.stop_gradient(keys).T / .3)).mean()
    return total / 2


def run(fields, steps, teacher=False):
    """(parameters, the teacher's, batches, steps on a mesh in micro-batches, collections before and after)."""
    objective, params, collections = setting(fields)
    slow = jax.tree.map(lambda x: .8 * x + .05, params) if teacher else None
    batches = [batch(i) for i in range(steps)]
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
    found, after = toy.steps(objective, params, collections, batches, teacher=slow, micro=2, mesh=mesh)
    return params, slow, batches, found, (collections, after)


def test_equals_slip_in_value_and_gradient():
    params, _, batches, found, (before, after) = run(SIMCLR, 1)
    loss, metrics, gradient = found[0]
    toy.assert_close((loss, gradient), toy.in_float64(jax.value_and_grad(slip), params, batches[0]))
    assert metrics['loss_B'].shape == (B,) and abs(metrics['loss_B'].mean() - loss) < 1e-6 and 0 < metrics['accuracy'] < 1
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(after['batch_stats']), jax.tree.leaves(before['batch_stats'])))


def test_equals_moco_over_steps():
    params, teacher, batches, found, _ = run(MOCO, 3, teacher=True)
    queues = np.zeros((2, 2, B, 4))  # of each view
    for step, (data, (loss, metrics, gradient)) in enumerate(zip(batches, found)):
        filled = min(step, 2)
        toy.assert_close((loss, gradient), toy.in_float64(jax.value_and_grad(moco), params, teacher, data, list(queues[:, :filled])))
        assert metrics['filled'] == filled / 2
        queues[:, step % 2] = toy.in_float64(lambda p, data: jnp.stack(embeddings(p, data, False)), teacher, data)


def test_what_goes_into_the_head():
    rng = np.random.default_rng(0)
    data = {f'views/{i}': rng.normal(size=(B, 3, I)).astype(np.float32) for i in range(2)}
    encode = toy.Encode(toy.towers(other=(I, D)), data)
    for pool, wanted in (('', 'pooled_BD'), ('first', None), ('mean', 'pooled_BD')):
        objective = ImageContrast(tower='other', pool=pool, **SIMCLR)
        assert objective.towers() == {'views/0': ('tower', 'other'), 'views/1': ('tower', 'other')}
        features = objective.apply({}, encode, data, method='features')
        encoded = encode('other', 'views/1')
        np.testing.assert_array_equal(features['view1'], encoded.pooled_BD if wanted else encoded.tokens_BLD[:, 0])
    assert encode.asked[:2] == [('other', 'views/0'), ('other', 'views/1')]


@pytest.mark.parametrize('fields,message', [
    (dict(views=('a',)), 'views: found .*; valid: two batch keys'), (dict(pool='cls'), "pool: found 'cls'; valid: '', first, mean"),
    (dict(temperature=0.), 'temperature: found 0.0; valid'), (dict(depth=0), 'depth: found 0; valid'),
    (dict(teacher='slow'), 'norm: found True with a teacher; valid: False'),
    (dict(queue=16, batch=8), 'queue: found one without a teacher'),
    (dict(teacher='slow', norm=False, queue=12, batch=8), 'queue: found 12; valid: a multiple of the global batch, 8')])
def test_impossible_fields_are_refused_at_construction(fields, message):
    with pytest.raises(RecipeError, match=message):
        ImageContrast(**fields)
