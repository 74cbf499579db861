"""Retrieval between images and captions, both ways, counted as CLIP_benchmark does.

N: images, M: captions, D: width; n, m: one chunk of them; G: queries shown in the figures.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from math import comb

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.evals import prompts
from bigvlm.evals.examples import Images, spread
from bigvlm.figures import Gallery, Item, Row

_CHUNK = 1024  # side of the largest score matrix held


@dataclasses.dataclass(kw_only=True)
class Retrieval:
    """Yields ``image_to_text_rK``, ``text_to_image_rK`` (fractions), their ``_chance``, ``…_median_rank``, n, captions.

    data: dataset with captions. tokenizer, length, canonicalize: how captions become tokens (see ``zero_shot``).
    ks: the cut-offs. captions: at most so many per image (0: all). limit: at most so many images (0: all).
    Text to image: every caption is a query, its own image the only right answer. Image to text: a hit if any of the
    image's captions is among the first k. Ranks start at 1 and count ties against the query: see ``ranks``.
    """
    data: str = 'val'
    tokenizer: str = 'text'
    length: int = 64
    ks: tuple[int, ...] = (1, 5, 10)
    captions: int = 0
    canonicalize: bool = False
    limit: int = 0
    examples: int = 4
    datasets: Callable
    tokenizers: Mapping

    reads = ('data',)  # fields that name datasets

    def __post_init__(self):
        if not self.ks or any(not isinstance(k, int) or k < 1 for k in self.ks):
            raise RecipeError(f'ks: found {self.ks}; valid: a tuple of positive integers, such as (1, 5, 10)')

    def run(self, embedder) -> Iterator[tuple[str, float | Gallery]]:
        dataset = self.datasets(self.data)
        images = Images(dataset, self.limit)
        image_ND = embedder.images(images)
        read_N = np.flatnonzero(embedder.gather(images.real_N))
        captions, owner_M, index_N = read_captions(dataset, read_N, self.captions, self.data)
        image_ND = image_ND[index_N]
        text_MD = embedder.texts(
            prompts.tokens(self.tokenizers, self.tokenizer, captions, self.length, self.canonicalize))

        rank_N, rank_M = ranks(embedder.score, image_ND, text_MD, owner_M)
        for direction, rank in (('image_to_text', rank_N), ('text_to_image', rank_M)):
            for k in self.ks:
                yield f'{direction}_r{k}', float((rank <= k).mean())
            yield f'{direction}_median_rank', float(np.median(rank))
        for k in self.ks:
            yield f'image_to_text_r{k}_chance', image_to_text_chance(np.bincount(owner_M), k)
            yield f'text_to_image_r{k}_chance', min(1., k / len(index_N))
        yield 'n', float(len(index_N))
        yield 'captions', float(len(captions))
        if len(index_N) < len(read_N):
            yield 'without_caption', float(len(read_N) - len(index_N))

        def picture(i):
            return images[int(index_N[i])]
        shown = spread(len(index_N), self.examples)
        first = np.searchsorted(owner_M, shown)  # the first caption of each image shown
        yield 'image_to_text', _texts_of_images(embedder.score(image_ND[shown], text_MD), owner_M, rank_N, captions,
                                                picture, shown)
        yield 'text_to_image', _images_of_texts(embedder.score(image_ND, text_MD[first]).T, owner_M, rank_M, captions,
                                                picture, first)


def read_captions(dataset, index_N: np.ndarray, limit: int, name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions of the images ``index_N`` (at most ``limit`` each; 0: all), each one's image's position, the images.

    Images without a caption are left out of all three. RecipeError if that leaves none.
    """
    captions, owners, kept = [], [], []
    for index in index_N:
        try:
            own = tuple(dataset.captions(int(index)))
        except BadExample:
            own = ()
        if own:
            own = own[:limit] if limit else own
            captions.extend(own)
            owners.extend([len(kept)] * len(own))
            kept.append(index)
    if not kept:
        raise RecipeError(f'data: none of the {len(index_N)} readable items of dataset {name!r} has a caption')
    return captions, np.array(owners), np.array(kept)


def ranks(score: Callable, image_ND: np.ndarray, text_MD: np.ndarray, owner_M: np.ndarray,
          chunk: int = _CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Rank (from 1) of each image's best own caption among all captions [N], and of each caption's image [M].

    Never holds more than a chunk × chunk score matrix. Ties are counted pessimistically: a wrong candidate with the
    same score (or one that is not comparable, NaN) ranks before the right one, so that a model which gives everything
    the same score gets the last rank, not the first. Right candidates never count against each other.
    ``owner_M`` must ascend: the captions of an image are neighbours.
    """
    n, m = len(image_ND), len(text_MD)
    best_N, own_M = np.full(n, -np.inf, np.float32), np.full(m, -np.inf, np.float32)
    tiles = [(slice(i, min(i + chunk, n)), slice(j, min(j + chunk, m)))
             for i in range(0, n, chunk) for j in range(0, m, chunk)]

    def right(rows: slice, columns: slice) -> np.ndarray:
        return np.arange(rows.start, rows.stop)[:, None] == owner_M[columns]

    # The right answers' scores come from the tiles that they are compared in, so that equal means equal to the bit.
    for rows, columns in tiles:
        if owner_M[columns.start] < rows.stop and owner_M[columns.stop - 1] >= rows.start:
            own_nm = np.where(right(rows, columns), score(image_ND[rows], text_MD[columns]), -np.inf)
            best_N[rows] = np.maximum(best_N[rows], own_nm.max(axis=1))
            own_M[columns] = np.maximum(own_M[columns], own_nm.max(axis=0))
    rank_N, rank_M = np.ones(n, np.int64), np.ones(m, np.int64)
    for rows, columns in tiles:
        score_nm, wrong_nm = score(image_ND[rows], text_MD[columns]), ~right(rows, columns)
        rank_N[rows] += (wrong_nm & ~(score_nm < best_N[rows][:, None])).sum(axis=1)
        rank_M[columns] += (wrong_nm & ~(score_nm < own_M[columns])).sum(axis=0)
    return rank_N, rank_M


def image_to_text_chance(count_N: np.ndarray, k: int) -> float:
    """Probability that k captions drawn at random hold one of the image's own, averaged over images."""
    m = int(count_N.sum())
    miss = {c: comb(m - c, min(k, m)) / comb(m, min(k, m)) for c in set(count_N.tolist())}
    return 1 - float(np.mean([miss[c] for c in count_N.tolist()]))


def _texts_of_images(score_GM, owner_M, rank_N, captions, picture, shown) -> Gallery:
    rows = tuple(
        Row(Item(image=picture(i)),
            tuple(Item(text=captions[j], right=bool(owner_M[j] == i), value=float(score_M[j]))
                  for j in np.argsort(-score_M, kind='stable')[:5]),
            note=f'best own caption: rank {rank_N[i]:,}')
        for i, score_M in zip(shown, score_GM))
    return Gallery('Captions retrieved for an image', rows)


def _images_of_texts(score_GN, owner_M, rank_M, captions, picture, shown) -> Gallery:
    rows = tuple(
        Row(Item(text=captions[j]),
            tuple(Item(image=picture(i), right=bool(owner_M[j] == i), value=float(score_N[i]))
                  for i in np.argsort(-score_N, kind='stable')[:6]),
            note=f'own image: rank {rank_M[j]:,}')
        for j, score_N in zip(shown, score_GN))
    return Gallery('Images retrieved for a caption', rows)
