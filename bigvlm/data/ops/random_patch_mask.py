"""Masks of patches chosen one by one (MAE, arXiv 2111.06377; SimMIM, arXiv 2111.09886)."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError


def random_patch_mask(patches: tuple[int, int] = (14, 14), ratio: float = .75, out: str = 'patch_mask',
                      kept: str = '') -> Callable:
    """Puts bool [L] at `out`, true where a patch is masked: exactly round(ratio L) of the L = rows * columns `patches`.

    Every set of so many patches is equally likely. Patches are numbered row by row. `kept`: a key for the numbers of the others,
    in order, int32 [L - round(ratio L)], all that MAE's encoder sees; '' for none.
    """
    total = patch_count(patches)
    if not 0 <= ratio <= 1:
        raise RecipeError(f'ratio: the share that is masked, from 0 to 1, found {ratio}')
    sorted_L = np.arange(total) < round(ratio * total)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        mask_L = rng.permutation(sorted_L)
        return {**example, out: mask_L} | ({kept: np.flatnonzero(~mask_L).astype(np.int32)} if kept else {})
    return op


def patch_count(patches: tuple[int, int]) -> int:
    """Rows times columns of a grid; RecipeError if it is none."""
    if len(patches) != 2 or not all(isinstance(side, int) and side > 0 for side in patches):
        raise RecipeError(f'patches: (rows, columns) of the grid, found {patches}')
    return patches[0] * patches[1]
