"""A source with its ops: examples by (index, epoch), the same whoever asks, with unusable ones substituted."""
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, Lost, TooManyBad
from bigvlm.data.blocks import BlockCache

Example = dict[str, Any]

FIELDS = {'ops': (), 'max_bad': .01, 'number': 0, 'order': 'shuffle', 'block': 64, 'pool': 16_384}  # beside `source`
_NEIGHBOURS = 64  # so many unusable examples in a row are a broken source, not bad luck
_READS, _PAUSE_S = 3, .1


class Dataset:
    """What the recipe's `data.NAME` describes: `source`, `ops` (a tuple, in order), `max_bad`, `number`, `order`.

    `max_bad`: the fraction of the source that may be unusable before the run stops. `number`: the source's number in
    the ids of its examples. `order`: 'shuffle', a shuffle of everything, or 'blocks', for storage that is read in long
    pieces: `block` examples a request, `pool` examples mixed at a time. `like`: a dataset of the same source, in another
    stage of the run, whose open source and list of unusable examples are shared.
    """

    def __init__(self, spec: Mapping[str, Any], where: str = 'data', tokenizers: Mapping[str, Any] | None = None,
                 seed: int = 0, number: int | None = None, like: 'Dataset | None' = None):
        if unknown := set(spec) - {'source', *FIELDS}:
            raise RecipeError(f'{where}.{min(unknown)}: unknown field (valid: source, {", ".join(FIELDS)}; or mix, homogeneous)')
        if 'source' not in spec:
            raise RecipeError(f'{where}.source: this field is required')
        fields = {**FIELDS, **spec}
        self.seed, self.number, self.name = seed, fields['number'] if number is None else number, where
        if not isinstance(self.number, int) or not 0 <= self.number < 2 ** 32:
            raise RecipeError(f'{where}.number: a whole number from 0 to 2**32 - 1, found {self.number!r}')
        self.order, self.block, self.pool = fields['order'], fields['block'], fields['pool']
        given = dict(tokenizers=tokenizers or {})
        self.source = like.source if like else parts.build('bigvlm.data.sources', spec['source'], f'{where}.source', **given)
        if not len(self.source):
            raise RecipeError(f'{where}.source: {self.source.name} has no examples')
        self.ops: tuple[Callable, ...] = tuple(
            parts.build('bigvlm.data.ops', op, f'{where}.ops[{i}]', **given, label_names=self.label_names)
            for i, op in enumerate(fields['ops']))
        max_bad = fields['max_bad']
        if not isinstance(max_bad, (int, float)) or not 0 <= max_bad <= 1:
            raise RecipeError(f'{where}.max_bad: a fraction from 0 to 1, found {max_bad!r}')
        self.lost_log = like.lost_log if like else Lost(len(self.source), max_bad, self.source.name)
        if self.lost_log.max_bad != max_bad:
            raise RecipeError(f'{where}.max_bad: {max_bad} in one stage and {self.lost_log.max_bad} in another; it holds for the whole run')
        self._read: Callable[[int], Mapping[str, Any]] = self.source.__getitem__
        self.blocks: BlockCache | None = None
        if self.order == 'blocks':
            self._read_in_blocks(where)
        elif self.order != 'shuffle':
            raise RecipeError(f'{where}.order: {self.order!r} is none of shuffle, blocks')
        if not like:
            for reason, items in getattr(self.source, 'damage', {}).items():
                self.lost_log.note(reason, items)

    def _read_in_blocks(self, where: str) -> None:
        if not hasattr(self.source, 'read') or not getattr(self.source, 'reads_together', True):
            raise RecipeError(f"{where}.order: 'blocks' needs a source that reads neighbours together; {self.source.name} does not, "
                              "use order='shuffle'")
        for key in ('block', 'pool'):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise RecipeError(f'{where}.{key}: a positive number of examples, found {getattr(self, key)!r}')
        self.blocks = BlockCache(self.source, self.block, 8, lambda index: self.lost_log.reason(index) is not None)
        self._read = self.blocks.__getitem__

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
        """Unusable items so far: reason -> names, each item once; the first 1,000 of each reason."""
        return self.lost_log.items

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of one example, as the source has them. Raises BadExample if it has none."""
        captions = tuple(patiently(self.source.captions, index))
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
            reason = self.lost_log.reason(other)
            if reason is None:
                try:
                    return self._draw(other, epoch)
                except BadExample as bad:
                    reason = str(bad)
                    self.lost_log.add(other, self.source.describe(other), reason)
            if not substitute:
                raise BadExample(reason)
        raise TooManyBad(f'{self.source.name}: {_NEIGHBOURS} unusable examples in a row from '
                         f'{self.source.describe(index)}: {self.lost_log.summary()}')

    def _draw(self, index: int, epoch: int) -> Example:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.number, epoch, index))))
        example = dict(patiently(self._read, index))
        # Drawn even where there is nothing to choose, so that what the ops draw does not depend on it.
        chance = rng.random()
        if captions := example.get('captions'):
            example['caption'] = captions[int(chance * len(captions))]
        for op in self.ops:
            example = op(example, rng)
        example['id'] = np.array((self.number, index), np.uint32)
        return example


def patiently(read: Callable[[int], Any], index: int) -> Any:
    """`read(index)`, again after a short pause if the storage fails for a moment; the last failure is raised."""
    for attempt in range(_READS):
        try:
            return read(index)
        except OSError:
            if attempt == _READS - 1:
                raise
            time.sleep(_PAUSE_S * 4 ** attempt)
