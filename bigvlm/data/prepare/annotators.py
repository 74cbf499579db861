"""What tools/annotate.py writes: nouns, a user's lines and arrays, a user's function, regions, patch codes.

N boxes at most; L patches.
"""
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops._codebook import Codebook
from bigvlm.data.prepare.annotate import Annotator
from bigvlm.data.prepare.keyed import KeyedLines
from bigvlm.data.prepare.nouns import Lexicon, Vocabulary


def nouns(source: Any, by: Vocabulary | Lexicon, path: Path, most: int, field: str = 'nouns') -> tuple[Annotator, Counter]:
    """`nouns`, a tuple of texts, of all captions of an example; of a vocabulary also `noun_ids`, int32 [most], -1 where there
    are fewer. And how many examples have each, which is counted as it goes."""
    counts: Counter = Counter()
    ids = f'{field.removesuffix("s")}_ids' if isinstance(by, Vocabulary) else ''

    def many(made: list[tuple[str, ...]]) -> list[dict[str, Any]]:
        for found in made:
            counts.update(found or ('',))
        return [{field: found} | ({ids: _filled([by.id(name) for name in found], most, -1, np.int32)} if ids else {}) for found in made]
    settings = dict(what='nouns', by=type(by).__name__, file=_digest(path), phrases=getattr(by, '_phrases', False), most=most)
    return Annotator((field, ids) if ids else (field,), settings, lambda index, captions: by(captions), many, read=source.captions), counts


def texts(source: Any, lines: KeyedLines, field: str, key: str) -> Annotator:
    """`field`: the texts at `key` of an example's line, one or a list; () without a line."""
    def one(index: int, example: Any) -> dict[str, Any]:
        record = lines.get(example) or {}
        found = record.get(key, ())
        found = (found,) if isinstance(found, str) else tuple(found)
        if not all(isinstance(text, str) for text in found):
            raise RecipeError(f'{lines.path}: found {found!r} at {key!r}; valid: a text or a list of texts')
        return {field: tuple(clean for text in found if (clean := ' '.join(text.split())))}
    return Annotator((field,), dict(what='texts', file=_digest(lines.path), by=lines.by, key=key), one, read=_key(source, lines.by))


def values(source: Any, lines: KeyedLines, fields: Sequence[str]) -> Annotator:
    """Numbers, texts, and lists of them, of an example's line, as they are; without a line the example cannot be used."""
    def one(index: int, example: Any) -> dict[str, Any]:
        if (record := lines.get(example)) is None:
            raise BadExample(f'no line in {lines.path.name}')
        if missing := [name for name in fields if name not in record]:
            raise RecipeError(f'{lines.path}: {lines.by} {example!r} has no {missing[0]!r} (--fields); it has {", ".join(record)}')
        return {name: _value(record[name]) for name in fields}
    settings = dict(what='values', file=_digest(lines.path), by=lines.by)
    return Annotator(tuple(fields), settings, one, read=_key(source, lines.by))


def rows(source: Any, path: Path, field: str) -> Annotator:
    """`field`: row i of an .npy array for example i: codes of another model's tokenizer, say."""
    try:
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f'--file: cannot read {path} as an .npy array ({error})') from None
    if not array.ndim or len(array) != len(source):
        raise RecipeError(f'--file: found {list(array.shape)} in {path}; valid: a row for each of the {len(source):,} examples of '
                          f'{source.name}')
    def one(index: int, example: Any) -> dict[str, Any]:
        return {field: np.asarray(array[index])}
    return Annotator((field,), dict(what='rows', file=_digest(path)), one, read=lambda index: index)


def written(source: Any, function: Callable[[list[tuple[str, ...]]], Sequence[Sequence[str]]], name: str, field: str,
            together: int) -> Annotator:
    """`field`: the texts that a user's function makes of the captions of up to `together` examples, a list for each."""
    def many(made: list[tuple[str, ...]]) -> list[dict[str, Any]]:
        found = list(function(list(made)))
        if wrong := [one for one in found if isinstance(one, str) or not all(isinstance(text, str) for text in one)]:
            raise RecipeError(f'--rewrite: {name} gave {wrong[0]!r}; valid: a list of texts for each example')
        return [{field: tuple(one)} for one in found]
    return Annotator((field,), dict(what='written', by=name), lambda index, captions: tuple(captions), many, together, read=source.captions)


