"""The late-interaction objective: its formula, the tokens that it keeps, what evaluators get, micro-batches and meshes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.nn.encoded import Encoded
from bigvlm.objectives.late_interaction import LateInteraction
from tests.fast import jit

B, N, M, W, D = 8, 6, 5, 7, 4
MASK = np.arange(M) < np.array([5, 2, 3, 1, 4, 5, 2, 3])[:, None]


def batch(**more):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(B, N, W)).astype(np.float32)
    text = rng.normal(size=(B, M, W)).astype(np.float32) + image[:, 1:1 + M]
    return dict(image=jnp.asarray(image), text=jnp.asarray(text), mask=jnp.asarray(MASK), **more)


class Encode:
    """Towers for tests: a batch's arrays are their own tokens, texts with padding."""

    def __init__(self, batch):
        self.batch, self.asked = batch, []

    def __call__(self, tower, key):
        self.asked.append((tower, key))
        return Encoded(self.batch[key][:, 0], self.batch[key], self.batch['mask'] if key == 'text' else None)


def run(objective, data):
    """(variables, features, (loss, metrics))."""
    @jit
    def both(data):
        features, variables = objective.init_with_output(jax.random.key(0), Encode(data), data, method='features')
        return variables, features, objective.apply(variables, features, method='loss')
    return both(data)


def tokens_of(variables, data, skip=0, unit=True):
    """([tokens of each image], [real tokens of each text]) in float64."""
    def project(x, head):
        x = np.asarray(x, np.float64) @ np.asarray(head['kernel'], np.float64) + np.asarray(head['bias'], np.float64)
        return x / np.linalg.norm(x, axis=-1, keepdims=True) if unit else x
    p = variables['params']
    return ([project(x[skip:], p['image_head']) for x in np.asarray(data['image'])],
            [project(x[real], p['text_head']) for x, real in zip(np.asarray(data['text']), MASK)])


def cross_entropy(s_BB, tau):
    return np.mean([math.log(np.exp(s_BB[i] / tau).sum()) - s_BB[i, i] / tau for i in range(len(s_BB))])


def late(images, texts, tau):
    """FILIP's loss by loops over pairs."""
    s_I = np.array([[np.mean([max(x @ y for y in text) for x in image]) for text in texts] for image in images])
    s_T = np.array([[np.mean([max(x @ y for x in image) for y in text]) for image in images] for text in texts])
    return .5 * (cross_entropy(s_I, tau) + cross_entropy(s_T, tau)), .5 * (s_I + s_T.T)


@pytest.mark.parametrize('skip', [0, 1])
def test_equals_filip_by_loops(skip):
    data = batch()
    variables, features, (loss, metrics) = run(LateInteraction(width=D, skip=skip, tile=3), data)
    wanted, _ = late(*tokens_of(variables, data, skip), .07)
    assert abs(loss - wanted) < 3e-6 * wanted
    assert features['image_BnD'].shape == (B, N - skip, D) and 'image_Bn' not in features
    assert abs(metrics['scale'] - 1 / .07) < 1e-5 and abs(metrics['loss_B'].mean() - loss) < 1e-5
    other, _ = late(*tokens_of(variables, data, 1 - skip), .07)
    assert abs(loss - other) > .01


def test_keeps_the_tokens_most_like_the_own_counterpart():
    data = batch()
    variables, features, (loss, _) = run(LateInteraction(width=D, keep=.5), data)
    images, texts = tokens_of(variables, data)
    kept = []
    for own, other, count in [(i, t, 3) for i, t in zip(images, texts)] + [(t, i, 3) for i, t in zip(images, texts)]:
        order = np.argsort([-sum(x @ y for y in other) for x in own])
        kept.append(own[order[:count]])
    wanted, _ = late(kept[:B], kept[B:], .07)
    assert features['image_BnD'].shape == features['text_BmD'].shape == (B, 3, D)
    np.testing.assert_array_equal(np.asarray(features['text_Bm']).sum(1), np.minimum(MASK.sum(1), 3))
    assert abs(loss - wanted) < 3e-6 * wanted
    assert abs(loss - late(images, texts, .07)[0]) > .01


