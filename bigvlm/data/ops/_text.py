"""What the ops on token ids share."""
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError


def find_tokenizer(tokenizers: Mapping[str, Any], name: str, needs: tuple[str, ...] = ()) -> Any:
    """One of the recipe's tokenizers. RecipeError if there is none of this name, or if it lacks an attribute of `needs`."""
    if name not in tokenizers:
        raise RecipeError(f'tokenizer: the recipe has no tokenizer {name!r} (there are: {", ".join(tokenizers) or "none"})')
    found = tokenizers[name]
    if missing := [attribute for attribute in needs if not hasattr(found, attribute)]:
        raise RecipeError(f'tokenizer: {name!r} has no {", ".join(missing)}, which this part needs '
                          '(clip_bpe, hf, sentencepiece and wordpiece have it)')
    return found


def text_length(ids_L: np.ndarray, tokenizer: Any) -> int:
    """How many of the ids are text, its end included; the rest is padding."""
    ends = np.flatnonzero(ids_L == tokenizer.eot_id)
    if len(ends):
        return int(ends[0]) + 1
    texts = np.flatnonzero(ids_L != tokenizer.pad_id)
    return int(texts[-1]) + 1 if len(texts) else 0


def share(field: str, value: float) -> float:
    """A fraction from 0 to 1; RecipeError if it is none."""
    if not 0 <= value <= 1:
        raise RecipeError(f'{field}: a share from 0 to 1, found {value!r}')
    return value


def weights(values: Mapping[str, float]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and probabilities, summing to 1, of relative weights; RecipeError unless some are positive and none negative."""
    weights_N = np.array(list(values.values()), float)
    if not len(weights_N) or not np.all(np.isfinite(weights_N)) or weights_N.min() < 0 or not weights_N.any():
        raise RecipeError(f'{", ".join(values)}: weights, at least one of them positive and none negative; found {dict(values)}')
    return tuple(values), weights_N / weights_N.sum()


def draw(rng: np.random.Generator, weights_N: np.ndarray) -> int:
    """A place by weight, with one draw of the generator. Some weight must be positive."""
    ends_N = np.cumsum(weights_N)
    place = np.searchsorted(ends_N, rng.random() * ends_N[-1], side='right')
    return int(min(place, np.flatnonzero(weights_N)[-1]))  # rounding may carry the draw to the very end