def regions(source: Any, lines: KeyedLines, most: int, least: float, labels: Mapping[str, int]) -> Annotator:
    """A detector's boxes, the surest first and at most `most`: `region_boxes` float32 [N, 4] (top, left, bottom, right as shares
    of the whole image), `region_scores` float32 [N], `region_labels` int32 [N] (numbers, or those of `labels`), zeros and -1
    behind; `region_count` int32; `region_names`, the labels as texts. Without a line there are none."""
    def one(index: int, example: Any) -> dict[str, Any]:
        record = lines.get(example) or {}
        where = f'{lines.path}: {lines.by} {example!r}'
        boxes_N4 = np.asarray(record.get('boxes', ()), np.float32).reshape(-1, 4) if _boxes(record, where) else np.zeros((0, 4), np.float32)
        scores_N = np.asarray(record.get('scores', np.ones(len(boxes_N4))), np.float32)
        named = list(record.get('labels', [-1] * len(boxes_N4)))
        if not len(boxes_N4) == len(scores_N) == len(named):
            raise RecipeError(f'{where}: found {len(boxes_N4)} boxes, {len(scores_N)} scores and {len(named)} labels; valid: as many')
        kept = [place for place in np.argsort(-scores_N, kind='stable').tolist() if scores_N[place] >= least][:most]
        names = tuple(str(named[place]) for place in kept)
        numbers = [named[place] if isinstance(named[place], int) else labels.get(named[place], -1) for place in kept]
        return dict(region_boxes=_filled(boxes_N4[kept][:, [1, 0, 3, 2]], most, 0, np.float32), region_names=names,
                    region_scores=_filled(scores_N[kept], most, 0, np.float32), region_labels=_filled(numbers, most, -1, np.int32),
                    region_count=np.int32(len(kept)))
    settings = dict(what='regions', file=_digest(lines.path), by=lines.by, most=most, least=least, labels=list(labels))
    fields = ('region_boxes', 'region_names', 'region_scores', 'region_labels', 'region_count')
    return Annotator(fields, settings, one, read=_key(source, lines.by))


def codes(codebook: Codebook, path: Path, read: Callable[[int], np.ndarray], seen: str, field: str = 'patch_codes') -> Annotator:
    """`field`: int32 [L], the codes of an image as `read` gives it; `seen` says how that is."""
    def one(index: int, image_HWC: np.ndarray) -> dict[str, Any]:
        try:
            return {field: codebook.codes(image_HWC)}
        except ValueError as error:
            raise RecipeError(f'--size: {error}') from None
    return Annotator((field,), dict(what='codes', file=_digest(path), images=seen), one, read=read)


def _boxes(record: Mapping[str, Any], where: str) -> bool:
    """Whether a record has boxes, which are made shares of the image if it says its `size` in pixels. RecipeError for odd ones."""
    boxes = record.get('boxes')
    if not boxes:
        return False
    if any(len(box) != 4 for box in boxes):
        raise RecipeError(f'{where}: found a box of {len(boxes[0])} numbers; valid: left, top, right, bottom')
    if size := record.get('size'):
        record['boxes'] = boxes = [[edge / size[place % 2] for place, edge in enumerate(box)] for box in boxes]
    for left, top, right, bottom in boxes:
        if not (-.01 <= left <= right <= 1.01 and -.01 <= top <= bottom <= 1.01):
            raise RecipeError(f'{where}: found the box {[left, top, right, bottom]}; valid: left, top, right, bottom as shares of the '
                              "image, or in pixels with 'size': [width, height]")
    return True


def _key(source: Any, by: str) -> Callable[[int], Any]:
    """What a source's example is called in a user's lines; only for other fields of it is it read."""
    if by == 'index':
        return lambda index: index
    if by == 'name':
        return source.describe

    def read(index: int) -> Any:
        example = source[index]
        if by not in example:
            raise RecipeError(f'--by: found {by!r}; valid: index, name, or a field of the examples: {", ".join(sorted(example))}')
        return example[by]
    return read


def _value(value: Any) -> Any:
    """A JSON value as an example holds it: lists of numbers as int32 or float32 arrays, other lists as tuples."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return tuple(map(_value, value))
    if array.dtype.kind in 'iuf':
        return array.astype(np.float32 if array.dtype.kind == 'f' else np.int32)
    return tuple(value) if isinstance(value, list) else value


def _filled(values: Any, length: int, fill: float, dtype: Any) -> np.ndarray:
    """The first `length` of `values`, `fill` behind."""
    values = np.asarray(values, dtype)[:length]
    found = np.full((length, *values.shape[1:]), fill, dtype)
    found[:len(values)] = values
    return found


def _digest(path: Path) -> str:
    """Name and content, so that a changed file is another annotation."""
    with open(path, 'rb') as file:
        return f'{path.name} {hashlib.file_digest(file, "sha256").hexdigest()[:16]}'
