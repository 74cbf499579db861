"""UniCLIP's objective against MP-NCE by loops: value, gradient, types of pairs, augmentation parameters."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams
import toy_rounds
from toy_rounds import unit

from bigvlm.core.parts import RecipeError
from bigvlm.objectives.all_pairs import AllPairs

B, C, P = 8, 5, 3
RNG = np.random.default_rng(0)
BATCH = {key: RNG.normal(size=(B, C)) for key in ('views/0', 'views/1', 'text', 'image')}
AWARE = BATCH | {f'views/{i}_params': RNG.normal(size=(B, P)) for i in (0, 1)}
OBJECTIVE = AllPairs(dim=4, hidden=6, temperature=.3, image_image=.5, image_text=2., text_text=.7, tile=6)


def views(params, batch, objective):
    found = []
    for key in objective.images:
        p = params['objective']['image_head']
        x = batch[key] @ params['towers']['image']
        if objective.params:
            x = jnp.concatenate([x, batch[f'{key}_params']], 1)
        found.append(unit(jax.nn.gelu(x @ p['hidden']['kernel'] + p['hidden']['bias']) @ p['out']['kernel']))
    to_text = params['towers']['text'] @ params['objective']['text_head']['out']['kernel']
    return found + [unit(batch[key] @ to_text) for key in objective.texts]


def formula(params, batch, objective):
    """Anchor by anchor, positive by positive."""
    view, images = views(params, batch, objective), len(objective.images)
    tau, b = jnp.exp(-params['objective']['t']), params['objective']['b']
    weights, total = (objective.image_image, objective.image_text, objective.text_text), 0.

    def kind(a, c):
        return (a >= images) + (c >= images)

    def s(a, c):
        return (view[a] @ view[c].T - b[kind(a, c)]) / tau[kind(a, c)]
    negatives = [sum((jnp.exp(s(a, d)) * (1 - np.eye(B))).sum(1) for d in range(len(view))) for a in range(len(view))]
    pairs = [(a, c) for a in range(len(view)) for c in range(len(view)) if a != c]
    for a, c in pairs:
        own = jnp.exp(jnp.diagonal(s(a, c)))
        count = sum(kind(*other) == kind(a, c) for other in pairs)
        total += weights[kind(a, c)] / count * -jnp.log(own / (own + negatives[a])).mean()
    return total


@pytest.mark.parametrize('mesh,micro,changes', [
    ('data', 1, dict(images=('views/0',), texts=('text', 'image'), exchange='ring')), ('tensor', 2, dict(params=P, exchange='all_gather'))])
def test_equals_formula(mesh, micro, changes):
    objective, batch = OBJECTIVE.clone(**changes), AWARE if 'params' in changes else BATCH
    params, collections = toy_rounds.setting(objective, batch)
    wanted = toy_rounds.dense(lambda p: formula(p, batch, objective), params)
    loss, metrics, _, gradient = toy_rounds.run(objective, params, collections, batch, mesh, micro)
    assert streams.error((loss, gradient), wanted) < 1e-11
    assert streams.error(metrics['loss_B'].mean(), loss) < 1e-12
    assert ('text_text' in metrics) == (len(objective.texts) > 1)
    whole = sum(getattr(objective, k) * metrics[k] for k in ('image_image', 'image_text', 'text_text') if k in metrics)
    assert streams.error(whole, loss) < 1e-12


def test_evaluates_images_as_not_augmented():
    objective = OBJECTIVE.clone(params=P)
    params, _ = toy_rounds.setting(objective, AWARE)
    def embed(batch):
        return objective.apply({'params': params['objective']}, toy_rounds.Encode(params['towers'], batch), batch, method='embed')
    with jax.enable_x64(True):
        found = fast.jit(embed)(BATCH)
    zeros = {**AWARE, 'views/0': BATCH['image'], 'views/0_params': np.zeros((B, P))}
    with jax.enable_x64(True):
        wanted = fast.jit(lambda: views(params, zeros, objective))()
    assert streams.error((found['image_BD'], found['text_BD']), (wanted[0], wanted[-1])) < 1e-12
    assert streams.error(found['image_features_BD'], BATCH['image'] @ params['towers']['image']) < 1e-12
    assert set(jax.eval_shape(embed, {'text': BATCH['text']})) == {'text_BD'}
    assert objective.example() == {'views/0_params': ((P,), 'float32'), 'views/1_params': ((P,), 'float32')}


def test_refuses():
    for field, value in (('params', -1), ('dim', 0), ('hidden', -1), ('images', ()), ('temperature', 0.)):
        with pytest.raises(RecipeError, match=f'{field}: found .*; valid: '):
            AllPairs(**{field: value})
    with pytest.raises(RecipeError, match="no 'views/0_params'"):
        toy_rounds.setting(OBJECTIVE.clone(params=P), BATCH)
    with pytest.raises(RecipeError, match=r'params: found \(3,\) numbers under views/0_params; valid: 4'):
        toy_rounds.setting(OBJECTIVE.clone(params=4), AWARE)
