"""EfficientNet against torchvision's, in evaluation and in training; its sizes; drop connect and dropout."""

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
from bigvlm.nn.random import example_keys
from bigvlm.towers import efficientnet
from bigvlm.towers.efficientnet import EfficientNet, widened

RNG = np.random.default_rng(0)


@pytest.mark.parity
@pytest.mark.parametrize('train', [False, True])
def test_equals_torchvision(train):
    """A quarter as wide as B0 with one block in all stages but the sixth; with even padding, which torchvision's models have."""
    models = torch_models.load('torchvision.models.efficientnet')
    torch = torch_models.load('torch')
    settings, _ = models._efficientnet_conf('efficientnet_b0', width_mult=.25, depth_mult=.26)
    theirs = models.EfficientNet(settings, 0., stochastic_depth_prob=0., last_channel=320,
                                 norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=1e-3, momentum=.01))
    theirs.classifier = torch.nn.Identity()
    tower = EfficientNet(size='', wider=.25, deeper=.26, image=64, same=False, dtype='float64', mean=(0., 0., 0.), std=(1., 1., 1.))
    with jax.enable_x64(True):
        torch_models.compare(tower, theirs, efficientnet.FOREIGN, RNG.random((3, 40, 40, 3)), train)


def shapes(tower, side):
    return jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, side, side, 3), jnp.uint8))


# torchvision's counts (timm's for L2), less the classifier of 1000 classes; the paper's table 2 has 5.3 M, 7.8 M … 66 M with it.
@pytest.mark.parametrize('size, known, features', [
    ('B0', 5_288_548, 1280), pytest.param('B1', 7_794_184, 1280, marks=pytest.mark.slow),
    pytest.param('B2', 9_109_994, 1408, marks=pytest.mark.slow), pytest.param('B3', 12_233_232, 1536, marks=pytest.mark.slow),
    pytest.param('B4', 19_341_616, 1792, marks=pytest.mark.slow), pytest.param('B5', 30_389_784, 2048, marks=pytest.mark.slow),
    pytest.param('B6', 43_040_704, 2304, marks=pytest.mark.slow), pytest.param('B7', 66_347_960, 2560, marks=pytest.mark.slow),
    pytest.param('L2', 480_309_308, 5504, marks=pytest.mark.slow)])
def test_sizes(size, known, features):
    made = shapes(EfficientNet(size=size), 64)['params']
    assert sum(x.size for x in jax.tree.leaves(made)) == known - 1000 * (features + 1)


@pytest.mark.parametrize('size, features', [('B7', 640), ('L2', 1376)])
def test_features_of_align(size, features):
    """The widths that ALIGN's towers give without the last convolution (its released B7 model has 640)."""
    (*_, last) = EfficientNet(size=size).stages()
    assert last.features == features


def test_flops():
    """.39 billion multiply-adds of B0 at 224 pixels: table 2 of the paper."""
    tower, image = EfficientNet(), jax.ShapeDtypeStruct((1, 224, 224, 3), 'uint8')
    assert round(flops.count(tower.apply, shapes(tower, 224), image) / 2e9 + 1.28e-3, 2) == .39


def test_padding_as_tensorflow_s_is_more_after_than_before():
    """A stride of 2 over 4 rows of one colour, by hand: taps of the 3×3 kernel at rows 0…2 and 2…4, not -1…1 and 1…3."""
    rows = np.zeros((1, 4, 4, 1), np.float32)
    rows[0, :, 0, 0] = 1, 10, 100, 1000
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[:, 0, 0, 0] = 1
    for same, expected in ((True, [111, 1100]), (False, [11, 1110])):
        column = np.roll(kernel, 0 if same else 1, axis=1)  # the column of pixels is the kernel's first, or after padding its second
        out = efficientnet.Conv(1, 3, 2, same=same).apply({'params': {'kernel': column}}, rows)
        assert out[0, :, 0, 0].tolist() == expected


def test_randomness_is_in_training_only_and_belongs_to_the_example():
    fields = dict(size='', wider=.1, deeper=.26, image=32, bn_frozen=True, dtype='float32')  # the sixth stage has two blocks
    tower = EfficientNet(**fields, drop_path=.9, dropout=.3)
    image_BHWC = RNG.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    variables = jax.tree.map(jnp.float32, torch_models.random_variables(tower, image_BHWC))
    keys_B = example_keys(jax.random.key(3), np.array([[0, 4], [1, 9], [0, 7]], np.uint32), 0)

    def run(train):
        return fast.jit(lambda image_BHWC, keys_B: tower.apply(variables, image_BHWC, keys_B=keys_B, train=train, layers=(4, 5)))
    train, evaluate = run(True), run(False)
    one, turned, redrawn = train(image_BHWC, keys_B), train(image_BHWC[::-1], keys_B[::-1]), train(image_BHWC, keys_B[::-1])
    np.testing.assert_allclose(one.pooled_BD[::-1], turned.pooled_BD, rtol=1e-4, atol=1e-4)
    assert reference.relative(redrawn.pooled_BD, one.pooled_BD) > .05
    quiet = evaluate(image_BHWC, keys_B)
    assert np.array_equal(quiet.pooled_BD, evaluate(image_BHWC, keys_B[::-1]).pooled_BD)
    assert reference.relative(one.layers[4], quiet.layers[4]) < 1e-5 and reference.relative(one.layers[5], quiet.layers[5]) > .05
    dropped = np.asarray(one.pooled_BD == 0) & np.asarray(quiet.pooled_BD != 0)
    assert .15 < dropped.mean() < .45


def test_widths_are_rounded_to_eights_but_not_down_by_a_tenth():
    assert [widened(n, wider) for n, wider in ((16, 1.), (32, 1.1), (24, 1.4), (40, 1.1), (16, .1), (12, 1.))] == [16, 32, 32, 48, 8, 16]


@pytest.mark.parametrize('fields, message', [
    (dict(size='B9'), "^size: unknown value 'B9' "), (dict(size='', wider=1.), '^size: give one of B0, '),
    (dict(drop_path=1.), r'^drop_path: 1.0 is not in \[0, 1\)'), (dict(dropout=-.1), '^dropout: '), (dict(remat='x'), '^remat: ')])
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        EfficientNet(**fields).check()
