"""Published rules of what belongs in a pre-training set, as quantities of an example and bounds on them.

A rule is written 'side>200' or 'field:clip_score>=.28'. Quantities of one example are the functions in QUANTITIES; those
in COUNTED need the whole set (filtering.py counts). A rule about texts must hold for all captions of an example, since
any of them may be drawn. Rules that need a model (language, nudity, similarity) are bounds on a score that the data has.
"""
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.prepare.images import header


@dataclass(frozen=True)
class Facts:
    """What rules see of an example. `width` and `height` in pixels, 0 where no rule needs the image."""
    captions: tuple[str, ...]
    width: int = 0
    height: int = 0
    image: bytes | np.ndarray = b''
    example: Mapping[str, Any] = None


def side(facts: Facts) -> tuple[float, ...]:
    """The shorter side, in pixels."""
    return (min(facts.width, facts.height),)


def aspect(facts: Facts) -> tuple[float, ...]:
    """The longer side over the shorter one."""
    return (max(facts.width, facts.height) / min(facts.width, facts.height),)


def size(facts: Facts) -> tuple[float, ...]:
    """The encoded image's size, in bytes."""
    if isinstance(facts.image, np.ndarray):
        raise RecipeError('bytes: the images of this source are pixels, which have no size as a file')
    return (len(facts.image),)


def words(facts: Facts) -> tuple[float, ...]:
    """Pieces between white space, of each caption: ALIGN's unigrams."""
    return tuple(len(caption.split()) for caption in facts.captions)


def characters(facts: Facts) -> tuple[float, ...]:
    """Characters of each caption."""
    return tuple(map(len, facts.captions))


QUANTITIES: dict[str, Callable[[Facts], tuple[float, ...]]] = {
    'side': side, 'aspect': aspect, 'bytes': size, 'words': words, 'characters': characters}
COUNTED = {'shared': 'images that have the same caption', 'texts': 'captions that the same image has'}
_OF_IMAGES = ('side', 'aspect', 'bytes', 'shared', 'texts')
_COMPARE = {'>=': operator.ge, '<=': operator.le, '>': operator.gt, '<': operator.lt}


@dataclass(frozen=True)
class Rule:
    """`quantity` compared with `bound` must hold. `said`: who published it."""
    quantity: str
    compare: str
    bound: float
    said: str = ''

    def __str__(self) -> str:
        return f'{self.quantity}{self.compare}{self.bound:g}'

    @property
    def counted(self) -> bool:
        return self.quantity in COUNTED

    @property
    def of_images(self) -> bool:
        """Whether the image must be read."""
        return self.quantity in _OF_IMAGES or self.quantity.startswith('field:')

    def holds(self, facts: Facts) -> bool:
        """Of an example by itself; a field that is missing or no number does not hold."""
        if self.quantity.startswith('field:'):
            values = _numbers(facts.example.get(self.quantity.removeprefix('field:')))
        else:
            values = QUANTITIES[self.quantity](facts)
        return bool(values) and all(_COMPARE[self.compare](value, self.bound) for value in values)

    def allows(self, values_N: np.ndarray) -> np.ndarray:
        """The same of many values at once."""
        return _COMPARE[self.compare](values_N, self.bound)


def rule(text: str, said: str = '') -> Rule:
    """A rule from 'words>=3'. Raises RecipeError for an unknown quantity or form."""
    match = re.fullmatch(r'\s*(field:[\w./-]+|\w+)\s*(>=|<=|>|<)\s*([-+\d.eE_]+)\s*', text)
    try:
        quantity, compare, bound = match[1], match[2], float(match[3])
    except (TypeError, ValueError):
        raise RecipeError(f"--rule: a rule is written 'side>200' or 'field:clip_score>=.28', found {text!r}") from None
    if quantity not in (*QUANTITIES, *COUNTED) and not quantity.startswith('field:'):
        raise RecipeError(f'--rule: unknown quantity {quantity!r} (valid: {", ".join((*QUANTITIES, *COUNTED))}, field:NAME)')
    return Rule(quantity, compare, bound, said)


def facts(example: Mapping[str, Any], image: bool) -> Facts:
    """Raises BadExample where the image is needed and is none."""
    captions = tuple(example.get('captions', ()))
    if not image:
        return Facts(captions, example=example)
    _, width, height = header(example.get('image', b''))
    return Facts(captions, width, height, example.get('image', b''), example)


def _numbers(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(float(v) for v in values if isinstance(v, (int, float, np.number))) if None not in values else ()


def _published(said: str, *texts: str) -> tuple[Rule, ...]:
    return tuple(rule(text, said) for text in texts)


# Left out, since they need a model or the raw crawl: ALIGN's pornography classifier and rare tokens, LAION's similarity (add
# a rule on its field), DataComp's language identification, COYO's language, nudity, profanity and part-of-speech checks.
PUBLISHED: dict[str, tuple[Rule, ...]] = {
    'align': _published('ALIGN, arXiv 2102.05918, section 3',
                        'side>200', 'aspect<3', 'texts<=1000', 'shared<=10', 'words>=3', 'words<=20'),
    'laion400m': _published('LAION-400M, arXiv 2111.02114, section 2', 'characters>=5', 'bytes>=5000'),
    'datacomp_basic': _published('DataComp, arXiv 2304.14108, basic filtering', 'words>2', 'characters>5', 'side>=200', 'aspect<=3'),
    'coyo': _published('COYO-700M, its data card', 'bytes>=5000', 'aspect<=3', 'side>=200', 'characters>5', 'characters<=1000',
                       'words>=3', 'words<=256', 'shared<=10')}


def named(names: str) -> tuple[Rule, ...]:
    """The rules of 'align,laion400m', each once. Raises RecipeError."""
    found: dict[str, Rule] = {}
    for name in filter(None, (name.strip() for name in names.split(','))):
        if name not in PUBLISHED:
            raise RecipeError(f'--rules: no published set {name!r} (there are: {", ".join(PUBLISHED)})')
        found |= {str(one): one for one in PUBLISHED[name] if str(one) not in found}
    return tuple(found.values())
