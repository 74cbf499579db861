"""Bright pixels inverted (BYOL, arXiv 2006.07733, appendix B)."""

from collections.abc import Callable

import jax.numpy as jnp

from bigvlm.core.parts import RecipeError
from bigvlm.nn.augment._common import sometimes


def solarize(threshold: float = .5, probability: float = .2) -> Callable:
    """x -> 1 - x where x >= ``threshold``, each colour by itself; .5 lies between the bytes 127 and 128, PIL's threshold."""
    if not 0. <= threshold <= 1.:
        raise RecipeError(f'threshold: found {threshold}; valid: 0 to 1')
    return sometimes(lambda image_CHW, key: jnp.where(image_CHW >= threshold, 1. - image_CHW, image_CHW), probability)
