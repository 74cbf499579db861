"""A random prefix of a text, which is read at once; the rest is predicted (PrefixLM: SimVLM, arXiv 2108.10904, section 3.2)."""
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _text


def split_prefix(tokenizers: Mapping[str, Any], tokenizer: str = 'text', least: int = 0, key: str = 'text',
                 out: str = 'text_prefix', length: str = 'prefix_length') -> Callable:
    """Puts bool [L], true for the tokens of the prefix, at `out`, and their number, int32, at `length`.

    Of a text of n tokens, its end included, the prefix is one of `least` to n - 1 tokens (fewer than `least` only where the
    text is shorter): there is always something to predict. All lengths are equally likely. Not for packed rows.
    """
    encoder = _text.find_tokenizer(tokenizers, tokenizer, ('eot_id', 'pad_id'))
    if not isinstance(least, int) or least < 0:
        raise RecipeError(f'least: a number of tokens, found {least!r}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        ids_L = example[key]
        most = max(0, _text.text_length(ids_L, encoder) - 1)
        prefix = int(rng.integers(min(least, most), most + 1))
        return {**example, out: np.arange(len(ids_L)) < prefix, length: np.int32(prefix)}
    return op
