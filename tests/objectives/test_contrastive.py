"""The contrastive objective: its formula, its positives, its parameters, what it reads and what it refuses."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder
from bigvlm.objectives.contrastive import Contrastive

B, D = 8, 5
LABELS = np.array([3, 1, 3, -1, 0, 1, 3, -1], np.int32)
CAPTIONS = np.array([[5, 6, 0], [6, 5, 0], [5, 6, 0], [5, 6, 7], [1, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 0]], np.int32)


def batch(**more):
    rng = np.random.default_rng(0)
    return dict(image=jnp.asarray(rng.normal(size=(B, D)), jnp.float32), text=jnp.asarray(CAPTIONS), **more)


class Encode:
    """Towers for tests: images are their own embeddings, texts get a fixed random one per row."""

    def __init__(self, batch):
        self.batch, self.asked = batch, []

    def __call__(self, tower, key):
        self.asked.append((tower, key))
        noise = jnp.asarray(np.random.default_rng(1).normal(size=(B, D)), jnp.float32)
        pooled_BD = self.batch[key] if key == 'image' else self.batch['image'] + .8 * noise
        return SimpleNamespace(pooled_BD=3. * pooled_BD)


def run(objective, batch):
    """(variables, features, (loss, metrics)) of one objective on one batch."""
    features, variables = objective.init_with_output(jax.random.key(0), Encode(batch), batch, method='features')
    return variables, features, objective.apply(variables, features, method='loss')


def unicl(image, text, groups, tau):
    """UniCL's loss by loops: P(i) are the examples in the group of i; mean over i, half of each direction."""
    image, text = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    total = 0.
    for queries, keys in ((image, text), (text, image)):
        for i in range(len(queries)):
            positives = [k for k in range(len(keys)) if k == i or (groups[k] is not None and groups[k] == groups[i])]
            partition = sum(math.exp(queries[i] @ keys[j] / tau) for j in range(len(keys)))
            total -= sum(math.log(math.exp(queries[i] @ keys[k] / tau) / partition) for k in positives) / len(positives)
    return total / (2 * len(image))


GROUPS = {'identity': [None] * B,
          'labels': [None if label == -1 else int(label) for label in LABELS],
          'captions': [tuple(c) for c in CAPTIONS]}


@pytest.mark.parametrize('target', GROUPS)
def test_equals_unicl_by_loops(target):
    data = batch(label=jnp.asarray(LABELS))
    encode = Encode(data)
    wanted = unicl(encode('image', 'image').pooled_BD, encode('text', 'text').pooled_BD, GROUPS[target], .07)
    others = [unicl(encode('image', 'image').pooled_BD, encode('text', 'text').pooled_BD, g, .07)
              for name, g in GROUPS.items() if name != target]
    _, _, (loss, metrics) = run(Contrastive(target=target, tile=3), data)
    assert abs(loss - wanted) < 2e-6 * wanted
    assert all(abs(loss - other) > .01 for other in others)
    assert abs(metrics['scale'] - 1 / .07) < 1e-5 and 0 <= metrics['accuracy'] <= 1


def test_same_on_a_mesh_from_features_to_gradient():
    data = batch(label=jnp.asarray(LABELS))
    objective = Contrastive(target='captions', smoothing=.1)
    variables, _, _ = run(objective, data)

    def loss(variables, data):
        features = objective.apply(variables, Encode(data), data, method='features')
        return objective.apply(variables, features, method='loss')[0]
    wanted = jax.jit(jax.value_and_grad(loss))(variables, data)
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(variables, jax.device_put(data, meshes.batch_sharding(mesh)))
    assert wanted[1]['params']['t'] != 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_temperature_is_a_parameter_unless_fixed():
    variables, _, _ = run(Contrastive(temperature=.5), batch())
    assert variables['params'].keys() == {'t'} and variables['params']['t'].dtype == jnp.float32
    assert abs(variables['params']['t'] - math.log(2)) < 1e-6
    variables, _, (_, metrics) = run(Contrastive(temperature=.5, learned=False), batch())
    assert 'params' not in variables and abs(metrics['scale'] - 2.) < 1e-6


def test_towers_default_to_keys_and_can_be_named():
    data = batch()
    for objective, towers in ((Contrastive(), {'image', 'text'}),
                              (Contrastive(image_tower='vit', text_tower='bert'), {'vit', 'bert'})):
        encode = Encode(data)
        features, _ = objective.init_with_output(jax.random.key(0), encode, data, method='features')
        assert {tower for tower, _ in encode.asked} == towers and set(features) == {'image_BD', 'text_BD'}
        np.testing.assert_allclose(np.linalg.norm(features['image_BD'], axis=1), 1., atol=1e-6)


def test_embeds_what_the_batch_has_and_scores_by_cosine():
    data = batch()
    objective = Contrastive()
    both, variables = objective.init_with_output(jax.random.key(0), Encode(data), data, method='embed')
    only = objective.apply(variables, Encode(data), {'image': data['image']}, method='embed')
    assert set(both) == {'image_BD', 'text_BD'} and set(only) == {'image_BD'}
    score = objective.apply(variables, both['image_BD'], both['text_BD'][:3], method='score')
    np.testing.assert_allclose(score, np.asarray(both['image_BD']) @ np.asarray(both['text_BD'])[:3].T, atol=1e-6)


def test_missing_keys_are_named():
    with pytest.raises(RecipeError, match="no 'label' .*image, text"):
        run(Contrastive(target='labels'), batch())
    with pytest.raises(RecipeError, match="no 'views/0'"):
        run(Contrastive(image='views/0'), batch())


@pytest.mark.parametrize('field,value', [('target', 'label'), ('temperature', 0.), ('smoothing', 1.),
                                         ('exchange', 'gather'), ('tile', 0), ('dtype', 'int8')])
def test_impossible_fields_are_refused_at_construction(field, value):
    with pytest.raises(RecipeError, match=f'{field}: found .*; valid: '):
        Contrastive(**{field: value})


def test_caption_hash_separates_captions_and_positions():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3, (4096, 6)).astype(np.int32)  # 729 different captions, many equal
    words = np.asarray(jax.jit(dual_encoder.caption_hash)(ids))
    assert words.shape == (4096, 2) and words.dtype == np.uint32
    by_caption = {}
    for caption, word in zip(map(tuple, ids), map(tuple, words)):
        by_caption.setdefault(caption, set()).add(word)
    assert all(len(found) == 1 for found in by_caption.values())
    for column in (0, 1):  # each word alone is already a good hash
        assert len({word[column] for found in by_caption.values() for word in found}) == len(by_caption) > 700


def test_unit_is_safe_at_zero():
    x = jnp.zeros((2, 3)).at[1].set(jnp.array([3., 0., 4.]))
    value, pull = jax.vjp(dual_encoder.unit, x)
    np.testing.assert_allclose(value, [[0., 0., 0.], [.6, 0., .8]], atol=1e-7)
    assert np.isfinite(pull(jnp.ones((2, 3)))[0]).all()
    assert dual_encoder.unit(x.astype(jnp.bfloat16)).dtype == jnp.float32
