import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import decode as decode_file
from bigvlm.data.ops.decode import decode, pixels
from bigvlm.data.ops.flip import flip
from bigvlm.data.ops.keep import keep
from bigvlm.data.ops.random_resized_crop import random_resized_crop
from bigvlm.data.ops.resize import resize
from bigvlm.data.ops.tokenize import tokenize
from tests.data.fakes import encoded, picture

ODD = Path(__file__).parents[3] / 'shared' / 'data' / 'odd_files'


def rng(seed=0):
    return np.random.default_rng(seed)


def apply(op, image, seed=0):
    return op({'image': image}, rng(seed))['image']


def far(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.fixture(params=['fast', 'pillow'])
def decoder(request, monkeypatch):
    """With simplejpeg where it is installed, and without."""
    if request.param == 'pillow':
        monkeypatch.setattr(decode_file, 'simplejpeg', None)


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('format, mode, tolerance', [
    ('JPEG', 'RGB', 4), ('JPEG', 'CMYK', 4), ('PNG', 'RGB', 0), ('PNG', 'RGBA', 0), ('WEBP', 'RGB', 4),
    ('GIF', 'P', 20)])
def test_decodes_every_format_by_its_bytes(format, mode, tolerance):
    image = apply(decode(), encoded(format, mode, quality=95))
    assert image.shape == (40, 30, 3) and image.dtype == np.uint8
    assert far(image, picture()) <= tolerance


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_grey_becomes_rgb(format):
    image = apply(decode(), encoded(format, 'L', quality=95))
    grey = np.asarray(Image.fromarray(picture()).convert('L'))
    assert far(image, grey[..., None]) <= 2 and np.array_equal(image[..., 0], image[..., 2])


def test_sixteen_bits_of_grey():
    deep = np.linspace(0, 65535, 30 * 40).reshape(40, 30).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, 'PNG')
    assert np.array_equal(pixels(file.getvalue())[..., 1], deep >> 8)


def test_transparent_is_over_white():
    see_through = np.zeros((4, 4, 4), np.uint8)
    see_through[:2] = [10, 20, 30, 255]
    file = io.BytesIO()
    Image.fromarray(see_through).save(file, 'PNG')
    image = pixels(file.getvalue())
    assert image[0, 0].tolist() == [10, 20, 30] and image[3, 3].tolist() == [255, 255, 255]
    palette = Image.new('P', (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(file := io.BytesIO(), 'GIF', transparency=1)
    assert pixels(file.getvalue())[0, 0].tolist() == [255, 255, 255]


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('data, reason', [
    (b'', 'no image'), (None, 'no image'), (encoded()[:300], 'truncated image'), (encoded('PNG')[:60], 'image'),
    (encoded()[:3], 'image'), (b'<html>404</html>', 'not an image'), (encoded('WEBP')[:60], 'image'),
    (encoded('PNG')[:50] + bytes(40) + encoded('PNG')[90:], 'damaged image')])
def test_unusable_images_say_why(data, reason):
    with pytest.raises(BadExample, match=reason):
        apply(decode(), data)


@pytest.mark.usefixtures('decoder')
@pytest.mark.skipif(not ODD.is_dir(), reason=f'no {ODD}')
def test_real_odd_files():
    bad = {}
    for path in sorted(ODD.iterdir()):
        if path.suffix == '.json':
            continue
        try:
            image = pixels(path.read_bytes())
            assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        except BadExample as error:
            bad[path.name.split('__')[0]] = str(error)
    assert bad == {'lfs_pointer': 'not an image', 'truncated_jpeg': 'truncated image'}


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


def test_tokenize_and_keep():
    tokenizers = {'text': lambda texts, length: np.array([[len(texts[0])] * length])}
    op = tokenize(tokenizers, length=3)
    example = op({'caption': 'abcd', 'image': 1}, rng())
    assert example['text'].tolist() == [4, 4, 4]
    assert keep(('text',))(example, rng()).keys() == {'text'}
    with pytest.raises(BadExample, match='no caption'):
        op({'image': 1}, rng())


@pytest.mark.parametrize('make', [
    lambda: resize(-1), lambda: resize(8, crop='left'), lambda: resize(8, method='nearest'),
    lambda: random_resized_crop(8, area=(.5, .2)), lambda: random_resized_crop(8, ratio=(0., 1.)), lambda: tokenize({}),
    lambda: tokenize({'text': None}, length=0)])
def test_impossible_fields(make):
    with pytest.raises(RecipeError):
        make()
