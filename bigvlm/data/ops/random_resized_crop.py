"""The random crop of Inception (Szegedy et al., "Going deeper with convolutions", 2015)."""
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _scaling

_TRIES = 10


def random_resized_crop(size: int = 224, area: tuple[float, float] = (.9, 1.),
                        ratio: tuple[float, float] = (3 / 4, 4 / 3),
                        method: str = 'bicubic', key: str = 'image') -> Callable:
    """A random region of uint8 [H, W, 3], scaled to [size, size, 3], antialiased.

    `area`: range of the region's share of the image; `ratio`: range of its width / height, drawn on a log scale.
    """
    _scaling.check(size, method)
    if not 0 < area[0] <= area[1] <= 1:
        raise RecipeError(f'area: two shares with 0 < low <= high <= 1, found {area}')
    if not 0 < ratio[0] <= ratio[1]:
        raise RecipeError(f'ratio: two positive numbers, low first, found {ratio}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = example[key]
        return {**example, key: _scaling.scale(image, _region(rng, *image.shape[:2], area, ratio), size, size, method)}
    return op


def _region(rng: np.random.Generator, height: int, width: int, area, ratio) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a region within the bounds; if ten draws do not fit, the largest central one."""
    for _ in range(_TRIES):
        share = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(share * aspect)), round(math.sqrt(share / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
