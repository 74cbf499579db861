"""What towers can be asked besides a plain encoding: masked and left-out patches, learned queries, class tokens, steps with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast
import reference
from bigvlm.core.parts import RecipeError
from bigvlm.towers.text import Text
from bigvlm.towers.vit import ViT

SMALL = dict(size='', width=16, depth=2, heads=2, dtype='float32')
RNG = np.random.default_rng(0)
IMAGE_BHWC = RNG.integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)  # 2 × 3 patches
TEXT_BL = np.array([[1, 5, 6, 7, 1], [1, 8, 1, 0, 0], [1, 9, 9, 1, 0]], np.int32)


def vit(**fields):
    return ViT(patch=8, image=16, pool=fields.pop('pool', 'gap'), position=fields.pop('position', 'sincos2d'), **SMALL, **fields)


def params(module, *args, **kwargs):
    return reference.randomise(jax.eval_shape(lambda k: module.init(k, *args, **kwargs), jax.random.key(0))['params'])


def test_masked_patches_are_all_alike_and_the_others_are_seen():
    module = vit(mask_token=True)
    p = params(module, IMAGE_BHWC)
    masked = np.zeros((3, 6), bool)
    masked[:, 4] = True
    run = fast.jit(lambda p, image, masked: module.apply({'params': p}, image, masked=masked).tokens_BLD)
    changed = IMAGE_BHWC.copy()
    changed[:, 8:, 8:16] = 0  # the fifth patch
    np.testing.assert_array_equal(run(p, IMAGE_BHWC, masked), run(p, changed, masked))
    assert reference.relative(run(p, IMAGE_BHWC, masked & False), run(p, changed, masked & False)) > 1e-3
    plain = fast.jit(lambda p, image: module.apply({'params': p}, image).tokens_BLD)(p, IMAGE_BHWC)
    np.testing.assert_array_equal(plain, run(p, IMAGE_BHWC, masked & False))


def test_patches_left_out_change_nothing_and_those_kept_have_their_positions():
    """A tower of one patch more sees what the whole image would show it, if the rest were cut away: by hand, via attention's sums."""
    module = vit(pool='cls')
    p = params(module, IMAGE_BHWC)
    run = fast.jit(lambda p, image, kept: module.apply({'params': p}, image, kept=kept))
    kept = np.tile(np.array([[1, 2, 5]], np.int32), (3, 1))
    changed = IMAGE_BHWC.copy()
    changed[:, :8, :8], changed[:, 8:, :16] = 255, 7
    one = run(p, IMAGE_BHWC, kept)
    np.testing.assert_array_equal(one.pooled_BD, run(p, changed, kept).pooled_BD)
    assert one.tokens_BLD.shape == (3, 1 + 3, 16)
    every = run(p, IMAGE_BHWC, np.tile(np.arange(6, dtype=np.int32), (3, 1)))
    whole = fast.jit(lambda p, image: module.apply({'params': p}, image))(p, IMAGE_BHWC)
    np.testing.assert_array_equal(every.tokens_BLD, whole.tokens_BLD)
    moved = run(p, IMAGE_BHWC, kept[:, ::-1])
    np.testing.assert_allclose(moved.pooled_BD, one.pooled_BD, rtol=1e-4, atol=1e-5)  # a set: only the order of sums changes


def test_what_cannot_be_masked_is_said():
    with pytest.raises(RecipeError, match='mask_token: masked patches need'):
        jax.eval_shape(lambda k: vit().init(k, IMAGE_BHWC, masked=np.zeros((3, 6), bool)), jax.random.key(0))
    with pytest.raises(RecipeError, match='masks of 5 patches for images of 6'):
        jax.eval_shape(lambda k: vit(mask_token=True).init(k, IMAGE_BHWC, masked=np.zeros((3, 5), bool)), jax.random.key(0))
    with pytest.raises(RecipeError, match='masked and left out'):
        jax.eval_shape(lambda k: vit(mask_token=True).init(k, IMAGE_BHWC, masked=np.zeros((3, 6), bool), kept=np.zeros((3, 2), np.int32)),
                       jax.random.key(0))


@pytest.mark.parametrize('pool', ['queries', 'cascade'])
def test_learned_queries_pool_as_the_formula(pool):
    module = vit(pool=pool, queries=3, out_dim=4)
    p = params(module, IMAGE_BHWC)
    found = fast.jit(lambda p, image: module.apply({'params': p}, image))(p, IMAGE_BHWC)
    plain = vit(pool='gap')
    tokens = fast.jit(lambda p, image: plain.apply({'params': {k: p[k] for k in ('patch_embed', 'encoder')}}, image).tokens_BLD)(p,
                                                                                                                                 IMAGE_BHWC)

    def read(tokens, q):
        normed = reference.layer_norm(np.asarray(q['queries'], np.float64), q['layer0_query_norm'], 1e-6)
        keys = reference.layer_norm(tokens, q['layer0_tokens_norm'], 1e-6)
        return reference.layer_norm(reference.attention(normed, keys, q['layer0_attention'], 2), q['norm'], 1e-6)
    for i in range(3):
        rows = read(np.asarray(tokens[i], np.float64), p['read'])
        pooled, rest = (rows[0], rows[1:]) if pool == 'queries' else (read(rows, p['cascade'])[0], rows)
        assert reference.relative(found.tokens_BLD[i], rest) < 1e-4
        assert reference.relative(found.pooled_BD[i], reference.dense(pooled, p['out'])) < 1e-4
        assert reference.relative(found.features_BD[i], pooled) < 1e-4


def test_a_class_token_after_a_causal_text_sees_all_of_it_but_padding():
    module = Text(vocab=12, length=5, causal=True, class_token=True, pool='last', pad_id=0, mask_padding=True, out_dim=0, **SMALL)
    p = params(module, TEXT_BL)
    run = fast.jit(lambda p, text: module.apply({'params': p}, text))
    found = run(p, TEXT_BL)
    assert found.tokens_BLD.shape == (3, 6, 16) and found.mask_BL.shape == (3, 6) and found.mask_BL[:, -1].all()
    shorter = fast.jit(lambda p, text: module.apply({'params': p}, text))(p, TEXT_BL[1:2, :3])
    np.testing.assert_allclose(found.pooled_BD[1], shorter.pooled_BD[0], rtol=1e-4, atol=1e-5)  # padding is not there
    other = TEXT_BL.copy()
    other[0, 4] = 10
    changed = run(p, other)
    assert np.abs(changed.pooled_BD[0] - found.pooled_BD[0]).max() > 1e-3
    np.testing.assert_allclose(changed.tokens_BLD[0, :4], found.tokens_BLD[0, :4], rtol=1e-5, atol=1e-6)  # what came before does not


def test_steps_with_a_cache_give_the_tokens_of_the_whole_text():
    module = Text(vocab=12, length=5, causal=True, class_token=True, pool='last', pad_id=0, out_dim=0, **SMALL)
    p = params(module, TEXT_BL)
    whole = fast.jit(lambda p, text: module.apply({'params': p}, text).layers[-1])(p, TEXT_BL)
    step = fast.jit(lambda p, ids_B, cache, i: module.apply({'params': p}, ids_B[:, None], cache=cache, index=i))
    cache = module.cache(3)
    for i in range(5):
        encoded, cache = step(p, TEXT_BL[:, i], cache, jnp.int32(i))
        np.testing.assert_allclose(encoded.layers[-1][:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


def test_a_class_token_pools_at_the_end():
    with pytest.raises(RecipeError, match="pool: a class token after the text pools with pool='last'"):
        Text(class_token=True, pool='eot').check()
