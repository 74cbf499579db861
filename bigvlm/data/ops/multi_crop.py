"""Global and local crops of each image (SwAV, arXiv 2006.09882, section 3.3; DINO, arXiv 2104.14294, section 3.1)."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops._crops import Crop


def multi_crop(global_count: int = 2, global_size: int = 224, global_area: tuple[float, float] = (.4, 1.), local_count: int = 6,
               local_size: int = 96, local_area: tuple[float, float] = (.05, .4), ratio: tuple[float, float] = (3 / 4, 4 / 3),
               flip: float = .5, method: str = 'bicubic', antialias: bool = True, keep: bool = False, key: str = 'image',
               out: str = 'crops') -> Callable:
    """Crops of uint8 [H, W, 3] as `OUT/0`, `OUT/1`, …: first the global ones, [global_size, global_size, 3], then the local.

    `global_area`, `local_area`: ranges of their shares of the image. `keep`: whether the image itself stays.
    """
    for field, count in dict(global_count=global_count, local_count=local_count).items():
        if not isinstance(count, int) or count < 0:
            raise RecipeError(f'{field}: a number of crops, found {count!r}')
    crops = global_count * [_crop('global_', global_size, global_area, ratio, method, antialias, flip)]
    crops += local_count * [_crop('local_', local_size, local_area, ratio, method, antialias, flip)]
    if not crops:
        raise RecipeError('global_count: with local_count=0 at least 1, found 0')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        made = {f'{out}/{i}': crop(example[key], rng) for i, crop in enumerate(crops)}
        return {k: v for k, v in example.items() if keep or k != key} | made
    return op


def _crop(prefix: str, *fields: Any) -> Crop:
    try:
        return Crop(*fields)
    except RecipeError as error:
        message = str(error)
        raise RecipeError(prefix + message if message.startswith(('size', 'area')) else message) from None
