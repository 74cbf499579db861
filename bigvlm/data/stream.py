"""Batches by number: this process's rows of the global batches, made ahead by threads or by worker processes."""
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import buffers
from bigvlm.data.buffers import Buffers, Layout
from bigvlm.data.crew import Crew, Job, Stalls
from bigvlm.data.workers import Processes

_POLL_S = .2  # between two looks at whether to go on waiting
_OPENER = 'bigvlm.data.pipeline:open_draws'


class Stream:
    """An endless iterator over the batches `start`, `start` + 1, … of `draws`: `{key: array [rows, ...]}`.

    A batch holds everything in the examples that is an array or a number, keys in the order of their names. It depends on
    draws and its number only, not on `rows` (those of the global batch wanted here), `workers` (threads; 0 makes examples
    in the caller), `processes` (of so many threads each; 0 means this one) or `prefetch` (batches in the making). Raises
    what draws raises, naming the example, where the faulty batch would have been. The arrays are the caller's; their memory
    is used again when nothing refers to them any more.

    An example that takes more than `slow_s` seconds is named in a warning. After `hang_s` (None: never) a worker process
    is replaced; a thread cannot be, and so TimeoutError is raised. `opener`: 'module:function' that makes the draws of
    `draws.spec` anew in a worker process. `number`: of the next batch; `wait_s`: how long the consumer has waited.
    """

    def __init__(self, draws: Any, batch: int, start: int = 0, rows: slice | np.ndarray = slice(None), workers: int = 4,
                 processes: int = 0, prefetch: int = 2, slow_s: float = 60., hang_s: float | None = 600., opener: str = _OPENER):
        if batch < 1 or workers < 0 or processes < 0 or prefetch < 1:
            raise RecipeError('a stream needs batch >= 1, workers >= 0, processes >= 0, prefetch >= 1, '
                              f'found {batch}, {workers}, {processes}, {prefetch}')
        if processes and not workers:
            raise RecipeError(f'loader.workers: {processes} processes need at least one thread each, found 0')
        if slow_s <= 0 or hang_s is not None and hang_s <= 0:
            raise RecipeError(f'slow_s, hang_s: seconds, found {slow_s}, {hang_s}')
        mine = np.arange(batch)[rows].tolist()
        if not mine:
            raise RecipeError(f'rows {rows} of a batch of {batch} leave this process nothing')
        self.draws, self.number, self.wait_s = draws, start, 0.
        self._counts, self._ahead, self._next = draws.counts(), prefetch if workers else 0, start
        self._turn = threading.RLock()  # of whoever waits for a batch or ends the stream
        self._closed = False
        keep = prefetch + 2
        self._makers = (Processes(draws, opener, mine, processes, workers, keep, slow_s, hang_s) if processes
                        else _Threads(draws, mine, workers, keep, slow_s, hang_s))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        with self._turn:
            try:
                found = self._wait()
            except StopIteration:
                raise
            except BaseException:
                self.close()
                raise
        self.number += 1
        self.wait_s += time.perf_counter() - began
        return buffers.handed_out(found)

    def _wait(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise StopIteration
        while self._next <= self.number + self._ahead:  # the wanted batch and those made while it is used
            self._makers.begin(self._next)
            self._next += 1
        while not self._makers.wait(self.number, _POLL_S):
            if self._closed:
                raise StopIteration
        return self._makers.take(self.number)

    def close(self) -> None:
        """Stop threads and processes; the iteration ends, in a thread that is waiting too."""
        closed, self._closed = self._closed, True
        with self._turn:
            if not closed:
                self._makers.close()

    def stats(self) -> dict[str, Any]:
        """How it goes: `wait_s`, `batches_ready`; `examples` made; `worker_s`, seconds that the threads of each worker took;
        `buffer_bytes`, memory of the batches; `rss_bytes`, of this process, and of workers what is theirs alone, which is
        `workers_rss_bytes` (Linux only);
        `requests`, `bytes`: what draws counts, if it does, since the stream began.
        """
        if self._turn.acquire(blocking=False):  # else whoever has it is listening
            try:
                if not self._closed:
                    self._makers.listen()
            finally:
                self._turn.release()
        work = self._makers.work()
        found = dict(wait_s=self.wait_s, batches_ready=self._makers.ready(), examples=sum(count for count, _ in work),
                     worker_s=[seconds for _, seconds in work], buffer_bytes=self._makers.nbytes)
        if own := _resident((os.getpid(),)):
            found['workers_rss_bytes'] = _resident(self._makers.pids)
            found['rss_bytes'] = own + found['workers_rss_bytes']
        counts = self._makers.counts()
        for key, now in self.draws.counts().items():
            found[key] = now - self._counts.get(key, 0) + counts.get(key, 0)
        return found


class _Threads:
    """`workers` threads of this process that make batches; 0: the caller does."""

    pids: Sequence[int] = ()

    def __init__(self, draws: Any, rows: Sequence[int], workers: int, keep: int, slow_s: float, hang_s: float | None):
        self._draws, self._rows, self._workers, self._hang_s, self._slow_s = draws, tuple(rows), workers, hang_s, slow_s
        self._buffers, self._stalls = Buffers(shared=False, keep=keep), Stalls(draws, slow_s)
        self._crew = Crew(draws, self._rows, workers)
        self._jobs: dict[int, Job] = {}

    def begin(self, number: int) -> None:
        def memory(layout: Layout) -> dict[str, np.ndarray]:
            _, memory_N = self._buffers.take(buffers.size(layout, len(self._rows)))
            return buffers.arrays(memory_N, layout, len(self._rows))
        self._jobs[number] = Job(number, memory)
        self._crew.begin(self._jobs[number])

    def wait(self, number: int, timeout: float) -> bool:
        if not self._workers:
            self._crew.help(self._jobs[number])
        done = self._jobs[number].done.wait(timeout)
        if not done:
            self._look()
        return done

    def listen(self) -> None:
        """Threads tell by themselves."""

    def _look(self) -> None:
        seconds, example = self._stalls.longest(self._crew.board, 'a data thread')
        if self._hang_s is not None and seconds > self._hang_s:
            raise TimeoutError(f'a data thread has been at {example} for {seconds:.0f} s, more than hang_s={self._hang_s:g}; '
                               'worker processes (loader.processes) are replaced when that happens')

    def take(self, number: int) -> dict[str, np.ndarray]:
        return self._jobs.pop(number).take()

    def ready(self) -> int:
        return sum(job.done.is_set() for job in list(self._jobs.values()))

    def work(self) -> list[tuple[int, float]]:
        return [(int(self._crew.board[:, 3].sum()), float(self._crew.board[:, 4].sum()) / 1e9)]

    def counts(self) -> dict[str, float]:
        return {}  # those of draws itself are all

    @property
    def nbytes(self) -> int:
        return self._buffers.nbytes

    def close(self) -> None:
        self._crew.stop()
        self._jobs.clear()
        self._buffers.close()


def _resident(pids: Sequence[int]) -> int:
    """Bytes of memory: all of this process, of others what they do not share; 0 where that is not to be known."""
    if not Path('/proc/self/statm').exists():
        return 0
    total = 0
    for pid in pids:
        try:
            _, resident, shared, *_ = map(int, Path(f'/proc/{pid}/statm').read_text().split())
        except (OSError, ValueError):
            continue  # it has just died
        total += resident - (shared if pid != os.getpid() else 0)
    return total * os.sysconf('SC_PAGE_SIZE')
