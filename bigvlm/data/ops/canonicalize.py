"""Captions in one plain form, as SigLIP trains and evaluates on."""
import string
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample

_ASCII = str.maketrans({'_': ' ', **{c: None for c in string.punctuation if c != '_'}})
_PUNCTUATION = ('ascii', 'unicode', 'keep')


def canonicalize(lower: bool = True, punctuation: str = 'ascii', key: str = 'caption', out: str = '') -> Callable:
    """Puts the text at `key`, in canonical form, at `out` (not said: at `key`). BadExample if nothing is left of it.

    `punctuation`: 'ascii' is SigLIP's (arXiv 2303.15343, as big_vision does it): underscores become spaces, the other 31
    marks and symbols of ASCII go and what they parted is joined, so "great-white's" is "greatwhites". 'unicode': also all
    of Unicode's punctuation (not its symbols). 'keep': none goes (with lower=True, SigLIP 2's). White space is single spaces
    in any case.
    """
    if punctuation not in _PUNCTUATION:
        raise RecipeError(f'punctuation: {punctuation!r} is none of {", ".join(_PUNCTUATION)}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not (text := canonical(example.get(key) or '', lower, punctuation)):
            raise BadExample('no caption')
        return {**example, out or key: text}
    return op


def canonical(text: str, lower: bool = True, punctuation: str = 'ascii') -> str:
    """A text's canonical form, as `canonicalize` says; it may be empty."""
    if punctuation != 'keep':
        text = text.translate(_ASCII)
    if punctuation == 'unicode':  # '_' has cousins, category Pc, which part words as it does
        kinds = map(unicodedata.category, text)
        text = ''.join(' ' if kind == 'Pc' else c for c, kind in zip(text, kinds) if kind == 'Pc' or kind[0] != 'P')
    return ' '.join((text.lower() if lower else text).split())
