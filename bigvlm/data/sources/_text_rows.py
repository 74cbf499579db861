"""Rows of csv, tsv and jsonl files, read at random: an index says where each begins, and each is parsed alone."""
import csv
import hashlib
import itertools
import json
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._file_index import Joined, digested, indices
from bigvlm.data.sources._row_starts import row_starts

SEPARATORS = {'csv': ',', 'tsv': '\t', 'jsonl': '', 'ndjson': ''}  # by the ending of the file; '' is json
_BOM, _UTF16 = b'\xef\xbb\xbf', (b'\xff\xfe', b'\xfe\xff')
_LONGEST = 16 << 20  # bytes of a row; a longer one has lost a quotation mark
_LOOK = 100  # rows that are looked at for the columns of jsonl

Row = dict[str, Any]


class TextRows:
    """All rows of `files`, which have one of the endings above. A csv file's first row names its columns.

    `read(first, stop, columns)`: rows, or BadExample for those that cannot be parsed, by one request for each file.
    """

    def __init__(self, files: Sequence[str], ending: str):
        self._separator, self._urls = SEPARATORS[ending], tuple(files)
        self._files = storage.Files(files)
        self.io = self._files.counts
        self._index = indices(ending, files, partial(_scan, separator=self._separator))
        self._head = 1 if self._separator else 0  # rows before the data
        for url, index in zip(files, self._index):
            if len(index.entries_E) <= self._head:
                raise RecipeError(f'files: {url} is empty; its first row must name the columns')
        self._joined = Joined([len(index.entries_E) - 1 - self._head for index in self._index])
        self.locate = self._joined.locate
        self.digests = [index.digest for index in self._index]
        self._headers: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._joined)

    def columns(self) -> set[str]:
        """The columns of the first file; of jsonl, those that any of the first rows has."""
        if not self._separator:
            rows = self.read(0, min(len(self), _LOOK))
            return set(itertools.chain.from_iterable(row for row in rows if isinstance(row, dict)))
        return set(self._header(0))

    def read(self, first: int, stop: int, columns: Sequence[str] = ()) -> list[Row | BadExample]:
        """Rows first..stop-1, whole; BadExample where the file's header lacks one of `columns`."""
        found: list[Row | BadExample] = []
        for file, a, b in self._joined.pieces(first, stop):
            bounds = [int(at) for at in self._index[file].entries_E[a + self._head:b + self._head + 1]]
            parse = self._parser(file, columns)
            if max(map(operator.sub, bounds[1:], bounds)) > _LONGEST:
                found += [self._alone(file, at, end, parse) for at, end in zip(bounds, bounds[1:])]
            else:
                data = memoryview(self._files.read(file, bounds[0], bounds[-1] - bounds[0]))
                found += [parse(data[at - bounds[0]:end - bounds[0]]) for at, end in zip(bounds, bounds[1:])]
        return found

    def _alone(self, file: int, at: int, end: int, parse: Callable) -> Row | BadExample:
        if end - at > _LONGEST:
            return BadExample('row of more than 16 MiB')
        return parse(memoryview(self._files.read(file, at, end - at)))

    def _parser(self, file: int, columns: Sequence[str]) -> Callable[[memoryview], Row | BadExample]:
        if not self._separator:
            return _json_row
        header = self._header(file)
        for column in columns:
            if column not in header:
                return lambda data: BadExample(f'no column {column!r}')
        return partial(_csv_row, header=header, separator=self._separator)

    def _header(self, file: int) -> list[str]:
        if file not in self._headers:
            at, end = map(int, self._index[file].entries_E[:2])
            if end - at > _LONGEST:
                raise RecipeError(f'files: the first row of {self._urls[file]} is longer than 16 MiB')
            self._headers[file] = _csv_fields(memoryview(self._files.read(file, at, end - at)), self._separator)
        return self._headers[file]


def _scan(url: str, size: int, write: Callable[[np.ndarray], None], seen: Callable[[int], None], separator: str) -> bytes:
    """Writes where each row begins, and the end of the file; the digest is the SHA-256 of the content."""
    digest = hashlib.sha256()
    head = storage.read(url, 0, min(3, size))
    if head.startswith(_UTF16):
        raise RecipeError(f'files: {url} is UTF-16; save it as UTF-8')
    start = 3 if head == _BOM else 0
    for starts_S in row_starts(digested(storage.chunks(url, start=start), digest, seen), separator, start):
        write(starts_S)
    write(np.array([size]))
    return digest.digest()


def _csv_fields(data: memoryview, separator: str) -> list[str]:
    return next(csv.reader([str(data, 'utf-8', 'replace')], delimiter=separator))


def _csv_row(data: memoryview, header: list[str], separator: str) -> Row | BadExample:
    try:
        return dict(zip(header, _csv_fields(data, separator)))
    except csv.Error:  # a field of more than csv.field_size_limit() letters
        return BadExample('csv row cannot be parsed')


def _json_row(data: memoryview) -> Row | BadExample:
    try:
        row = json.loads(str(data, 'utf-8', 'replace'))
    except (ValueError, RecursionError):
        return BadExample('json row cannot be parsed')
    return row if isinstance(row, dict) else BadExample('json row is not an object')
