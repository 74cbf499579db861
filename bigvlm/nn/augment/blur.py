"""Gaussian blur of a width drawn per image (SimCLR, arXiv 2002.05709, appendix A).

S the length of a side; H, W pixels, C colours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigvlm.core.parts import RecipeError
from bigvlm.nn.augment._common import sometimes, uniform


def blur(sigma: tuple[float, float] = (.1, 2.), kernel: int = 0, probability: float = .5) -> Callable:
    """The standard deviation is uniform in ``sigma``, in pixels; ``kernel``: taps, odd; 0: a tenth of the shorter side.

    Edges are reflected, not repeating the outermost pixel, as in torchvision. The kernel ends where SimCLR's does, at
    224 pixels 23 taps.
    """
    if len(sigma) != 2 or not 0. < sigma[0] <= sigma[1]:
        raise RecipeError(f'sigma: found {sigma}; valid: two widths in pixels, 0 < low <= high')
    if kernel != 0 and (kernel < 3 or kernel % 2 == 0):
        raise RecipeError(f'kernel: found {kernel}; valid: 0, or an odd number from 3')

    def step(image_CHW, key):
        height, width = image_CHW.shape[1:]
        half = (kernel or taps(min(height, width))) // 2
        if half >= min(height, width):
            raise RecipeError(f'kernel: {kernel} taps reach beyond the reflection of images of {height}×{width}')
        drawn = sigma[0] + uniform(key) * (sigma[1] - sigma[0])
        down_SS, across_SS = matrix(height, drawn, half), matrix(width, drawn, half)
        # As matrix products: two dots compile to little and run on matrix units. 12·S³ FLOPs an image, at 224 pixels 0.13 G;
        # a ViT-B/16's forward pass is 35 G. The default precision of TPUs would be off by bytes; HIGH (three passes of
        # bfloat16 there, TF32 on GPUs, float32 on CPUs) is by a quarter of one at most, and HIGHEST costs twice as much.
        rows_CHW = jnp.einsum('sh,chw->csw', down_SS, image_CHW, precision=jax.lax.Precision.HIGH)
        return jnp.einsum('sw,chw->chs', across_SS, rows_CHW, precision=jax.lax.Precision.HIGH)
    return sometimes(step, probability)


def taps(side: int) -> int:
    """About a tenth of the side, odd, at least 3."""
    return max(3, 2 * (side // 20) + 1)


def matrix(side: int, sigma, half: int):
    """[S, S] that blurs a column of S pixels: row s holds the weights of the pixels around s, reflected at the ends."""
    place_S = jnp.arange(side)
    last = side - 1
    # A pixel is seen at its own place and, but for the outermost, at its mirror images beyond either end.
    seen_3S = jnp.stack([place_S, jnp.where(place_S > 0, -place_S, -2 * side), jnp.where(place_S < last, 2 * last - place_S, 4 * side)])
    distance_3SS = seen_3S[:, None, :] - place_S[:, None]
    weight_3SS = jnp.where(jnp.abs(distance_3SS) <= half, jnp.exp(-.5 * (distance_3SS.astype(jnp.float32) / sigma) ** 2), 0.)
    weight_SS = weight_3SS.sum(0)
    return weight_SS / weight_SS.sum(1, keepdims=True)
