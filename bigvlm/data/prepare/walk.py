"""Every example of a source, in order, read and worked on by threads."""
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from bigvlm.data.bad import BadExample
from bigvlm.data.dataset import patiently

_CHUNK = 32  # examples per task, and per request where the source reads neighbours together


def walk(source: Any, task: Callable[[int, Any], Any], indices: Sequence[int] | None = None, workers: int = 0,
         what: str = '', read: Callable[[int], Any] | None = None) -> Iterator[tuple[int, Any]]:
    """(index, task(index, example)) for each of `indices` (all if not said), in their order.

    Where the source or the task raises BadExample it stands in place of the result. `read`: what to read of an example
    instead of all of it, such as `source.captions`. `workers`: threads, 0 is one per core. `what`: the name of a
    progress bar on stderr, '' for none. Raises OSError where the storage fails three times.
    """
    indices = range(len(source)) if indices is None else indices
    workers = workers or os.cpu_count() or 1
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(workers, 'bigvlm-walk') as pool, progress(len(indices), what) as bar:
        try:
            for first in range(0, len(indices), _CHUNK):
                ahead.append(pool.submit(_work, source, task, indices[first:first + _CHUNK], read))
                if len(ahead) > 2 * workers:
                    yield from _taken(ahead, bar)
            while ahead:
                yield from _taken(ahead, bar)
        finally:
            for future in ahead:
                future.cancel()


def progress(total: int, what: str) -> tqdm:
    """A bar with rate and time left: several times a second on a terminal, else a line now and then."""
    return tqdm(total=total, desc=what or None, unit=' examples', disable=not what, mininterval=.1 if sys.stderr.isatty() else 20.,
                smoothing=.05)


def spread(n: int, limit: int) -> Sequence[int]:
    """All of range(n), or `limit` of them, evenly spread."""
    return range(n) if not limit or limit >= n else np.linspace(0, n - 1, limit).round().astype(int).tolist()


def _taken(ahead: deque[Future], bar: tqdm) -> list[tuple[int, Any]]:
    done = ahead.popleft().result()
    bar.update(len(done))
    return done


def _work(source: Any, task: Callable, indices: Sequence[int], read: Callable | None) -> list[tuple[int, Any]]:
    done = []
    for index, example in zip(indices, _read(source, indices, read)):
        try:
            done.append((index, example if isinstance(example, BadExample) else task(index, example)))
        except BadExample as bad:
            done.append((index, bad))
    return done


def _read(source: Any, indices: Sequence[int], read: Callable | None) -> Iterator[Any]:
    """Examples, or the BadExample that reading them raised."""
    first, stop = int(indices[0]), int(indices[-1]) + 1
    if read is None and hasattr(source, 'read') and stop - first == len(indices):
        yield from patiently(lambda _: source.read(first, stop), first)
        return
    for index in indices:
        try:
            yield patiently(read or source.__getitem__, index)
        except BadExample as bad:
            yield bad
