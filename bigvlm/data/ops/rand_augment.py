"""RandAugment (arXiv 1909.13719): a few operations chosen at random, all of one magnitude."""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _augmentations

_ALL = {operation.__name__: operation for operation in (
    _augmentations.identity, _augmentations.shear_x, _augmentations.shear_y, _augmentations.translate_x,
    _augmentations.translate_y, _augmentations.rotate, _augmentations.brightness, _augmentations.color,
    _augmentations.contrast, _augmentations.sharpness, _augmentations.posterize, _augmentations.solarize,
    _augmentations.auto_contrast, _augmentations.equalize)}


def rand_augment(count: int = 2, magnitude: int = 9, levels: int = 31, operations: Sequence[str] = tuple(_ALL),
                 method: str = 'nearest', fill: int | Sequence[int] = 0, key: str = 'image') -> Callable:
    """`count` operations in a row on uint8 [H, W, 3], each drawn from `operations` (one may come twice).

    `magnitude`: 0 (none) to `levels` - 1 (the strongest); directions are drawn. With the defaults this is torchvision's.
    `operations`: fewer of them where captions name what the others change (ALBEF and BLIP leave out color, contrast,
    posterize and solarize). `method`: nearest, bilinear or bicubic, where an image is moved; `fill`: the grey level or colour behind it.
    """
    if not isinstance(count, int) or count < 0:
        raise RecipeError(f'count: a number of operations, found {count!r}')
    if not isinstance(levels, int) or levels < 2:
        raise RecipeError(f'levels: at least 2 magnitudes, found {levels!r}')
    if not 0 <= magnitude < levels:
        raise RecipeError(f'magnitude: from 0 to levels - 1 = {levels - 1}, found {magnitude}')
    if unknown := set(operations) - set(_ALL):
        raise RecipeError(f'operations: {min(unknown)!r} is none of {", ".join(_ALL)}')
    if not operations:
        raise RecipeError(f'operations: at least one of {", ".join(_ALL)}, found none')
    on, strength = _augmentations.canvas(method, fill), magnitude / (levels - 1)
    chosen = [_ALL[name] for name in operations]

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        steps = []
        for index, sign in zip(rng.integers(len(chosen), size=count), rng.choice((-1, 1), size=count)):
            operation = chosen[index]
            steps.append((operation, strength * sign if operation in _augmentations.SIGNED else strength))
        return {**example, key: _augmentations.apply(example[key], steps, on)}
    return op
