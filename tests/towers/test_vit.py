"""The vision transformer in each variant against the NumPy reference; sizes, other resolutions, randomness, errors."""

import functools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core.parts import RecipeError
from bigvlm.nn.random import example_keys, patch_dropout
from bigvlm.nn.sizes import dims
from bigvlm.towers.vit import SIZES, ViT

SMALL = dict(size='', width=8, depth=2, heads=2, patch=4, image=12, dtype='float32',
             mean=(.4, .5, .6), std=(.2, .3, .25))
RNG = np.random.default_rng(0)
WEIGHT_BD = RNG.normal(size=(2, 8)).astype(np.float32)
SQUARE_BHWC = RNG.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
WIDE_BHWC = RNG.integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
KEYS_B = example_keys(jax.random.key(3), np.array([[0, 4], [1, 9]], np.uint32), 0)
CASES = {
    'clip': (dict(pool='cls', pre_norm=True, patch_bias=False, activation='quick_gelu', norm_eps=1e-3,
                  init_scheme='clip', out_dim=6, out_bias=False), SQUARE_BHWC),
    'siglip': (dict(pool='map', norm_eps=1e-3), WIDE_BHWC),   # positions resampled from 3×3 to 2×4
    'gap': (dict(pool='gap', position='sincos2d', activation='gelu', mlp_dim=12, out_dim=6), WIDE_BHWC)}


@functools.cache
def params(**fields):
    tower = ViT(**SMALL | fields)
    return reference.randomise(jax.eval_shape(tower.init, jax.random.key(0), SQUARE_BHWC)['params'])


@functools.cache
def compiled(train=False, gradient=True, **fields):
    """params, images, keys -> (Encoded, gradient of Σ weight·pooled)."""
    tower = ViT(**SMALL | fields)

    def loss(params, image_BHWC, keys_B):
        out = tower.apply({'params': params}, image_BHWC, keys_B=keys_B, train=train, layers=(0, -1))
        return jnp.sum(out.pooled_BD * WEIGHT_BD[:, :out.pooled_BD.shape[1]]), out

    def run(params, image_BHWC, keys_B=None):
        if not gradient:
            return loss(params, image_BHWC, keys_B)[1], None
        (_, out), slope = jax.value_and_grad(loss, has_aux=True)(params, image_BHWC, keys_B)
        return out, slope
    return fast.jit(run)


@pytest.mark.parametrize('case', CASES)
def test_value_and_gradient_equal_the_reference(case):
    fields, image_BHWC = CASES[case]
    tower, p = ViT(**SMALL | fields), params(**fields)
    given = np.float32(image_BHWC / 255.) if case == 'gap' else image_BHWC  # floats are pixels in [0, 1]
    out, gradient = compiled(**fields)(p, given)
    expected = [reference.vit(image, reference.float64(p), tower) for image in image_BHWC]
    assert reference.relative(out.pooled_BD, [pooled for pooled, _, _ in expected]) < 1e-5
    assert reference.relative(out.tokens_BLD, [tokens for _, tokens, _ in expected]) < 1e-5
    assert out.mask_BL is None
    for i in (0, -1):
        assert reference.relative(out.layers[i], [layers[i] for _, _, layers in expected]) < 1e-5

    def loss(p):
        pooled = [reference.vit(image, p, tower)[0] for image in image_BHWC]
        return np.sum(pooled * WEIGHT_BD[:, :len(pooled[0])].astype(np.float64))
    errors = reference.slope_errors(loss, p, gradient)
    assert max(errors.values()) < 2e-5, errors


def test_biases_are_where_the_fields_say():
    clip, siglip, gap = (reference.flat(params(**CASES[case][0])).keys() for case in ('clip', 'siglip', 'gap'))
    assert not {'out/bias', 'patch_embed/bias'} & clip and 'out/kernel' in clip
    assert {'out/bias', 'patch_embed/bias'} <= gap and 'out/kernel' not in siglip
    bare = reference.flat(params(**CASES['gap'][0], qkv_bias=False)).keys()
    assert gap - bare == {f'encoder/blocks/attention/{name}/bias' for name in ('query', 'key', 'value')} and bare < gap


