"""Threads that make the examples of batches, and a board on which each says where it is, for whoever waits."""
import ctypes
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigvlm.data import buffers
from bigvlm.data.buffers import Layout

log = logging.getLogger(__name__)

BOARD = ('number', 'row', 'since_ns', 'examples', 'busy_ns')  # of each thread, int64: where it is and what it has done
IDLE = -1  # as `number`
_CHUNK = 8  # examples per piece: short enough to balance threads, long enough that handing out pieces costs nothing
_NAMING_S = 2.  # naming an example may read storage, which may be what hangs


_KEPT = {'MALLOC_MMAP_THRESHOLD_': (-3, 32 << 20), 'MALLOC_TRIM_THRESHOLD_': (-1, 128 << 20)}  # glibc's own numbers for mallopt


@functools.cache
def keep_freed_memory() -> None:
    """Lets glibc keep the memory of an image for the next one instead of returning it at once and faulting it in again: a tenth
    of the time of decoding and resizing. What the user's environment says counts; other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    for variable, (parameter, size) in _KEPT.items():
        if variable not in os.environ:
            mallopt(parameter, size)


class Job:
    """Rows of one batch in the making. `memory`: layout -> the array of each key, called at least once before it is filled."""

    def __init__(self, number: int, memory: Callable[[Layout], dict[str, np.ndarray]]):
        self.number, self.layout = number, None
        self.error: BaseException | None = None
        self.failed_at: int | None = None  # the first place that failed
        self.done = threading.Event()
        self.pieces = 0
        self._memory, self._lock = memory, threading.Lock()

    def arrays(self, layout: Layout) -> dict[str, np.ndarray]:
        with self._lock:
            if self.layout is None:
                self._arrays = self._memory(layout)
                self.layout = layout
            buffers.check(layout, self.layout)
            return self._arrays

    def fail(self, place: int, error: BaseException) -> None:
        with self._lock:
            if self.failed_at is None or place < self.failed_at:
                self.failed_at, self.error = place, error

    def finish_piece(self) -> bool:
        """Whether it was the last."""
        with self._lock:
            self.pieces -= 1
            return not self.pieces

    def take(self) -> dict[str, np.ndarray]:
        """The arrays, which the job then forgets; raises what went wrong."""
        if self.error is not None:
            raise self.error
        found, self._arrays = self._arrays, None
        return found


class Crew:
    """`threads` that fill rows `rows` of each batch begun (0: whoever calls `help` does). `finished` is called by the thread
    that completes a job. `board`: int64 [threads or 1, len(BOARD)].
    """

    def __init__(self, draws: Any, rows: Sequence[int], threads: int, board: np.ndarray | None = None,
                 finished: Callable[[Job], None] | None = None):
        keep_freed_memory()
        self.draws, self.rows = draws, rows
        self.board = np.zeros((threads or 1, len(BOARD)), np.int64) if board is None else board
        self.board[:, 0] = IDLE
        self._finished, self._stopped = finished, False
        self._todo: queue.SimpleQueue[tuple[Job, int, int] | None] = queue.SimpleQueue()
        # Daemons: one that hangs in a read must not keep the process from ending.
        self._threads = [threading.Thread(target=self._run, args=(i,), name=f'bigvlm-data-{i}', daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def begin(self, job: Job) -> None:
        starts = range(0, len(self.rows), _CHUNK)
        job.pieces = len(starts)
        for first in starts:
            self._todo.put((job, first, min(first + _CHUNK, len(self.rows))))

    def help(self, job: Job) -> None:
        """Work in the calling thread until the job is done."""
        while not job.done.is_set():
            self._make(0, *self._todo.get())

    def stop(self, wait_s: float = 5.) -> None:
        """End the threads; examples under way are finished, but a thread that hangs is left behind."""
        self._stopped = True
        for _ in self._threads:
            self._todo.put(None)
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0., until - time.monotonic()))

    def _run(self, me: int) -> None:
        while (piece := self._todo.get()) is not None and not self._stopped:
            self._make(me, *piece)

    def _make(self, me: int, job: Job, first: int, stop: int) -> None:
        began = time.monotonic_ns()
        try:
            self._fill(self.board[me], job, range(first, stop))
        except buffers.TooSmall as small:
            job.fail(first, small)
        except BaseException as error:  # noqa: BLE001  it is raised where the batch is asked for
            number, row, *_ = self.board[me].tolist()
            job.fail(self.rows.index(row), noted(error, self.draws, number, row))
        self.board[me, 0] = IDLE
        self.board[me, 4] += time.monotonic_ns() - began
        if job.finish_piece():
            job.done.set()
            if self._finished:
                self._finished(job)

    def _fill(self, at: np.ndarray, job: Job, places: range) -> None:
        arrays = None
        for place in places:
            if self._stopped or job.failed_at is not None and place > job.failed_at:
                return
            row = self.rows[place]
            at[:3] = job.number, row, time.monotonic_ns()
            values = buffers.numbers(self.draws.example(job.number, row))
            if arrays is None:
                arrays = job.arrays(buffers.layout_of(values))
            elif values.keys() != arrays.keys():
                buffers.check(buffers.layout_of(values), job.layout)
            for key, value in values.items():
                array = arrays[key]
                if value.shape != array.shape[1:] or value.dtype != array.dtype:
                    buffers.check(buffers.layout_of(values), job.layout)
                array[place] = value
            at[3] += 1


def noted(error: BaseException, draws: Any, number: int, row: int) -> BaseException:
    """The error, with a note that names the example it belongs to."""
    error.add_note(f'while making {name(draws, number, row)}, row {row} of batch {number}')
    return error


def name(draws: Any, number: int, row: int) -> str:
    """What draws calls an example; without a name where that takes too long or fails."""
    found: list[str] = []

    def ask() -> None:
        try:
            found.append(draws.describe(number, row))
        except Exception:  # noqa: BLE001  there is something worse to report
            log.debug('row %d of batch %d has no name', row, number, exc_info=True)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NAMING_S)
    return found[0] if found else f'row {row} of batch {number}'


class Stalls:
    """Warns of examples that take longer than `slow_s`, once each."""

    def __init__(self, draws: Any, slow_s: float):
        self._draws, self._slow_s = draws, slow_s
        self._told: set[tuple] = set()
        self._names: dict[tuple[int, int], str] = {}  # of examples that were slow: asked once, for naming may hang as well

    def longest(self, board: np.ndarray, who: str) -> tuple[float, str]:
        """(seconds, example) of the thread that is at one example the longest; (0, '') where nobody is slow."""
        now, found = time.monotonic_ns(), (0., '')
        for number, row, since, *_ in board.tolist():
            seconds = (now - since) / 1e9
            if number == IDLE or seconds <= self._slow_s:
                continue
            if (number, row) not in self._names:
                self._names[number, row] = name(self._draws, number, row)
            example = self._names[number, row]
            found = max(found, (seconds, example))
            self.tell(who, example, seconds, number, row)
        return found

    def tell(self, who: str, what: str, seconds: float, *place: int) -> None:
        """Warn, unless that was said already."""
        if seconds > self._slow_s and (who, what, *place) not in self._told:
            self._told.add((who, what, *place))
            log.warning('%s has been at %s for %.3g s', who, what, seconds)
