"""A baseline without a model: the training image with the nearest pixels lends its caption to a test image.

N: test images, T: training images, C: classes or captions to choose from, V: words, P: pixels × channels.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from scipy import sparse

from bigvlm.core.parts import RecipeError
from bigvlm.evals import prompts
from bigvlm.evals.examples import Images, spread
from bigvlm.evals.retrieval import read_captions
from bigvlm.figures import Gallery, Item, Row

_CHUNK = 1024  # rows of a distance or similarity matrix held at once


@dataclasses.dataclass(kw_only=True)
class NearestCaption:
    """Yields ``zero_shot/top1``, ``retrieval/image_to_text_r1``, ``retrieval/text_to_image_r1``, figure ``neighbours``.

    The candidate (class name or caption) most like the lent caption, as cosine of idf-weighted words, is the answer; of
    equally good candidates each is taken with the same probability, so the numbers are expectations and need no seed.
    Under evaluators named ``zero_shot`` and ``retrieval`` the report shows them as a column beside the model's.

    train: dataset that lends captions, at most ``max_train`` images of it, evenly spaced. zero_shot, retrieval:
    datasets to predict on ('' skips). limit, captions, classes: as those evaluators have them. size: pixels compared.
    """
    train: str = 'train'
    zero_shot: str = ''
    retrieval: str = ''
    max_train: int = 5000
    classes: str | tuple[str, ...] = ''
    captions: int = 0
    limit: int = 0
    size: int = 16
    examples: int = 6
    datasets: Callable

    reads = ('train', 'zero_shot', 'retrieval')  # fields that name datasets

    def __post_init__(self):
        if not self.zero_shot and not self.retrieval:
            raise RecipeError('zero_shot, retrieval: both are empty; name the dataset of at least one')
        self._classes = prompts.lines(self.classes, 'classes') if self.classes else ()

    def run(self, embedder=None) -> Iterator[tuple[str, float | Gallery]]:
        """``embedder`` is not used: the numbers hold for every step."""
        lender = Lender(self.datasets(self.train), self.train, self.max_train, self.size)
        if self.zero_shot:
            yield 'zero_shot/top1', self._zero_shot(lender)
        if self.retrieval:
            yield from self._retrieval(lender)
        images = Images(self.datasets(self.retrieval or self.zero_shot), self.limit)
        shown = np.array(spread(len(images), self.examples))
        yield 'neighbours', Gallery('The nearest training image and the caption it lends', tuple(
            Row(Item(image=images[int(i)]), (Item(lender.captions_T[t], lender.images[int(lender.index_T[t])]),))
            for i, t in zip(shown, lender.nearest(images, shown))))

    def _zero_shot(self, lender: 'Lender') -> float:
        images = Images(self.datasets(self.zero_shot), self.limit)
        near_N, kept_N = lender.nearest(images, np.arange(len(images))), images.real_N == 1
        names, label_N = self._classes or tuple(images.dataset.label_names), images.label_N[kept_N]
        if not names or not len(label_N) or label_N.min() < 0 or label_N.max() >= len(names):
            raise RecipeError(f'zero_shot: every image of dataset {self.zero_shot!r} needs a label, and every label a '
                              f'name; found {len(names)} names and labels {sorted(set(label_N.tolist()))[:5]}…')
        lent_NV, class_CV = lender.idf.vectors([lender.captions_T[t] for t in near_N[kept_N]], list(names))
        return expected_top1(lent_NV, class_CV, label_N, np.arange(len(names)))

    def _retrieval(self, lender: 'Lender') -> Iterator[tuple[str, float]]:
        images = Images(self.datasets(self.retrieval), self.limit)
        near_N = lender.nearest(images, np.arange(len(images)))
        read_N = np.flatnonzero(images.real_N)
        captions, owner_C, kept_N = read_captions(images.dataset, read_N, self.captions, self.retrieval)
        lent_NV, caption_CV = lender.idf.vectors([lender.captions_T[t] for t in near_N[kept_N]], captions)
        position_N = np.arange(len(kept_N))
        yield 'retrieval/image_to_text_r1', expected_top1(lent_NV, caption_CV, position_N, owner_C)
        yield 'retrieval/text_to_image_r1', expected_top1(caption_CV, lent_NV, owner_C, position_N)


class Lender:
    """At most ``limit`` training images (``index_T``) as pixels, and of each the caption that says most."""

    def __init__(self, dataset, name: str, limit: int, size: int):
        self.images, self.size = Images(dataset), size
        chosen = np.array(spread(len(self.images), limit))
        pixels_TP = self._thumbnails(self.images, chosen)
        captions, owner, self.index_T = read_captions(dataset, chosen[self.images.real_N[chosen] == 1], 0, name)
        self.idf = Idf(captions)
        self.captions_T = [max(own, key=self.idf.weight)
                           for own in np.split(np.array(captions, object), np.flatnonzero(np.diff(owner)) + 1)]
        self._pixels_TP = pixels_TP[np.searchsorted(chosen, self.index_T)]

    def nearest(self, images: Images, index_N: np.ndarray) -> np.ndarray:
        """For each image asked for, the position of the nearest training image."""
        return nearest(self._thumbnails(images, index_N), self._pixels_TP)

    def _thumbnails(self, images: Images, index_N: np.ndarray) -> np.ndarray:
        """float32 [N, P]."""
        def read(index):
            picture = Image.fromarray(images[int(index)]).resize((self.size, self.size), Image.Resampling.BOX)
            return np.asarray(picture.convert('RGB'), np.float32).ravel()
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(read, index_N)))


class Idf:
    """Words weighted by how rare they are: log((1 + texts) / (1 + texts with the word)), counted over ``texts``."""

    def __init__(self, texts: list[str]):
        self.count = Counter(word for text in texts for word in _words(text))
        self.texts = len(texts)

    def of(self, word: str) -> float:
        return math.log((1 + self.texts) / (1 + self.count[word]))

    def weight(self, text: str) -> float:
        """How much a text says: the sum over its words."""
        return sum(self.of(word) for word in _words(text))

    def vectors(self, *groups: list[str]) -> list[sparse.csr_matrix]:
        """One unit-norm row per text (zero if it has no telling word), over a vocabulary common to all groups."""
        vocabulary = {}
        for group in groups:
            for text in group:
                for word in _words(text):
                    vocabulary.setdefault(word, len(vocabulary))
        return [self._vectors(group, vocabulary) for group in groups]

    def _vectors(self, texts: list[str], vocabulary: dict[str, int]) -> sparse.csr_matrix:
        entries = [(i, vocabulary[word], self.of(word)) for i, text in enumerate(texts) for word in _words(text)]
        rows, columns, weights = (np.array(x) for x in zip(*entries)) if entries else (np.zeros(0, int),) * 3
        norm = np.sqrt(np.bincount(rows, weights ** 2, minlength=len(texts)))
        weights = weights / np.maximum(norm[rows], 1e-12)
        return sparse.csr_matrix((weights, (rows, columns)), (len(texts), len(vocabulary)))


def _words(text: str) -> list[str]:
    return sorted(set(re.findall(r'\w+', text.lower())))


def nearest(query_NP: np.ndarray, train_TP: np.ndarray) -> np.ndarray:
    """Index of the nearest training row by Euclidean distance, [N]."""
    mean_P = train_TP.mean(axis=0)
    query_NP, train_TP = query_NP - mean_P, train_TP - mean_P
    square_T = (train_TP ** 2).sum(axis=1)
    return np.concatenate([(square_T - 2 * query_NP[i:i + _CHUNK] @ train_TP.T).argmin(axis=1)
                           for i in range(0, len(query_NP), _CHUNK)])


def expected_top1(query_NV: sparse.csr_matrix, candidate_CV: sparse.csr_matrix, id_N: np.ndarray,
                  id_C: np.ndarray) -> float:
    """Mean probability that a query's best candidate has its id, the best ones drawn evenly where several are equal."""
    total = 0.
    for start in range(0, query_NV.shape[0], _CHUNK):
        # Rounded: equal candidates may differ in the last bit, depending on the order of the sum.
        score_nC = (query_NV[start:start + _CHUNK] @ candidate_CV.T).toarray().round(6)
        best_nC = score_nC == score_nC.max(axis=1, keepdims=True)
        right_nC = best_nC & (id_N[start:start + _CHUNK, None] == id_C)
        total += float((right_nC.sum(axis=1) / best_nC.sum(axis=1)).sum())
    return total / query_NV.shape[0]
