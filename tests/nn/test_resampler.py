"""Learned queries against the formula in plain loops, in value and gradient."""

import jax
import numpy as np
import pytest

import fast
import reference
from bigvlm.nn.resampler import Resampler

B, S, W, Q, HEADS = 2, 5, 8, 3, 2
X_BSW = np.random.default_rng(0).normal(size=(B, S, W)).astype(np.float32)
MASK_BS = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]], bool)


def one(tokens, mask, p, module):
    """One example: the tokens that count, then layer by layer."""
    tokens = tokens[mask]
    x = np.asarray(p['queries'], np.float64)
    if 'project' in p:
        tokens = reference.dense(tokens, p['project'])
    for layer in range(module.depth):
        at = f'layer{layer}_'
        if module.among == 'before':
            normed = reference.layer_norm(x, p[at + 'self_norm'], 1e-6)
            x = x + reference.attention(normed, normed, p[at + 'self'], HEADS)
        read = reference.layer_norm(x, p[at + 'query_norm'], 1e-6)
        keys = reference.layer_norm(tokens, p[at + 'tokens_norm'], 1e-6)
        if module.among == 'keys':
            keys = np.concatenate([keys, read])
        found = reference.attention(read, keys, p[at + 'attention'], HEADS)
        x = x + found if module.residual else found
        if module.mlp:
            x = x + reference.mlp(reference.layer_norm(x, p[at + 'mlp_norm'], 1e-6), p[at + 'mlp'])
    return reference.layer_norm(x, p['norm'], 1e-6)


@pytest.mark.parametrize('fields', [
    dict(), dict(width=4, depth=2, mlp=16, among='keys', residual=True), dict(depth=2, mlp=16, among='before', residual=True)])
def test_value_and_gradient_equal_the_formula(fields):
    module = Resampler(Q, HEADS, **fields)
    p = reference.randomise(jax.eval_shape(module.init, jax.random.key(0), X_BSW, MASK_BS)['params'])
    weights = np.random.default_rng(1).normal(size=(B, Q, fields.get('width', W)))

    def wanted(variables):
        return sum((w * one(x, m, variables['p'], module)).sum() for w, x, m in zip(weights, variables['x'], MASK_BS))

    def value(p, x):
        return (weights.astype(np.float32) * module.apply({'params': p}, x, MASK_BS)).sum()
    found, (to_p, to_x) = fast.jit(jax.value_and_grad(value, argnums=(0, 1)))(p, X_BSW)
    assert abs(found - wanted(dict(p=p, x=X_BSW.astype(np.float64)))) < 1e-4 * np.abs(weights).sum()
    errors = reference.slope_errors(wanted, dict(p=p, x=X_BSW), dict(p=to_p, x=to_x))
    assert max(errors.values()) < 1e-4, errors
