"""From host batches to device arrays: the next batch is already on the devices when the step wants it."""

import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigvlm.core import mesh as mesh_lib
from bigvlm.data.pipeline import Data, Draws, Stream

_POLL_S = 1.


class Feed:
    """Batches of one stream as global arrays: ``next(feed) -> (ids [rows, 2] of this process, {key: array [B, …]})``.

    A thread waits for the stream and starts each transfer, so that one batch is in use, one is on its way and the stream
    makes others. ``wait_s``: how long the consumer has waited. What the stream raises is raised here, in its batch's turn.
    """

    def __init__(self, draws: Draws, stream: Stream, mesh: jax.sharding.Mesh, batch: int):
        self.draws, self.stream, self.wait_s, self.padding = draws, stream, 0., None
        self._mesh, self._batch = mesh, batch
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._failed: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name='bigvlm-feed', daemon=True)
        self._thread.start()

    def __next__(self) -> tuple[np.ndarray, dict[str, jax.Array]]:
        began = time.perf_counter()
        found = self._failed or self._ready.get()
        self.wait_s += time.perf_counter() - began
        if isinstance(found, BaseException):
            self._failed = found
            raise found
        ids, batch, self.padding = found
        return ids, batch

    def close(self) -> None:
        self._closed.set()
        self.stream.close()
        self._thread.join()
        self.draws.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                local = next(self.stream)
                padding = 1 - float(local['patch_valid'].mean()) if 'patch_valid' in local else None
                found = local['id'], mesh_lib.put_batch(local, self._mesh, self._batch), padding
            except StopIteration:  # closed
                return
            except BaseException as error:  # noqa: BLE001  it belongs to the consumer
                found = error
            while not self._closed.is_set():
                try:
                    self._ready.put(found, timeout=_POLL_S)
                    break
                except queue.Full:
                    continue
            if isinstance(found, BaseException):
                return


class Feeds:
    """The feeds of the stage that a run is in, one for each kind of batch. ``loader``: Stream's own settings."""

    def __init__(self, data: Data, first_steps: tuple[int, ...], total_steps: int, mesh: jax.sharding.Mesh, loader: Mapping[str, Any]):
        self.data, self.first_steps, self.total_steps, self.mesh, self.loader = data, first_steps, total_steps, mesh, loader
        self.batch = data.config['batch']
        self.stage, self._open, self._before = None, {}, 0.

    def next(self, step: int, stage: int) -> tuple[str, np.ndarray, dict[str, jax.Array]]:
        """(kind, this process's ids, the batch) of a step."""
        if stage != self.stage:
            self._enter(step, stage)
        kind = self.data.kinds.at(step)
        return kind, *next(self._open[kind])

    @property
    def wait_s(self) -> float:
        """How long steps have waited for data."""
        return self._before + sum(feed.wait_s for feed in self._open.values())

    def _enter(self, step: int, stage: int) -> None:
        self.close()
        self.stage = stage
        rows = mesh_lib.process_rows(self.mesh, self.batch)
        drawn = {kind: self.data.draws(kind, stage, self.first_steps, self.total_steps) for kind in self.data.kinds.weights}
        self._ios = {id(io): io for draws in drawn.values() for d in draws.datasets.values()
                     if (io := getattr(d.source, 'io', None)) is not None}
        self._counted_before = self._counted()
        for kind, draws in drawn.items():
            stream = Stream(draws, self.batch, self.data.kinds.count(kind, step), rows, **self.loader)
            self._open[kind] = Feed(draws, stream, self.mesh, self.batch)

    def scalars(self) -> dict[str, float]:
        """What is worth a curve: memory, storage requests and bytes an example, padding, unusable examples by data set."""
        stats = [feed.stream.stats() for feed in self._open.values()]
        total = {key: sum(s.get(key, 0) for s in stats) for key in ('buffer_bytes', 'examples', 'workers_rss_bytes')}
        found = {'data/batches_ready': float(min((s['batches_ready'] for s in stats), default=0)),
                 'data/buffer_gib': total['buffer_bytes'] / 2 ** 30}
        if rss := max((s.get('rss_bytes', 0) - s.get('workers_rss_bytes', 0) for s in stats), default=0):
            found['data/rss_gib'] = (rss + total['workers_rss_bytes']) / 2 ** 30
        for key, count in self._storage(stats).items():
            if count and total['examples']:
                found[f'data/{key}_per_example'] = count / total['examples']
        for kind, feed in self._open.items():
            if feed.padding is not None:
                found[f'data/padding/{kind}'] = feed.padding
        for name, noted in self.data.record().items():
            if noted['unusable']:
                found[f'data/unusable/{name}'] = float(noted['unusable'])
        return found

    def _storage(self, stats: list[Mapping[str, Any]]) -> dict[str, float]:
        """Requests and bytes since this stage began: in this process kinds may share a source, whose count is one."""
        if self.loader['processes']:
            return {key: sum(s.get(key, 0) for s in stats) for key in ('requests', 'bytes')}
        now = self._counted()
        return {key: now[key] - self._counted_before[key] for key in now}

    def _counted(self) -> dict[str, int]:
        ios = self._ios.values()
        return {'requests': sum(io.requests for io in ios), 'bytes': sum(io.bytes for io in ios)}

    def close(self) -> None:
        """Stop all threads and processes."""
        for feed in self._open.values():
            self._before += feed.wait_s
            feed.close()
        self._open = {}
