"""Arrays for a model of another size: against PyTorch's and SciPy's ways of resampling, and against the towers themselves."""

import fast
import jax
import ml_dtypes
import numpy as np
import pytest
import reference
import scipy.ndimage

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.resize import fit
from bigvlm.towers.modified_resnet import ModifiedResNet
from bigvlm.towers.swin import Swin
from bigvlm.towers.text import Text
from bigvlm.towers.vit import ViT

RNG = np.random.default_rng(0)
TOWERS = {'image': dict(name='vit'), 'text': dict(name='text'), 'captions': dict(name='text', class_token=True), 'bert': dict(name='bert'),
          'rn': dict(name='modified_resnet'), 'windows': dict(name='swin')}
SIDES = [(14, 24), (7, 8), (16, 9), (5, 2), (3, 12)]


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def separable(table_LW, old, new):
    return reference.resample(table_LW.astype(np.float64), (old, old), (new, new))


@pytest.mark.parametrize('old,new', SIDES)
def test_positions_of_a_vit(old, new):
    table_LW = draw(old * old, 6)
    found = fit('image/position', table_LW, (new * new, 6), TOWERS)
    assert found.dtype == np.float32 and np.abs(found - separable(table_LW, old, new)).max() < 5e-6


@pytest.mark.parity
@pytest.mark.parametrize('old,new', SIDES)
def test_positions_as_pytorch_resamples_them(old, new):
    torch = pytest.importorskip('torch')
    table_LW = draw(old * old, 6)
    grid = torch.from_numpy(table_LW.reshape(old, old, 6).transpose(2, 0, 1)[None].copy())

    def theirs(mode):
        found = torch.nn.functional.interpolate(grid, (new, new), mode=mode, antialias=True, align_corners=False)
        return found[0].numpy().reshape(6, -1).T
    found = fit('image/position', table_LW, (new * new, 6), TOWERS)
    assert np.abs(found - theirs('bilinear')).max() < 5e-6
    bicubic = theirs('bicubic')  # open_clip's and timm's: another curve through the same cells
    assert .02 < np.abs(found - bicubic).mean() / np.abs(bicubic).mean() < .5


def test_how_far_big_vision_is_from_it():
    """It resamples between corners: the same at 4 of its corners, else another function of the same smooth table."""
    rows, columns = np.mgrid[:14, :14] / 13
    table_LW = np.stack([np.sin(3 * rows), np.cos(2 * columns)], -1).reshape(196, 2).astype(np.float32)
    theirs = scipy.ndimage.zoom(table_LW.reshape(14, 14, 2), (24 / 14, 24 / 14, 1), order=1).reshape(576, 2)
    found = fit('image/position', table_LW, (576, 2), TOWERS)
    assert np.allclose(found[[0, 23, -24, -1]], theirs[[0, 23, -24, -1]], atol=1e-6)
    assert .005 < np.abs(found - theirs).max() < .1


def test_a_fitted_vit_is_the_one_that_resamples_for_itself():
    tower = dict(size='', width=16, depth=1, heads=2, patch=4, pool='gap', dtype='float32', remat='none')
    small, large = ViT(**tower, image=12), ViT(**tower, image=20)
    image_BHWC = RNG.integers(0, 256, (2, 20, 20, 3), np.uint8)
    params = jax.tree.map(np.asarray, fast.jit(small.init)(jax.random.key(0), image_BHWC)['params'])
    fitted = {**params, 'position': fit('image/position', params['position'], (25, 16), TOWERS)}

    @fast.jit
    def both(params, fitted):
        return small.apply({'params': params}, image_BHWC).pooled_BD, large.apply({'params': fitted}, image_BHWC).pooled_BD
    old, new = both(params, fitted)
    assert np.abs(old - new).max() < 1e-6 * np.abs(old).max()


def test_positions_of_a_modified_resnet():
    tower = dict(size='', width=8, depths=(1, 1, 1, 1), out_dim=8, dtype='float32')
    shapes = [jax.eval_shape(ModifiedResNet(**tower, image=image).init, jax.random.key(0), np.zeros((1, image, image, 3), np.uint8))
              ['params']['pool']['position'].shape for image in (64, 96)]
    table_LW = draw(*shapes[0])
    found = fit('rn/pool/position', table_LW, shapes[1], TOWERS)
    assert found.shape == shapes[1] and np.array_equal(found[0], table_LW[0])
    assert np.abs(found[1:] - separable(table_LW[1:], 2, 3)).max() < 5e-6


