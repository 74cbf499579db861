"""What a data set is made of: sizes, formats, captions, scripts, labels, repetitions, and what reading it takes."""
import functools
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigvlm.data.bad import BadExample
from bigvlm.data.ops.patchify import waste
from bigvlm.data.prepare import hashes
from bigvlm.data.prepare.images import header
from bigvlm.data.prepare.walk import spread, walk

_LONGEST = 512  # tokens that are told apart
_SHOWN = 5  # captions that occur most often
_NAMES = 8  # values of a kind that are printed
_QUANTILES = (0., .05, .5, .95, 1.)


@dataclass
class Stats:
    """`columns`: name -> one number per image, caption or example; `counts`: name -> {value: how often}."""
    name: str
    fingerprint: str
    total: int
    examples: int = 0
    seconds: float = 0.
    unusable: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, dict[Any, int]] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)  # captions that occur more than once, with how often
    distinct: float = 1.  # the share of different captions
    padding: dict[int, float] = field(default_factory=dict)  # token budget -> share of it that is padding

    def quantiles(self) -> dict[str, list[float]]:
        """Column -> smallest, 5 %, median, 95 %, largest."""
        return {name: np.quantile(values, _QUANTILES).tolist() for name, values in self.columns.items() if len(values)}

    def text(self) -> str:
        """A table to print."""
        rate = self.examples / max(self.seconds, 1e-9)
        megabytes = float(self.columns['bytes'].sum()) / 1e6 if 'bytes' in self.columns else 0.
        lines = [f'source       {self.name}', f'fingerprint  {self.fingerprint}',
                 f'examples     {self.examples:,} read of {self.total:,}, {rate:,.0f}/s, {megabytes / max(self.seconds, 1e-9):.1f} MB/s',
                 f'{"":20}{"smallest":>12}{"5 %":>12}{"median":>12}{"95 %":>12}{"largest":>12}']
        lines += [f'{name:20}' + ''.join(f'{value:12,.5g}' for value in values) for name, values in self.quantiles().items()]
        for name, counts in self.counts.items():
            shown = ', '.join(f'{value} {count:,}' for value, count in list(counts.items())[:_NAMES])
            lines.append(f'{name:12} {shown}{f", and {len(counts) - _NAMES:,} more" if len(counts) > _NAMES else ""}')
        lines.append(f'distinct     {self.distinct:.2%} of the captions')
        lines += [f'repeated     {times:,} times: {caption}' for caption, times in self.repeated]
        lines += [f'padding      {share:.1%} of {budget} tokens' for budget, share in self.padding.items()]
        lines += [f'unusable     {len(items):,}  {reason}: {", ".join(items[:3])}' for reason, items in self.unusable.items()]
        return '\n'.join(lines)

    def as_dict(self) -> dict[str, Any]:
        return dict(source=self.name, fingerprint=self.fingerprint, total=self.total, examples=self.examples, seconds=self.seconds,
                    unusable=self.unusable, quantiles=self.quantiles(), repeated=self.repeated, distinct=self.distinct,
                    counts={k: {str(v): n for v, n in c.items()} for k, c in self.counts.items()}, padding=self.padding)


