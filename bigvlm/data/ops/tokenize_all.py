"""Several captions of an image to token ids, for losses that contrast an image with all of its texts."""
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops._text import find_tokenizer


def tokenize_all(tokenizers: Mapping[str, Any], tokenizer: str = 'text', count: int = 5, key: str = 'texts',
                 length: int = 64, field: str = 'captions') -> Callable:
    """Puts the ids of `count` of the texts at `field`, int32 [count, length], at `key`. BadExample where there is none.

    The texts come in random order, each once before any comes again: again only where there are fewer than `count`.
    """
    encode = find_tokenizer(tokenizers, tokenizer)
    for name, value in dict(count=count, length=length).items():
        if not isinstance(value, int) or value < 1:
            raise RecipeError(f'{name}: a positive number, found {value!r}')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        texts = example.get(field)
        if not texts:
            raise BadExample(f'no {field}')
        order = rng.permutation(len(texts))
        return {**example, key: encode([texts[i] for i in np.resize(order, count)], length)}
    return op
