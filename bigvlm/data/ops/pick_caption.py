"""Which of an example's texts is its caption: by language, or among rewrites."""
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import _text

log = logging.getLogger(__name__)
_SOME = 1024  # examples after which a field that none of them had is worth a word


def pick_caption(fields: Mapping[str, float], weights: Sequence[float] = (), out: str = 'caption', which: str = '') -> Callable:
    """Draws one of the fields by weight, and one of its texts, and puts it at `out`.

    `fields`: {key: weight} of texts (a tuple, or one string); fields without a text are left out of the draw, and
    BadExample is raised if that leaves none. `weights` of the first, second, … text of a field; the last one is shared by
    the texts from there on, so (.5, .5) is the original in half of the draws and else any rewrite; () is all alike
    (LaCLIP, arXiv 2305.20088). `which`: a key for the number of the field, int32, in the order of `fields`.
    """
    if not isinstance(fields, Mapping):
        raise RecipeError(f'fields: a dict of field and weight, found {fields!r}')
    names, shares_F = _text.weights(fields)
    if len(weights):
        _text.weights({f'weights[{k}]': weight for k, weight in enumerate(weights)})
    unseen, met = set(names), 0

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        nonlocal met
        found = {name: texts for name in names if (texts := _texts(example.get(name)))}
        unseen.difference_update(found)
        met += 1
        if met == _SOME and unseen:
            log.warning('pick_caption: none of the first %d examples had a text in %s', _SOME, ', '.join(sorted(unseen)))
        there_F = shares_F * [name in found for name in names]
        if not there_F.any():
            raise BadExample('no caption')
        field = _text.draw(rng, there_F)
        texts = found[names[field]]
        chosen = texts[_text.draw(rng, _spread(weights, len(texts)))]
        return {**example, out: chosen} | ({which: np.int32(field)} if which else {})
    return op


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value or ()
    return tuple(text for text in texts if text and not text.isspace())


def _spread(weights: Sequence[float], count: int) -> np.ndarray:
    """The weights of `count` texts: cut, or the last one shared by all that are left. All alike if that leaves nothing."""
    spread_K = np.array(weights[:count] or (1.,), float)
    if (rest := count - len(spread_K) + 1) > 1:
        spread_K = np.concatenate([spread_K[:-1], np.full(rest, spread_K[-1] / rest)])
    return spread_K if spread_K.any() else np.ones(count)
