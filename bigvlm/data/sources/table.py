"""Tables that list images: csv, tsv, jsonl and parquet, with paths, URLs or the encoded images themselves in a column."""
import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample, usable
from bigvlm.data.cache import cache_dir, fresh, locked
from bigvlm.data.sources._text_rows import SEPARATORS, TextRows

_CLASSES = 1 << 20  # distinct labels; with more, the column is something else
_BLOCK = 4096  # rows read together when labels are collected


class Table:
    """The rows of all `files` (patterns, one kind of file), in the order of their names.

    `image` is the column of paths (relative to `root`, if not said the folder of the table), URLs (gs, s3, http) or encoded
    images (bytes, or Hugging Face's struct of bytes and path). `captions` is one column or several; a cell is a text, a
    list of texts, or a JSON list. `label` is a column of whole numbers, or of texts, which are numbered in sorted order.
    `extra` columns are kept. '' is for a column that there is not.
    """

    def __init__(self, files: str | Sequence[str], image: str = 'image', captions: str | Sequence[str] = 'caption',
                 label: str = '', root: str = '', extra: Sequence[str] = ()):
        self._urls = storage.expand(files, 'files')
        self._image, self._label, self._root, self._extra = image, label, os.path.expanduser(root), tuple(extra)
        self._captions = tuple(filter(None, (captions,) if isinstance(captions, str) else captions))
        self._columns = tuple(filter(None, (image, *self._captions, label, *self._extra)))
        self._rows = _rows(self._urls)
        self.reads_together = not image or self._urls[0].lower().endswith('.parquet')  # images beside a table are read one by one
        self._check_columns()
        self.name = files if isinstance(files, str) else ','.join(files)
        self.io, self.damage = self._rows.io, getattr(self._rows, 'damage', {})
        known = [[url.rpartition('/')[2], digest.hex()] for url, digest in zip(self._urls, self._rows.digests)]
        columns = [image, self._captions, label, self._extra]
        self.fingerprint = hashlib.sha256(json.dumps([known, columns]).encode()).hexdigest()[:16]
        self.label_names: tuple[str, ...] = self._classes() if label else ()
        self._numbers = {name: number for number, name in enumerate(self.label_names)}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return usable(self.read(index, index + 1)[0])

    def read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples first..stop-1: the rows by one request per file or row group, images beside the table one by one."""
        found: list[dict[str, Any] | BadExample] = []
        for number, row in enumerate(self._rows.read(first, stop, self._columns), first):
            try:
                found.append(self._example(number, usable(row)))
            except BadExample as bad:
                found.append(bad)
        return found

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one row, () if it has none; the image is not read."""
        self._rows.locate(index)
        if not self._captions:
            return ()
        return self._texts(usable(self._rows.read(index, index + 1, self._captions)[0]))

    def describe(self, index: int) -> str:
        """'products.csv[17]': the 17th row after the header, from 0."""
        file, row = self._rows.locate(index)
        return f'{self._urls[file].rpartition("/")[2]}[{row}]'

    def _example(self, index: int, row: dict[str, Any]) -> dict[str, Any]:
        example: dict[str, Any] = {key: row.get(key) for key in self._extra}
        if self._captions:
            example['captions'] = self._texts(row)
            if not example['captions']:
                raise BadExample('no caption')
        if self._label:
            example['label'] = self._number(row.get(self._label))
        if self._image:
            example['image'] = self._picture(index, row.get(self._image))
        return example

    def _picture(self, index: int, cell: Any) -> bytes:
        if isinstance(cell, dict):
            cell = cell.get('bytes') or cell.get('path')
        if not cell or not isinstance(cell, (bytes, str)):
            raise BadExample('no image')
        if isinstance(cell, bytes):
            return cell
        if not storage.is_remote(cell) and not os.path.isabs(cell):
            table = self._urls[self._rows.locate(index)[0]]
            cell = os.path.join(self._root or table.rpartition('/')[0], cell)
        try:
            return storage.read(cell, counts=self.io)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise BadExample('no image file') from None

    def _texts(self, row: dict[str, Any]) -> tuple[str, ...]:
        cells = (text for column in self._captions for text in _listed(row.get(column)))
        return tuple(t for text in cells if isinstance(text, str) and (t := ' '.join(text.split())))

    def _number(self, cell: Any) -> int:
        if _missing(cell):
            raise BadExample('no label')
        return self._numbers[_class(cell)] if self._numbers else int(cell)

    def _check_columns(self) -> None:
        if not self._columns:
            raise RecipeError('image: name a column of images, captions or labels')
        there = self._rows.columns()
        for column in self._columns if len(self._rows) else ():
            if column not in there:
                key = 'image' if column == self._image else 'label' if column == self._label else \
                    'captions' if column in self._captions else 'extra'
                raise RecipeError(f'{key}: {self._urls[0]} has no column {column!r} (there are: {", ".join(sorted(there))})')

    def _classes(self) -> tuple[str, ...]:
        """The distinct labels, sorted, or () if all are whole numbers; read once and cached."""
        path = cache_dir('index', 'labels') / f'{self.fingerprint}.json'
        with locked(f'labels-{self.fingerprint}'):
            if not path.exists():
                with fresh(path) as part:
                    part.write_text(json.dumps(self._collect()), encoding='utf-8')
        return tuple(json.loads(path.read_text(encoding='utf-8')))

    def _collect(self) -> list[str]:
        seen: set[str] = set()
        for first in range(0, len(self), _BLOCK):
            for row in self._rows.read(first, min(first + _BLOCK, len(self)), (self._label,)):
                if isinstance(row, dict) and not _missing(row.get(self._label)):
                    seen.add(_class(row[self._label]))
            if len(seen) > _CLASSES:
                raise RecipeError(f'label: column {self._label!r} has more than {_CLASSES:,} different values; name one of classes')
        return [] if all(map(_whole, seen)) else sorted(seen)


def _rows(urls: Sequence[str]) -> Any:
    """The reader for the files' ending."""
    endings = {url.rpartition('.')[2].lower() for url in urls}
    valid = (*SEPARATORS, 'parquet')
    if len(endings) > 1 or not endings <= set(valid):
        raise RecipeError(f'files: one kind of {", ".join(valid)}, found {", ".join(sorted(endings))} (such as {urls[0]})')
    ending = endings.pop()
    if ending != 'parquet':
        return TextRows(urls, ending)
    try:
        from bigvlm.data.sources._parquet_rows import ParquetRows  # imports pyarrow
    except ModuleNotFoundError as error:
        raise RecipeError(f'files: parquet is read by pyarrow, which is not installed ({error}): pip install pyarrow') from None
    return ParquetRows(urls)


def _listed(cell: Any) -> Sequence[Any]:
    """A cell's texts: it may be one, a list, or a JSON list of nothing but texts."""
    if isinstance(cell, str) and cell.lstrip()[:1] == '[':
        try:
            texts = json.loads(cell)
        except (ValueError, RecursionError):
            return (cell,)
        return texts if all(isinstance(text, str) for text in texts) else (cell,)
    return (cell,) if isinstance(cell, str) else cell if isinstance(cell, (list, tuple)) else ()


def _missing(cell: Any) -> bool:
    return cell is None or not str(cell).strip()


def _class(cell: Any) -> str:
    return str(cell).strip()


def _whole(text: str) -> bool:
    return re.fullmatch(r'[+-]?\d+', text) is not None
