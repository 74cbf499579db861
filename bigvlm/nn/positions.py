"""Positions of image tokens: learned at a declared grid and resampled to the image's, or fixed sines. W the width."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bigvlm.core.parts import RecipeError


def resample(positions_LW, stored: tuple[int, int], wanted: tuple[int, int]):
    """Learned positions of a ``stored`` (rows, columns) grid, resampled bilinearly (antialiased) to the ``wanted`` one."""
    if stored == wanted:
        return positions_LW
    grid_HWC = rearrange(positions_LW, '(h w) c -> h w c', h=stored[0])
    resized = jax.image.resize(grid_HWC, (*wanted, positions_LW.shape[-1]), 'bilinear', antialias=True)
    return rearrange(resized, 'h w c -> (h w) c')


def check_sincos2d(width: int) -> None:
    """Raises RecipeError for a width that has no four equal parts of two or more frequencies."""
    if width % 4 or width < 8:
        raise RecipeError(f'width: sincos2d positions need a multiple of 4, at least 8, not {width}')


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.) -> jax.Array:
    """Fixed two-dimensional sine-cosine positions, float32 [rows·columns, width] (MoCo v3, arXiv 2104.02057)."""
    check_sincos2d(width)
    frequency_F = np.exp(-math.log(temperature) * np.arange(width // 4) / (width // 4 - 1))
    rows, columns = np.mgrid[:grid[0], :grid[1]]
    row_LF, column_LF = (np.einsum('l,f->lf', axis.ravel(), frequency_F) for axis in (rows, columns))
    parts = [np.sin(column_LF), np.cos(column_LF), np.sin(row_LF), np.cos(row_LF)]
    return jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)
