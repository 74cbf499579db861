import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import decode as decode_file
from bigvlm.data.ops.decode import decode, pixels
from tests.data.fakes import encoded, picture

pytestmark = pytest.mark.filterwarnings('ignore:::PIL')  # as decode.py itself asks, which pytest forgets before each test
ODD = Path(__file__).parents[3] / 'shared' / 'data' / 'odd_files'


def apply(op, image):
    return op({'image': image}, np.random.default_rng(0))['image']


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


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(picture(seed=seed)) for seed in (0, 3)]
    for format, options in (('GIF', {}), ('WEBP', dict(lossless=True)), ('PNG', {})):
        frames[0].save(file := io.BytesIO(), format, save_all=True, append_images=frames[1:], **options)
        assert far(pixels(file.getvalue()), picture()) < 20 < far(picture(), picture(seed=3)) * 3, format


def test_adobe_inverts_cmyk():
    """Adobe's marker says that inks are stored inverted, which is what all CMYK JPEGs of the web are."""
    red = encoded('JPEG', 'CMYK', pixels=np.full((8, 8, 3), (255, 0, 0), np.uint8), quality=95)
    assert b'Adobe' in red
    assert far(pixels(red), np.array([255, 0, 0])) < 4


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
def test_exif_by_choice(format, orientation):
    stored = Image.fromarray(picture(24, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(file := io.BytesIO(), format, exif=exif, **dict(lossless=True) if format == 'WEBP' else {})
    data = file.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        as_stored, upright = np.asarray(image.convert('RGB')), np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    assert np.array_equal(pixels(data), as_stored)
    assert np.array_equal(apply(decode(exif=True), data), upright)
    assert np.array_equal(as_stored, upright) == (orientation == 1)


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('value', [0, 9, 65535])
def test_odd_orientations_ask_for_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(exif=exif)
    assert np.array_equal(pixels(data, exif=True), pixels(data))
    start = data.index(b'Exif\0\0') + 6
    for damage in (b'??', b'MM\0*\xff\xff\xff\xff', b'II*\0\x08\0\0\0\xff\xff\x12\x01'):
        damaged = data[:start] + damage + data[start + len(damage):]
        assert np.array_equal(pixels(damaged, exif=True), pixels(damaged))


@pytest.mark.usefixtures('decoder')
@pytest.mark.parametrize('height, width, least, shrink', [
    (601, 803, None, 1), (601, 803, 400, 1), (601, 803, 224, 2), (601, 803, 301, 1), (601, 803, 150, 4), (601, 803, 20, 8),
    (448, 900, 224, 2), (447, 900, 224, 1), (33, 17, 1, 8)])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpegs_can_be_decoded_smaller(height, width, least, shrink, mode):
    whole = picture(height, width)
    small = apply(decode(least=least), encoded('JPEG', mode, pixels=whole, quality=95))
    assert small.shape == (-(-height // shrink), -(-width // shrink), 3)
    reference = Image.fromarray(whole).convert('L' if mode == 'L' else 'RGB').convert('RGB').reduce(shrink)
    assert far(small, np.asarray(reference)) < 4


def test_other_formats_are_not_shrunk():
    assert pixels(encoded('PNG'), least=2).shape == (40, 30, 3)


def test_shrinking_is_nearly_what_scaling_is():
    """The DCT's low-pass filter and the antialiased one differ little on what a photograph has."""
    rng = np.random.default_rng(0)
    photo = np.asarray(Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize((1024, 768), Image.Resampling.BICUBIC))
    data = encoded(pixels=photo, quality=92)
    small = [np.asarray(Image.fromarray(pixels(data, least=least)).resize((224, 224), Image.Resampling.BICUBIC), float)
             for least in (None, 224)]
    assert pixels(data, least=224).shape == (384, 512, 3)
    assert 10 * np.log10(255 ** 2 / np.square(small[0] - small[1]).mean()) > 40


def claims(width, height, data):
    """A small PNG that claims another size."""
    head = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
    return data[:12] + head + struct.pack('>I', zlib.crc32(head)) + data[33:]


@pytest.mark.usefixtures('decoder')
def test_bombs_are_not_decoded():
    for width, height in ((60_000, 60_000), (10_000, 10_000)):  # Pillow itself refuses the first and warns of the second
        with pytest.raises(BadExample, match='too many pixels'):
            pixels(claims(width, height, encoded('PNG')))
    data = encoded()
    frame = data.index(b'\xff\xc0') + 5
    with pytest.raises(BadExample, match='too many pixels'):
        pixels(data[:frame] + struct.pack('>HH', 65_000, 65_000) + data[frame + 4:])
    assert apply(decode(max_pixels=1200), data).shape == (40, 30, 3)
    with pytest.raises(BadExample, match='too many pixels'):
        apply(decode(max_pixels=1199), data)


@pytest.mark.usefixtures('decoder')
def test_endless_scans_are_not_decoded():
    data = encoded(pixels=np.full((2500, 2500, 3), 99, np.uint8), progressive=True)
    last = data[data.rindex(b'\xff\xda'):-2]
    assert np.array_equal(pixels(data[:-2] + last + data[-2:]), pixels(data))  # one scan twice
    with pytest.raises(BadExample, match='too many scans'):
        pixels(data[:-2] + last * 200 + data[-2:])


def test_what_starts_programs_is_no_image():
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'
    with pytest.raises(BadExample, match='not an image'):
        pixels(eps)


def test_floats_are_not_guessed_at():
    Image.fromarray(np.ones((4, 4), np.float32)).save(file := io.BytesIO(), 'TIFF')
    with pytest.raises(BadExample, match='floating-point'):
        pixels(file.getvalue())


@pytest.mark.usefixtures('decoder')
def test_hostile_bytes_are_bad_examples_or_images():
    rng = np.random.default_rng(7)
    files = [encoded('JPEG'), encoded('JPEG', 'CMYK'), encoded('PNG', 'RGBA'), encoded('PNG', 'P'), encoded('WEBP'),
             encoded('GIF', 'P'), encoded('BMP'), encoded('TIFF')]
    outcomes = set()
    for trial in range(400):
        data = bytearray(files[trial % len(files)])
        for position in rng.integers(len(data), size=1 + trial % 5):
            data[position] = rng.integers(256)
        if trial % 7 == 0:
            del data[rng.integers(len(data)):]
        try:
            image = pixels(bytes(data), exif=True, least=8, max_pixels=10 ** 6)
            assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
            outcomes.add('image')
        except BadExample as error:
            outcomes.add(str(error))
    assert {'image', 'damaged image', 'truncated image', 'not an image'} <= outcomes


@pytest.mark.parametrize('fields', [dict(least=0), dict(least=2.5), dict(max_pixels=0), dict(max_pixels=None)])
def test_impossible_fields(fields):
    with pytest.raises(RecipeError, match=f'{next(iter(fields))}: a number of pixels'):
        decode(**fields)