def test_biases_of_windows():
    tower = dict(size='', width=32, depths=(2, 2), patch=4, dtype='float32')
    shapes = []
    for window in (2, 3):
        init = Swin(**tower, window=window, image=48).init
        params = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 48, 48, 3), np.uint8))['params']
        shapes.append(params['stage0']['blocks']['plain']['attention']['position_bias'].shape)
    table_DTN = draw(*shapes[0])
    found = fit('windows/stage0/blocks/plain/attention/position_bias', table_DTN, shapes[1], TOWERS)
    assert found.shape == shapes[1]
    for table_TN, layer_TN in zip(table_DTN, found):
        assert np.abs(layer_TN - separable(table_TN, 3, 5)).max() < 5e-6


@pytest.mark.parametrize('path', ['text/position', 'bert/position'])
def test_texts_are_cut(path):
    table_LW = draw(9, 4)
    assert np.array_equal(fit(path, table_LW, (5, 4), TOWERS), table_LW[:5])


def test_longer_texts_are_asked_for():
    table_LW, initial_LW = draw(9, 4), draw(12, 4)
    with pytest.raises(WeightsError, match=r'^text/position: the file has \[9, 4\], the model \[12, 4\]; a longer text'):
        fit('text/position', table_LW, (12, 4), TOWERS, initial=initial_LW)
    found = fit('text/position', table_LW, (12, 4), TOWERS, initial=initial_LW, longer=True)
    assert np.array_equal(found, np.concatenate([table_LW, initial_LW[9:]]))
    with pytest.raises(WeightsError, match='3 new rows need initial values of that shape, found none'):
        fit('text/position', table_LW, (12, 4), TOWERS, longer=True)


@pytest.mark.parametrize('wanted', [5, 12])
def test_the_position_of_a_class_token_stays_the_last(wanted):
    shapes = [jax.eval_shape(Text(size='', width=4, depth=1, heads=1, vocab=9, length=length, class_token=True).init, jax.random.key(0),
                             np.zeros((1, length), np.int32))['params']['position'].shape for length in (9, wanted)]
    table_LW, initial_LW = draw(*shapes[0]), draw(*shapes[1])
    found = fit('captions/position', table_LW, shapes[1], TOWERS, initial=initial_LW, longer=True)
    wanted_LW = np.concatenate([table_LW[:9], initial_LW[9:-1]])[:wanted]
    assert np.array_equal(found, np.concatenate([wanted_LW, table_LW[-1:]]))


def test_vocabularies():
    table_VW, initial_VW = draw(7, 4), draw(9, 4)
    assert np.array_equal(fit('text/embed/embedding', table_VW, (5, 4), TOWERS), table_VW[:5])
    found = fit('text/embed/embedding', table_VW, (9, 4), TOWERS, initial=initial_VW)
    assert np.array_equal(found, np.concatenate([table_VW, initial_VW[7:]]))
    for initial, shown in ((None, 'none'), (draw(8, 4), r'\[8, 4\]')):
        with pytest.raises(WeightsError, match=rf'^text/embed/embedding: .*2 new rows need initial values of that shape, found {shown}'):
            fit('text/embed/embedding', table_VW, (9, 4), TOWERS, initial=initial)


def test_types_of_numbers_stay():
    table_LW = draw(16, 4).astype(ml_dtypes.bfloat16)
    found = fit('image/position', table_LW, (36, 4), TOWERS)
    assert found.dtype == ml_dtypes.bfloat16
    assert np.abs(found.astype(np.float32) - separable(table_LW, 4, 6)).max() < .02
    assert fit('image/position', table_LW, (16, 4), TOWERS) is table_LW
    assert fit('text/embed/embedding', table_LW, (18, 4), TOWERS, initial=draw(18, 4)).dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize('path,old,new,message', [
    ('image/encoder/norm/scale', (8,), (12,), 'only positions and rows of a vocabulary'),
    ('image/out/kernel', (8, 8), (12, 8), 'only positions'),
    ('image/position', (9, 8), (9, 12), 'only positions'),
    ('image/position', (10, 8), (9, 8), '10 and 9 positions are not both those of squares'),
    ('image/position', (9, 8), (12, 8), '9 and 12 positions'),
    ('rn/pool/position', (5, 8), (9, 8), '4 and 8 positions'),
    ('text/embed/embedding', (9, 8), (12, 4), 'only positions'),
    ('windows/stage0/blocks/plain/attention/position_bias', (2, 9, 3), (3, 25, 3), 'only positions'),
    ('other/position', (9, 8), (16, 8), 'only positions')])
def test_all_else_is_an_error(path, old, new, message):
    with pytest.raises(WeightsError, match=message) as error:
        fit(path, draw(*old), new, TOWERS)
    assert str(error.value).startswith(f'{path}: the file has {list(old)}, the model {list(new)}; ')
