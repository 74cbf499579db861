"""Indices of data files: 64-bit numbers, made once for a file, cached, and mapped into memory by whoever needs them.

Array legend: F files, E entries of an index.
"""
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigvlm.data import storage
from bigvlm.data.cache import cache_dir, fresh, locked

_VERSION = 1  # of all index files
_DIGEST = 32  # bytes at the head of an index file
_LONG = 1 << 30  # bytes to look through, from which on progress is shown

# What makes the index of one file: (url, size in bytes, write(numbers), seen(bytes)) -> digest of 32 bytes.
Scan = Callable[[str, int, Callable[[np.ndarray], None], Callable[[int], None]], bytes]


@dataclass(frozen=True)
class FileIndex:
    """`entries_E`: uint64, mapped from the cache; `digest`: of the file's content, as far as the scan saw it; `size`: its bytes."""
    entries_E: np.ndarray
    digest: bytes
    size: int


def indices(kind: str, files: Sequence[str], scan: Scan) -> list[FileIndex]:
    """One index per file, in order; those not in the cache are made by threads, each file by one process only.

    An index belongs to a file's name, size and version: one that was interrupted costs its file, not those before it.
    """
    stats = storage.stats(files)
    paths = [_path(kind, url, stat) for url, stat in zip(files, stats)]
    missing = [(url, stat.size, path) for url, stat, path in zip(files, stats, paths) if not path.exists()]
    total = sum(size for _, size, _ in missing)
    with tqdm(desc=f'{kind} index', total=total, unit='B', unit_scale=True, disable=total < _LONG,
              mininterval=.1 if sys.stderr.isatty() else 10.) as bar, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: _make(*job, scan, bar.update), missing))
    return [_load(path, stat.size) for path, stat in zip(paths, stats)]


def _path(kind: str, url: str, stat: storage.Stat) -> Path:
    place = url if storage.is_remote(url) else os.path.abspath(url)
    known = hashlib.sha256(f'{kind} {_VERSION} {place} {stat.size} {stat.version}'.encode()).hexdigest()
    return cache_dir('index', kind) / f'{known[:32]}.u64'


def _make(url: str, size: int, path: Path, scan: Scan, seen: Callable[[int], None]) -> None:
    with locked(f'index-{path.stem}'):
        if path.exists():
            return
        with fresh(path) as part, open(part, 'wb') as file:
            file.write(bytes(_DIGEST))
            digest = scan(url, size, lambda numbers: file.write(numbers.astype('<u8', copy=False).data), seen)
            file.seek(0)
            file.write(digest)


def _load(path: Path, size: int) -> FileIndex:
    words = np.asarray(np.memmap(path, '<u8', 'r'))
    return FileIndex(words[_DIGEST // 8:], words[:_DIGEST // 8].tobytes(), size)


def digested(chunks: Iterable[bytes], digest: 'hashlib._Hash', seen: Callable[[int], None]) -> Iterator[bytes]:
    """The chunks as they come, each added to `digest` and reported to `seen`."""
    for chunk in chunks:
        digest.update(chunk)
        seen(len(chunk))
        yield chunk


class Joined:
    """Rows of several files in a row: `counts` says how many each has."""

    def __init__(self, counts: Sequence[int]):
        self._ends_F = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends_F[-1]) if len(self._ends_F) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """File and row within it of row `index` of all. Raises IndexError outside."""
        if not 0 <= index < len(self):
            raise IndexError(f'example {index} of {len(self)}')
        file = int(np.searchsorted(self._ends_F, index, side='right'))
        return file, index - (int(self._ends_F[file - 1]) if file else 0)

    def pieces(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(file, first row, row after the last) of every file that holds some of rows first..stop-1 of all, in order."""
        while first < stop:
            file, row = self.locate(first)
            count = min(stop, int(self._ends_F[file])) - first
            yield file, row, row + count
            first += count
