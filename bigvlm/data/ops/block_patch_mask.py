"""Masks of patches in blocks (BEiT, arXiv 2106.08254, algorithm 1)."""
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.random_patch_mask import patch_count

_DRAWS = 100  # blocks; BEiT's own masks take about five


def block_patch_mask(patches: tuple[int, int] = (14, 14), count: int = 75, least: int = 16, aspect: float = .3,
                     out: str = 'patch_mask') -> Callable:
    """Puts bool [L] at `out`, true where a patch is masked: exactly `count` of the L = rows * columns `patches`, in blocks.

    Blocks are drawn until `count` patches are masked: of `least` patches to as many as are still wanted, as high as wide
    times `aspect` to 1 / `aspect` (on a log scale, as in BEiT's code) but no larger than the grid, anywhere on it. The
    paper's algorithm ends with a few patches more than asked for, its code with a few less; here the last block loses what
    it has too much, from its end or its beginning, so that shapes are static. Patches are numbered row by row.
    """
    total = patch_count(patches)
    if not isinstance(count, int) or not 0 <= count <= total:
        raise RecipeError(f'count: how many of the {total} patches are masked, found {count!r}')
    if not isinstance(least, int) or least < 1:
        raise RecipeError(f'least: the patches of the smallest block, found {least!r}')
    if not 0 < aspect <= 1:
        raise RecipeError(f'aspect: the narrowest block, height / width from 0 to 1, found {aspect}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        mask = np.zeros(patches, bool)
        for _ in range(_DRAWS):
            wanted = count - int(mask.sum())
            if wanted <= 0:
                break
            new = _new_patches(mask, _block(rng, patches, least, max(least, wanted), aspect))
            mask.flat[new[:wanted] if rng.random() < .5 else new[::-1][:wanted]] = True
        else:  # nearly all are masked and the blocks do not find the rest: single patches do
            left = np.flatnonzero(~mask)
            mask.flat[rng.permutation(left)[:count - int(mask.sum())]] = True
        return {**example, out: mask.reshape(-1)}
    return op


def _block(rng: np.random.Generator, patches: tuple[int, int], least: int, most: int, aspect: float) -> tuple[slice, slice]:
    """The rows and columns of one block: a random area and shape, cut to the grid's sides, anywhere."""
    area = rng.uniform(least, most)
    shape = math.exp(rng.uniform(math.log(aspect), math.log(1 / aspect)))
    sides = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
    sides = [min(max(1, side), limit) for side, limit in zip(sides, patches)]
    starts = [int(rng.integers(limit - side + 1)) for side, limit in zip(sides, patches)]
    return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])


def _new_patches(mask: np.ndarray, block: tuple[slice, slice]) -> np.ndarray:
    """The numbers of the patches in `block` that `mask` does not have yet, row by row."""
    inside = np.zeros_like(mask)
    inside[block] = True
    return np.flatnonzero(inside & ~mask)
