"""How fast a run goes and when it will be done: rates between two log lines, and the line itself."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np


class Progress:
    """Rates of a run, over the steps since the last ``measure`` (or ``start``), pauses left out.

    Args:
        total: the run's steps.
        batch: examples per step.
        peak: FLOP/s of all devices together at best; None where it is not known.
        clock: seconds.
    """

    def __init__(self, total: int, batch: int, peak: float | None = None,
                 clock: Callable[[], float] = time.perf_counter):
        self._total, self._batch, self._peak, self._clock = total, batch, peak, clock
        self._began, self._since = clock(), None  # since: (step, time, seconds waited so far)
        self._paused = 0.
        self._paces = collections.deque(maxlen=5)  # seconds per step of the last intervals
        self._loss, self._measured = float('nan'), {}

    def start(self, step: int, waited: float) -> None:
        """Begins to measure after ``step``: the first step, which compiles, is no measure of those that follow."""
        self._since, self._paused = (step, self._clock(), waited), 0.

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in this context (evaluation) does not count as training."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def measure(self, step: int, loss: float, flops: float | None, waited: float) -> dict[str, float]:
        """The scalars to log after ``step``.

        Args:
            loss: of this step, for the line.
            flops: of one step over the global batch.
            waited: seconds spent waiting for data since the run began.

        Returns:
            ``step_time`` (seconds), ``examples_per_s``, ``data_wait`` (fraction of the time) and, where it can be
            known, ``mfu`` (model FLOPs utilisation, a fraction); nothing before ``start``.
        """
        self._loss, now = loss, self._clock()
        if self._since is None or step == self._since[0]:
            self._measured = {}
            return {}
        seconds = max(now - self._since[1] - self._paused, 1e-9)
        step_time = seconds / (step - self._since[0])
        self._measured = {'step_time': step_time, 'examples_per_s': self._batch / step_time,
                          'data_wait': min(1., (waited - self._since[2]) / seconds)}
        if flops and self._peak:
            self._measured['mfu'] = flops / step_time / self._peak
        self._paces.append(step_time)
        self.start(step, waited)
        return dict(self._measured)

    def line(self, step: int) -> str:
        """``step 120/1500  loss 2.31  1,234 ex/s  207 ms/step  wait 3%  mfu 41%  eta 4m12s``, as last measured."""
        words = [f'step {step}/{self._total}', f'loss {self._loss:.4g}']
        if not self._measured:
            return '  '.join([*words, f'first step after {duration(self._clock() - self._began - self._paused)}'])
        measured = self._measured
        rate = measured['examples_per_s']
        words += [f'{rate:,.0f} ex/s' if rate >= 10 else f'{rate:.2g} ex/s', f'{_seconds(measured["step_time"])}/step',
                  f'wait {measured["data_wait"]:.0%}']
        if 'mfu' in measured:
            words.append(f'mfu {measured["mfu"]:.0%}')
        # The median: one slow interval (a save, a busy file system) does not move it.
        return '  '.join([*words, f'eta {duration(float(np.median(self._paces)) * (self._total - step))}'])


def duration(seconds: float) -> str:
    """In the two largest units: ``12s``, ``4m12s``, ``2h05m``, ``3d04h``."""
    whole = int(round(seconds))
    for size, unit, smaller, name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm'), (60, 'm', 1, 's')):
        if whole >= size:
            return f'{whole // size}{unit}{whole % size // smaller:02d}{name}'
    return f'{whole}s'


def _seconds(seconds: float) -> str:
    return f'{1000 * seconds:.3g} ms' if seconds < .9995 else f'{seconds:.3g} s'
