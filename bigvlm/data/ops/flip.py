"""Random mirror images. Not for data whose captions tell left from right."""
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError


def flip(probability: float = .5, key: str = 'image') -> Callable:
    """Mirrors [H, W, C] left to right with the given probability."""
    if not 0 <= probability <= 1:
        raise RecipeError(f'probability: from 0 to 1, found {probability}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, key: example[key][:, ::-1]} if rng.random() < probability else example
    return op
