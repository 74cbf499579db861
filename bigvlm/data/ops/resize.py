"""Images to one size."""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _scaling


def resize(size: int = 224, crop: str = 'center', method: str = 'bicubic', antialias: bool = True, fill: int | Sequence[int] = 128,
           key: str = 'image') -> Callable:
    """uint8 [H, W, 3] to [size, size, 3].

    `crop`: 'center' scales the shorter side to `size` and cuts the middle out; 'squash' changes the aspect ratio; 'pad'
    scales the longer side to `size` and puts `fill` (a grey level or a colour) on both sides of the shorter.
    `antialias`: False is the plain two-by-two bilinear filter of tf.image.resize.
    """
    _scaling.check(size, method, antialias)
    rgb = _scaling.color(fill)
    if crop not in ('center', 'squash', 'pad'):
        raise RecipeError(f'crop: {crop!r} is none of center, squash, pad')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image_HWC = example[key]
        height, width = image_HWC.shape[:2]
        box, scaled = (0, 0, width, height), (size, size)
        if crop == 'center':
            side = min(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        elif crop == 'pad':
            scaled = tuple(max(1, round(side * size / max(height, width))) for side in (height, width))
        small_HWC = _scaling.scale(image_HWC, box, *scaled, method, antialias)
        return {**example, key: _padded(small_HWC, size, rgb)}
    return op


def _padded(image_HWC: np.ndarray, size: int, rgb: tuple[int, int, int]) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if height == width == size:
        return image_HWC
    canvas_HWC = np.full((size, size, 3), rgb, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas_HWC[top:top + height, left:left + width] = image_HWC
    return canvas_HWC
