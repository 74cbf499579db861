"""Captions that the model writes for images, beside the images' own.

N: images, L: tokens.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.evals.examples import Images, spread
from bigvlm.figures import Gallery, Item, Row

HOW = ('greedy', 'beam', 'sample')


@dataclasses.dataclass(kw_only=True)
class Captions:
    """Yields ``exact``, how often the caption written is one of the image's; ``words``, the F1 of its words with the nearest of
    them, averaged; ``n`` images; and a gallery.

    data: dataset with captions. tokenizer: the one of the text that the objective reads; it must mark the beginning (``bos``).
    length: tokens, at most. how: 'greedy'; 'beam', with ``beams`` and a length ``penalty``; 'sample' among the likeliest tokens
    whose probabilities sum to ``p``, drawn by ``seed``. limit: at most so many images (0: all).
    """
    data: str = 'val'
    tokenizer: str = 'text'
    length: int = 64
    how: str = 'greedy'
    beams: int = 4
    penalty: float = 1.
    p: float = .9
    seed: int = 0
    limit: int = 256
    examples: int = 8
    datasets: Callable
    tokenizers: Mapping

    reads = ('data',)  # fields that name datasets
    needs = 'advance'  # of the objective

    def __post_init__(self):
        if self.how not in HOW:
            raise RecipeError(f'how: found {self.how!r}; valid: {", ".join(HOW)}')
        if self.beams < 1 or not 0. < self.p <= 1.:
            raise RecipeError(f'beams, p: found {self.beams}, {self.p}; valid: beams >= 1, 0 < p <= 1')
        tokenizer = self.tokenizers.get(self.tokenizer)
        if tokenizer is not None and getattr(tokenizer, 'bos_id', None) is None:
            raise RecipeError(f"tokenizer: {self.tokenizer!r} does not mark where a text begins; give it bos='yes' or bos='eos'")

    def run(self, embedder) -> Iterator[tuple[str, float | Gallery]]:
        dataset, tokenizer = self.datasets(self.data), self.tokenizers[self.tokenizer]
        images = Images(dataset, self.limit)
        options = {'greedy': {}, 'beam': dict(beams=self.beams, penalty=self.penalty), 'sample': dict(p=self.p, seed=self.seed)}[self.how]
        ids_NL = embedder.generate(images, self.how, length=self.length, bos_id=tokenizer.bos_id, eot_id=tokenizer.eot_id, **options)
        read_N = np.flatnonzero(embedder.gather(images.real_N))
        written = {int(i): tokenizer.decode(ids_NL[i]) for i in read_N}
        own = {i: found for i in written if (found := _captions(dataset, i))}
        if not own:
            raise RecipeError(f'data: none of the {len(written)} readable items of dataset {self.data!r} has a caption')
        exact = {i: _same(written[i]) in map(_same, captions) for i, captions in own.items()}
        yield 'exact', float(np.mean(list(exact.values())))
        yield 'words', float(np.mean([max(f1(written[i], caption) for caption in captions) for i, captions in own.items()]))
        yield 'n', float(len(own))
        shown = [list(own)[place] for place in spread(len(own), self.examples)]
        yield 'examples', Gallery('Captions written', tuple(
            Row(Item(image=images[i], text=own[i][0]), (Item(text=written[i], right=exact[i]),)) for i in shown))


def _captions(dataset, index: int) -> tuple[str, ...]:
    try:
        return tuple(dataset.captions(index))
    except BadExample:
        return ()


def _same(text: str) -> str:
    return ' '.join(text.lower().split())


def f1(written: str, caption: str) -> float:
    """The harmonic mean of precision and recall of words, each counted as often as it stands there."""
    ours, theirs = (Counter(_same(text).split()) for text in (written, caption))
    common = sum((ours & theirs).values())
    return 2 * common / max(1, sum(ours.values()) + sum(theirs.values()))