def stats(source: Any, limit: int = 0, tokenizers: Mapping[str, Callable] | None = None, budgets: Sequence[int] = (),
          workers: int = 0, what: str = '') -> Stats:
    """Of `limit` examples spread over the source, or all. `budgets`: numbers of tokens, as the op `patchify` takes."""
    tokenizers = tokenizers or {}
    indices = spread(len(source), limit)
    columns = {name: hashes.Column('I') for name in ('width', 'height', 'bytes', 'captions', 'characters', 'words',
                                                     *(f'tokens ({key})' for key in tokenizers))}
    counts = {name: Counter() for name in ('format', 'script', 'label', 'parts')}
    text, place = hashes.Column(), hashes.Column('Q')
    found = Stats(source.name, source.fingerprint, len(source))
    began = time.perf_counter()
    for index, one in walk(source, functools.partial(_facts, tokenizers), indices, workers, what):
        if isinstance(one, BadExample):
            found.unusable.setdefault(str(one), []).append(source.describe(index))
            continue
        found.examples += 1
        for name, values in one['columns'].items():
            columns[name].extend(values)
        for name, values in one['counts'].items():
            counts[name].update(values)
        text.extend(one['texts'])
        place.extend([index] * len(one['texts']))
    found.seconds = time.perf_counter() - began
    found.columns = {name: column.values for name, column in columns.items() if len(column)}
    found.counts = {name: dict(counter.most_common()) for name, counter in counts.items() if counter}
    if source.label_names and 'label' in found.counts:
        found.counts['label'] = {f'{label} {source.label_names[label]}': times for label, times in found.counts['label'].items()}
    if 'width' in found.columns:
        found.columns['aspect'] = found.columns['width'] / np.maximum(found.columns['height'], 1)
    if len(text):
        found.repeated, found.distinct = _repeated(source, text.values, place.values)
    if budgets and 'width' in found.columns:
        sizes = np.stack([found.columns['height'], found.columns['width']], 1).tolist()
        found.padding = {budget: waste(sizes, budget) for budget in budgets}
    return found


def _facts(tokenizers: Mapping[str, Callable], index: int, example: Mapping[str, Any]) -> dict[str, Any]:
    captions, image = tuple(example.get('captions', ())), example.get('image')
    columns = {'captions': [len(captions)], 'characters': _each(len, captions), 'words': [len(c.split()) for c in captions]}
    counts: dict[str, list] = {'script': _each(script, captions), 'parts': ['caption' if captions else 'no caption']}
    if isinstance(image, (bytes, np.ndarray)) and len(image):
        form, width, height = header(image)
        columns |= {'width': [width], 'height': [height], 'bytes': [image.nbytes if isinstance(image, np.ndarray) else len(image)]}
        counts['format'] = [form]
    counts['parts'] += ['image' if 'format' in counts else 'no image', 'label' if 'label' in example else 'no label']
    if 'label' in example and np.ndim(example['label']) == 0:
        counts['label'] = [int(example['label'])]
    for key, encode in tokenizers.items():
        columns[f'tokens ({key})'] = [_length(ids, encode.eot_id) for ids in encode(list(captions), _LONGEST)] if captions else []
    return dict(columns=columns, counts=counts, texts=_each(hashes.of_caption, captions))


def _each(function: Callable, values: Sequence) -> list:
    return [function(value) for value in values]


def _length(ids_L: np.ndarray, end: int) -> int:
    """Tokens up to the end of text, with it."""
    ends = np.flatnonzero(ids_L == end)
    return int(ends[0]) + 1 if len(ends) else len(ids_L)


def script(text: str) -> str:
    """The script of most of a text's letters, by their Unicode names ('LATIN', 'CJK', 'CYRILLIC', …), or 'none'."""
    letters = Counter(_script(letter) for letter in text if letter.isalpha())
    return letters.most_common(1)[0][0] if letters else 'none'


@functools.lru_cache(1 << 16)
def _script(letter: str) -> str:
    return unicodedata.name(letter, 'unnamed').split(' ')[0].split('-')[0]


def _repeated(source: Any, text_P: np.ndarray, index_P: np.ndarray) -> tuple[list[tuple[str, int]], float]:
    """The captions that come most often, and the share of different ones; alike but for case and punctuation counts as one."""
    hashed, first, times = np.unique(text_P, return_index=True, return_counts=True)
    most = [place for place in np.argsort(-times, kind='stable')[:_SHOWN].tolist() if times[place] > 1]
    found = []
    for place in most:
        captions = source.captions(int(index_P[first[place]]))
        found.append((next(c for c in captions if hashes.of_caption(c) == hashed[place]), int(times[place])))
    return found, len(hashed) / len(text_P)
