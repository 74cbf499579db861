"""What other libraries' towers have and CLIP's and SigLIP's have not, against the formulas: class tokens beside other pools, places
of the last norm, blocks without biases, queries of another width, and a text's late mask."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core.parts import RecipeError
from bigvlm.towers.text import Text
from bigvlm.towers.vit import ViT

SMALL = dict(size='', width=8, depth=2, heads=2, patch=4, image=8, dtype='float32', norm_eps=1e-3, remat='none')
TEXT = dict(size='', width=8, depth=2, heads=2, vocab=20, length=5, pad_id=0, causal=True, pool='last', class_token=True, mask_padding=True,
            late_mask=True, dtype='float32', norm_eps=1e-3, remat='none')
IMAGE_BHWC = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
CASES = {
    'mean beside a class token': dict(pool='gap', class_token=True, last_norm='pooled', out_dim=6),
    'class token without position or biases': dict(pool='cls', class_position=False, qkv_bias=False),
    'class token beside a map head': dict(pool='map', class_token=True, last_norm='none'),
    'wider queries': dict(pool='queries', queries=3, query_width=12, query_heads=3, class_token=True, last_norm='none'),
}


def formula(image_HWC, p, tower):
    """(pooled, tokens) of one image."""
    x_LW = reference.dense(reference.patches(image_HWC, tower.patch, tower.mean, tower.std), p['patch_embed']) + p['position']
    x_LW = np.concatenate([(p['class_token'] + p.get('class_position', 0.))[None], x_LW])
    norm = p['encoder'].get('norm', dict(scale=1., bias=0.))
    normed_LW, layers = reference.transformer(x_LW, p['encoder'] | {'norm': norm}, 2, 2, eps=tower.norm_eps)
    tokens = normed_LW if tower.last_norm == 'tokens' else layers[-1]
    if tower.pool == 'queries':
        read = p['read']
        queries, keys = (reference.layer_norm(x, read[f'layer0_{which}_norm'], tower.norm_eps)
                         for which, x in (('query', read['queries']), ('tokens', tokens)))
        found = reference.layer_norm(reference.attention(queries, keys, read['layer0_attention'], 3), read['norm'], tower.norm_eps)
        return found[0], found[1:]
    pooled = {'gap': lambda: tokens[1:].mean(0), 'cls': lambda: tokens[0],
              'map': lambda: reference.map_head(tokens[1:], p['map'], 2, tower.norm_eps)}[tower.pool]()
    if tower.last_norm == 'pooled':
        pooled = reference.layer_norm(pooled, p['pooled_norm'], tower.norm_eps)
    return (reference.dense(pooled, p['out']) if tower.out_dim else pooled), tokens


@pytest.mark.parametrize('case', CASES)
def test_images(case):
    tower = ViT(**SMALL | CASES[case])
    p = reference.randomise(jax.eval_shape(tower.init, jax.random.key(0), IMAGE_BHWC)['params'])
    paths = reference.flat(p).keys()
    assert ('class_position' in paths) == tower.class_position and ('encoder/norm/scale' in paths) == (tower.last_norm == 'tokens')
    assert ('encoder/blocks/attention/key/bias' in paths) == tower.qkv_bias and 'encoder/blocks/attention/out/bias' in paths
    out = fast.jit(lambda p, image: tower.apply({'params': p}, image))(p, IMAGE_BHWC)
    expected = [formula(image, reference.float64(p), tower) for image in IMAGE_BHWC]
    assert reference.relative(out.pooled_BD, [pooled for pooled, _ in expected]) < 1e-5
    assert reference.relative(out.tokens_BLD, [tokens for _, tokens in expected]) < 1e-5


def test_texts_whose_mask_is_late():
    """A key is seen if the token before it is no padding: the first padding is seen, and the class token only after a full text."""
    tower, ids_BL = Text(**TEXT), np.array([[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]], np.int32)
    p = reference.randomise(jax.eval_shape(tower.init, jax.random.key(0), ids_BL)['params'])
    out = fast.jit(lambda p, ids: tower.apply({'params': p}, ids))(p, ids_BL)
    p64 = reference.float64(p)
    for i, ids_L in enumerate(ids_BL):
        x_LW = np.concatenate([p64['embed']['embedding'][ids_L], p64['class_token'][None]]) + p64['position']
        seen_L = [True, *(ids_L != 0)]
        expected, _ = reference.transformer(x_LW, p64['encoder'], 2, 2, eps=1e-3, causal=True, mask_L=seen_L)
        assert reference.relative(out.tokens_BLD[i], expected) < 1e-5
    assert np.array_equal(out.mask_BL[1], [True, True, False, False, False, True])  # which tokens are real is as ever


@pytest.mark.parametrize('tower, message', [
    (ViT(**SMALL | dict(last_norm='all')), "^last_norm: unknown value 'all'"),
    (ViT(**SMALL | dict(pool='cascade', last_norm='pooled')), "^last_norm: with pool='cascade'"),
    (ViT(**SMALL | dict(pool='queries', query_width=9)), '^queries: .* cannot pool 9'),
    (Text(**TEXT | dict(mask_padding=False)), '^late_mask: it is of'), (Text(**TEXT | dict(class_token=False)), '^late_mask: it is of')])
def test_impossible_fields_are_named_before_anything_runs(tower, message):
    with pytest.raises(RecipeError, match=message):
        tower.check()


def test_nothing_of_it_is_there_unless_asked_for():
    shapes = reference.flat(jax.eval_shape(ViT(**SMALL | dict(pool='gap')).init, jax.random.key(0), jnp.asarray(IMAGE_BHWC))['params'])
    assert not {'class_token', 'class_position', 'pooled_norm/scale'} & shapes.keys() and 'encoder/blocks/attention/key/bias' in shapes
