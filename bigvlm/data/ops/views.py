"""Several views of each image: random crops, mirrored at times. What they do to colours is the device's part."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops._crops import Crop


def views(count: int = 2, size: int = 224, area: tuple[float, float] = (.08, 1.), ratio: tuple[float, float] = (3 / 4, 4 / 3),
          flip: float = .5, method: str = 'bicubic', antialias: bool = True, keep: bool = True, key: str = 'image',
          out: str = 'views') -> Callable:
    """`count` independent crops of uint8 [H, W, 3], as `OUT/0`, `OUT/1`, … of [size, size, 3].

    The defaults are SimCLR's (arXiv 2002.05709, appendix A) and SLIP's; DeCLIP's are area=(.2, 1.). `keep`: whether the
    image itself stays, for an op that follows (SLIP: beside its two views the contrastive loss sees a third).
    """
    if not isinstance(count, int) or count < 1:
        raise RecipeError(f'count: a number of views, found {count!r}')
    crop = Crop(size, area, ratio, method, antialias, flip)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        made = {f'{out}/{i}': crop(example[key], rng) for i in range(count)}
        return {k: v for k, v in example.items() if keep or k != key} | made
    return op
