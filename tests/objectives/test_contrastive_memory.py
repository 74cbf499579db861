"""What the contrastive objective remembers of earlier batches: its queue of negatives, and losses that tell noise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_towers as toy
from sklearn.mixture import GaussianMixture

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.contrastive import Contrastive

B, I, L, D, STEPS = 8, 6, 3, 5, 3
FIELDS = dict(queue=16, history=16, batch=8, target='captions', noise=.6, smoothing=.05, temperature=.3, tile=3)


def batch(seed):
    rng = np.random.default_rng(seed)
    return dict(image=rng.normal(size=(B, I)).astype(np.float32), text=rng.integers(1, 4, (B, L)).astype(np.int32))


def embeddings(params, data):
    pooled = [jnp.tanh(data[key] @ params['towers'][key]) for key in ('image', 'text')]
    return [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in pooled]


def dense(params, data, queues, targets, epsilon_B):
    """(mean, each example's part) of cross-entropies with targets [B, B + keys] of both directions."""
    total = 0.
    for x, y, keys, q in zip(embeddings(params, data), embeddings(params, data)[::-1], queues[::-1], targets):
        logits = jnp.exp(params['objective']['t']) * x @ jnp.concatenate([y, keys]).T
        q = (1 - epsilon_B)[:, None] * q / q.sum(1, keepdims=True) + epsilon_B[:, None] / q.shape[1]
        total -= (q * nn.log_softmax(logits)).sum(1) / 2
    return total.mean(), total


def noise_of(history, plain_B):
    """The probability of each loss to be of the higher part of a mixture, by scikit-learn; 0 before the history is full."""
    if len(history) < 2:
        return np.zeros(B)
    x = np.concatenate(history[-2:])
    start = dict(means_init=[[x.mean() - x.std()], [x.mean() + x.std()]], precisions_init=[[[1 / (x.var() + 1e-6)]]] * 2)
    mixture = GaussianMixture(2, reg_covar=1e-6, tol=0., max_iter=60, weights_init=[.5, .5], **start).fit(x[:, None])
    return mixture.predict_proba(plain_B[:, None])[:, int(mixture.means_.argmax())]


@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
def test_equals_the_dense_formula_over_steps():
    """On a mesh in micro-batches: earlier captions are keys (the same captions positives); what is noise is smoothed by it."""
    objective, batches = Contrastive(**FIELDS), [batch(seed) for seed in range(STEPS)]
    params, collections = toy.init(objective, toy.towers(image=(I, D), text=(L, D)), batch(0))
    found, _ = toy.steps(objective, params, collections, batches, micro=2, mesh=meshes.make_mesh(dict(data=2, fsdp=2, tensor=2)))
    queues, captions, history, hits = np.zeros((2, 0, D)), np.zeros((0, L), np.int32), [], []
    for step, (data, (loss, metrics, gradient)) in enumerate(zip(batches, found)):
        equal = (data['text'][:, None] == np.concatenate([data['text'], captions])[None]).all(-1).astype(float)
        arrays = params, data, list(queues), [equal, equal]
        plain_B = toy.in_float64(lambda *a: dense(*a)[1], *arrays, np.zeros(B))
        np.testing.assert_allclose(metrics['noise_B'], noise_of(history, plain_B), atol=2e-3)
        assert abs(metrics['noise'] - metrics['noise_B'].mean()) < 1e-6 and metrics['filled'] == min(step, 2) / 2
        wanted = toy.in_float64(jax.value_and_grad(lambda *a: dense(*a)[0]), *arrays, .05 + .55 * metrics['noise_B'])
        toy.assert_close((loss, gradient), wanted)
        hits.append(equal[:, B:].sum())
        history.append(plain_B)
        new = toy.in_float64(lambda p, data: jnp.stack(embeddings(p, data)), params, data)
        queues, captions = np.concatenate([queues, new], 1)[:, -16:], np.concatenate([captions, data['text']])[-16:]
    assert .02 < metrics['noise'] < .98 and min(hits[1:]) > 0, 'earlier captions recur, and then are positives'


@pytest.mark.parametrize('fields,message', [
    (dict(queue=12, batch=8), 'queue: found 12; valid: a multiple of the global batch, 8'),
    (dict(noise=.5, batch=8), 'history: found 0; valid: a multiple of the global batch, 8'),
    (dict(noise=.5, history=16), "batch: found 0; valid: the recipe's global batch"),
    (dict(noise=.1, smoothing=.2, history=16, batch=8), 'noise: found 0.1; valid: 0, or above the smoothing 0.2 and below 1')])
def test_impossible_fields_are_refused_at_construction(fields, message):
    with pytest.raises(RecipeError, match=message):
        Contrastive(**fields)


def test_a_batch_of_another_size_is_named():
    objective = Contrastive(**FIELDS)
    params, collections = toy.init(objective, toy.towers(image=(I, D), text=(L, D)), batch(0))
    with pytest.raises(RecipeError, match='batch: found 8; the batch has 4 examples; valid: their number'):
        toy.steps(objective, params, collections, [jax.tree.map(lambda x: x[:4], batch(0))])
