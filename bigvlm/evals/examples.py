"""Reading an evaluation set once: images on demand, and what else was seen on the way.

N: examples.
"""

from collections.abc import Sequence

import numpy as np

from bigvlm.core.parts import RecipeError


class Images(Sequence):
    """The first ``limit`` images (0: all) of a dataset, read when asked for.

    ``label_N`` (-1: not read or none) and ``real_N`` (0: not read, or a bad item that the dataset substituted) fill up
    as images are read, so that labels cost no second decode and a substitute is not counted in a bad item's place.
    """

    def __init__(self, dataset, limit: int = 0):
        self.dataset = dataset
        self.n = min(len(dataset), limit) if limit else len(dataset)
        self.label_N = np.full(self.n, -1, np.int32)
        self.real_N = np.zeros(self.n, np.int32)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> np.ndarray:
        example = self.dataset.example(index)
        if 'image' not in example:
            raise RecipeError(f'data: its examples hold no image; they hold: {", ".join(sorted(example))}')
        if 'label' in example:
            self.label_N[index] = int(example['label'])
        self.real_N[index] = 'id' not in example or int(example['id'][-1]) == index
        return example['image']


def spread(n: int, count: int) -> list[int]:
    """``count`` of ``range(n)``, evenly spaced: the same examples in every report."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, count)).round()})
