"""CLIP's ResNet against open_clip's, in evaluation and in training; its sizes, other resolutions, fields."""

import functools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch_models

from bigvlm.core import flops
from bigvlm.core.parts import RecipeError
from bigvlm.towers import modified_resnet
from bigvlm.towers.modified_resnet import SIZES, ModifiedResNet

RNG = np.random.default_rng(0)
SMALL = dict(size='', width=8, depths=(2, 1, 1, 1), image=64, out_dim=6, dtype='float32', mean=(0., 0., 0.), std=(1., 1., 1.))
TWO = SMALL | dict(width=16, depths=(1, 1), image=16)  # stages


@pytest.mark.parity
@pytest.mark.parametrize('train', [False, True])
def test_equals_open_clip(train):
    theirs = torch_models.load('open_clip.modified_resnet').ModifiedResNet([2, 1, 1, 1], output_dim=6, heads=4, image_size=64, width=8)
    tower = ModifiedResNet(**SMALL | dict(dtype='float64'))
    with jax.enable_x64(True):
        torch_models.compare(tower, theirs, modified_resnet.FOREIGN, RNG.random((3, 64, 64, 3)), train)


def shapes(tower, side, batch=1):
    return jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((batch, side, side, 3), jnp.uint8))


# Of the image tower: open_clip's counts in millions (docs/model_profile.csv).
@pytest.mark.parametrize('size, known', [('RN50', 38.32), pytest.param('RN101', 56.26, marks=pytest.mark.slow),
                                         pytest.param('RN50x4', 87.14, marks=pytest.mark.slow),
                                         pytest.param('RN50x16', 167.33, marks=pytest.mark.slow),
                                         pytest.param('RN50x64', 420.38, marks=pytest.mark.slow)])
def test_sizes(size, known):
    tower = ModifiedResNet(size=size)
    made = shapes(tower, tower.dims().image)
    assert round(sum(x.size for x in jax.tree.leaves(made['params'])) / 1e6, 2) == known
    assert tower.example() == ((SIZES[size].image, SIZES[size].image, 3), 'uint8')


def test_images_of_other_sides_get_resampled_positions():
    """A tower made for 2×2 cells sees 3×2; equal to one whose positions were resampled beforehand, but for the stored grid."""
    tower, image_BHWC = ModifiedResNet(**TWO), RNG.integers(0, 256, (2, 24, 16, 3)).astype(np.uint8)
    variables = jax.tree.map(jnp.float32, torch_models.random_variables(tower, image_BHWC[:, :16]))
    pool = modified_resnet.AttentionPool(2, 6, (3, 2), jnp.float32)
    stored = np.asarray(variables['params']['pool']['position'], np.float64)
    resampled = np.concatenate([stored[:1], reference.resample(stored[1:], (2, 2), (3, 2))])
    run = functools.partial(tower.apply, layers=(0, -1))
    out = fast.jit(run)(variables, image_BHWC)
    map_BHWC = out.tokens_BLD.reshape(2, 3, 2, 128)
    expected = pool.apply({'params': variables['params']['pool'] | {'position': jnp.float32(resampled)}}, map_BHWC)
    assert reference.relative(out.pooled_BD, expected) < 1e-5
    assert out.layers[0].shape == (2, 6 * 4, 64) and np.array_equal(out.layers[-1], out.tokens_BLD)
    shifted = pool.apply({'params': variables['params']['pool'] | {'position': jnp.float32(resampled[::-1])}}, map_BHWC)
    assert reference.relative(shifted, expected) > 1e-2


def test_initial_values_are_clips():
    """Every block starts as its shortcut; kernels as PyTorch's default, the attention pool as CLIP sets it."""
    params = fast.jit(ModifiedResNet(**TWO).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
    assert not params['stage2_block0']['norm3']['scale'].any() and params['stage2_block0']['norm2']['scale'].all()
    kernel = params['stage2_block0']['conv2']['kernel']
    assert abs(float(kernel.std()) * (3 * 9 * 32) ** .5 - 1) < .05 and float(jnp.abs(kernel).max()) <= (9 * 32) ** -.5
    assert abs(float(params['pool']['query']['kernel'].std()) * 128 ** .5 - 1) < .05


@pytest.mark.parametrize('fields, message', [
    (dict(size='RN51'), "^size: unknown value 'RN51' "), (dict(size=''), '^size: give one of RN50, '),
    (dict(width=12, depths=(1,)), r'^width: 12 makes a last feature map of 48; valid: .* multiple of 64'),
    (dict(image=100), '^image: found 100; valid: a multiple of 32'), (dict(attention='flash'), '^attention: unknown value'),
    (dict(bn_group=-1), '^bn_group: found -1;'), (dict(bn_blocks=0), '^bn_blocks: found 0;'),
    (dict(bn_momentum=1.), '^bn_momentum: found 1.0'),
    (dict(remat='some'), "^remat: unknown value 'some'"), (dict(std=(1., 0., 1.)), '^std: '), (dict(dtype='int8'), '^dtype: ')])
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        ModifiedResNet(**fields).check()


def test_flops():
    """5.79 billion multiply-adds in the image tower of RN50 at 224 pixels."""
    tower, image = ModifiedResNet(), jax.ShapeDtypeStruct((1, 224, 224, 3), 'uint8')
    assert round(flops.count(tower.apply, shapes(tower, 224), image) / 2e9, 2) == 5.79
