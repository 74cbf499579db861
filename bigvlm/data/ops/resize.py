"""Images to one size."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _scaling


def resize(size: int = 224, crop: str = 'center', method: str = 'bicubic', key: str = 'image') -> Callable:
    """uint8 [H, W, 3] to [size, size, 3], antialiased.

    `crop`: 'center' scales the shorter side to `size` and cuts the middle out; 'squash' changes the aspect ratio.
    """
    _scaling.check(size, method)
    if crop not in ('center', 'squash'):
        raise RecipeError(f'crop: {crop!r} is none of center, squash')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = example[key]
        height, width = image.shape[:2]
        box = (0, 0, width, height)
        if crop == 'center':
            side = min(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        return {**example, key: _scaling.scale(image, box, size, size, method)}
    return op
