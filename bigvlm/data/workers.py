"""The trainer's side of the worker processes that fill batches; theirs, and what is said, is in worker.py.

Each worker serves the same consecutive rows of every batch, so that what it has read ahead stays its own. Pixels go
straight into memory that the trainer maps too; over the sockets go batch numbers one way, and what was found unusable the
other. Work is a function of the batch's number, so that what a dead worker left undone is done again by its successor.
"""
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import buffers
from bigvlm.data.buffers import Buffers
from bigvlm.data.crew import BOARD, IDLE, Stalls, name
from bigvlm.data.worker import OPENED, Begin, Done, Start

log = logging.getLogger(__name__)

_DEATHS = 3  # of one worker, without anything finished in between, stop the run
_LOOK_S = 1.  # between two looks at who is slow
_OPENING_S = 600.  # what opening the data may take, whatever is said of examples
_LEAVE_S = 2.  # for a worker to end by itself
# Of workers, where the user's own says nothing else: no threads of linear algebra beside ours.
_ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}


class WorkersDie(RuntimeError):
    """A data worker dies again and again."""


class _Worker:
    """The trainer's side of one worker; `jobs`: batch number -> when it was told to begin."""

    def __init__(self, number: int, first: int, rows: tuple[int, ...], board: np.ndarray):
        self.number, self.first, self.rows, self.board = number, first, rows, board
        self.jobs: dict[int, float] = {}
        self.deaths, self.counts, self.before = 0, {}, {}
        self.given_up: BaseException | None = None
        self.ready = False

    def start(self, message: Start) -> None:
        self.board[:, 0] = IDLE
        self.ready, self.heard = False, time.monotonic()
        self.pipe, theirs = connection.Pipe()
        environment = _ENVIRONMENT | os.environ | {'PYTHONPATH': os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self.process = subprocess.Popen([sys.executable, '-m', 'bigvlm.data.worker', str(theirs.fileno())], env=environment,
                                        stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), message.fd))
        theirs.close()
        self.send(message)

    def send(self, message: NamedTuple) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            log.debug('%s is gone', self)  # reading from it will tell, and then it gets all its jobs anew

    def end(self, wait_s: float = 0.) -> str:
        """How it ended, with force if it has not after `wait_s`."""
        self.pipe.close()
        try:
            code = self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f'killed by signal {-code}' if code < 0 else f'exit status {code}'

    def __str__(self) -> str:
        return f'data worker {self.number} (pid {self.process.pid})'


class _Batch:
    """A batch in the making by `missing` workers."""

    def __init__(self, missing: set[_Worker]):
        self.missing, self.layout = missing, None
        self.memory_N, self.buffer = None, None
        self.failed_at, self.error = -1, None

    def fail(self, place: int, error: BaseException) -> None:
        if self.error is None or place < self.failed_at:
            self.failed_at, self.error = place, error


