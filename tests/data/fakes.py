"""Data made on the spot: pictures in every odd format, and tars of them."""
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(height=40, width=30, seed=0):
    """A smooth coloured image, uint8 [height, width, 3], that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.stack([x * 200, y * 200, np.full_like(x, seed * 37 % 200)], -1).astype(np.uint8)


def encoded(format='JPEG', mode='RGB', pixels=None, **options):
    """An encoded image file."""
    file = io.BytesIO()
    Image.fromarray(picture() if pixels is None else pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def write_tar(path: Path, samples, **options) -> Path:
    """`samples`: key -> {ending: bytes}."""
    with tarfile.open(path, 'w', **options) as tar:
        for key, parts in samples.items():
            for ending, data in parts.items():
                member = tarfile.TarInfo(f'{key}.{ending}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def sample(i, **changes):
    """The parts of a good sample, with `changes`; None takes a part away."""
    parts = {'jpg': encoded(pixels=picture(seed=i)), 'txt': f'picture {i}'.encode(),
             'json': json.dumps({'captions': [f'picture {i}', f'photo number {i}']}).encode()} | changes
    return {ending: data for ending, data in parts.items() if data is not None}
