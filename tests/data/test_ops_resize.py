"""The roundings of resize's center crop: which scaled size, and where the cut begins."""

import numpy as np
import pytest
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops.decode import MAX_PIXELS
from bigvlm.data.ops.resize import resize


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def applied(image_HWC, **fields):
    return resize(**fields)(dict(image=image_HWC), np.random.default_rng(0))['image']


@pytest.mark.parametrize('rounding, left', [('floor', (1, 2)), ('nearest', (2, 2))])
def test_the_whole_image_is_scaled_and_cut_at_a_whole_pixel(rounding, left):
    # 20 x 23 and 20 x 24.9 to a shorter side of 20: 23 and 24 wide, so 3 and 4 are left over.
    for image_HWC, width, first in ((image(20, 23), 23, left[0]), (image(40, 49), 24, left[1])):
        scaled_HWC = np.asarray(Image.fromarray(image_HWC).resize((width, 20), Image.Resampling.BICUBIC))
        assert np.array_equal(applied(image_HWC, size=20, rounding=rounding), scaled_HWC[:, first:first + 20])
        tall_HWC = np.ascontiguousarray(image_HWC.swapaxes(0, 1))
        scaled_HWC = np.asarray(Image.fromarray(tall_HWC).resize((20, width), Image.Resampling.BICUBIC))
        assert np.array_equal(applied(tall_HWC, size=20, rounding=rounding), scaled_HWC[first:first + 20])


def test_a_whole_pixel_of_more_than_the_cut():
    image_HWC = image(60, 60)
    scaled_HWC = np.asarray(Image.fromarray(image_HWC).resize((37, 37), Image.Resampling.BICUBIC))
    assert np.array_equal(applied(image_HWC, size=32, rounding='floor', shorter=37), scaled_HWC[2:34, 2:34])


def test_exact_stays_the_default():
    image_HWC = image(30, 47)
    assert np.array_equal(applied(image_HWC, size=16), applied(image_HWC, size=16, rounding='exact'))
    assert not np.array_equal(applied(image_HWC, size=16), applied(image_HWC, size=16, rounding='floor'))


@pytest.mark.parametrize('fields, message', [
    (dict(rounding='up'), 'rounding'), (dict(crop='squash', rounding='floor'), "'squash'"), (dict(crop='pad', rounding='nearest'), "'pad'"),
    (dict(shorter=300), 'shorter'), (dict(rounding='floor', shorter=100), 'shorter'), (dict(rounding='floor', shorter=.9), 'shorter')])
def test_wrong_fields(fields, message):
    with pytest.raises(RecipeError, match=message):
        resize(224, **fields)


def test_an_image_too_long_to_be_scaled_whole():
    long_HWC = image(1, 1 + MAX_PIXELS // 224 ** 2)
    with pytest.raises(BadExample, match='too long'):
        applied(long_HWC, rounding='floor')
    assert applied(long_HWC).shape == (224, 224, 3)