class Processes:
    """`processes` workers with `threads` each. `opener`: 'module:function' which makes the draws anew of `draws.spec`."""

    def __init__(self, draws: Any, opener: str, rows: Sequence[int], processes: int, threads: int, keep: int, slow_s: float,
                 hang_s: float | None):
        self._draws, self._rows, self._hang_s, self._slow_s = draws, tuple(rows), hang_s, slow_s
        self._buffers, self._stalls = Buffers(shared=True, keep=keep), Stalls(draws, slow_s)
        self._batches: dict[int, _Batch] = {}
        self._looked, self._nbytes = time.monotonic(), 0
        processes = min(processes, len(self._rows))
        boards, where = self._boards(processes, threads)
        cuts = [len(self._rows) * i // processes for i in range(processes + 1)]
        self._workers = [_Worker(i, cuts[i], self._rows[cuts[i]:cuts[i + 1]], boards[i]) for i in range(processes)]
        self._starts = {w: Start(opener, draws.spec, threads, w.rows, w.first, len(self._rows), self._buffers.fd, at)
                        for w, at in zip(self._workers, where)}
        try:
            pickle.dumps(self._starts[self._workers[0]])
        except Exception as error:
            raise RecipeError(f'loader.processes: what makes the data cannot be sent to another process ({error}); use threads') from error
        for worker in self._workers:
            worker.start(self._starts[worker])

    def begin(self, number: int) -> None:
        batch = self._batches[number] = _Batch(set(self._workers))
        if self._nbytes:
            self._give_memory(batch, self._nbytes)
        for worker in self._workers:
            self._tell(worker, number)

    def wait(self, number: int, timeout: float) -> bool:
        """Whether the batch is done, waiting `timeout` seconds at most."""
        until = time.monotonic() + timeout
        while not self.is_done(number):
            left = until - time.monotonic()
            if left <= 0:
                return False
            connection.wait([w.pipe for w in self._workers if w.given_up is None], left)
            self.listen()
        return True

    def is_done(self, number: int) -> bool:
        return not self._batches[number].missing

    def ready(self) -> int:
        """How many batches are done."""
        return sum(not batch.missing for batch in list(self._batches.values()))

    def take(self, number: int) -> dict[str, np.ndarray]:
        """A batch that is done, or what went wrong with it."""
        batch = self._batches.pop(number)
        if batch.error is not None:
            raise batch.error
        return buffers.arrays(batch.memory_N, batch.layout, len(self._rows))

    def listen(self) -> None:
        """Deal with what the workers have said, and look after those that say nothing."""
        for worker in self._workers:
            self._hear(worker)
        if time.monotonic() - self._looked >= min(_LOOK_S, self._slow_s):
            self._look()

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # all of them first: each ends when its socket does
        for worker in self._workers:
            worker.end(_LEAVE_S)
        self._batches.clear()
        self._buffers.close()

    @property
    def nbytes(self) -> int:
        return self._buffers.nbytes

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def work(self) -> list[tuple[int, float]]:
        """(examples made, seconds it took its threads together) of each worker."""
        return [(int(w.board[:, 3].sum()), float(w.board[:, 4].sum()) / 1e9) for w in self._workers]

    def counts(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for worker in self._workers:
            for key, value in (*worker.counts.items(), *worker.before.items()):
                found[key] = found.get(key, 0) + value
        return found

    def _boards(self, processes: int, threads: int) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
        """Where each worker says what it is at: memory of its own beside the batches'."""
        shape = threads, len(BOARD)
        taken = [self._buffers.take(8 * shape[0] * shape[1]) for _ in range(processes)]
        boards = [memory_N[:8 * shape[0] * shape[1]].view(np.int64).reshape(shape) for _, memory_N in taken]
        return boards, [(buffer.offset, len(buffer.map)) for buffer, _ in taken]

    def _give_memory(self, batch: _Batch, nbytes: int) -> None:
        self._nbytes = max(self._nbytes, nbytes)
        batch.buffer, batch.memory_N = self._buffers.take(nbytes)

    def _enlarge(self, batch: _Batch) -> None:
        nbytes = max(1, buffers.size(batch.layout, len(self._rows)))
        if batch.buffer is None or len(batch.buffer.map) < nbytes:  # else another worker has asked before
            self._give_memory(batch, nbytes)

    def _tell(self, worker: _Worker, number: int) -> None:
        batch = self._batches[number]
        if worker.given_up is not None:
            batch.fail(worker.first, worker.given_up)
            batch.missing.discard(worker)
            return
        worker.jobs[number] = time.monotonic()
        worker.send(Begin(number, batch.buffer.offset, len(batch.buffer.map)) if batch.buffer else Begin(number, 0, 0))

    def _hear(self, worker: _Worker) -> None:
        while worker.given_up is None:
            try:
                if not worker.pipe.poll():
                    return
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker, 'died')
                return
            self._settle(worker, message)

    def _settle(self, worker: _Worker, message: Done) -> None:
        worker.ready, worker.heard = True, time.monotonic()
        if message.number == OPENED:
            if message.error:
                self._give_up(worker, pickle.loads(message.error))
            return
        batch = self._batches[message.number]
        try:
            for key, found in message.lost.items():
                self._draws.datasets[key].lost_log.merge(found)
            if message.error:
                raise pickle.loads(message.error)
            batch.layout = batch.layout or message.layout
            buffers.check(message.layout, batch.layout)
        except BaseException as error:  # noqa: BLE001  it is raised in the batch's turn
            batch.fail(worker.first + message.failed_at, error)
        else:
            if message.small:
                self._enlarge(batch)
                self._tell(worker, message.number)
                return
        del worker.jobs[message.number]
        worker.deaths, worker.counts = 0, message.counts
        batch.missing.discard(worker)

    def _look(self) -> None:
        self._looked = time.monotonic()
        for worker in self._workers:
            if not worker.jobs or worker.given_up is not None:
                continue
            seconds, example = self._stalls.longest(worker.board, str(worker))
            patience_s = self._hang_s
            if not seconds and np.all(worker.board[:, 0] == IDLE):
                seconds = self._looked - max(worker.heard, *worker.jobs.values())
                example = 'its work' if worker.ready else 'opening its data'
                if not worker.ready and patience_s is not None:
                    patience_s = max(patience_s, _OPENING_S)
                if worker.ready or seconds > _OPENING_S / 10:
                    self._stalls.tell(str(worker), example, seconds)
            if patience_s is not None and seconds > patience_s:
                worker.process.kill()
                self._replace(worker, f'hung for {seconds:.3g} s at {example} and was stopped')

    def _replace(self, worker: _Worker, how: str) -> None:
        """Start it again, with all that it had not finished."""
        at = [(number, row) for number, row, *_ in worker.board.tolist() if number != IDLE]
        if how == 'died':
            how = f'died: {worker.end(_LEAVE_S)}'
        else:
            worker.end()
        examples = ', '.join(name(self._draws, *where) for where in at) or ('nothing' if worker.ready else 'opening its data')
        worker.deaths += 1
        for key, value in worker.counts.items():
            worker.before[key] = worker.before.get(key, 0) + value
        worker.counts = {}
        said = f'{worker} {how}; it was at {examples}'
        if worker.deaths >= _DEATHS:
            self._give_up(worker, WorkersDie(f'{said}; {worker.deaths} times in a row without finishing anything'))
            return
        log.warning('%s; it is started again', said)
        worker.start(self._starts[worker])
        for number in sorted(worker.jobs):
            self._tell(worker, number)

    def _give_up(self, worker: _Worker, error: BaseException) -> None:
        worker.given_up = error
        for number in worker.jobs:
            self._batches[number].fail(worker.first, error)
            self._batches[number].missing.discard(worker)
        worker.jobs = {}
