"""Nearest-neighbour supervision: DeCLIP's formula with a queue kept in NumPy, by steps on a mesh in micro-batches."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_towers as toy

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.nearest_neighbour import NearestNeighbour

B, I, L, D, STEPS = 8, 6, 3, 5, 3
FIELDS = dict(images=('views/0',), texts=('text', 'texts/1'), size=16, batch=8, temperature=.3, label='class', tile=3)


def batch(seed):
    """Captions of which only one per step has been seen before, in the batch before."""
    def text(seed, offset):
        return np.random.default_rng((seed, offset)).integers(1, 1000, (B, L)).astype(np.int32)
    rng = np.random.default_rng(seed)
    again = np.concatenate([text(seed - 1, 0)[3:4], text(seed, 0)[1:]]) if seed else text(seed, 0)
    return {'views/0': rng.normal(size=(B, I)).astype(np.float32), 'text': again, 'texts/1': text(seed, 1),
            'class': rng.integers(-1, 3, B).astype(np.int32)}


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def texts_of(params, data):
    return [unit(np.tanh(data[key].astype(np.float64) @ np.asarray(params['towers']['text'], np.float64))) for key in FIELDS['texts']]


def neighbours(text, queue):
    """(embedding, queue entry or None) of each text's nearest: by loops."""
    found = []
    for x in np.asarray(text):
        best = max(queue, key=lambda entry: float(np.dot(entry[0], x)), default=None)
        found.append((x if best is None else best[0], best))
    return found


def loss(params, images, targets):
    """Each image among the targets of the whole batch; mean over images × texts."""
    total = 0.
    for x in images:
        image = unit(jnp.tanh(x @ params['towers']['image']))
        for target in targets:
            total -= jnp.diagonal(nn.log_softmax(jnp.exp(params['objective']['t']) * image @ target.T)).mean()
    return total / len(images) / len(targets)


def test_equals_the_formula_over_steps():
    objective, batches = NearestNeighbour(**FIELDS), [batch(seed) for seed in range(STEPS)]
    towers = toy.towers(image=(I, D), text=(L, D))
    params, collections = toy.init(objective, towers | {'text': towers['text'] / 500}, batch(0))
    assert abs(params['objective']['t'] + math.log(.3)) < 1e-6
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
    found, _ = toy.steps(objective, params, collections, batches, micro=2, mesh=mesh)
    queue, hits = [], []
    for step, (data, (value, metrics, gradient)) in enumerate(zip(batches, found)):
        texts = texts_of(params, data)
        chosen = [neighbours(text, queue) for text in texts]
        targets = [np.array([x for x, _ in of_text]) for of_text in chosen]
        toy.assert_close((value, gradient), toy.in_float64(jax.value_and_grad(loss), params, [data['views/0']], targets))
        assert not gradient['towers']['text'].any(), 'only images look'
        same_caption = np.mean([entry is not None and entry[1] == tuple(data[key][i])
                                for key, of_text in zip(FIELDS['texts'], chosen) for i, (_, entry) in enumerate(of_text)])
        labelled = [(entry, data['class'][i]) for of_text in chosen for i, (_, entry) in enumerate(of_text) if data['class'][i] >= 0]
        same_label = np.mean([entry is not None and entry[2] == label for entry, label in labelled])
        np.testing.assert_allclose([metrics['same_caption'], metrics['same_label'], metrics['filled']],
                                   [same_caption, same_label, min(step, 2) / 2], rtol=1e-6)
        assert abs(metrics['loss_B'].mean() - value) < 1e-6
        hits.append(same_caption)
        queue += [(np.asarray(text)[i], tuple(data[key][i]), data['class'][i])
                  for key, text in zip(FIELDS['texts'], texts) for i in range(B)]
        queue = queue[-2 * FIELDS['size']:]
    assert hits == [0.] + [1 / 16] * (STEPS - 1)


def test_what_it_reads_and_what_it_refuses():
    objective = NearestNeighbour(size=16, batch=8)
    assert objective.towers() == {'image': ('image_tower', 'image'), 'text': ('text_tower', 'text')} and objective.example() == {}
    assert NearestNeighbour(**FIELDS).example() == {'class': ((), 'int32')}
    with pytest.raises(RecipeError, match='size: found 20; valid: a multiple of the global batch, 8'):
        NearestNeighbour(size=20, batch=8)
    with pytest.raises(RecipeError, match="batch: found 0; valid: the recipe's global batch"):
        NearestNeighbour()
    with pytest.raises(RecipeError, match='temperature: found 0'):
        NearestNeighbour(size=16, batch=8, temperature=0)
