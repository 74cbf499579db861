"""A random crop of each image."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.data.ops._crops import Crop


def random_resized_crop(size: int = 224, area: tuple[float, float] = (.9, 1.), ratio: tuple[float, float] = (3 / 4, 4 / 3),
                        method: str = 'bicubic', antialias: bool = True, key: str = 'image') -> Callable:
    """A random region of uint8 [H, W, 3], scaled to [size, size, 3].

    `area`: range of the region's share of the image; `ratio`: range of its width / height, drawn on a log scale.
    `antialias`: False is the plain two-by-two bilinear filter of tf.image.resize.
    """
    crop = Crop(size, area, ratio, method, antialias)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, key: crop(example[key], rng)}
    return op