def test_randomness_is_in_training_only_and_belongs_to_the_example():
    """All three kinds of dropout; half of nine patches rounds to four."""
    fields = dict(CASES['clip'][0], dropout=.2, drop_path=.2, patch_dropout=.5)
    p = params(**CASES['clip'][0])
    assert reference.flat(params(**fields)).keys() == reference.flat(p).keys()
    quiet, _ = compiled(**CASES['clip'][0])(p, SQUARE_BHWC)
    evaluated, _ = compiled(gradient=False, **fields)(p, SQUARE_BHWC, keys_B=KEYS_B)
    assert reference.relative(evaluated.pooled_BD, quiet.pooled_BD) < 1e-6
    train = compiled(train=True, gradient=False, **fields)
    one, _ = train(p, SQUARE_BHWC, keys_B=KEYS_B)
    assert one.tokens_BLD.shape == (2, 1 + 4, 8) and one.layers[0].shape == (2, 1 + 4, 8)
    assert reference.relative(one.pooled_BD, quiet.pooled_BD) > .05
    turned, _ = train(p, SQUARE_BHWC[::-1], keys_B=KEYS_B[::-1])
    np.testing.assert_allclose(one.pooled_BD[::-1], turned.pooled_BD, atol=1e-6)
    redrawn, _ = train(p, SQUARE_BHWC, keys_B=KEYS_B[::-1])
    assert reference.relative(redrawn.pooled_BD, one.pooled_BD) > .05


def test_patch_dropout_drops_patches_with_their_positions():
    """The kept tokens alone go through the encoder, each with the position it had."""
    tower, p = ViT(**SMALL | dict(patch_dropout=.5, pool='gap')), params(pool='gap')
    p64 = reference.float64(p)
    pixels_BLP = [reference.patches(image, 4, tower.mean, tower.std) for image in SQUARE_BHWC]
    embedded = [reference.dense(pixels_LP, p64['patch_embed']) + p64['position'] for pixels_LP in pixels_BLP]
    kept_BLW = np.asarray(patch_dropout(np.float32(embedded), .5, KEYS_B))
    out, _ = compiled(train=True, gradient=False, patch_dropout=.5, pool='gap')(p, SQUARE_BHWC, keys_B=KEYS_B)
    expected = [reference.transformer(kept.astype(np.float64), p64['encoder'], 2, 2)[0].mean(0) for kept in kept_BLW]
    assert reference.relative(out.pooled_BD, expected) < 1e-5


def test_bfloat16_compute_keeps_float32_parameters_and_is_near():
    """5 % of the largest pooled value, through two blocks and the attention pooling."""
    fields, image_BHWC = CASES['siglip']
    made = jax.eval_shape(ViT(**SMALL | dict(fields, dtype='bfloat16')).init, jax.random.key(0), SQUARE_BHWC)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype('float32')}
    full, _ = compiled(**fields)(params(**fields), image_BHWC)
    near, _ = compiled(gradient=False, **dict(fields, dtype='bfloat16'))(params(**fields), image_BHWC)
    assert near.pooled_BD.dtype == near.tokens_BLD.dtype == jnp.bfloat16
    assert reference.relative(near.pooled_BD, full.pooled_BD) < .05


def count(tower):
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, tower.image, tower.image, 3), jnp.uint8))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


# Millions of parameters without a classifier: as timm and torchvision count ViTs with a class token and a head of 1000
# classes, less the head; H, g, G as open_clip counts their image towers with a projection.
@pytest.mark.parametrize('size, fields, known', [
    ('Ti', dict(patch=16), 5_717_416 - 193_000), ('S', dict(patch=16), 22_050_664 - 385_000),
    ('B', dict(patch=16), 86_567_656 - 769_000), ('B', dict(patch=32), 88_224_232 - 769_000),
    ('L', dict(patch=16), 304_326_632 - 1_025_000), ('H', dict(patch=14), 632_045_800 - 1_281_000)])
def test_sizes_with_a_class_token(size, fields, known):
    assert count(ViT(size=size, pool='cls', **fields)) == known


