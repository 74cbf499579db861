"""Span corruption: an encoder reads a text with gaps, a decoder fills them (T5, arXiv 1910.10683, section 3.1.4).

Array legend: L tokens of a text, N of them without its end, S spans.
"""
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _text


def corrupt_spans(tokenizers: Mapping[str, Any], tokenizer: str = 'text', rate: float = .15, mean: float = 3.,
                  first_sentinel: int = -1, key: str = 'text', out: str = 'span_input', target: str = 'span_target') -> Callable:
    """Puts the text with its gaps at `out` and what fills them at `target`, int32 of fixed lengths (`lengths`).

    round(rate * N) tokens in spans of `mean` on average are cut out; in the input a sentinel stands for each, in the target
    the span follows its sentinel. Both end with the tokenizer's end of text and are padded. Sentinels count down from
    `first_sentinel`; not said: from the last of the tokenizer's ids, of which it must keep enough (`extra`). Not for packed
    rows.
    """
    encoder = _text.find_tokenizer(tokenizers, tokenizer, ('eot_id', 'pad_id', 'size'))
    if not 0 < rate < 1:
        raise RecipeError(f'rate: the share of tokens cut out, between 0 and 1, found {rate}')
    if mean < 1:
        raise RecipeError(f'mean: the average tokens of a span, at least 1, found {mean}')
    first = encoder.size - 1 if first_sentinel == -1 else first_sentinel
    kept = getattr(encoder, 'extra', 0) if first_sentinel == -1 else first_sentinel + 1
    if not 0 <= first < encoder.size:
        raise RecipeError(f'first_sentinel: {first} is not below {encoder.size}, the ids of tokenizers.{tokenizer}')

    @cache
    def static(length: int) -> tuple[int, int]:
        most = max(counts(n, rate, mean)[1] for n in range(length + 1))
        if most > kept:
            raise RecipeError(f'first_sentinel: texts of {length} tokens need {most} sentinels, tokenizers.{tokenizer} keeps {kept}; '
                              f'give it extra={most} or more')
        return lengths(length, rate, mean)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        ids_L = np.asarray(example[key])
        sizes = static(len(ids_L))
        ids_N = ids_L[:_text.text_length(ids_L, encoder)]
        if len(ids_N) and ids_N[-1] == encoder.eot_id:
            ids_N = ids_N[:-1]
        pieces = _pieces(len(ids_N), rate, mean, rng)
        parts: tuple[list[int], list[int]] = [], []
        for number, (start, gap, stop) in enumerate(pieces):
            parts[0].extend([*ids_N[start:gap], first - number])
            parts[1].extend([first - number, *ids_N[gap:stop]])
        parts = (parts[0] if pieces else list(ids_N)), parts[1]
        made = {}
        for name, part, size in zip((out, target), parts, sizes):
            made[name] = np.full(size, encoder.pad_id, np.int32)
            made[name][:len(part) + 1] = [*part, encoder.eot_id]
        return {**example, **made}
    return op


def lengths(length: int, rate: float, mean: float) -> tuple[int, int]:
    """(input's, target's) greatest lengths, ends included, of texts of up to `length` tokens, their ends not counted."""
    found = [(n - cut + spans + 1, cut + spans + 1) for n in range(length + 1) for cut, spans in [counts(n, rate, mean)]]
    return max(inputs for inputs, _ in found), max(targets for _, targets in found)


def counts(tokens: int, rate: float, mean: float) -> tuple[int, int]:
    """(tokens cut out, spans) of a text: T5's formula. Something is cut out and something left, in a text of two or more."""
    if tokens < 2:
        return 0, 0
    cut = min(max(round(tokens * rate), 1), tokens - 1)
    return cut, min(max(round(cut / mean), 1), cut, tokens - cut)


def _pieces(tokens: int, rate: float, mean: float, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(start of what is left, start of the gap, its end) of each span; something is left before every gap."""
    cut, spans = counts(tokens, rate, mean)
    if not spans:
        return []
    left_S, cut_S = (_parts(total, spans, rng) for total in (tokens - cut, cut))
    stops_S = np.cumsum(left_S + cut_S)
    return [(int(stop - a - b), int(stop - b), int(stop)) for stop, a, b in zip(stops_S, left_S, cut_S)]


def _parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes, at least 1 each, that sum to `total`; all ways are equally likely."""
    borders = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else []
    return np.diff([0, *borders, total])
