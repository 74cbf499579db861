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


@pytest.mark.parametrize('causal, padded', [(True, False), (False, True), (True, True)])
def test_float64_stays_float64(causal, padded):
    module = Attention(2, causal=causal, dtype=jnp.float64)
    masks_BS = MASK_BS if padded else np.ones_like(MASK_BS)
    with jax.enable_x64(True):
        p = reference.float64(reference.randomise(jax.eval_shape(module.init, jax.random.key(0), KEY_BSW)['params']))
        out = fast.jit(module.apply)({'params': p}, np.float64(KEY_BSW), mask_BS=jnp.asarray(MASK_BS) if padded else None)
    expected = [reference.attention(x, x, p, 2, causal, mask_S) for x, mask_S in zip(np.float64(KEY_BSW), masks_BS)]
    assert reference.relative(out, expected) < 1e-14


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


@pytest.mark.parametrize('platform, dtype, length, head, expected', [
    ('cpu', 'bfloat16', 4, 64, 'xla'),
    ('gpu', 'float32', 4, 64, 'xla'),
    ('gpu', 'bfloat16', 4, 64, 'cudnn'),
    ('gpu', 'bfloat16', 5, 64, 'cudnn'),
    ('gpu', 'bfloat16', 1, 64, 'xla'),      # one query is not worth a kernel
    ('gpu', 'bfloat16', 4, 12, 'xla'),      # cuDNN refuses heads that are no multiple of 8
    ('gpu', 'float16', 4, 136, 'xla'),      # … or wider than 128 before Hopper
    ('tpu', 'bfloat16', 196, 64, 'xla'),
    ('tpu', 'bfloat16', 729, 72, 'splash')])
def test_auto_takes_what_the_platform_can_do(monkeypatch, platform, dtype, length, head, expected):
    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    x = jax.ShapeDtypeStruct((1, length, 1, head), dtype)
    assert attention.choose(x, x) == expected


@pytest.mark.parametrize('t, s, masked', [(5, 5, False), (4, 7, False), (5, 6, True), (3, 7, True)])
def test_odd_lengths_are_made_even_for_cudnn_and_hidden(monkeypatch, t, s, masked):
    """jax's own plain formula in the kernel's place: what it is given must mean the same, and be what the kernel takes."""
    plain, given = jax.nn.dot_product_attention, {}

    def kernel(*args, implementation, **kwargs):
        assert implementation == 'cudnn'
        given.update(kwargs, lengths=[x.shape[1] for x in args])
        return plain(*args, implementation='xla', **kwargs)
    monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
    query, key, value = (RNG.normal(size=(2, n, 2, 8)).astype(np.float32) for n in (t, s, s))
    mask_BS = jnp.asarray(RNG.random((2, s)) < .6).at[:, 0].set(True) if masked else None
    out = attend(query, key, value, mask_BS=mask_BS, implementation='cudnn')
    assert not any(n % 2 for n in given['lengths'])
    assert not masked or given['mask'].shape == (2, 1, *given['lengths'][:2])
    expected = plain(query, key, value, mask=None if mask_BS is None else mask_BS[:, None, None, :], implementation='xla')
    assert out.shape == expected.shape and reference.relative(out, expected) < 1e-6


def test_heads_must_divide_the_width():
    with pytest.raises(RecipeError, match='heads: 3 heads do not divide the width 8'):
        jax.eval_shape(Attention(3).init, jax.random.key(0), QUERY_BTW)
