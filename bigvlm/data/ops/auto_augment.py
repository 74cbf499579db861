"""AutoAugment (arXiv 1805.09501) with the policy that was found on ImageNet."""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigvlm.data.ops import _augmentations
from bigvlm.data.ops._augmentations import (auto_contrast, color, contrast, equalize, invert, posterize, rotate, sharpness,
                                            shear_x, solarize)

# Sub-policies of two operations, each (operation, probability, magnitude from 0 to 9; 0 where it has none), as torchvision has
# them: two draws of equalize and some pairs twice included.
POLICY = (
    ((posterize, .4, 8), (rotate, .6, 9)),
    ((solarize, .6, 5), (auto_contrast, .6, 0)),
    ((equalize, .8, 0), (equalize, .6, 0)),
    ((posterize, .6, 7), (posterize, .6, 6)),
    ((equalize, .4, 0), (solarize, .2, 4)),
    ((equalize, .4, 0), (rotate, .8, 8)),
    ((solarize, .6, 3), (equalize, .6, 0)),
    ((posterize, .8, 5), (equalize, 1., 0)),
    ((rotate, .2, 3), (solarize, .6, 8)),
    ((equalize, .6, 0), (posterize, .4, 6)),
    ((rotate, .8, 8), (color, .4, 0)),
    ((rotate, .4, 9), (equalize, .6, 0)),
    ((equalize, 0., 0), (equalize, .8, 0)),
    ((invert, .6, 0), (equalize, 1., 0)),
    ((color, .6, 4), (contrast, 1., 8)),
    ((rotate, .8, 8), (color, 1., 2)),
    ((color, .8, 8), (solarize, .8, 7)),
    ((sharpness, .4, 7), (invert, .6, 0)),
    ((shear_x, .6, 5), (equalize, 1., 0)),
    ((color, .4, 0), (equalize, .6, 0)),
    ((equalize, .4, 0), (solarize, .2, 4)),
    ((solarize, .6, 5), (auto_contrast, .6, 0)),
    ((invert, .6, 0), (equalize, 1., 0)),
    ((color, .6, 4), (contrast, 1., 8)),
    ((equalize, .8, 0), (equalize, .6, 0)))


def auto_augment(method: str = 'nearest', fill: int | Sequence[int] = 0, key: str = 'image') -> Callable:
    """One of the policy's 25 pairs of operations on uint8 [H, W, 3], each with its probability and a random direction.

    Magnitudes are torchvision's (ten levels; color 0 is no change). `method`: nearest, bilinear or bicubic, where an image
    is moved; `fill`: the grey level or colour behind it.
    """
    on = _augmentations.canvas(method, fill)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        pair = POLICY[int(rng.integers(len(POLICY)))]
        steps = []
        for (operation, probability, magnitude), chance, sign in zip(pair, rng.random(2), rng.choice((-1, 1), size=2)):
            if chance < probability:
                steps.append((operation, magnitude / 9 * (sign if operation in _augmentations.SIGNED else 1)))
        return {**example, key: _augmentations.apply(example[key], steps, on)}
    return op
