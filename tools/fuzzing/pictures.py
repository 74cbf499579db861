"""Pictures of five formats, damaged, through the decoder."""
import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

from bigvlm.data.ops.decode import pixels
from tools.fuzzing import mutations

_FORMATS = (('JPEG', 'RGB', {}), ('JPEG', 'RGB', dict(progressive=True)), ('JPEG', 'L', {}), ('JPEG', 'CMYK', {}),
            ('PNG', 'RGB', {}), ('PNG', 'P', {}), ('PNG', 'RGBA', {}), ('PNG', 'I;16', {}), ('PNG', '1', {}),
            ('WEBP', 'RGB', {}), ('WEBP', 'RGBA', dict(lossless=True)), ('GIF', 'P', {}), ('GIF', 'P', dict(save_all=True)),
            ('BMP', 'RGB', {}), ('BMP', 'P', {}))


def make(rng) -> bytes:
    """A damaged picture."""
    return mutations.mutated(_good(rng.randrange(len(_FORMATS))), rng, (*mutations.ANY, _claim_a_size))


def check(data: bytes) -> str:
    """Decodes; what comes out has to be a picture."""
    found = pixels(data)
    assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim == 3, (type(found), getattr(found, 'shape', None))
    assert found.shape[2] == 3 and found.size > 0, found.shape
    return 'decoded'


@functools.cache
def _good(number: int) -> bytes:
    format, mode, options = _FORMATS[number]
    y, x = np.mgrid[:48, :64]
    image = Image.fromarray(np.stack([x * 4, y * 5, (x * y) % 251], -1).astype(np.uint8))
    image = Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257) if mode == 'I;16' else image.convert(mode)
    if options.get('save_all'):
        options = dict(options, append_images=[image.rotate(90), image.rotate(180)])
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _claim_a_size(data, rng):
    """Another width and height in the header, huge ones for choice, with the sums that guard them put right."""
    width, height = (rng.choice((0, 1, 3000, 65500, 65535, rng.randrange(70_000))) for _ in range(2))
    if data[:8] == b'\x89PNG\r\n\x1a\n' and len(data) > 33:
        data[16:24] = struct.pack('>II', width * rng.choice((1, 1000)), height)
        data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    elif data[:3] == b'GIF' and len(data) > 10:
        data[6:10] = struct.pack('<HH', width & 0xffff, height & 0xffff)
    elif data[:2] == b'BM' and len(data) > 26:
        data[18:26] = struct.pack('<ii', width, rng.choice((1, -1)) * height)
    else:
        for marker in (b'\xff\xc0', b'\xff\xc2'):
            if 0 <= (at := data.find(marker)) < len(data) - 9:
                data[at + 5:at + 9] = struct.pack('>HH', height & 0xffff, width & 0xffff)
