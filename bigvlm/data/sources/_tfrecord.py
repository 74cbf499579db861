"""TFRecord files by record number, without TensorFlow: a scan of the frames' headers is the index.

A frame is the data's length (8 bytes, little-endian), the length's checksum (4), the data, and the data's checksum (4).
Checksums are CRC-32C, rotated and shifted by a constant, as documented in tensorflow/core/lib/io/record_writer.h.

Array legend: N bytes, E entries (one for each record, the end of the last, and how many are damaged).
"""
import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._file_index import indices

_HEAD, _FOOT = 12, 4  # bytes of a frame before and after its data
_LOST = 1 << 63  # flag of an entry: here a frame was, whose length nobody knows
_WINDOW = 8 << 20  # bytes of a remote file that are read together
_SEARCH = 256 << 10  # bytes in which it is looked for next, about 10 ms
_BATCH = 65536  # entries that are written together
_DAMAGED = 'damaged TFRecord frame'


class TFRecords:
    """`read(file, first, stop)` gives records as bytes, BadExample for damaged ones.

    `expected`: how many records each file should have. A frame whose header is damaged is found again at the next header
    whose checksum is right; what is missing in `expected` is taken to have been there, so that the records behind keep their
    numbers. Raises RecipeError for a whole file with another number of records.
    """

    def __init__(self, files: Sequence[str], expected: Sequence[int]):
        _crc32c()
        self._files = storage.Files(files)
        self.io = self._files.counts
        index = indices('tfrecord', files, _scan)
        self._entries = [_as_many(entry.entries_E, count, url) for entry, count, url in zip(index, expected, files)]

    def read(self, file: int, first: int, stop: int) -> list[bytes | BadExample]:
        """Records first..stop-1 of `file`, by one request for each stretch without damage."""
        bounds = [int(at) for at in self._entries[file][first:stop + 1]]
        found: list[bytes | BadExample] = []
        for lost, rows in itertools.groupby(range(stop - first), lambda row: bool(bounds[row] & _LOST)):
            rows = list(rows)
            if lost:
                found += [BadExample(_DAMAGED)] * len(rows)
                continue
            start, end = bounds[rows[0]], bounds[rows[-1] + 1] & ~_LOST
            data = memoryview(self._files.read(file, start, end - start))
            found += [_content(data[bounds[row] - start:(bounds[row + 1] & ~_LOST) - start]) for row in rows]
        return found


def _content(frame: memoryview) -> bytes | BadExample:
    length, head_crc = struct.unpack('<QI', frame[:_HEAD])
    if _masked(bytes(frame[:8])) != head_crc or _HEAD + length + _FOOT != len(frame):
        return BadExample(_DAMAGED)
    data = bytes(frame[_HEAD:_HEAD + length])
    if struct.pack('<I', _masked(data)) != frame[_HEAD + length:]:
        return BadExample('record with a wrong checksum')
    return data


def _as_many(entries_E: np.ndarray, count: int, url: str) -> np.ndarray:
    """The entries of `count` records: what is missing is put in where most bytes are damaged."""
    found, damaged = len(entries_E) - 2, int(entries_E[-1])
    if found > count or found < count and not damaged:
        raise RecipeError(f'{url} has {found} records, its data set says {count}')
    if found == count:
        return entries_E
    lost = np.flatnonzero(entries_E[:-2] & np.uint64(_LOST))
    places_E = entries_E & np.uint64(_LOST - 1)
    widest = lost[np.argmax(places_E[lost + 1] - places_E[lost])]
    return np.insert(entries_E, widest, np.full(count - found, entries_E[widest]))


def _scan(url: str, size: int, write: Callable[[np.ndarray], None], seen: Callable[[int], None]) -> bytes:
    """Writes where each frame begins, _LOST set where it is damaged, the end of the last one, and how many are damaged."""
    digest, lost = hashlib.sha256(), 0
    frames = _frames(_reader(url, size), size, seen)
    while some := list(itertools.islice(frames, _BATCH)):
        numbers = np.array(some, np.uint64)
        lost += np.count_nonzero(numbers & np.uint64(_LOST))
        digest.update(numbers)
        write(numbers)
    write(np.array([lost]))
    return digest.digest()


def _frames(read: Callable[[int, int], bytes], size: int, seen: Callable[[int], None]) -> Iterator[int]:
    at = 0
    while at < size:
        head = read(at, min(_HEAD, size - at))
        length = _length(head)
        end = at + _HEAD + length + _FOOT if length is not None else size + 1
        if end <= size:
            yield at
        else:  # damaged, or cut off by the end of the file
            yield at | _LOST
            end = _resync(read, at + 1, size)
        seen(end - at)
        at = end
    yield size


def _length(head: bytes) -> int | None:
    """The length in a frame's header, None if its checksum says that it is none."""
    if len(head) < _HEAD:
        return None
    length, crc = struct.unpack('<QI', head)
    return length if _masked(head[:8]) == crc else None


def _resync(read: Callable[[int, int], bytes], start: int, size: int) -> int:
    """The next offset from `start` with a header whose checksum is right and whose frame ends within the file; else size."""
    for at in range(start, size - _HEAD + 1, _SEARCH):
        text = read(at, min(_SEARCH + _HEAD - 1, size - at))
        for offset in _headers(np.frombuffer(text, np.uint8)):
            length = _length(text[offset:offset + _HEAD])
            if length is not None and at + offset + _HEAD + length + _FOOT <= size:
                return at + int(offset)
    return size


def _headers(text_N: np.ndarray) -> np.ndarray:
    """Offsets of all headers in the text whose checksum is right: CRC-32C of every 8 bytes, by table, at all offsets at once."""
    count = len(text_N) - _HEAD + 1
    crc_N = np.full(count, 0xffffffff, np.uint32)
    for byte in range(8):
        crc_N = _TABLE[(crc_N ^ text_N[byte:byte + count]) & 0xff] ^ (crc_N >> 8)
    crc_N = _mask(crc_N ^ np.uint32(0xffffffff))
    said_N = sum(text_N[8 + byte:8 + byte + count].astype(np.uint32) << np.uint32(8 * byte) for byte in range(4))
    return np.flatnonzero(crc_N == said_N)


def _table() -> np.ndarray:
    """CRC-32C of each byte (Castagnoli's polynomial, bits reversed)."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(0x82f63b78), crc >> 1)
    return crc


_TABLE = _table()


def _mask(crc: np.ndarray) -> np.ndarray:
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xa282ead8)


def _masked(data: bytes) -> int:
    crc = _crc32c()(data)
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


def _crc32c() -> Callable[[bytes], int]:
    try:
        import google_crc32c
    except ModuleNotFoundError:
        raise RecipeError('TFRecord files are checked by google-crc32c, which is not installed: pip install google-crc32c') from None
    return google_crc32c.value


def _reader(url: str, size: int) -> Callable[[int, int], bytes]:
    """read(offset, size) for offsets that mostly ascend: headers alone of local files, long pieces of others."""
    if not storage.is_remote(url):
        return partial(storage.Files([url]).read, 0)
    return _Ahead(url, size).read


class _Ahead:
    """Reads from pieces of 8 MiB, of which it keeps one: for headers all over a remote file, a request for each is too many."""

    def __init__(self, url: str, size: int):
        self._url, self._size = url, size
        self._start, self._piece = 0, b''

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._piece):
            length = min(max(size, _WINDOW), self._size - offset)
            self._start, self._piece = offset, storage.read(self._url, offset, length)
        return self._piece[offset - self._start:offset - self._start + size]
