"""Masked language modelling: tokens to predict, masked, swapped for others or left (BERT, arXiv 1810.04805, section 3.1).

Array legend: L tokens of a text, C those that may be masked, K to predict at most, V ids of the vocabulary.
"""
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _text


def mask_tokens(tokenizers: Mapping[str, Any], tokenizer: str = 'text', rate: float = .15, mask: float = .8, random: float = .1,
                whole_word: bool = False, mask_id: int = -1, key: str = 'text', out: str = 'masked_text',
                target: str = 'text_target', positions: str = '') -> Callable:
    """Puts the text to read at `out`, int32 [L], and what to predict at `target`, int32 [L], -1 where that is nothing.

    max(1, round(rate * C)) of the C tokens are predicted; padding, start and end are never. Of them, the share `mask`
    reads as the mask, `random` as another piece (any ordinary one), and the rest as itself. `whole_word`: words are
    predicted whole, as many as fit into that number in random order; if none fits, the first of the shortest ones.
    `mask_id`: not said, the tokenizer's own, the first of its `extra` ids. `positions`: a key for the places of the predicted
    tokens, int32 [K] with K = max(1, round(rate * L)), ascending, then 0s; `target` is then [K] too, with -1 for those.
    """
    encoder = _text.find_tokenizer(tokenizers, tokenizer, ('special', 'word_starts') if whole_word else ('special',))
    for field, value in dict(rate=rate, mask=mask, random=random, **{'mask + random': mask + random}).items():
        _text.share(field, value)
    mask_id = _mask_id(encoder, tokenizer, mask_id)
    ordinary_V = np.flatnonzero(~encoder.special)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        ids_L = example[key]
        most = max(1, round(rate * len(ids_L)))
        maskable_L = ~encoder.special[ids_L]
        if whole_word:
            chosen_K = _whole_words(maskable_L, encoder.word_starts(ids_L), rate, most, rng)
        else:
            places_C = np.flatnonzero(maskable_L)
            chosen_K = rng.permutation(places_C)[:_count(rate, len(places_C))]
        chosen_K = np.sort(chosen_K)
        targets_K = ids_L[chosen_K]
        fates_K, others_K = rng.random(len(chosen_K)), rng.choice(ordinary_V, len(chosen_K))
        read_L = np.array(ids_L, np.int32)
        read_L[chosen_K] = np.where(fates_K < mask, mask_id, np.where(fates_K < mask + random, others_K, targets_K))
        if not positions:
            return {**example, out: read_L, target: _filled(len(ids_L), -1, chosen_K, targets_K)}
        first_K = np.arange(len(chosen_K))
        return {**example, out: read_L, positions: _filled(most, 0, first_K, chosen_K), target: _filled(most, -1, first_K, targets_K)}
    return op


def _count(rate: float, tokens: int) -> int:
    """How many of so many tokens are predicted."""
    return min(tokens, max(1, round(rate * tokens)))


def _whole_words(maskable_L: np.ndarray, starts_L: np.ndarray, rate: float, most: int, rng: np.random.Generator) -> np.ndarray:
    """The places of the tokens of random words; the last word is cut if it alone is more than `most` tokens."""
    places_C = np.flatnonzero(maskable_L)
    if not len(places_C):
        return places_C
    # A word ends where the next one starts, and where something begins that is never masked.
    apart_C = starts_L[places_C] | (np.diff(places_C, prepend=-1) > 1)
    words = [word for word in np.split(places_C, np.flatnonzero(apart_C)) if len(word)]
    budget, chosen = _count(rate, len(places_C)), []
    order = [words[i] for i in rng.permutation(len(words))]
    for word in order:
        if len(word) <= budget:
            chosen.append(word)
            budget -= len(word)
    return np.concatenate(chosen) if chosen else min(order, key=len)[:most]


def _filled(length: int, empty: int, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    filled = np.full(length, empty, np.int32)
    filled[places] = values
    return filled


def _mask_id(encoder: Any, name: str, mask_id: int) -> int:
    found = getattr(encoder, 'mask_id', None) if mask_id == -1 else mask_id
    if found is None:
        raise RecipeError(f'mask_id: tokenizers.{name} keeps no id for a mask; give it extra=1, or say which id of it to use')
    if not 0 <= found < encoder.size:
        raise RecipeError(f'mask_id: {found} is not below {encoder.size}, the ids of tokenizers.{name}')
    return found
