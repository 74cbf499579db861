"""OTTER's objective against Sinkhorn and Kullback-Leibler on whole matrices: value, gradient, meshes, micro-batches."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams
import toy_rounds
from toy_rounds import unit

from bigvlm.core.parts import RecipeError
from bigvlm.objectives.transport import Transport

B, C = 16, 5
RNG = np.random.default_rng(0)
BATCH = dict(image=RNG.normal(size=(B, C)), text=RNG.normal(size=(B, C)))
OBJECTIVE = Transport(tile=3, temperature=.2, alpha=.3, iterations=3, image_image=.7, text_text=1.3)


def plan(cost, regularisation, iterations):
    """Rows to 1/B, columns to 1/B, and so on; then rows to 1."""
    p = np.exp(-cost / regularisation)
    for _ in range(iterations):
        p = p / p.sum(1, keepdims=True) / B
        p = p / p.sum(0, keepdims=True) / B
    return p / p.sum(1, keepdims=True)


def formula(objective, slow):
    v, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (BATCH[name] @ slow['towers'][name] for name in ('image', 'text')))
    far = 100. * np.eye(B) * objective.others_only
    cost = -(objective.image_image * (v @ v.T - far) + objective.text_text * (t @ t.T - far) + v @ t.T)
    targets = [plan(c, objective.regularisation, objective.iterations) for c in (cost, cost.T)]

    def loss(params):
        u, w = (unit(BATCH[name] @ params['towers'][name]) for name in ('image', 'text'))
        total = 0.
        for logits, target in zip((u @ w.T, w @ u.T), targets):
            contrast = -jnp.diagonal(jax.nn.log_softmax(jnp.exp(params['objective']['t']) * logits)).mean()
            student = jax.nn.log_softmax(jnp.exp(params['objective']['t_plan']) * logits)
            divergence = (target * (np.log(np.where(target > 0, target, 1.)) - student)).sum(1).mean()
            total += objective.alpha * contrast + (1 - objective.alpha) * divergence
        return total
    return loss


@pytest.mark.parametrize('mesh,micro,changes', [
    ('data', 2, dict(exchange='ring')), ('tensor', 1, dict(exchange='all_gather', others_only=False))])
def test_equals_formula(mesh, micro, changes):
    objective = OBJECTIVE.clone(**changes)
    params, collections = toy_rounds.setting(objective, BATCH)
    slow = jax.tree.map(lambda x: x + .3 * RNG.normal(size=x.shape), params)
    wanted = toy_rounds.dense(formula(objective, slow), params)
    loss, metrics, _, gradient = toy_rounds.run(objective, params, collections, BATCH, mesh, micro, slow)
    assert streams.error((loss, gradient), wanted) < 1e-12
    assert streams.error(metrics['loss_B'].mean(), loss) < 1e-12
    assert streams.error(.3 * metrics['contrast'] + .7 * metrics['distillation'], loss) < 1e-12
    assert 0 < metrics['entropy'] < np.log(B)


def test_as_published_and_finite_in_float32():
    """The paper's regularisation and temperature; both t start from 3.9."""
    objective = Transport()
    params, _ = toy_rounds.setting(objective, BATCH)
    features = {f'{k}_BD': jnp.float32(unit(BATCH[k] @ params['towers'][k])) for k in BATCH}
    variables, (loss, _) = fast.jit(lambda: objective.init_with_output(jax.random.key(0), features, None, features, method='loss')[::-1])()
    assert {k: float(x) for k, x in variables['params'].items()} == pytest.approx({'t': 3.9, 't_plan': 3.9})
    own = {'towers': params['towers'], 'objective': {'t': 3.9, 't_plan': 3.9}}
    assert loss == pytest.approx(float(formula(objective, own)(own)), rel=1e-4) and loss.dtype == jnp.float32


@pytest.mark.parametrize('field,value', [('alpha', 1.5), ('regularisation', 0.), ('iterations', 0), ('teacher', '')])
def test_refuses(field, value):
    with pytest.raises(RecipeError, match=f'{field}: found .*; valid: '):
        Transport(**{field: value})
