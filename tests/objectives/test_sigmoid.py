"""The sigmoid objective: its formula by loops, its parameters, its positives, and the same numbers on a mesh."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.sigmoid import Sigmoid

B, D = 8, 5
CAPTIONS = np.array([[5, 6], [6, 5], [5, 6], [5, 7], [1, 0], [2, 0], [1, 0], [0, 0]], np.int32)
RNG = np.random.default_rng(0)
BATCH = dict(image=jnp.asarray(RNG.normal(size=(B, D)), jnp.float32), text=jnp.asarray(CAPTIONS),
             label=jnp.asarray([0, 0, -1, -1, 2, 3, 4, 5], jnp.int32))
TEXT = jnp.asarray(RNG.normal(size=(B, D)), jnp.float32)


def encode(tower, key):
    return SimpleNamespace(pooled_BD=BATCH['image'] if key == 'image' else TEXT)


def run(objective, batch=BATCH):
    features, variables = objective.init_with_output(jax.random.key(0), encode, batch, method='features')
    return variables, features, objective.apply(variables, features, method='loss')


def by_loops(same, scale, bias):
    """-1/B Σi Σj log σ(±(s x·y + b)), and the mean logits of the two kinds of pairs."""
    image, text = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (BATCH['image'], TEXT))
    total, logits = 0., {True: [], False: []}
    for i in range(B):
        for j in range(B):
            positive = bool(i == j or same(i, j))
            logit = scale * image[i] @ text[j] + bias
            total += math.log1p(math.exp(-logit if positive else logit))
            logits[positive].append(logit)
    return total / B, np.mean(logits[True]), np.mean(logits[False])


SAME = {'identity': lambda i, j: False,
        'captions': lambda i, j: (CAPTIONS[i] == CAPTIONS[j]).all(),
        'labels': lambda i, j: BATCH['label'][i] == BATCH['label'][j] >= 0}


@pytest.mark.parametrize('target', SAME)
def test_equals_formula_by_loops(target):
    wanted = by_loops(SAME[target], 7., -3.)
    _, _, (loss, metrics) = run(Sigmoid(temperature=7., bias=-3., target=target, tile=3))
    np.testing.assert_allclose([loss, metrics['positive'], metrics['negative']], wanted, rtol=2e-6)
    np.testing.assert_allclose([metrics['scale'], metrics['bias']], [7., -3.], rtol=1e-6)


def test_starts_as_in_the_paper():
    variables, _, (loss, _) = run(Sigmoid())
    assert variables['params'].keys() == {'t', 'b'}
    assert abs(variables['params']['t'] - math.log(10)) < 1e-6 and variables['params']['b'] == -10.
    np.testing.assert_allclose(loss, by_loops(SAME['identity'], 10., -10.)[0], rtol=2e-6)


def test_gradients_of_scalars_by_differences_and_on_a_mesh():
    objective = Sigmoid(temperature=7., bias=-3.)
    variables, features, _ = run(objective)
    grad = jax.grad(lambda v, f: objective.apply(v, f, method='loss')[0])
    mesh = meshes.make_mesh(dict(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        on_mesh = jax.jit(grad)(variables, jax.device_put(features, meshes.batch_sharding(mesh)))['params']
    alone, h = grad(variables, features)['params'], 1e-4
    by_t = [by_loops(SAME['identity'], 7. * math.exp(d), -3.)[0] for d in (h, -h)]
    by_b = [by_loops(SAME['identity'], 7., -3. + d)[0] for d in (h, -h)]
    wanted = [np.subtract(*by_t) / (2 * h), np.subtract(*by_b) / (2 * h)]
    for found in (alone, on_mesh):
        np.testing.assert_allclose([found['t'], found['b']], wanted, rtol=1e-5)


def test_embeds_what_the_batch_has():
    embed, _ = Sigmoid().init_with_output(jax.random.key(0), encode, {'text': BATCH['text']}, method='embed')
    assert set(embed) == {'text_BD'}
    np.testing.assert_allclose(np.linalg.norm(embed['text_BD'], axis=1), 1., atol=1e-6)


def test_impossible_recipes_are_refused():
    with pytest.raises(RecipeError, match="no 'text' .*it has: image"):
        run(Sigmoid(), {'image': BATCH['image']})
    with pytest.raises(RecipeError, match='target: found .*; valid: identity, labels, captions'):
        Sigmoid(target='classes')