def test_pooled_is_the_contrast_of_mean_tokens():
    data = batch()
    variables, _, (loss, _) = run(LateInteraction(width=D, pooled=True), data)
    means = [[x.mean(0, keepdims=True) for x in side] for side in tokens_of(variables, data, unit=False)]
    wanted, _ = late(*([x / np.linalg.norm(x) for x in side] for side in means), .07)
    assert abs(loss - wanted) < 3e-6 * wanted


def test_padding_and_unkept_tokens_get_no_gradient():
    data = batch()
    objective = LateInteraction(width=D, keep=.5)
    variables, _, _ = run(objective, data)

    def loss(image, text):
        moved = data | dict(image=image, text=text)
        return objective.apply(variables, objective.apply(variables, Encode(moved), moved, method='features'), method='loss')[0]
    dimage, dtext = jit(jax.grad(loss, (0, 1)))(data['image'], data['text'])
    assert not np.asarray(dtext)[~MASK].any()
    assert (np.abs(np.asarray(dimage)).sum(2) > 0).sum(1).max() <= 3


def test_same_on_a_mesh_and_by_parts_from_features_to_gradient():
    data = batch(label=jnp.asarray([3, 1, 3, -1, 0, 1, 3, -1], jnp.int32))
    objective = LateInteraction(width=D, tile=2, keep=.5, target='labels', smoothing=.1)
    variables, features, _ = run(objective, data)
    half = {k: v[:4] for k, v in data.items()}
    part = jit(lambda half: objective.apply(variables, Encode(half), half, method='features'))(half)
    for name, x in part.items():   # no example's features depend on another's
        np.testing.assert_allclose(x, features[name][:4], rtol=1e-6)

    def loss(variables, data):
        return objective.apply(variables, objective.apply(variables, Encode(data), data, method='features'), method='loss')[0]
    wanted = jit(jax.value_and_grad(loss))(variables, data)
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found = jit(jax.value_and_grad(loss))(variables, jax.device_put(data, meshes.batch_sharding(mesh)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize('pooled', [False, True])
def test_embeds_what_the_batch_has_and_scores_pairs(pooled):
    data = batch()
    objective = LateInteraction(width=D, skip=1, keep=.5, pooled=pooled)
    variables, _, _ = run(objective, data)
    both = objective.apply(variables, Encode(data), data, method='embed')
    only = objective.apply(variables, Encode(data), {'image': data['image']}, method='embed')
    assert set(both) == {'image_BD', 'image_features_BD', 'text_BD'} and set(only) == {'image_BD', 'image_features_BD'}
    np.testing.assert_array_equal(both['image_features_BD'], data['image'][:, 0])
    assert both['image_BD'].shape == (B, (N - 1) * (D + 1)) and both['text_BD'].shape == (B, M * (D + 1))
    found = jit(lambda *a: objective.apply(variables, *a, method='score'))(both['image_BD'][:3], both['text_BD'])
    images, texts = tokens_of(variables, data, 1, unit=not pooled)
    if pooled:
        images, texts = ([x.mean(0, keepdims=True) / np.linalg.norm(x.mean(0)) for x in side] for side in (images, texts))
    np.testing.assert_allclose(found, late(images, texts, .07)[1][:3], atol=2e-6)
    assert LateInteraction.average_scores and 'average_scores' not in LateInteraction.__dataclass_fields__


def test_towers_and_missing_keys():
    data = batch()
    encode = Encode(data)
    LateInteraction(width=D, image_tower='vit', text_tower='bert').init(jax.random.key(0), encode, data, method='features')
    assert encode.asked == [('vit', 'image'), ('bert', 'text')]
    with pytest.raises(RecipeError, match="no 'views/0'"):
        run(LateInteraction(image='views/0'), data)


@pytest.mark.parametrize('field,value', [('target', 'label'), ('temperature', 0.), ('smoothing', 1.), ('exchange', 'gather'), ('tile', -1),
                                         ('dtype', 'int8'), ('keep', 0.), ('keep', 1.5), ('width', 0), ('skip', -1)])
def test_impossible_fields_are_refused_at_construction(field, value):
    with pytest.raises(RecipeError, match=f'{field}: found .*; valid: '):
        LateInteraction(**{field: value})
