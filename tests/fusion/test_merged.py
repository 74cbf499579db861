"""A transformer over two modalities' tokens: what is projected, masked, pooled, and read of the towers."""

import fast
import jax
import numpy as np
import pytest
import reference

from bigvlm.core.parts import RecipeError
from bigvlm.fusion.merged import Merged
from bigvlm.nn.encoded import Encoded

SMALL = dict(width=8, depth=2, heads=2, norm_eps=1e-3, dtype='float32', remat='none')
RNG = np.random.default_rng(0)
IMAGE_BMV, TEXT_BNT = RNG.normal(size=(2, 3, 6)).astype(np.float32), RNG.normal(size=(2, 4, 5)).astype(np.float32)
MASK_BN = np.array([[True] * 4, [True, True, False, False]])


def formula(image_MV, text_NT, mask_N, p, fusion):
    """(pooled, tokens) of one pair."""
    x_LW = np.concatenate([p['class_token'][None], reference.dense(image_MV, p['image']), reference.dense(text_NT, p['text'])])
    mask_L = [True] * (1 + len(image_MV)) + list(mask_N)
    tokens, _ = reference.transformer(x_LW, p['encoder'], fusion.heads, fusion.depth, fusion.activation, fusion.norm_eps, mask_L=mask_L)
    return np.tanh(reference.dense(tokens[0], p['pooler'])) if fusion.pool == 'pooler' else tokens[0], tokens


@pytest.mark.parametrize('fields', [{}, dict(pool='pooler', qkv_bias=False)], ids=str)
def test_equals_the_formula(fields):
    fusion = Merged(**SMALL | fields)
    p = reference.randomise(jax.eval_shape(fusion.init, jax.random.key(0), IMAGE_BMV, TEXT_BNT)['params'])
    assert ('pooler' in p) == (fusion.pool == 'pooler') and ('bias' in p['encoder']['blocks']['attention']['key']) == fusion.qkv_bias
    out = fast.jit(lambda p, mask: fusion.apply({'params': p}, IMAGE_BMV, TEXT_BNT, text_mask=mask))(p, MASK_BN)
    expected = [formula(image, text, mask, reference.float64(p), fusion) for image, text, mask in zip(IMAGE_BMV, TEXT_BNT, MASK_BN)]
    assert reference.relative(out.pooled_BD, [pooled for pooled, _ in expected]) < 1e-5
    assert reference.relative(out.tokens_BLD, [tokens for _, tokens in expected]) < 1e-5


def test_what_is_read_of_a_tower():
    encoded = Encoded(None, 'after the norm', None, {-1: 'before it'})
    assert Merged(**SMALL).read(encoded) == 'after the norm'
    assert Merged(**SMALL, before_norm=True).read(encoded) == 'before it'
    with pytest.raises(RecipeError, match='^before_norm: only transformers'):
        Merged(**SMALL, before_norm=True).read(Encoded(None, 'after the norm'))


def test_impossible_fields_are_named_before_anything_runs():
    with pytest.raises(RecipeError, match="^pool: unknown value 'mean' .valid: cls, pooler"):
        Merged(pool='mean').check()
    with pytest.raises(RecipeError, match='^heads: 5 heads do not divide the width 8 '):
        Merged(**SMALL | dict(heads=5)).check()
