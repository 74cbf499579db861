"""Attention against loops over heads and queries; which implementation a platform gets."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core.parts import RecipeError
from bigvlm.nn import attention
from bigvlm.nn.attention import Attention, attend

RNG = np.random.default_rng(0)
QUERY_BTW, KEY_BSW = (RNG.normal(size=(2, n, 8)).astype(np.float32) for n in (3, 5))
WEIGHT_BTW = RNG.normal(size=QUERY_BTW.shape)
MASK_BS = np.array([[True, False, True, True, False], [True] * 5])


@pytest.mark.parametrize('cross, causal, padded, bias', [(True, False, True, True), (False, True, True, False)])
def test_value_and_gradient_equal_the_reference(cross, causal, padded, bias):
    key_BSW = KEY_BSW if cross else None
    query_BTW = QUERY_BTW if cross else KEY_BSW
    weight_BTW = WEIGHT_BTW if cross else RNG.normal(size=query_BTW.shape)
    module = Attention(2, causal=causal, bias=bias)
    p = reference.randomise(jax.eval_shape(module.init, jax.random.key(0), query_BTW)['params'])
    assert ('query/bias' in reference.flat(p)) == bias

    def loss(p):
        out = module.apply({'params': p}, query_BTW, key_BSW, jnp.asarray(MASK_BS) if padded else None)
        return jnp.sum(out * weight_BTW), out

    def by_hand(p):
        keys = query_BTW if key_BSW is None else key_BSW
        masks = MASK_BS if padded else (None, None)
        return np.stack([reference.attention(np.float64(query), np.float64(key), p, 2, causal, mask)
                         for query, key, mask in zip(query_BTW, keys, masks)])
    (_, out), gradient = fast.jit(jax.value_and_grad(loss, has_aux=True))(p)
    assert reference.relative(out, by_hand(reference.float64(p))) < 1e-5
    errors = reference.slope_errors(lambda p: (by_hand(p) * weight_BTW).sum(), p, gradient)
    assert max(errors.values()) < 2e-5, errors


def test_softmax_is_float32_whatever_the_inputs():
    """Close logits around 200: bfloat16 cannot tell them apart by less than 1, float32 can."""
    query = np.full((1, 1, 1, 8), 8., np.float32)
    key = np.zeros((1, 2, 1, 8), np.float32)
    key[0, :, 0, 0] = 71., 71.5  # · 8 / √8: logits 200.82 and 202.23; one bfloat16 step there is 1
    value = np.eye(2, dtype=np.float32)[None, :, None, :].repeat(4, -1)
    out = attend(*(jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)), implementation='xla')
    assert out.dtype == jnp.bfloat16
    odds = np.exp(8 * .5 / 8 ** .5)
    np.testing.assert_allclose(np.float32(out[0, 0, 0, -1]), odds / (1 + odds), rtol=8e-3)


@pytest.mark.parametrize('platform, dtype, length, head, masked, expected', [
    ('cpu', 'bfloat16', 4, 64, False, 'xla'),
    ('gpu', 'float32', 4, 64, False, 'xla'),
    ('gpu', 'bfloat16', 4, 64, False, 'cudnn'),
    ('gpu', 'bfloat16', 5, 64, False, 'cudnn'),
    ('gpu', 'bfloat16', 4, 64, True, 'cudnn'),
    ('gpu', 'bfloat16', 5, 64, True, 'xla'),     # cuDNN refuses to train with a mask and an odd length
    ('gpu', 'bfloat16', 4, 12, False, 'xla'),    # … and heads that are no multiple of 8
    ('gpu', 'float16', 4, 136, False, 'xla')])   # … or wider than 128 before Hopper
def test_auto_takes_what_the_platform_can_do(monkeypatch, platform, dtype, length, head, masked, expected):
    taken = []
    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    monkeypatch.setattr(jax.nn, 'dot_product_attention',
                        lambda *args, implementation, **kwargs: taken.append(implementation))
    x = jnp.zeros((1, length, 1, head), dtype)
    attention.attend(x, x, x, mask_BS=jnp.ones((1, length), bool) if masked else None)
    attention.attend(x, x, x, implementation='xla')
    assert taken == [expected, 'xla']


def test_heads_must_divide_the_width():
    with pytest.raises(RecipeError, match='heads: 3 heads do not divide the width 8'):
        jax.eval_shape(Attention(3).init, jax.random.key(0), QUERY_BTW)
