"""Rows of parquet files: row groups are decoded whole, and the last few are kept."""
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

import pyarrow
import pyarrow.parquet

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._file_index import Joined, indices

_GROUPS = 4  # decoded row groups that are kept
_FOOTERS = 64  # parsed footers that are kept
_END = 8  # bytes at the end of a file: the footer's length and 'PAR1'

Row = dict[str, Any]


class ParquetRows:
    """All rows of `files`. `read` decodes each row group that it needs once, and of it the columns it is asked for.

    `damage`: files whose footer cannot be read; damaged row groups show when they are read.
    """

    def __init__(self, files: Sequence[str]):
        self._files = storage.Files(files)
        self.io = self._files.counts
        self._index = indices('parquet', files, _scan)
        self.digests = [index.digest for index in self._index]
        lost = [url.rpartition('/')[2] for url, index in zip(files, self._index) if not any(index.digest)]
        if len(lost) == len(self._index):
            raise RecipeError(f'files: {files[0]} is no parquet file' + (', nor are the others' if len(files) > 1 else ''))
        self.damage = {'parquet footer cannot be read': lost} if lost else {}
        self._joined = Joined([int(index.entries_E[-1]) for index in self._index])
        self.locate = self._joined.locate
        self._groups, self._footers = _Recent(_GROUPS), _Recent(_FOOTERS)

    def __len__(self) -> int:
        return len(self._joined)

    def columns(self) -> set[str]:
        """The columns of the first file that can be read."""
        file = next(file for file, digest in enumerate(self.digests) if any(digest))
        return set(self._footer(file).schema.to_arrow_schema().names)

    def read(self, first: int, stop: int, columns: Sequence[str]) -> list[Row | BadExample]:
        """Rows first..stop-1 with `columns`; BadExample for those of a damaged row group."""
        found: list[Row | BadExample] = []
        for file, a, b in self._joined.pieces(first, stop):
            starts_E = self._index[file].entries_E
            while a < b:
                group = int(np.searchsorted(starts_E, a, side='right')) - 1
                start, end = int(starts_E[group]), min(b, int(starts_E[group + 1]))
                try:
                    rows = self._group(file, group, tuple(dict.fromkeys(columns)))
                    found += rows.slice(a - start, end - a).to_pylist()
                except BadExample as bad:
                    found += [bad] * (end - a)
                a = end
        return found

    def _group(self, file: int, group: int, columns: tuple[str, ...]) -> pyarrow.Table:
        def decode(ranged: '_Ranged') -> pyarrow.Table:
            file_ = pyarrow.parquet.ParquetFile(ranged, metadata=footer, pre_buffer=True, page_checksum_verification=True)
            return file_.read_row_group(group, columns=list(columns), use_threads=False)

        def make() -> pyarrow.Table:
            rows = _decoded(self._ranged(file), decode)
            for column in columns:
                if column not in rows.column_names:
                    raise BadExample(f'no column {column!r}')
            return rows
        footer = self._footer(file)
        return self._groups.get((file, group, columns), make)

    def _footer(self, file: int) -> pyarrow.parquet.FileMetaData:
        return self._footers.get(file, lambda: _decoded(self._ranged(file), pyarrow.parquet.read_metadata))

    def _ranged(self, file: int) -> '_Ranged':
        return _Ranged(self._files, file, self._index[file].size)


def _scan(url: str, size: int, write: Callable[[np.ndarray], None], seen: Callable[[int], None]) -> bytes:
    """Writes the first row of every row group, and the number of rows; the digest is the footer's SHA-256, or zeros.

    The footer has the place, size and statistics of every column of every row group, so that it changes with the data.
    """
    files = storage.Files([url])
    seen(size)
    try:
        groups = _decoded(_Ranged(files, 0, size), pyarrow.parquet.read_metadata)
    except BadExample:
        write(np.array([0]))
        return bytes(32)
    write(np.cumsum([0, *(groups.row_group(group).num_rows for group in range(groups.num_row_groups))]))
    length = int.from_bytes(files.read(0, size - _END, 4), 'little')
    return hashlib.sha256(files.read(0, size - _END - length, length)).digest()


def _decoded(ranged: '_Ranged', decode: Callable[['_Ranged'], Any]) -> Any:
    """`decode(ranged)`. Raises BadExample where pyarrow finds damage, and the storage's own error where that failed."""
    try:
        return decode(ranged)
    except (pyarrow.ArrowException, OSError) as error:  # pyarrow says OSError for damaged pages, too
        if ranged.error is not None:
            raise ranged.error from error
        raise BadExample('damaged parquet row group') from error


class _Ranged(io.RawIOBase):
    """One of `files` as the file object that pyarrow reads from; `error`: the storage's, if it failed."""

    def __init__(self, files: storage.Files, number: int, size: int):
        self._files, self._number, self._size, self._at = files, number, size, 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._size - self._at)
        size = rest if size is None or size < 0 else min(size, rest)
        try:
            data = self._files.read(self._number, self._at, size)
        except OSError as error:
            self.error = error
            raise
        self._at += size
        return data


class _Recent:
    """The values of the last `count` keys; of several threads that ask for one, one makes it and the others wait."""

    def __init__(self, count: int):
        self._count, self._lock = count, threading.Lock()
        self._values: OrderedDict[Any, Future] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            future = self._values.get(key)
            mine = future is None
            if mine:
                future = self._values[key] = Future()
            self._values.move_to_end(key)
            while len(self._values) > self._count:
                self._values.popitem(last=False)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    if self._values.get(key) is future:
                        del self._values[key]
        return future.result()
