"""A worker process: fills its rows of the batches that the trainer asks for.

    python -m bigvlm.data.worker FD      # as workers.py starts it; FD is this end of a socket

A process of its own rather than multiprocessing's, which would import the trainer's main module, and jax with it.
"""
import faulthandler
import importlib
import mmap
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np

from bigvlm.data import buffers
from bigvlm.data.buffers import Layout, TooSmall
from bigvlm.data.crew import BOARD, Crew, Job

OPENED = -1  # as a batch's number: the data are open


class Start(NamedTuple):
    """To a worker: `opener(spec)` makes its draws; it fills rows `rows`, which begin at `first` of the `total` in memory."""
    opener: str
    spec: Any
    threads: int
    rows: tuple[int, ...]
    first: int
    total: int
    fd: int
    board: tuple[int, int]  # offset and length


class Begin(NamedTuple):
    """To a worker: fill its rows of a batch, in the memory at `offset`."""
    number: int
    offset: int
    nbytes: int


class Done(NamedTuple):
    """From a worker. `error`: pickled, of the example at `failed_at` of its rows. `lost`: unusable ones found, by data set.

    Where `layout` does not fit the memory, `small`: nothing was done.
    """
    number: int
    layout: Layout | None
    small: bool = False
    error: bytes | None = None
    failed_at: int = 0
    lost: Mapping[str, list[tuple[int, str, str]]] = {}
    counts: Mapping[str, float] = {}


def serve(fd: int) -> None:
    """Make what the trainer at the other end of the socket asks for, until it closes it."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # which reach the whole group: when to end is the trainer's decision
        signal.signal(asked, signal.SIG_IGN)
    faulthandler.enable()  # a crash in a decoder says where
    pipe = connection.Connection(fd)
    try:
        server = _Server(pipe, pipe.recv())
    except EOFError:
        os._exit(0)
    try:
        server.run()
    except (EOFError, OSError):
        os._exit(0)  # whatever the threads are at


class _Server:
    def __init__(self, pipe: connection.Connection, start: Start):
        self._pipe, self._start, self._sending = pipe, start, threading.Lock()
        self._maps: dict[int, mmap.mmap] = {}
        offset, length = start.board
        board = np.frombuffer(self._map(offset, length), np.int64, start.threads * len(BOARD)).reshape(start.threads, len(BOARD))
        try:
            module, _, function = start.opener.partition(':')
            self._draws = getattr(importlib.import_module(module), function)(start.spec)
        except BaseException as error:  # noqa: BLE001  the trainer raises it
            self._send(Done(OPENED, None, error=_pickled(error)))
            raise EOFError from error
        for dataset in self._draws.datasets.values():
            dataset.lost_log.tell()
        self._crew = Crew(self._draws, start.rows, start.threads, board, self._finished)
        self._send(Done(OPENED, None))

    def run(self) -> None:
        while True:
            begin = self._pipe.recv()
            self._crew.begin(Job(begin.number, self._memory(begin)))

    def _memory(self, begin: Begin) -> Callable[[Layout], dict[str, np.ndarray]]:
        total, rows = self._start.total, slice(self._start.first, self._start.first + len(self._start.rows))

        def arrays(layout: Layout) -> dict[str, np.ndarray]:
            if not begin.nbytes or buffers.size(layout, total) > begin.nbytes:
                raise TooSmall(layout)
            return {k: v[rows] for k, v in buffers.arrays(self._map(begin.offset, begin.nbytes), layout, total).items()}
        return arrays

    def _map(self, offset: int, length: int) -> mmap.mmap:
        if offset not in self._maps:
            self._maps[offset] = mmap.mmap(self._start.fd, length, offset=offset)
        return self._maps[offset]

    def _finished(self, job: Job) -> None:
        lost = {key: found for key, d in self._draws.datasets.items() if (found := d.lost_log.new())}
        if isinstance(job.error, TooSmall):
            done = Done(job.number, job.error.layout, small=True, lost=lost)
        elif job.error is not None:
            done = Done(job.number, None, error=_pickled(job.error), failed_at=job.failed_at, lost=lost, counts=self._draws.counts())
        else:
            done = Done(job.number, job.layout, lost=lost, counts=self._draws.counts())
        self._send(done)

    def _send(self, done: Done) -> None:
        try:
            with self._sending:
                self._pipe.send(done)
        except OSError:
            os._exit(0)


def _pickled(error: BaseException) -> bytes:
    """The error for the trainer to raise, with where it happened; its text alone if it cannot travel."""
    trace = ''.join(traceback.format_tb(error.__traceback__))
    error.add_note(f'in data worker {os.getpid()}:\n{trace}')
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
        return pickled
    except Exception:  # noqa: BLE001  arguments that cannot be pickled, or a constructor that wants others
        return pickle.dumps(RuntimeError(''.join(traceback.format_exception(error))))


if __name__ == '__main__':
    from bigvlm.data import worker  # under its own name: messages are pickled as of it
    worker.serve(int(sys.argv[1]))
