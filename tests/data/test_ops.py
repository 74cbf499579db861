import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops._crops import region
from bigvlm.data.ops.flip import flip
from bigvlm.data.ops.keep import keep
from bigvlm.data.ops.multi_crop import multi_crop
from bigvlm.data.ops.random_resized_crop import random_resized_crop
from bigvlm.data.ops.resize import resize
from bigvlm.data.ops.tokenize import tokenize
from bigvlm.data.ops.views import views
from tests.data.fakes import picture


def rng(seed=0):
    return np.random.default_rng(seed)


def apply(op, image, seed=0):
    return op({'image': image}, rng(seed))['image']


def far(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
def test_resize(method):
    image = picture(60, 40)
    assert apply(resize(20, crop='squash', method=method), image).shape == (20, 20, 3)
    middle = apply(resize(20, method=method), image)
    assert far(middle, np.asarray(Image.fromarray(image[10:50]).resize((20, 20), Image.Resampling.BICUBIC))) < 2
    assert np.array_equal(apply(resize(40), image[:40]), image[:40])  # nothing to do


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = apply(resize(8), stripes)
    assert small.std() < 5 and abs(small.mean() - 127.5) < 5


def test_random_resized_crop():
    y, x = np.mgrid[:100, :200]
    image = np.stack([x, y * 2, x], -1).astype(np.uint8)
    op = random_resized_crop(32, area=(.25, .5), ratio=(.5, 2.), method='bilinear')
    shares, aspects = [], []
    for seed in range(200):
        cut = apply(op, image, seed).astype(float)
        assert cut.shape == (32, 32, 3)
        width = (cut[16, -1, 0] - cut[16, 0, 0]) * 32 / 31
        height = (cut[-1, 16, 1] - cut[0, 16, 1]) * 32 / 31 / 2
        shares.append(width * height / 20000)
        aspects.append(width / height)
    assert .22 < min(shares) and max(shares) < .55 and max(shares) - min(shares) > .2
    assert min(aspects) < .75 and 1.5 < max(aspects) < 2.3
    assert np.array_equal(apply(op, image, 5), apply(op, image, 5))


def test_random_resized_crop_of_a_thin_image():
    thin = np.zeros((400, 4, 3), np.uint8)
    thin[198:202] = 255
    assert apply(random_resized_crop(8, ratio=(1., 1.)), thin).mean() > 200  # the central square


def test_flip():
    image = picture()
    flipped = [np.array_equal(apply(flip(), image, seed), image[:, ::-1]) for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert np.array_equal(apply(flip(0.), image), image)
    assert 5 < sum(not np.array_equal(apply(flip(.1), image, seed), image) for seed in range(200)) < 40


def test_tokenize_and_keep():
    tokenizers = {'text': lambda texts, length: np.array([[len(texts[0])] * length])}
    op = tokenize(tokenizers, length=3)
    example = op({'caption': 'abcd', 'image': 1}, rng())
    assert example['text'].tolist() == [4, 4, 4]
    assert keep(('text',))(example, rng()).keys() == {'text'}
    with pytest.raises(BadExample, match='no caption'):
        op({'image': 1}, rng())


def noise(height, width, seed=0):
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def antialiased(image, size, kernel, support):
    """Pillow's and torchvision's formula: a kernel as wide as the scale, normalised, along x and then along y, rounded after each."""
    def along(length):
        step = length / size
        wide = max(step, 1.)
        centers = (np.arange(size) + .5) * step
        weights = kernel((np.arange(length) + .5 - centers[:, None]) / wide)
        taps = np.arange(length)
        first, last = np.floor(centers - support * wide + .5), np.floor(centers + support * wide + .5)
        weights *= (taps >= first[:, None]) & (taps < last[:, None])
        return weights / weights.sum(1, keepdims=True)
    rows = np.einsum('hwc,vw->hvc', image.astype(float), along(image.shape[1])).round().clip(0, 255)
    return np.einsum('hvc,uh->uvc', rows, along(image.shape[0])).round().clip(0, 255)


def keys_cubic(x, a=-.5):
    x = np.abs(x)
    return np.where(x < 1, (a + 2) * x**3 - (a + 3) * x**2 + 1, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))


def triangle(x):
    return np.maximum(0, 1 - np.abs(x))


KERNELS = {'bicubic': (keys_cubic, 2), 'bilinear': (triangle, 1)}


@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('height, width, size', [(61, 83, 20), (61, 83, 61), (12, 9, 30)])
def test_antialiased_scaling_is_the_formula(method, height, width, size):
    image = noise(height, width)
    scaled = apply(resize(size, crop='squash', method=method), image).astype(int)
    assert np.abs(scaled - antialiased(image, size, *KERNELS[method])).max() <= 1


@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
def test_a_random_crop_is_cut_out_and_then_scaled(method):
    """As torchvision does it: what is outside the region is not seen."""
    image, op = noise(50, 70), random_resized_crop(16, area=(.1, .8), method=method)
    for seed in range(5):
        left, top, right, bottom = region(rng(seed), 50, 70, (.1, .8), (3 / 4, 4 / 3))
        expected = antialiased(image[top:bottom, left:right], 16, *KERNELS[method])
        assert np.abs(apply(op, image, seed).astype(int) - expected).max() <= 1


def drawn_one_by_one(rng, height, width, area, ratio):
    """The formula of Inception's crop with a draw of its own for each number, as (left, top, width, height)."""
    for _ in range(10):
        share, aspect = height * width * rng.uniform(*area), np.exp(rng.uniform(*np.log(ratio)))
        w, h = round((share * aspect) ** .5), round((share / aspect) ** .5)
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(width - w, endpoint=True), rng.integers(height - h, endpoint=True), w, h
    return 0, 0, width, height  # the largest within `ratio`, here


@pytest.mark.parametrize('area', [(.9, 1.), (.08, .5)])
def test_regions_are_distributed_as_the_formula_says(area):
    """Two-sample Kolmogorov-Smirnov on each side, place and log aspect: 1.95 is exceeded once in a thousand."""
    count, ratio, ours, theirs = 4000, (3 / 4, 4 / 3), rng(1), rng(2)
    found = np.array([region(ours, 375, 500, area, ratio) for _ in range(count)], float)
    found[:, 2:] -= found[:, :2]
    expected = np.array([drawn_one_by_one(theirs, 375, 500, area, ratio) for _ in range(count)], float)

    def aspect(places):
        return np.log(places[:, 2] / places[:, 3])
    pairs = [*zip(found.T, expected.T), (aspect(found), aspect(expected)), (found[:, 2] * found[:, 3], expected[:, 2] * expected[:, 3])]
    for mine, reference in pairs:
        levels = np.union1d(mine, reference)
        below = [np.searchsorted(np.sort(values), levels, 'right') / count for values in (mine, reference)]
        assert np.abs(below[0] - below[1]).max() * (count / 2) ** .5 < 1.95
    places = (found[:, :2] + .5) / (np.array([500, 375]) - found[:, 2:] + 1)  # as shares of the room there is
    assert abs(np.corrcoef(places.T)[0, 1]) < .06  # four times its deviation if they have nothing to do with each other


def test_regions_reach_every_edge_and_no_further():
    class Same:
        """A generator that draws one number for ever."""

        def __init__(self, number):
            self.number = number

        def random(self, count):
            return np.full(count, self.number)
    assert region(Same(0.), 100, 100, (.25, 1.), (1., 2.)) == (0, 0, 50, 50)
    assert region(Same(1 - 2 ** -53), 100, 100, (.04, .25), (1., 1.)) == (50, 50, 100, 100)
    places = np.array([region(rng(seed), 7, 9, (.5, .9), (3 / 4, 4 / 3)) for seed in range(300)])
    assert places.min(0)[:2].tolist() == [0, 0] and places.max(0)[2:].tolist() == [9, 7]


def two_by_two(image, height, width):
    """tf.image.resize(method='bilinear', antialias=False): half-pixel centres, the edge pixel repeated beyond the edge."""
    def along(length, size):
        center = np.clip((np.arange(size) + .5) * length / size - .5, 0, length - 1)
        first = np.floor(center).astype(int)
        return first, np.minimum(first + 1, length - 1), center - first
    top, bottom, y = along(image.shape[0], height)
    left, right, x = along(image.shape[1], width)
    y, x, image = y[:, None, None], x[None, :, None], image.astype(float)
    rows = image[top] * (1 - y) + image[bottom] * y
    return rows[:, left] * (1 - x) + rows[:, right] * x


@pytest.mark.parametrize('height, width, size', [(61, 83, 20), (60, 60, 30), (12, 9, 30), (2, 1, 5)])
def test_scaling_without_antialiasing_is_the_formula(height, width, size):
    pytest.importorskip('cv2')
    op = resize(size, crop='squash', method='bilinear', antialias=False)
    for image in (noise(height, width), noise(height, width)[:, ::-1], noise(width, height).swapaxes(0, 1)):
        assert np.abs(apply(op, image).astype(int) - two_by_two(image, size, size)).max() <= 1


def test_crops_without_antialiasing():
    pytest.importorskip('cv2')
    image = noise(50, 71)
    middle = apply(resize(16, method='bilinear', antialias=False), image)
    assert np.abs(middle.astype(int) - two_by_two(image[:, 10:60], 16, 16)).max() <= 1
    left, top, right, bottom = region(rng(3), 50, 71, (.9, 1.), (3 / 4, 4 / 3))
    crop = apply(random_resized_crop(16, method='bilinear', antialias=False), image, 3)
    assert np.abs(crop.astype(int) - two_by_two(image[top:bottom, left:right], 16, 16)).max() <= 1


def test_no_antialiasing_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(RecipeError, match='antialias: False needs OpenCV'):
        resize(8, method='bilinear', antialias=False)


@pytest.mark.parametrize('height, width', [(60, 40), (40, 60), (7, 100)])
def test_pad_keeps_the_whole_image(height, width):
    image = noise(height, width)
    padded = apply(resize(20, crop='pad', fill=(1, 2, 3)), image)
    inner = [max(1, round(20 * side / max(height, width))) for side in (height, width)]
    top, left = (20 - inner[0]) // 2, (20 - inner[1]) // 2
    expected = np.full((20, 20, 3), (1, 2, 3), np.uint8)
    expected[top:top + inner[0], left:left + inner[1]] = Image.fromarray(image).resize(inner[::-1], Image.Resampling.BICUBIC)
    assert np.array_equal(padded, expected) and padded.dtype == np.uint8
    assert np.array_equal(apply(resize(20, crop='pad'), image)[0, 0], [128] * 3) or top == left == 0


def test_nothing_is_changed_in_place():
    image = noise(40, 30)
    before = image.copy()
    for op in (resize(8), resize(8, crop='pad'), random_resized_crop(8), flip(1.), views(2, 8), multi_crop(1, 16, local_size=8)):
        example = {'image': image}
        op(example, rng())
        assert example.keys() == {'image'} and np.array_equal(image, before)


def test_views():
    image = noise(50, 70)
    made = views(3, 16, area=(.2, 1.))({'image': image, 'caption': 'c'}, rng(1))
    assert made.keys() == {'image', 'caption', 'views/0', 'views/1', 'views/2'} and made['image'] is image
    assert all(made[f'views/{i}'].shape == (16, 16, 3) and made[f'views/{i}'].dtype == np.uint8 for i in range(3))
    assert not np.array_equal(made['views/0'], made['views/1'])
    again = views(3, 16, area=(.2, 1.), keep=False, out='two')({'image': image}, rng(1))
    assert again.keys() == {'two/0', 'two/1', 'two/2'}
    assert all(np.array_equal(made[f'views/{i}'], again[f'two/{i}']) for i in range(3))


def test_views_are_flipped_crops():
    """With the whole image as the only region, each view is the scaled image or its mirror image, as often."""
    image = noise(40, 40)
    scaled = apply(resize(16), image)
    mirrored, op = 0, views(2, 16, area=(1., 1.), ratio=(1., 1.))
    for seed in range(150):
        for view in list(op({'image': image}, rng(seed)).values())[1:]:
            assert np.array_equal(view, scaled) or np.array_equal(view[:, ::-1], scaled)
            mirrored += not np.array_equal(view, scaled)
    assert 115 < mirrored < 185


def test_multi_crop():
    y, x = np.mgrid[:100, :100] * 2
    image = np.stack([x, y, x], -1).astype(np.uint8)
    op = multi_crop(2, 64, local_count=3, local_size=24, ratio=(1., 1.), flip=0., method='bilinear')
    shares = {64: [], 24: []}
    for seed in range(60):
        made = op({'image': image, 'label': 1}, rng(seed))
        assert list(made) == ['label', 'crops/0', 'crops/1', 'crops/2', 'crops/3', 'crops/4']
        for i in range(5):
            crop = made[f'crops/{i}'].astype(float)
            size = 64 if i < 2 else 24
            assert crop.shape == (size, size, 3)
            shares[size].append(((crop[0, -1, 0] - crop[0, 0, 0]) * size / (size - 1) / 200) ** 2)
    assert .37 < min(shares[64]) < .5 and .9 < max(shares[64]) < 1.05
    assert .03 < min(shares[24]) < .1 and .35 < max(shares[24]) < .44
    assert multi_crop(1, 8, local_count=0, keep=True)({'image': image}, rng()).keys() == {'image', 'crops/0'}


@pytest.mark.parametrize('make', [
    lambda: resize(-1), lambda: resize(8, antialias=False), lambda: resize(8, crop='pad', fill=256), lambda: resize(8, fill=(1, 2)),
    lambda: flip(1.5), lambda: views(0), lambda: views(2, flip=-1), lambda: views(2, area=(.5,)), lambda: multi_crop(-1),
    lambda: multi_crop(0, local_count=0), lambda: multi_crop(local_size=0), lambda: multi_crop(global_area=(0., 1.)),
    lambda: resize(8, crop='left'), lambda: resize(8, method='nearest'),
    lambda: random_resized_crop(8, area=(.5, .2)), lambda: random_resized_crop(8, ratio=(0., 1.)), lambda: tokenize({}),
    lambda: tokenize({'text': None}, length=0)])
def test_impossible_fields(make):
    with pytest.raises(RecipeError):
        make()


def test_errors_name_the_field():
    with pytest.raises(RecipeError, match='^local_size: '):
        multi_crop(local_size=0)
    with pytest.raises(RecipeError, match='^global_area: '):
        multi_crop(global_area=(.5, 2.))
    with pytest.raises(RecipeError, match='^flip: '):
        multi_crop(flip=2.)