@pytest.mark.parametrize('size, out_dim, known', [('H', 1024, 632.08), ('g', 1024, 1012.65), ('G', 1280, 1844.91)])
def test_sizes_of_clip_towers(size, out_dim, known):
    tower = ViT(size=size, patch=14, pool='cls', pre_norm=True, patch_bias=False, out_dim=out_dim, out_bias=False)
    assert round(count(tower) / 1e6, 2) == known


def test_size_of_so400m():
    """SigLIP So400m/14 at 384: 428.23 million in the image tower."""
    assert round(count(ViT(size='So400m', patch=14, image=378)) / 1e6, 2) == 428.23


def test_every_size_is_consistent_and_can_be_overridden():
    for size, (width, depth, mlp_dim, heads) in SIZES.items():
        assert dims(ViT(size=size)) == (width, depth, mlp_dim, heads) and width % heads == 0
    assert dims(ViT(size='B', depth=3)) == (768, 3, 3072, 12)
    assert dims(ViT(size='', width=64, depth=2, heads=4)) == (64, 2, 256, 4)
    assert ViT(image=256).example() == ((256, 256, 3), 'uint8')


@pytest.mark.parametrize('fields, message', [
    (dict(size='XL'), "^size: unknown value 'XL' .valid: mu, Ti, S"),
    (dict(size=''), '^size: give one of mu, .*, or width, depth and heads$'),
    (dict(heads=5), '^heads: 5 heads do not divide the width 768$'),
    (dict(image=225), '^image: a side of 225 is not a multiple of the patch side 16 .trim=True cuts it.$'),
    (dict(patch=0), '^image: .*patch side 0'),
    (dict(pool='tok'), "^pool: unknown value 'tok' .valid: cls, pooler, gap, map"),
    (dict(position='rope'), "^position: unknown value 'rope' .valid: learned, sincos2d"),
    (dict(position='sincos2d', width=774, heads=6), '^width: sincos2d .* 4.* not 774'),
    (dict(patch_dropout=1.), r'^patch_dropout: 1.0 is not in \[0, 1\)'),
    (dict(dropout=1.), r'^dropout: 1.0 is not in \[0, 1\)'),
    (dict(drop_path=-.1), r'^drop_path: -0.1 is not in \[0, 1\)'),
    (dict(std=(1., 0., 1.)), r'^std: .1.0, 0.0, 1.0. must be'),
    (dict(mean=(.5,)), r'^std: .*per colour of mean, .0.5,'),
    (dict(activation='gelu2'), "^activation: unknown value 'gelu2' .valid: gelu, gelu_tanh"),
    (dict(init_scheme='he'), "^init_scheme: unknown value 'he' .valid: xavier, clip"),
    (dict(remat='some'), "^remat: unknown value 'some' .valid: none, full"),
    (dict(dtype='bfloat17'), "^dtype: unknown value 'bfloat17' .valid: bfloat16"),
    (dict(attention='flash'), "^attention: unknown value 'flash' .valid: auto, xla, cudnn")])
def test_impossible_fields_are_named_before_anything_runs(fields, message):
    with pytest.raises(RecipeError, match=message) as error:
        ViT(**fields).check()
    assert '\n' not in str(error.value)


def test_trimmed_images_lose_their_last_rows_and_columns():
    image_BHWC = np.random.default_rng(0).integers(0, 256, (2, 10, 10, 3), np.uint8)
    small = dict(size='', width=8, depth=1, heads=2, patch=4, dtype='float32')
    trimmed, even = ViT(image=10, trim=True, **small), ViT(image=8, **small)
    params = even.init(jax.random.key(0), image_BHWC[:, :8, :8])
    assert jax.tree.map(jnp.shape, trimmed.init(jax.random.key(0), image_BHWC)) == jax.tree.map(jnp.shape, params)
    np.testing.assert_array_equal(trimmed.apply(params, image_BHWC).pooled_BD, even.apply(params, image_BHWC[:, :8, :8]).pooled_BD)


def test_images_must_be_cut_evenly():
    with pytest.raises(RecipeError, match='patch: images of 10×12 are not cut evenly by patches of 4'):
        jax.eval_shape(ViT(**SMALL).init, jax.random.key(0), jnp.zeros((1, 10, 12, 3), jnp.uint8))
