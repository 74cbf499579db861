"""What the steps share: being applied to some images only, and how grey a colour is. H, W pixels, C colours."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigvlm.core.parts import RecipeError


def sometimes(step: Callable, probability: float) -> Callable:
    """The step, for each image with this probability; otherwise the image stays as it is."""
    if not 0. <= probability <= 1.:
        raise RecipeError(f'probability: found {probability}; valid: 0 to 1')
    if probability == 1.:
        return step

    def drawn(image_CHW, key):
        chance, key = jax.random.split(key)
        return jnp.where(uniform(chance) < probability, step(image_CHW, key), image_CHW)
    return drawn


def uniform(key, shape=()):
    """In [0, 1), float32 whatever jax's default is, so that the draws are the same everywhere."""
    return jax.random.uniform(key, shape, jnp.float32)


def grey(image_CHW):
    """[3, H, W] -> [H, W]: the luma of ITU-R BT.601, as in PIL and torchvision."""
    red_HW, green_HW, blue_HW = image_CHW
    return .299 * red_HW + .587 * green_HW + .114 * blue_HW
