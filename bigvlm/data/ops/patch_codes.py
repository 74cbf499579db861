"""Each patch of the image as the number of the nearest code of a learned codebook: targets of masked image modelling."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import fetch
from bigvlm.data.ops import _codebook, _scaling


def patch_codes(codebook: str, sha256: str = '', size: int = 0, key: str = 'image', out: str = 'patch_codes') -> Callable:
    """Puts int32 [L] at `out`: the codes of the patches of uint8 [H, W, 3] at `key`, row by row.

    It has to follow the crop and the flip, so that it sees what the tower sees; what the device does to colours afterwards
    (`augment`) it does not see. `codebook`: a file of tools/train_codebook.py, or an https URL with its `sha256`. `size`:
    the image is scaled to size × size first, so that a grid of codes fits one of larger patches: codes of 8 pixels at size
    112 are 14 × 14, as are a tower's 16 pixels at 224 (BEiT, arXiv 2106.08254). 0: as it is.
    Raises RecipeError for an image that the codebook's patches do not cut evenly.
    """
    if not isinstance(size, int) or size < 0:
        raise RecipeError(f'size: found {size!r}; valid: pixels of a side, or 0')
    book = _codebook.load(fetch(codebook, sha256))
    if size % book.patch:
        raise RecipeError(f'size: found {size}; valid: a multiple of {book.patch}, the side of the patches in {codebook}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image_HWC = example[key]
        if size:
            box = (0, 0, image_HWC.shape[1], image_HWC.shape[0])
            image_HWC = _scaling.scale(image_HWC, box, size, size, 'bilinear')
        try:
            return {**example, out: book.codes(image_HWC)}
        except ValueError as error:
            raise RecipeError(f'patch_codes: {error}; it has to follow an op that crops') from None
    return op
