"""Images of any shape as patches within a budget of tokens, without cropping (NaFlex: SigLIP 2, arXiv 2502.14786).

H, W pixels; T tokens; R, C rows and columns of patches; P the pixels of a patch's side.
"""
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from einops import rearrange

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _scaling


def patchify(patch: int = 16, tokens: int = 256, method: str = 'bilinear', antialias: bool = True, key: str = 'image') -> Callable:
    """uint8 [H, W, 3] at `key`, scaled to the grid that `grid` chooses and cut up, in place of the image:

    `patches` uint8 [tokens, patch * patch * 3], patches row by row and so are pixels within, zeros behind;
    `patch_valid` bool [tokens]; `patch_position` int32 [tokens, 2]: row and column, zeros behind; `patch_grid` int32 [2]:
    rows and columns. The mean of `patch_valid` is the share of the tokens that is not padding.
    """
    _check(patch, tokens)
    _scaling.check(patch, method, antialias)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image_HWC = example[key]
        height, width = image_HWC.shape[:2]
        rows, columns = grid(height, width, tokens)
        scaled_HWC = _scaling.scale(image_HWC, (0, 0, width, height), rows * patch, columns * patch, method, antialias)
        used = rows * columns
        patches_TD = np.zeros((tokens, patch * patch * 3), np.uint8)
        patches_TD[:used] = rearrange(scaled_HWC, '(r p) (c q) k -> (r c) (p q k)', p=patch, q=patch)
        position_T2 = np.zeros((tokens, 2), np.int32)
        position_T2[:used, 0], position_T2[:used, 1] = np.divmod(np.arange(used), columns)
        return {k: v for k, v in example.items() if k != key} | dict(
            patches=patches_TD, patch_valid=np.arange(tokens) < used, patch_position=position_T2,
            patch_grid=np.array((rows, columns), np.int32))
    return op


def grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """(rows, columns) of the grid for an image of H x W: at most `tokens` patches, its aspect ratio as nearly as may be.

    Scaled by s (in patches per pixel), an image takes ceil(s H) rows and ceil(s W) columns; s is the largest with
    ceil(s H) ceil(s W) <= tokens. That product grows only where s H or s W passes a whole number, so the largest s is
    one of r / H and c / W, and for them all is whole-number arithmetic: ceil(r W / H) columns, ceil(c H / W) rows.
    """
    rows = _most(height, width, tokens)
    columns = _most(width, height, tokens)
    if rows * width >= columns * height:  # r / H is the larger scale; one that fits no row at all is 0
        return rows, -(-rows * width // height)
    return -(-columns * height // width), columns


def _most(side: int, other: int, tokens: int) -> int:
    """The largest n with n ceil(n other / side) <= tokens, or 0: n patches along `side`."""
    n = min(tokens, math.isqrt(tokens * side // other))  # without the ceiling; with it n is no larger
    while n and n * -(-n * other // side) > tokens:
        n -= 1
    return n


def waste(sizes: Iterable[tuple[int, int]], tokens: int) -> float:
    """The share of `tokens` that is padding, over images of `sizes` (height, width); it is the same for every patch size."""
    shares = [1 - rows * columns / tokens for rows, columns in (grid(height, width, tokens) for height, width in sizes)]
    if not shares:
        raise ValueError('no images')
    return sum(shares) / len(shares)


def _check(patch: int, tokens: int) -> None:
    for field, value in dict(patch=patch, tokens=tokens).items():
        if not isinstance(value, int) or value < 1:
            raise RecipeError(f'{field}: a positive whole number, found {value!r}')
