"""Batches by position: this process's rows of the global batches, made ahead by threads."""
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.dataset import Dataset, Example
from bigvlm.data.order import order

_CHUNK = 8  # examples per task: short enough to balance threads, long enough that handing out tasks costs nothing


class Stream:
    """An endless iterator over batches; the global example at position p is order(seed, n, p // n, p % n).

    A batch is `{key: array [rows, ...]}` of everything in the examples that is an array or a number. It depends only on
    the data set and the position, not on `rows` (those of the global batch wanted here), `workers` (threads; 0
    makes examples in the caller) or `prefetch` (batches in the making). `wait_s`: how long the consumer has waited.
    Raises what the data set raises, naming the example, where the faulty batch would have been.
    """

    def __init__(self, dataset: Dataset, batch: int, start_example: int = 0, rows: slice | np.ndarray = slice(None),
                 workers: int = 4, prefetch: int = 2):
        if batch < 1 or workers < 0 or prefetch < 1:
            raise RecipeError(f'a stream needs batch >= 1, workers >= 0, prefetch >= 1, '
                              f'found {batch}, {workers}, {prefetch}')
        self.dataset, self.batch, self.position = dataset, batch, start_example
        self.wait_s = 0.
        self._rows = np.arange(batch)[rows].tolist()
        self._pool = ThreadPoolExecutor(workers, 'bigvlm-data') if workers else None
        self._prefetch, self._ahead = prefetch, deque[tuple[_Batch, list[Future]]]()
        self._next_start = start_example
        self._closed = False
        if not self._rows:
            raise RecipeError(f'rows {rows} of a batch of {batch} leave this process nothing')

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise StopIteration
        began = time.perf_counter()
        try:
            batch = self._wait() if self._pool else self._make()
        except BaseException:
            self.close()
            raise
        self.position += self.batch
        self.wait_s += time.perf_counter() - began
        return batch.arrays

    def close(self) -> None:
        """Stop the threads; the iteration ends."""
        self._closed = True
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self) -> '_Batch':
        batch = _Batch(len(self._rows))
        self._fill(batch, self.position, 0, len(self._rows))
        return batch

    def _wait(self) -> '_Batch':
        while len(self._ahead) <= self._prefetch:  # the wanted batch and those made while it is used
            self._submit()
        batch, tasks = self._ahead.popleft()
        for task in tasks:
            task.result()
        return batch

    def _submit(self) -> None:
        batch, count = _Batch(len(self._rows)), len(self._rows)
        tasks = [self._pool.submit(self._fill, batch, self._next_start, first, min(first + _CHUNK, count))
                 for first in range(0, count, _CHUNK)]
        self._next_start += self.batch
        self._ahead.append((batch, tasks))

    def _fill(self, batch: '_Batch', start: int, first: int, stop: int) -> None:
        """Make the rows first..stop of this process's share of the batch that begins at position `start`."""
        n = len(self.dataset)
        for row in range(first, stop):
            if self._closed:
                return
            epoch, i = divmod(start + self._rows[row], n)
            index = order(self.dataset.seed, n, epoch, i)
            try:
                batch.put(row, self.dataset.example(index, epoch))
            except Exception as error:
                item = self.dataset.source.describe(index)
                if item not in str(error):
                    error.add_note(f'while making example {index} ({item}) of {self.dataset.name}')
                raise


class _Batch:
    """Arrays that threads fill row by row; the first example settles keys, shapes and types."""

    def __init__(self, rows: int):
        self._rows, self._lock = rows, threading.Lock()
        self.arrays: dict[str, np.ndarray] | None = None

    def put(self, row: int, example: Example) -> None:
        values = {key: value for key, raw in example.items() if (value := _as_array(raw)) is not None}
        with self._lock:
            if self.arrays is None:
                self.arrays = {k: np.empty((self._rows, *v.shape), v.dtype) for k, v in values.items()}
        if values.keys() != self.arrays.keys():
            raise ValueError(f'examples of one batch have different keys: {sorted(values)} and {sorted(self.arrays)}')
        for key, value in values.items():
            array = self.arrays[key]
            if value.shape != array.shape[1:] or value.dtype != array.dtype:
                raise ValueError(f'{key!r} is {value.dtype}{list(value.shape)} in one example and {array.dtype}'
                                 f'{list(array.shape[1:])} in another; resize or drop it by an op')
            array[row] = value


def _as_array(value) -> np.ndarray | None:
    """Numbers and arrays as what crosses to the device (32 bits for Python's and 64-bit numbers); None for the rest."""
    if not isinstance(value, (np.ndarray, np.number, np.bool_, int, float)):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in 'biuf':
        return None
    if array.dtype in (np.int64, np.float64):
        return array.astype(np.int32 if array.dtype == np.int64 else np.float32)
    return array
