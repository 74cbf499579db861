"""The drawn caption to token ids."""
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops._text import find_tokenizer


def tokenize(tokenizers: Mapping[str, Any], tokenizer: str = 'text', key: str = 'text', length: int = 64,
             caption: str = 'caption') -> Callable:
    """Puts the ids of the text at `caption`, int32 [length], at `key`. Raises BadExample where there is no such text.

    `tokenizer` names one of the recipe's `tokenizers`.
    """
    encode = find_tokenizer(tokenizers, tokenizer)
    if length < 1:
        raise RecipeError(f'length: a number of tokens, found {length}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if not example.get(caption):
            raise BadExample(f'no {caption}')
        return {**example, key: encode([example[caption]], length)[0]}
    return op
