"""A source with its ops: examples by (index, epoch), the same whoever asks, with unusable ones substituted."""
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, Lost, TooManyBad

Example = dict[str, Any]

_FIELDS = ('source', 'ops', 'max_bad', 'number')
_NEIGHBOURS = 64  # so many unusable examples in a row are a broken source, not bad luck
_READS, _PAUSE_S = 3, .1


class Dataset:
    """What the recipe's `data.NAME` describes: `source`, `ops` (a tuple, in order), `max_bad`, `number`.

    `max_bad`: the fraction of the source that may be unusable before the run stops. `number`: the source's number in
    the ids of its examples. `lost`: what was unusable so far, reason -> names.
    """

    def __init__(self, spec: Mapping[str, Any], where: str = 'data', tokenizers: Mapping[str, Any] | None = None,
                 seed: int = 0):
        for key in spec:
            if key not in _FIELDS:
                raise RecipeError(f'{where}.{key}: unknown field (valid: {", ".join(_FIELDS)})')
        if 'source' not in spec:
            raise RecipeError(f'{where}.source: this field is required')
        self.seed, self.number, self.name = seed, int(spec.get('number', 0)), where
        self.ops: tuple[Callable, ...] = tuple(
            parts.build('bigvlm.data.ops', op, f'{where}.ops[{i}]', tokenizers=tokenizers or {})
            for i, op in enumerate(spec.get('ops', ())))
        self.source = parts.build('bigvlm.data.sources', spec['source'], f'{where}.source')
        if not len(self.source):
            raise RecipeError(f'{where}.source: {self.source.name} has no examples')
        max_bad = spec.get('max_bad', .01)
        if not 0 <= max_bad <= 1:
            raise RecipeError(f'{where}.max_bad: a fraction from 0 to 1, found {max_bad}')
        self._lost = Lost(len(self.source), max_bad, self.source.name)
        for reason, items in getattr(self.source, 'damage', {}).items():
            self._lost.note(reason, items)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels, or () if the source has none."""
        return tuple(self.source.label_names)

    @property
    def fingerprint(self) -> str:
        """Changes when the source's data changes."""
        return self.source.fingerprint

    @property
    def lost(self) -> dict[str, list[str]]:
        """Unusable items so far: reason -> names, each item once."""
        return self._lost.items

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of one example, as the source has them. Raises BadExample if it has none."""
        captions = tuple(_patiently(self.source.captions, index))
        if not captions:
            raise BadExample('no caption')
        return captions

    def example(self, index: int, epoch: int = 0, substitute: bool = True) -> Example:
        """Example `index` as drawn in `epoch`: a function of (seed, epoch, index), with `id` saying what it shows.

        An unusable example is recorded in `lost` and the next usable one takes its place, unless `substitute` is false:
        then BadExample is raised.
        """
        for step in range(_NEIGHBOURS):
            other = (index + step) % len(self)
            reason = self._lost.reason(other)
            if reason is None:
                try:
                    return self._draw(other, epoch)
                except BadExample as bad:
                    reason = str(bad)
                    self._lost.add(other, self.source.describe(other), reason)
            if not substitute:
                raise BadExample(reason)
        raise TooManyBad(f'{self.source.name}: {_NEIGHBOURS} unusable examples in a row from '
                         f'{self.source.describe(index)}: {self._lost.summary()}')

    def _draw(self, index: int, epoch: int) -> Example:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.number, epoch, index))))
        example = dict(_patiently(self.source.__getitem__, index))
        # Drawn even where there is nothing to choose, so that what the ops draw does not depend on it.
        chance = rng.random()
        if captions := example.get('captions'):
            example['caption'] = captions[int(chance * len(captions))]
        for op in self.ops:
            example = op(example, rng)
        example['id'] = np.array((self.number, index), np.uint32)
        return example


def _patiently(read: Callable[[int], Any], index: int) -> Any:
    """`read(index)`, again after a short pause if the storage fails for a moment; the last failure is raised."""
    for attempt in range(_READS):
        try:
            return read(index)
        except OSError:
            if attempt == _READS - 1:
                raise
            time.sleep(_PAUSE_S * 4 ** attempt)
