"""Encoded images to RGB pixels, by what the bytes are, whatever the file is called."""
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample

try:
    import simplejpeg  # the same pixels as Pillow, a third faster
except ImportError:
    simplejpeg = None

MAX_PIXELS = 64_000_000  # larger pictures are more likely bombs; a transparent one takes 14 bytes a pixel to decode
_MAX_SCANS, _SCAN_BYTES, _SCAN_WORK = 100, 10, 2_000_000_000

Image.init()
# Only formats of pictures on the web: others start programs (EPS) or are rarely read and so rarely mended.
_FORMATS = tuple(name for name in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF') if name in Image.OPEN)
# Odd metadata, large pictures: the pixels are what counts. Once for all, since catch_warnings is not safe in threads.
warnings.filterwarnings('ignore', module=r'PIL\.')

_JPEG = b'\xff\xd8\xff'
_ORIENTATION = 0x0112  # the EXIF tag
# What undoes each value of it (EXIF 2.3, section 4.6.4): the value tells where the stored first row and column belong.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image_HWC: image_HWC[:, ::-1],
    3: lambda image_HWC: image_HWC[::-1, ::-1],
    4: lambda image_HWC: image_HWC[::-1],
    5: lambda image_HWC: image_HWC.swapaxes(0, 1),
    6: lambda image_HWC: image_HWC[::-1].swapaxes(0, 1),
    7: lambda image_HWC: image_HWC[::-1, ::-1].swapaxes(0, 1),
    8: lambda image_HWC: image_HWC[:, ::-1].swapaxes(0, 1)}


def decode(key: str = 'image', exif: bool = False, least: int | None = None, max_pixels: int = MAX_PIXELS) -> Callable:
    """Replaces the bytes at `key` by uint8 [H, W, 3]: grey and CMYK to RGB, transparent over white, first frame.

    `exif`: turn photos upright as their metadata asks; if not, pixels are as stored (what tf.data and open_clip train on).
    `least`: JPEGs may be decoded at 1/2, 1/4 or 1/8 as long as the shorter side keeps so many pixels; faster for large
    photos. A crop of a part of the image needs more than its own size. None: exact. `max_pixels`: what an image may claim
    to have before anything is decoded.
    Raises BadExample for what is empty, damaged, too large or no image.
    """
    if least is not None and (not isinstance(least, int) or least < 1):
        raise RecipeError(f'least: a number of pixels, or None for whole images, found {least!r}')
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise RecipeError(f'max_pixels: a number of pixels, found {max_pixels!r}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not example.get(key):
            raise BadExample('no image')
        return {**example, key: pixels(example[key], exif, least, max_pixels)}
    return op


def pixels(data: bytes, exif: bool = False, least: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image in `data` (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF) as uint8 [H, W, 3]; fields as of `decode`. Raises BadExample."""
    image_HWC = None
    if simplejpeg is not None and data[:3] == _JPEG:
        try:
            image_HWC = _fast_jpeg(data, least, max_pixels)
        except ValueError:
            image_HWC = None  # CMYK, or damaged: Pillow tells
    if image_HWC is None:
        image_HWC = _by_pillow(data, least, max_pixels)
    return _upright(image_HWC, data) if exif else image_HWC


def _fast_jpeg(data: bytes, least: int | None, max_pixels: int) -> np.ndarray:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    _admit(height, width, max_pixels)
    _admit_scans(data, height * width)
    shrink = _shrink(height, width, least)
    if shrink == 1:
        return simplejpeg.decode_jpeg(data, colorspace='RGB')
    # The decoder knows thirds and fifths of 8 too, without SIMD; asked for these sides it takes the power of two.
    return simplejpeg.decode_jpeg(data, colorspace='RGB', min_height=-(-height // shrink), min_width=-(-width // shrink))


def _by_pillow(data: bytes, least: int | None, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _admit(image.height, image.width, max_pixels)
            if image.format in ('JPEG', 'MPO') or image.info.get('compression') in ('jpeg', 'tiff_jpeg'):
                _admit_scans(data, image.height * image.width)
            shrink = _shrink(image.height, image.width, least)
            if shrink > 1:
                image.draft(None, (image.width // shrink, image.height // shrink))  # does nothing but for JPEG
            image.load()
            return np.asarray(_rgb(image))
    except (BadExample, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BadExample('not an image') from None
    except Image.DecompressionBombError:
        raise BadExample('too many pixels') from None
    except Exception as error:  # hostile bytes make Pillow raise nearly everything: a list would never be complete
        raise BadExample('truncated image' if 'truncated' in str(error).lower() else 'damaged image') from None


def _admit(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadExample('too many pixels')


def _admit_scans(data: bytes, pixels: int) -> None:
    """A JPEG may go over the whole image in each of many scans: 100 kB can ask for minutes. Real ones have about ten."""
    # Counting takes a while too. Where as many scans as the bytes allow take no more than a second or two, never mind.
    if len(data) // _SCAN_BYTES * pixels > _SCAN_WORK and data.count(b'\xff\xda') > _MAX_SCANS:
        raise BadExample('too many scans')


def _shrink(height: int, width: int, least: int | None) -> int:
    """1, 2, 4 or 8: by what a JPEG is divided while it is decoded."""
    return next((n for n in (8, 4, 2) if min(height, width) >= n * least), 1) if least else 1


def _upright(image_HWC: np.ndarray, data: bytes) -> np.ndarray:
    if data[:3] == _JPEG and b'Exif\0\0' not in data:
        return image_HWC
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged metadata of a picture that decodes asks for nothing
        return image_HWC
    return turn(image_HWC) if turn else image_HWC


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'F':
        raise BadExample('floating-point image')  # its range is not known
    if image.mode.startswith('I'):  # 16 bits of grey; Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
        image = image if image.mode == 'RGBA' else image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
