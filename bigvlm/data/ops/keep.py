"""Fewer keys: what a batch is to hold."""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def keep(keys: Sequence[str]) -> Callable:
    """Drops all of an example but `keys` (its id stays in any case)."""
    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        missing = [key for key in keys if key not in example]
        if missing:
            raise KeyError(f'keep: no {", ".join(missing)} in an example of {", ".join(example)}')
        return {key: example[key] for key in keys}
    return op
