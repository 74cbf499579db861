"""Images as patches and back, and the targets that are made of patches' pixels.

B batch, H, W pixels, C colours, P the pixels of a patch's side, L patches row by row, D the P·P·C numbers of a patch (row, column,
colour), K patches that an encoder was shown.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from bigvlm.core.parts import RecipeError

# Added to a patch's variance (masked autoencoders, arXiv 2111.06377, in their released code).
NORM_EPS = 1e-6


def cut(image_BHWC, patch: int, mean: tuple[float, ...], std: tuple[float, ...]):
    """Patches [B, L, D], float32: uint8 images are taken to [0, 1] (floats are there already), then (x - mean) / std by colour.

    RecipeError for images that patches do not cut evenly.
    """
    if image_BHWC.shape[1] % patch or image_BHWC.shape[2] % patch:
        raise RecipeError(f'patch: found {patch}; valid: a side that cuts images of {image_BHWC.shape[1]}×{image_BHWC.shape[2]} evenly')
    if jnp.issubdtype(image_BHWC.dtype, jnp.integer):
        image_BHWC = image_BHWC.astype(jnp.float32) / 255.
    scaled_BHWC = (image_BHWC.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
    return rearrange(scaled_BHWC, 'b (r p) (c q) k -> b (r c) (p q k)', p=patch, q=patch)


def paste(patch_BLD, rows: int, patch: int, mean: tuple[float, ...], std: tuple[float, ...]):
    """Images [B, H, W, C] in [0, 1] (where the patches are) of the patches that ``cut`` made of a grid of ``rows`` rows."""
    scaled_BHWC = rearrange(patch_BLD, 'b (r c) (p q k) -> b (r p) (c q) k', r=rows, p=patch, q=patch)
    return scaled_BHWC * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)


def statistics(patch_BLD):
    """(mean [B, L, 1], spread [B, L, 1]) of each patch's numbers; the variance is the unbiased one, of D - 1."""
    variance_BL1 = jnp.var(patch_BLD, axis=-1, keepdims=True, ddof=1)
    return jnp.mean(patch_BLD, axis=-1, keepdims=True), jnp.sqrt(variance_BL1 + NORM_EPS)


def hidden(kept_BK, patches: int):
    """bool [B, L]: which of ``patches`` patches are not among the indices ``kept_BK``."""
    return jax.vmap(lambda kept_K: jnp.ones(patches, bool).at[kept_K].set(False))(kept_BK)


def put(value_BKW, index_BK, all_BLW):
    """``all_BLW`` with the rows ``index_BK`` replaced by ``value_BKW``."""
    return jax.vmap(lambda value_KW, index_K, all_LW: all_LW.at[index_K].set(value_KW))(value_BKW, index_BK, all_BLW)


def check(patch: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises RecipeError for fields that no image could be cut by."""
    if not isinstance(patch, int) or patch < 1:
        raise RecipeError(f'patch: found {patch!r}; valid: the pixels of a side, from 1')
    if len(mean) != len(std) or 0. in std:
        raise RecipeError(f'std: found {std}; valid: a number other than 0 for each colour of mean, {mean}')
