"""A source under rules: which examples stay, and how many each rule would drop.

N examples, P pairs of an example and one of its captions.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.prepare import filters, hashes
from bigvlm.data.prepare.filters import Rule
from bigvlm.data.prepare.walk import walk

_UNUSABLE = 63  # the bit of examples that cannot be read


@dataclass(frozen=True)
class Kept:
    """`indices` that stay, ascending; `fails`: how many examples break each rule; `unusable`: reason -> count."""
    indices: np.ndarray
    fails: Mapping[str, int]
    unusable: Mapping[str, int]


class Queries:
    """Words and phrases, one a line; `found(captions)` gives the numbers of those that occur in them as whole words.

    CLIP's data were pairs whose text has one of 500,000 queries, at most 20,000 of each (arXiv 2103.00020, section 2.2); its
    list of queries is not public.
    """

    def __init__(self, lines: Iterable[str]):
        self._numbers: dict[tuple[str, ...], int] = {}
        for line in lines:
            if words := _words(line):
                self._numbers.setdefault(words, len(self._numbers))
        if not self._numbers:
            raise RecipeError('--queries: the file holds no query; one word or phrase a line')
        self._lengths = sorted({len(words) for words in self._numbers})

    def __len__(self) -> int:
        return len(self._numbers)

    def found(self, captions: Sequence[str]) -> set[int]:
        said = [_words(caption) for caption in captions]
        grams = (words[first:first + n] for words in said for n in self._lengths for first in range(len(words) - n + 1))
        return {number for gram in grams if (number := self._numbers.get(gram)) is not None}


def run(source: Any, rules: Sequence[Rule], queries: Queries | None = None, per_query: int = 20_000, workers: int = 0,
        what: str = '') -> Kept:
    """Which examples keep all `rules`, and, if given, are among the first `per_query` (in shuffled order) of some query.

    Memory: 8 bytes an example, 20 more for each of its captions where `shared` or `texts` are bounded, 8 for each query
    found in it. Raises RecipeError.
    """
    if len(rules) > _UNUSABLE:
        raise RecipeError(f'--rule: at most {_UNUSABLE} rules, found {len(rules)}')
    alone = [(bit, rule) for bit, rule in enumerate(rules) if not rule.counted]
    images = any(rule.of_images for rule in rules)
    counting = any(rule.counted for rule in rules)
    pairs = _Pairs(len(source))

    def judge(index: int, example: Any) -> tuple:
        example = {'captions': tuple(example)} if not images else example
        facts = filters.facts(example, images)
        broken = sum(1 << bit for bit, rule in alone if not rule.holds(facts))
        texts = [hashes.of_caption(caption) for caption in facts.captions] if counting else ()
        return broken, texts, hashes.of_bytes(facts.image) if counting else 0, queries.found(facts.captions) if queries else ()

    broken, unusable = hashes.Column(), {}
    for index, judged in walk(source, judge, None, workers, what, None if images else source.captions):
        if isinstance(judged, BadExample):
            unusable[str(judged)] = unusable.get(str(judged), 0) + 1
            broken.add(1 << _UNUSABLE)
        else:
            broken.add(judged[0])
            pairs.add(index, *judged[1:])
    broken_N = broken.values.copy()
    for bit, rule in enumerate(rules):
        if rule.counted:
            broken_N[pairs.over(rule)] |= np.uint64(1 << bit)
    fails = {str(rule): int((broken_N >> np.uint64(bit) & np.uint64(1)).sum()) for bit, rule in enumerate(rules)}
    stays_N = broken_N == 0
    if queries:
        picked_N = pairs.picked(stays_N, per_query)
        fails['queries'] = int((stays_N & ~picked_N).sum())
        stays_N &= picked_N
    return Kept(np.flatnonzero(stays_N), fails, unusable)


class _Pairs:
    """Which captions, images and queries the examples have, by hash: what rules about the whole set count."""

    def __init__(self, examples: int):
        self._examples = examples
        self._text, self._image, self._example = hashes.Column(), hashes.Column(), hashes.Column('I')
        self._query, self._asking = hashes.Column('I'), hashes.Column('I')

    def add(self, index: int, texts: Sequence[int], image: int, queries: Iterable[int]) -> None:
        for text in texts:
            self._text.add(text)
            self._image.add(image)
            self._example.add(index)
        for query in queries:
            self._query.add(query)
            self._asking.add(index)

    def over(self, rule: Rule) -> np.ndarray:
        """Examples with a caption on more images, or an image with more captions, than the rule allows."""
        own_P, other_P = (self._text.values, self._image.values) if rule.quantity == 'shared' else (self._image.values, self._text.values)
        count_P = _distinct(own_P, other_P)
        return np.unique(self._example.values[~rule.allows(count_P)])

    def picked(self, stays_N: np.ndarray, per_query: int) -> np.ndarray:
        """bool [N]: examples that some query draws, each query at most `per_query` of those that stay, at random."""
        rank_N = np.random.Generator(np.random.Philox(0)).permutation(self._examples)
        among_P = stays_N[self._asking.values]
        query_P, example_P = self._query.values[among_P], self._asking.values[among_P]
        order_P = np.lexsort((rank_N[example_P], query_P))
        first_P = np.searchsorted(query_P[order_P], query_P[order_P], 'left')
        drawn = order_P[np.arange(len(order_P)) - first_P < per_query]
        picked_N = np.zeros(self._examples, bool)
        picked_N[example_P[drawn]] = True
        return picked_N


def _distinct(own_P: np.ndarray, other_P: np.ndarray) -> np.ndarray:
    """For each pair, how many different `other` go with its `own`."""
    order_P = np.lexsort((other_P, own_P))
    own, other = own_P[order_P], other_P[order_P]
    new = np.ones(len(own), bool)
    new[1:] = (own[1:] != own[:-1]) | (other[1:] != other[:-1])
    groups, place = np.unique(own, return_inverse=True)
    counts = np.bincount(place, weights=new, minlength=len(groups)).astype(np.int64)
    found_P = np.empty(len(own), np.int64)
    found_P[order_P] = counts[place]
    return found_P


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r'\w+', text.casefold()))
