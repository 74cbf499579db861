"""Encoded images to RGB pixels, by what the bytes are, whatever the file is called."""
import io
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.data.bad import BadExample

try:
    import simplejpeg  # the same pixels as Pillow, a third faster
except ImportError:
    simplejpeg = None

_JPEG = b'\xff\xd8\xff'
# What Pillow raises on damaged files; a picture bomb (DecompressionBombError) is one too.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, Image.DecompressionBombError)


def decode(key: str = 'image') -> Callable:
    """Replaces the bytes at `key` by uint8 [H, W, 3]: grey and CMYK to RGB, transparent over white, first frame.

    Raises BadExample for what is empty, damaged or no image.
    """
    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not example.get(key):
            raise BadExample('no image')
        return {**example, key: pixels(example[key])}
    return op


def pixels(data: bytes) -> np.ndarray:
    """The image in `data` (JPEG, PNG, WebP, GIF, …) as uint8 [H, W, 3]."""
    if simplejpeg is not None and data[:3] == _JPEG:
        try:
            return simplejpeg.decode_jpeg(data, colorspace='RGB')
        except ValueError:
            pass  # CMYK, or damaged: Pillow tells
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter('ignore')  # odd metadata, large pictures: the pixels are what counts
            image.load()
            return np.asarray(_rgb(image))
    except Image.UnidentifiedImageError:
        raise BadExample('not an image') from None
    except _DAMAGE as error:
        raise BadExample('truncated image' if 'truncated' in str(error).lower() else 'damaged image') from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # 16 bits of grey; Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
