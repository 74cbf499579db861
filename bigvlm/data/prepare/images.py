"""What the first bytes of an image say, and images made smaller; nothing here is random."""
import io
import struct
import warnings

import numpy as np
from PIL import Image

from bigvlm.data.bad import BadExample

ENDINGS = {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp', 'GIF': 'gif'}  # what tars may hold, by Pillow's names
_ORIENTATION = 0x0112  # the EXIF tag
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, Image.DecompressionBombError)


def header(image: bytes | np.ndarray) -> tuple[str, int, int]:
    """(format, width, height) from the head of an encoded image, which is not decoded; pixels [H, W, 3] are 'pixels'.

    Raises BadExample for what is no image.
    """
    if isinstance(image, np.ndarray):
        return 'pixels', image.shape[1], image.shape[0]
    with _opened(image) as opened:
        return opened.format or 'unknown', *opened.size


def small_gray(image: bytes | np.ndarray, width: int, height: int) -> np.ndarray:
    """The image as uint8 [height, width] luminance, antialiased: averaged over boxes, not sampled."""
    with _opened(image) as opened:
        opened.draft('L', (4 * width, 4 * height))  # a JPEG is decoded at an eighth of its size where that is enough
        try:
            return np.asarray(_plain(opened).convert('L').resize((width, height), Image.Resampling.BOX))
        except _DAMAGE as error:
            raise BadExample('truncated image' if 'truncated' in str(error).lower() else 'damaged image') from None


def smaller(image: bytes | np.ndarray, size: int = 0, quality: int = 90, reencode: bool = False) -> tuple[str, bytes]:
    """(ending, bytes) of an image whose shorter side is at most `size` pixels (0: as it is), scaled by Lanczos' filter.

    What has to be scaled, or anything if `reencode`, becomes a JPEG of `quality`, its EXIF orientation kept. What has
    not stays byte for byte; pixels, and formats that tars have no ending for, become PNG. Raises BadExample.
    """
    form, width, height = header(image)
    scaled = bool(size) and min(width, height) > size
    if not scaled and not reencode and form in ENDINGS:
        return ENDINGS[form], bytes(image)
    file = io.BytesIO()
    with _opened(image) as opened:
        try:
            orientation = opened.getexif().get(_ORIENTATION, 1)
            picture = _plain(opened)
            if scaled:
                shape = tuple(max(1, round(side * size / min(width, height))) for side in (width, height))
                picture = picture.resize(shape, Image.Resampling.LANCZOS)
        except _DAMAGE as error:
            raise BadExample('truncated image' if 'truncated' in str(error).lower() else 'damaged image') from None
    if not scaled and not reencode:
        picture.save(file, 'PNG')
        return 'png', file.getvalue()
    exif = Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    picture.save(file, 'JPEG', quality=quality, exif=exif)
    return 'jpg', file.getvalue()


def _opened(image: bytes | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # large pictures and odd metadata are no reason to stop
            return Image.open(io.BytesIO(image))
    except Image.UnidentifiedImageError:
        raise BadExample('not an image') from None
    except _DAMAGE:
        raise BadExample('damaged image') from None


def _plain(image: Image.Image) -> Image.Image:
    """RGB or grey; transparency over white, as the decode op has it."""
    image.load()
    if image.mode in ('L', 'RGB'):
        return image
    if image.mode.startswith('I'):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
