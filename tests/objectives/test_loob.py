"""CLOOB's objective against its formula on whole matrices: value, gradient, meshes, micro-batches."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams
import toy_rounds
from toy_rounds import unit

from bigvlm.core.parts import RecipeError
from bigvlm.objectives.loob import Loob

B, C = 16, 5
RNG = np.random.default_rng(0)
BATCH = dict(image=RNG.normal(size=(B, C)), text=RNG.normal(size=(B, C)))


def info_loob(x, y, tau):
    """[B]: -x_i·y_i + τ log Σ_{j≠i} exp(x_i·y_j / τ)."""
    k = x @ y.T / tau
    return -jnp.diagonal(k) * tau + tau * jnp.log((jnp.exp(k) * (1 - np.eye(B))).sum(1))


def hopfield(state, stored, beta):
    return unit(jax.nn.softmax(beta * state @ stored.T, axis=1) @ stored)


def formula(params, beta, tau=None):
    u, v = (unit(BATCH[name] @ params['towers'][name]) for name in ('image', 'text'))
    tau = tau or jnp.exp(-params['objective']['t'])
    if not beta:
        return (info_loob(u, v, tau) + info_loob(v, u, tau)).mean()
    return (info_loob(hopfield(u, u, beta), hopfield(v, u, beta), tau) + info_loob(hopfield(v, v, beta), hopfield(u, v, beta), tau)).mean()


CASES = {'cloob': (Loob(tile=3), 8., 1 / 30), 'learned, no retrieval': (Loob(tile=3, learned=True, temperature=.2, hopfield=0.), 0., None)}


WANTED = {}


@pytest.mark.parametrize('case,mesh,micro,exchange', [
    ('cloob', 'data', 1, 'ring'), ('cloob', 'tensor', 2, 'all_gather'), ('learned, no retrieval', 'fsdp', 1, 'ring')])
def test_equals_formula(case, mesh, micro, exchange):
    objective, beta, tau = CASES[case]
    objective = objective.clone(exchange=exchange)
    params, collections = toy_rounds.setting(objective, BATCH)
    loss, metrics, _, gradient = toy_rounds.run(objective, params, collections, BATCH, mesh, micro)
    if case not in WANTED:
        WANTED[case] = toy_rounds.dense(lambda p: formula(p, beta, tau), params)
    assert streams.error((loss, gradient), WANTED[case]) < 1e-6  # 1/τ is float32
    assert streams.error(metrics['loss_B'].mean(), loss) < 1e-12
    assert set(params['objective']) == ({'t'} if objective.learned else set())
    assert metrics['scale'] == pytest.approx(float(1 / tau if tau else np.exp(params['objective']['t'])), rel=1e-6)


def test_bfloat16_products_and_wire():
    """Float32 features with products in bfloat16, sent in bfloat16: about 2^-8 off in value and gradient, which stays float32."""
    objective = Loob(tile=8, dtype='bfloat16', wire='bfloat16', temperature=.2)
    params, _ = toy_rounds.setting(objective, BATCH)
    features = {f'{k}_BD': jnp.float32(unit(BATCH[k] @ params['towers'][k])) for k in BATCH}

    def both(objective):
        return fast.jit(jax.value_and_grad(lambda f: objective.apply({}, f, method='loss')[0]))(features)
    found, wanted = both(objective), both(objective.clone(dtype=None, wire=None))
    assert 1e-6 < streams.error(found, wanted) < 2e-2
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype('float32')}


def test_refuses_and_reads():
    with pytest.raises(RecipeError, match='hopfield: found -1.0; valid: '):
        Loob(hopfield=-1.)
    with pytest.raises(RecipeError, match="no 'image'"):
        Loob().features(toy_rounds.Encode({}, {}), {'text': None})
