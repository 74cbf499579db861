"""Each patch of the image as the number of its mean colour: targets of masked image modelling that nothing is learned for."""
from collections.abc import Callable
from typing import Any

import numpy as np
from einops import reduce

from bigvlm.core.parts import RecipeError


def patch_colors(patch: int = 16, levels: int = 4, key: str = 'image', out: str = 'patch_codes') -> Callable:
    """Puts int32 [L] at `out`: of each patch of uint8 [H, W, 3] at `key`, row by row, red · levels² + green · levels + blue,
    each the patch's mean in `levels` equal steps; levels³ codes.

    For runs without a codebook (`patch_codes` reads a learned one); simMIM's authors found coarse colours to be nearly as
    good as targets as pixels are (arXiv 2111.09886). It has to follow the crop, as `patch_codes` has.
    Raises RecipeError for an image that patches do not cut evenly.
    """
    if not isinstance(patch, int) or patch < 1:
        raise RecipeError(f'patch: pixels of a side, found {patch!r}')
    if not isinstance(levels, int) or not 2 <= levels <= 256:
        raise RecipeError(f'levels: steps of a colour, 2 to 256, found {levels!r}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image_HWC = example[key]
        if image_HWC.shape[0] % patch or image_HWC.shape[1] % patch:
            raise RecipeError(f'patch: patches of {patch} pixels do not cut an image of {image_HWC.shape[:2]} evenly')
        mean_LC = reduce(image_HWC.astype(np.float64), '(r p) (c q) k -> (r c) k', 'mean', p=patch, q=patch)
        step_LC = np.minimum((mean_LC * levels / 256).astype(np.int32), levels - 1)
        return {**example, out: (step_LC @ np.array([levels ** 2, levels, 1], np.int32)).astype(np.int32)}
    return op
