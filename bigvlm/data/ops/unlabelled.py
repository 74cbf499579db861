"""A label for examples of a source that has none, so that they can be in one batch with labelled ones."""
from collections.abc import Callable
from typing import Any

import numpy as np


def unlabelled(label: str = 'label') -> Callable:
    """Puts -1, which is no label, at `label` where an example has none: pairs beside labelled images (UniCL, arXiv 2204.03610)."""
    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return example if label in example else {**example, label: np.int32(-1)}
    return op
