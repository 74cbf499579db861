"""Labels of an evaluation set, one class or several tags per image, noted while its images are read.

N: examples, C: classes.
"""

from collections.abc import Callable

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.evals.examples import Images

ABSENT, PRESENT, DIFFICULT = 0, 1, 2


class Tagged:
    """A dataset whose examples' tags are noted in ``tag_NC`` (-1: not read) as it is read, for ``examples.Images``.

    tags: the example's key that has the numbers of all classes in the image. sure: the key with those that are not
    difficult ('': all are), as TFDS's voc has them.
    """

    def __init__(self, dataset, classes: int, tags: str, sure: str = '', limit: int = 0):
        self.dataset, self.tags, self.sure = dataset, tags, sure
        self.n = min(len(dataset), limit) if limit else len(dataset)
        self.tag_NC = np.full((self.n, classes), -1, np.int8)

    def __len__(self) -> int:
        return self.n

    def example(self, index: int) -> dict:
        example = self.dataset.example(index)
        for key in filter(None, (self.tags, self.sure)):
            if key not in example:
                raise RecipeError(f'tags: its examples have no {key!r}; they hold: {", ".join(sorted(example))}')
        present, sure = (np.atleast_1d(np.asarray(example[key], np.int64)) for key in (self.tags, self.sure or self.tags))
        if present.size and not 0 <= present.min() <= present.max() < self.tag_NC.shape[1]:
            raise RecipeError(f'tags: example {index} has tag {present.max()}, but there are {self.tag_NC.shape[1]} classes')
        row_C = np.full(self.tag_NC.shape[1], ABSENT, np.int8)
        row_C[present] = DIFFICULT
        row_C[sure] = PRESENT
        self.tag_NC[index] = row_C
        return example


def embedded(embed: Callable, gather: Callable, dataset, *, names: tuple[str, ...] = (), tags: str = '', sure: str = '',
             limit: int = 0, where: str = 'data') -> tuple[np.ndarray, np.ndarray]:
    """(``embed(images)`` [N, D], labels int [N] or tags int8 [N, C]) of the images that could be read; each is read once.

    embed, gather: an Embedder's. names: of the classes. Raises RecipeError, naming the field ``where``, if a label is missing.
    """
    tagged = Tagged(dataset, len(names), tags, sure, limit) if tags else None
    images = Images(dataset if tagged is None else tagged, limit)
    feature_ND = embed(images)
    real_N = gather(images.real_N).astype(bool)
    label = gather(images.label_N if tagged is None else tagged.tag_NC)[real_N]
    if not len(label):
        raise RecipeError(f'{where}: no image could be read')
    if label.min() < 0:
        raise RecipeError(f'{where}: {int((label < 0).reshape(len(label), -1).any(1).sum())} of {len(label)} examples have no label')
    return feature_ND[real_N], label
