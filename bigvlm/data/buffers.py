"""Memory for batches: filled by threads or by other processes, and used again once nobody refers to its arrays.

A batch of N examples is one piece of memory with the N-row arrays of all keys in it, in the order of the keys, each at a
multiple of 64 bytes. So whoever knows the layout of an example finds every row without asking.
"""
import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Layout = dict[str, tuple[str, tuple[int, ...]]]  # key -> (type, shape) of one example

_ALIGN = 64  # bytes; what jax asks for before it uses host memory in place
_COPIED = 1 << 16  # smaller arrays are copied out: an id that somebody keeps should not keep the pixels


def numbers(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What of an example crosses to the device: arrays and numbers, 64-bit ones and Python's in 32 bits."""
    return {key: array for key, raw in example.items() if (array := _as_array(raw)) is not None}


def layout_of(values: Mapping[str, np.ndarray]) -> Layout:
    return {key: (values[key].dtype.str, values[key].shape) for key in sorted(values)}


def check(found: Layout, wanted: Layout) -> None:
    """Raises ValueError where an example does not look as the others of its batch."""
    if found == wanted:
        return
    if found.keys() != wanted.keys():
        raise ValueError(f'examples of one batch have different keys: {sorted(found)} and {sorted(wanted)}')
    key = next(key for key in found if found[key] != wanted[key])
    one, other = (f'{np.dtype(dtype)}{list(shape)}' for dtype, shape in (found[key], wanted[key]))
    raise ValueError(f'{key!r} is {one} in one example and {other} in another; resize or drop it by an op')


def size(layout: Layout, rows: int) -> int:
    """Bytes of a batch."""
    return sum(_room(dtype, (rows, *shape)) for dtype, shape in layout.values())


def arrays(memory: Any, layout: Layout, rows: int) -> dict[str, np.ndarray]:
    """The arrays [rows, …] in the memory of a batch (anything with bytes, at least `size` of them)."""
    found, at = {}, 0
    for key in sorted(layout):
        dtype, shape = layout[key]
        count = int(np.prod((rows, *shape), dtype=np.int64))
        found[key] = np.frombuffer(memory, dtype, count, at).reshape(rows, *shape) if count else np.empty((rows, *shape), dtype)
        at += _room(dtype, (rows, *shape))
    return found


class TooSmall(Exception):
    """A batch of this layout does not fit the memory given."""

    def __init__(self, layout: Layout):
        super().__init__(layout)
        self.layout = layout


class Buffer(NamedTuple):
    """A piece of memory, `offset` bytes into the file that other processes map too."""
    offset: int
    map: mmap.mmap


class Buffers:
    """Gives out memory for batches. `shared`: other processes may map it, by `fd` and a buffer's offset and length.

    The file has no name (on Linux not even a place in /dev/shm, which containers keep small), so that nothing is left
    behind however the processes end. Of unused buffers, `keep` are kept.
    """

    def __init__(self, shared: bool, keep: int):
        self.fd = _nameless_file() if shared else -1
        self.nbytes = 0
        self._keep, self._end, self._largest = keep, 0, 1
        self._free: deque[Buffer] = deque()
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> tuple[Buffer, np.ndarray]:
        """A buffer and its memory, uint8 [>= nbytes], which comes back by itself when no array refers to it any more."""
        with self._lock:
            self._largest = max(self._largest, nbytes)
            buffer = None
            while self._free and (buffer is None or len(self._free) > self._keep):
                found = self._free.popleft()
                if buffer is None and len(found.map) >= nbytes:
                    buffer = found
                else:
                    self._drop(found)
            buffer = buffer or self._new(self._largest)
        memory_N = np.frombuffer(buffer.map, np.uint8)
        # May run at any time in any thread: deque.append needs no lock.
        weakref.finalize(memory_N, self._free.append, buffer).atexit = False
        return buffer, memory_N

    def close(self) -> None:
        """Forget the unused; arrays that somebody has stay as they are."""
        with self._lock:
            self._keep = 0
            self._free.clear()
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def _new(self, nbytes: int) -> Buffer:
        pages = -(-nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.nbytes += pages
        if self.fd < 0:
            return Buffer(0, mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        at, self._end = self._end, self._end + pages
        os.ftruncate(self.fd, self._end)
        return Buffer(at, mmap.mmap(self.fd, pages, offset=at))

    def _drop(self, buffer: Buffer) -> None:
        self.nbytes -= len(buffer.map)
        if self.fd >= 0 and hasattr(mmap, 'MADV_REMOVE'):
            buffer.map.madvise(mmap.MADV_REMOVE)  # the file keeps its length, but not the memory


def handed_out(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch for the consumer: large arrays are the buffer's, small ones copies."""
    return {key: array.copy() if array.nbytes < _COPIED else array for key, array in found.items()}


def _room(dtype: str, shape: tuple[int, ...]) -> int:
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return -(-nbytes // _ALIGN) * _ALIGN


def _nameless_file() -> int:
    if hasattr(os, 'memfd_create'):
        return os.memfd_create('bigvlm-batches')
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _as_array(value: Any) -> np.ndarray | None:
    if not isinstance(value, (np.ndarray, np.number, np.bool_, int, float)):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in 'biuf':
        return None
    if array.dtype in (np.int64, np.float64):
        return array.astype(np.int32 if array.dtype == np.int64 else np.float32)
    return array
