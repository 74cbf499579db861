"""The drawn caption to token ids."""
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample


def tokenize(tokenizers: Mapping[str, Any], tokenizer: str = 'text', key: str = 'text', length: int = 64) -> Callable:
    """Puts the ids of the example's `caption`, int32 [length], at `key`. Raises BadExample where there is no caption.

    `tokenizer` names one of the recipe's `tokenizers`.
    """
    if tokenizer not in tokenizers:
        raise RecipeError(f'tokenizer: the recipe has no tokenizer {tokenizer!r} '
                          f'(there are: {", ".join(tokenizers) or "none"})')
    if length < 1:
        raise RecipeError(f'length: a number of tokens, found {length}')
    encode = tokenizers[tokenizer]

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not example.get('caption'):
            raise BadExample('no caption')
        return {**example, key: encode([example['caption']], length)[0]}
    return op
