"""Brightness, contrast, saturation and hue changed at random (SimCLR, arXiv 2002.05709, appendix A).

H, W pixels, C colours, P the changes made.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigvlm.core.parts import RecipeError
from bigvlm.nn.augment._common import grey, sometimes, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def jitter(brightness: float = .4, contrast: float = .4, saturation: float = .4, hue: float = .1, probability: float = .8
           ) -> Callable:
    """torchvision's ColorJitter: factors uniform in 1 ± the field (not below 0), the hue turned by up to ± ``hue`` turns.

    Like there, the changes come in an order drawn anew for every image, all orders alike, and one of size 0 is left out.
    Unlike there nothing is rounded to bytes in between. The defaults are MoCo v2's and SLIP's (arXiv 2112.12750); SimCLR's
    are .8, .8, .8, .2.
    """
    sizes = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    for name, size in sizes.items():
        if not 0. <= size <= (.5 if name == 'hue' else float('inf')):
            raise RecipeError(f'{name}: found {size}; valid: {"0 to .5 turns" if name == "hue" else "0 or more"}')
    made = [change for change, size in enumerate(sizes.values()) if size]
    if not made:
        raise RecipeError(f'brightness: all of {", ".join(sizes)} are 0; valid: at least one above')
    low = [max(0., 1. - size) for size in (brightness, contrast, saturation)] + [-hue]
    high = [1. + size for size in (brightness, contrast, saturation)] + [hue]

    def step(image_CHW, key):
        amount_key, order_key = jax.random.split(key)
        low_4, high_4 = jnp.array(low, jnp.float32), jnp.array(high, jnp.float32)
        orders = jnp.array(list(itertools.permutations(made)), jnp.int32)
        order_P = orders[jax.random.randint(order_key, (), 0, len(orders), jnp.int32)]
        return change(image_CHW, order_P, low_4 + uniform(amount_key, (4,)) * (high_4 - low_4), turned=HUE in made)
    return sometimes(step, probability)


def change(image_CHW, order_P, amount_4, turned: bool = True):
    """The changes of ``order_P`` one after the other, by ``amount_4``: three factors, and turns of the hue.

    Which change comes at a place differs from image to image, so all images of a batch make every change at every place
    and keep one; three of the four are the same blend with another partner, and a loop keeps the program small.
    """
    def at_place(image_CHW, which):
        grey_HW = grey(image_CHW)
        partner_HW = jnp.where(which == SATURATION, grey_HW, jnp.where(which == CONTRAST, grey_HW.mean(), 0.))
        factor = amount_4[which]
        changed_CHW = jnp.clip(factor * image_CHW + (1. - factor) * partner_HW, 0., 1.)
        if turned:
            changed_CHW = jnp.where(which == HUE, turn_hue(image_CHW, amount_4[HUE]), changed_CHW)
        return changed_CHW, None
    return jax.lax.scan(at_place, image_CHW, order_P)[0]


def turn_hue(image_CHW, turns):
    """Adds ``turns`` to the hue of HSV, keeping saturation and value; [3, H, W] in [0, 1].

    The hue h in sixths of a turn is where the largest colour stands plus the difference of the other two over the chroma
    (max - min). Back, colour n (5 red, 3 green, 1 blue) is max - chroma · clip(min(k, 4 - k), 0, 1) with k = (n + h) mod 6.
    """
    red_HW, green_HW, blue_HW = image_CHW
    most_HW = image_CHW.max(0)
    chroma_HW = most_HW - image_CHW.min(0)
    over_HW = 1. / jnp.where(chroma_HW > 0., chroma_HW, 1.)
    hue_HW = 6. * turns + jnp.where(most_HW == red_HW, (green_HW - blue_HW) * over_HW,
                                    jnp.where(most_HW == green_HW, 2. + (blue_HW - red_HW) * over_HW,
                                              4. + (red_HW - green_HW) * over_HW))

    def plane(n):
        k_HW = n + hue_HW
        k_HW = k_HW - 6. * jnp.floor(k_HW / 6.)
        return most_HW - chroma_HW * jnp.clip(jnp.minimum(k_HW, 4. - k_HW), 0., 1.)
    return jnp.stack([plane(5.), plane(3.), plane(1.)])
