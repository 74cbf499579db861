"""ResNet against torchvision's, in evaluation and in training; its sizes, stages, rematerialisation, frozen norms."""

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
from bigvlm.towers import resnet
from bigvlm.towers.resnet import ResNet

RNG = np.random.default_rng(0)
SMALL = dict(size='', depths=(1, 1), width=8, image=32, dtype='float32')
IMAGE_BHWC = RNG.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parity
@pytest.mark.parametrize('train, bottleneck, depths', [
    (False, True, (2, 1, 1, 1)), (True, True, (2, 1, 1, 1)), (True, False, (1, 2, 1, 1))])
def test_equals_torchvision(train, bottleneck, depths):
    models = torch_models.load('torchvision.models.resnet')
    torch = torch_models.load('torch')
    theirs = models.ResNet(models.Bottleneck if bottleneck else models.BasicBlock, list(depths), width_per_group=64)
    theirs.fc = torch.nn.Identity()
    tower = ResNet(size='', bottleneck=bottleneck, depths=depths, dtype='float64', mean=(0., 0., 0.), std=(1., 1., 1.))
    with jax.enable_x64(True):
        torch_models.compare(tower, theirs, resnet.FOREIGN, RNG.random((3, 40, 40, 3)), train)


def shapes(tower, side):
    return jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, side, side, 3), jnp.uint8))


# torchvision's counts without the classifier of 1000 classes.
@pytest.mark.parametrize('size, known, width', [
    ('18', 11_689_512, 512), pytest.param('34', 21_797_672, 512, marks=pytest.mark.slow), ('50', 25_557_032, 2048),
    pytest.param('101', 44_549_160, 2048, marks=pytest.mark.slow), pytest.param('152', 60_192_808, 2048, marks=pytest.mark.slow)])
def test_sizes(size, known, width):
    made = shapes(ResNet(size=size), 64)['params']
    assert sum(x.size for x in jax.tree.leaves(made)) == known - 1000 * (width + 1)


def test_flops():
    """4.09 billion multiply-adds of ResNet-50 at 224 pixels (torchvision's table), of which its classifier makes .002."""
    tower, image = ResNet(), jax.ShapeDtypeStruct((1, 224, 224, 3), 'uint8')
    assert round(flops.count(tower.apply, shapes(tower, 224), image) / 2e9, 2) == 4.09


@functools.cache
def variables():
    return jax.tree.map(jnp.float32, torch_models.random_variables(ResNet(**SMALL), IMAGE_BHWC))


def gradient_of(tower, train=True):
    def run(params, image_BHWC):
        def loss(params):
            given = {**variables(), 'params': params}
            out, moved = tower.apply(given, image_BHWC, train=train, layers=(0, -1), mutable=['batch_stats'])
            return jnp.square(out.pooled_BD).sum(), (out, moved)
        return jax.value_and_grad(loss, has_aux=True)(params)
    return run


@functools.cache
def result(train=True, **fields):
    return fast.jit(gradient_of(ResNet(**SMALL, **fields), train))(variables()['params'], IMAGE_BHWC)


def test_stages_and_the_mean():
    (_, (out, moved)), _ = result()
    assert out.layers[0].shape == (4, 64, 32) and np.array_equal(out.layers[-1], out.tokens_BLD)
    assert reference.relative(out.pooled_BD, out.tokens_BLD.mean(1)) < 1e-6
    steps = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), moved['batch_stats'], variables()['batch_stats'])
    assert min(jax.tree.leaves(steps)) > 1e-4


def test_rematerialisation_repeats_convolutions_or_not_and_changes_nothing():
    counts = {remat: flops.count(gradient_of(ResNet(**SMALL, remat=remat)), variables()['params'], IMAGE_BHWC)
              for remat in ('none', 'hidden', 'full')}
    assert counts['none'] == counts['hidden'] < counts['full']
    for found, expected in zip(jax.tree.leaves(result(remat='hidden')), jax.tree.leaves(result()), strict=True):
        assert reference.relative(found, expected) < 1e-4


def test_frozen_norms_do_in_training_what_they_do_in_evaluation():
    (_, (frozen, moved)), _ = result(bn_frozen=True)
    evaluated = fast.jit(functools.partial(ResNet(**SMALL).apply, train=False))(variables(), IMAGE_BHWC)
    assert reference.relative(frozen.pooled_BD, evaluated.pooled_BD) < 1e-6
    assert reference.relative(frozen.pooled_BD, result()[0][1][0].pooled_BD) > .05
    assert jax.tree.all(jax.tree.map(np.array_equal, moved['batch_stats'], variables()['batch_stats']))


def test_zero_scale_and_projection():
    params = fast.jit(ResNet(**SMALL, zero_scale=True, out_dim=5, out_bias=False).init)(jax.random.key(0), IMAGE_BHWC)['params']
    assert not params['stage1_block0']['norm3']['scale'].any() and params['stage1_block0']['norm2']['scale'].all()
    assert params['out']['kernel'].shape == (64, 5) and 'bias' not in params['out']
    he = params['stage2_block0']['conv2']['kernel']
    assert abs(float(he.std()) * (9 * 16 / 2) ** .5 - 1) < .1


@pytest.mark.parametrize('fields, message', [
    (dict(size='51'), "^size: unknown value '51' "), (dict(size=''), '^size: give one of 18, '),
    (dict(depths=(1, 0)), '^size: give one of 18'),
    (dict(width=0), '^width: found 0; valid: from 1'), (dict(bn_epsilon=0.), '^bn_momentum: found 0.9 with bn_epsilon 0.0')])
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        ResNet(**fields).check()


def test_stages_that_are_not_there_are_refused():
    with pytest.raises(RecipeError, match='^layers: there is no stage 2 among 2'):
        jax.eval_shape(functools.partial(ResNet(**SMALL).apply, layers=(2,)), variables(), IMAGE_BHWC)
