"""Whether words look like the patches where they are: the most similar patch of each word, against the word's boxes.

N: captions, n: patches of an image, in rows of a square, L: tokens of a text, D: their width, S: words.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange, repeat

from bigvlm.core.parts import RecipeError
from bigvlm.evals import prompts
from bigvlm.evals.examples import Images, spread
from bigvlm.figures import Gallery, Item, Row


class Word(NamedTuple):
    """A word of one caption: ``tokens`` of its text, and the boxes (top, left, bottom, right, of 1) that its phrase names."""
    caption: int
    text: str
    tokens: slice
    boxes: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Alignment:
    """Yields ``hit``, how often the patch most similar to a word is one of the word's, ``hit_chance``, and n, the words counted.

    data: dataset whose examples have ``boxes`` [K,4] and ``spans`` [·,4] (caption, box, first character, one past the last), such as
    bigvlm_scenes with extra=('boxes', 'spans'). Of each image the caption with most spans counts, and of a span each word of at
    least ``letters`` letters. tokenizer, length, canonicalize: how captions become tokens (see ``zero_shot``).
    The objective's embeddings must be tokens, flattened, of ``width`` numbers and one that is 0 for padding (late_interaction), of
    images in ``patch`` order from the top left. A word is the mean of its tokens at unit norm; similarity is the cosine.
    The patches of a word are those that overlap one of its boxes by at least half of what the best patch does, so that each box
    has some; chance is the mean share of such patches.
    """
    data: str = 'val'
    tokenizer: str = 'text'
    length: int = 64
    width: int = 256
    letters: int = 3
    canonicalize: bool = False
    limit: int = 0
    examples: int = 6
    datasets: Callable
    tokenizers: Mapping

    reads = ('data',)  # fields that name datasets

    def run(self, embedder) -> Iterator[tuple[str, float | Gallery]]:
        dataset = self.datasets(self.data)
        images = Images(dataset, self.limit)
        image_NnD, _ = self.unflatten(embedder.images(images))
        side = round(image_NnD.shape[1] ** .5)
        if side * side != image_NnD.shape[1]:
            raise RecipeError(f'data: {image_NnD.shape[1]} image tokens are no square of patches; leave a class token out (skip=1)')
        read_N = np.flatnonzero(embedder.gather(images.real_N))
        captions, words = self.words(dataset, read_N)
        ids_NL = prompts.tokens(self.tokenizers, self.tokenizer, captions, self.length, self.canonicalize)
        text_NLD, real_NL = self.unflatten(embedder.texts(ids_NL))
        hits, chances, shown = [], [], []
        for word in words:
            if not real_NL[word.caption, word.tokens].all():   # cut off
                continue
            right_n = patches(word.boxes, side)
            similar_n = _unit(image_NnD[read_N[word.caption]]) @ _unit(_unit(text_NLD[word.caption, word.tokens]).mean(0))
            best = int(similar_n.argmax())
            hits.append(right_n[best])
            chances.append(right_n.mean())
            shown.append((word, best, bool(right_n[best])))
        if not hits:
            raise RecipeError(f'data: no caption of {self.data!r} has a word with a box')
        yield 'hit', float(np.mean(hits))
        yield 'hit_chance', float(np.mean(chances))
        yield 'n', float(len(hits))
        yield 'examples', Gallery('The patch most similar to a word', tuple(
            Row(Item(text=f'{word.text} ({captions[word.caption]})', image=images[int(read_N[word.caption])]),
                (Item(image=_cut(images[int(read_N[word.caption])], best, side), right=right),))
            for word, best, right in (shown[i] for i in spread(len(shown), self.examples))))

    def unflatten(self, x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [N, L, D], which are real [N, L])."""
        if x_NF.shape[1] % (self.width + 1):
            raise RecipeError(f'width: found {self.width}; embeddings of {x_NF.shape[1]} numbers are not tokens of that many and a mask')
        tokens_NLD = rearrange(x_NF, 'n (l d) -> n l d', d=self.width + 1)
        if not np.isin(tokens_NLD[..., -1], (0., 1.)).all():
            raise RecipeError(f'width: found {self.width}; the number after each token is not its mask')
        return tokens_NLD[..., :-1], tokens_NLD[..., -1] > 0

    def words(self, dataset, read_N: np.ndarray) -> tuple[list[str], list[Word]]:
        """The caption with most spans of each image, and its words in spans."""
        captions, words = [], []
        for place, index in enumerate(read_N):
            example = dataset.example(int(index))
            if missing := [key for key in ('boxes', 'spans', 'captions') if key not in example]:
                raise RecipeError(f'data: examples of {self.data!r} have no {", ".join(missing)}; tfds keeps what its field extra names')
            spans, boxes = np.asarray(example['spans']).reshape(-1, 4), np.asarray(example['boxes']).reshape(-1, 4)
            chosen = int(np.bincount(spans[:, 0]).argmax()) if len(spans) else 0
            caption = example['captions'][chosen]
            captions.append(caption)
            named = {}   # several objects may have one span: any of their boxes is right
            for _, box, first, last in spans[spans[:, 0] == chosen]:
                named.setdefault((int(first), int(last)), []).append(boxes[box])
            for (first, last), own in named.items():
                words += self._words_of(place, caption, first, last, np.stack(own))
        return captions, words

    def _words_of(self, place: int, caption: str, first: int, last: int, boxes: np.ndarray) -> list[Word]:
        found, start = [], first
        for text in caption[first:last].split(' '):
            stop = start + len(text)
            if len(text) >= self.letters:
                tokens = slice(self._tokens_before(caption, start), self._tokens_before(caption, stop))
                if tokens.stop > tokens.start:   # else it is beyond the length
                    found.append(Word(place, text, tokens, boxes))
            start = stop + 1
        return found

    def _tokens_before(self, caption: str, stop: int) -> int:
        """How many tokens a caption has that is cut at a character: as many as stay when a word is added."""
        cut = caption[:stop].rstrip()
        ids_2L = prompts.tokens(self.tokenizers, self.tokenizer, [cut, f'{cut} a'], self.length, self.canonicalize)
        different = np.flatnonzero(ids_2L[0] != ids_2L[1])
        return int(different[0]) if len(different) else self.length


def patches(boxes: Sequence[np.ndarray], side: int) -> np.ndarray:
    """bool [n]: which patches of a side × side grid count as in one of the boxes."""
    low = np.arange(side) / side
    right_n = np.zeros(side * side, bool)
    for top, left, bottom, right in boxes:
        down, across = (np.clip(np.minimum(low + 1 / side, end) - np.maximum(low, begin), 0., None)
                        for begin, end in ((top, bottom), (left, right)))
        overlap_n = np.outer(down, across).ravel()
        right_n |= (overlap_n >= .5 * overlap_n.max()) & (overlap_n > 0)
    return right_n


def _cut(image_HWC: np.ndarray, patch: int, side: int) -> np.ndarray:
    """The image, dark but for one patch."""
    lit = np.zeros(side * side, bool)
    lit[patch] = True
    height, width = (-(-size // side) for size in image_HWC.shape[:2])
    lit_HW = repeat(lit, '(r c) -> (r h) (c w)', c=side, h=height, w=width)[:image_HWC.shape[0], :image_HWC.shape[1]]
    return np.where(lit_HW[..., None], image_HWC, image_HWC // 4)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
