"""Trains points one after another or several at a time, and says how far all of it is."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, IO

import numpy as np

from bigvlm.progress import duration
from tools import _points
from tools._points import Point

_POLL_S, _TOLD_S = .2, 60.
_LONGEST = 500  # characters of why a run failed


@dataclasses.dataclass
class _Job:
    point: Point
    number: int
    slot: int
    process: subprocess.Popen
    output: IO
    began: float


@dataclasses.dataclass
class Runner:
    """``run`` trains what is not finished.

    root: the sweep's folder. jobs: how many run at a time. devices: ids given out to the jobs in equal shares
    (CUDA_VISIBLE_DEVICES); none: every job sees all. say: what to do with a line of progress.
    """
    root: Path
    jobs: int = 1
    devices: Sequence[str] = ()
    say: Callable[[str], None] = lambda line: print(line, flush=True)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    stopping: bool = False
    _seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self, points: Sequence[Point]) -> bool:
        """Whether all are finished; what failed is in ``failures``. A signal sets ``stopping``, and stops the runs, which save."""
        states = {point.name: point.state(self.root) for point in points}
        waiting = [(i, point) for i, point in enumerate(points, start=1) if states[point.name] != 'finished']
        if len(waiting) < len(points):
            self.say(f'{len(points) - len(waiting)} of {len(points)} runs are finished already')
        running: list[_Job] = []
        heard = [number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, self._stop) for number in heard}
        try:
            told, asked = time.monotonic(), False
            while running or waiting and not self.stopping:
                while waiting and len(running) < self.jobs and not self.stopping:
                    number, point = waiting.pop(0)
                    running.append(self._start(number, len(points), point, states[point.name], {job.slot for job in running}))
                if self.stopping and not asked:
                    asked = True
                    for job in running:
                        job.process.terminate()
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    self._ended(job, len(points), len(waiting), running)
                if running and time.monotonic() - told > _TOLD_S:
                    told = time.monotonic()
                    self.say(self._line(len(points), len(waiting), running))
                time.sleep(_POLL_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stopping:
            self.say('stopped; the same command goes on')
        return not waiting and not self.failures and not self.stopping

    def _stop(self, number, frame) -> None:
        self.stopping = True

    def _start(self, number: int, total: int, point: Point, state: str, taken: set[int]) -> _Job:
        folder = self.root / point.name
        folder.mkdir(parents=True, exist_ok=True)
        slot = min(set(range(self.jobs)) - taken)
        environment = _points.environment()
        if self.devices:
            share = len(self.devices) // self.jobs
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(self.devices[slot * share:(slot + 1) * share])
        output = open(folder / 'output.txt', 'ab')
        # In a session of its own: an interrupt at the terminal reaches it once, from here.
        process = subprocess.Popen(point.command(self.root), env=environment, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        self.say(f'[{number}/{total}] {point.name}: {"goes on" if state == "started" else "starts"}')
        return _Job(point, number, slot, process, output, time.monotonic())

    def _ended(self, job: _Job, total: int, waiting: int, running: Sequence[_Job]) -> None:
        job.output.close()
        folder, seconds = self.root / job.point.name, time.monotonic() - job.began
        status = _json(folder / 'run.json').get('status')
        if job.process.returncode == 0 and status == 'finished':
            self._seconds.append(seconds)
            told = f'finished in {duration(seconds)}'
        elif self.stopping:
            told = 'stopped'
        else:
            self.failures[job.point.name] = reason(folder, job.process.returncode)
            told = f'FAILED: {self.failures[job.point.name]} ({folder / "output.txt"})'
        self.say(f'[{job.number}/{total}] {job.point.name}: {told}{self._left(waiting, running)}')

    def _line(self, total: int, waiting: int, running: Sequence[_Job]) -> str:
        shown = ', '.join(f'{job.point.name} {self._share(job):.0%}' for job in running)
        return f'[{total - waiting - len(running)}/{total}] now {shown}{self._left(waiting, running)}'

    def _left(self, waiting: int, running: Sequence[_Job]) -> str:
        """`` · 4 left, eta 12m10s``: from the runs that this command saw finish, or else the progress of the present ones."""
        if not waiting + len(running):
            return ''
        pace = float(np.mean(self._seconds)) if self._seconds else max(
            ((time.monotonic() - job.began) / share for job in running if (share := self._share(job)) > .02), default=0.)
        work = waiting + sum(1 - self._share(job) for job in running)
        left = f' · {waiting + len(running)} left'
        return f'{left}, eta {duration(pace * work / min(self.jobs, max(1, waiting + len(running))))}' if pace else left

    def _share(self, job: _Job) -> float:
        """How much of a run is done, as its files say."""
        folder = self.root / job.point.name
        total, step = _json(folder / 'run.json').get('total_steps'), _last_step(folder / 'metrics.jsonl')
        return min(1., step / total) if total else 0.


def reason(folder: Path, code: int) -> str:
    """Why a run failed, in one line: what it noted, or the last line that it printed."""
    try:
        printed = (folder / 'output.txt').read_text(encoding='utf-8', errors='replace').strip().splitlines()
    except OSError:
        printed = []
    noted = _json(folder / 'run.json')
    if noted.get('status') == 'failed' and noted.get('error'):
        return str(noted['error']).splitlines()[0]
    ending = f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
    ours = [i for i, line in enumerate(printed) if line.startswith('bigvlm: ')]
    if ours and code > 0:  # a refused recipe: that line says what, and those after it what differs
        return ' '.join(line.strip() for line in printed[ours[-1]:]).removeprefix('bigvlm: ')[:_LONGEST]
    return (printed or [ending])[-1] + (f' ({ending})' if code < 0 else '')


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file yet; the trainer replaces it at once, so half of it is never seen."""
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def _last_step(path: Path) -> int:
    """Of the last whole line of metrics; 0 before there is one."""
    if not path.exists():
        return 0
    with open(path, 'rb') as file:
        file.seek(max(0, os.path.getsize(path) - 65_536))
        lines = [line for line in file.read().split(b'\n')[:-1] if line.startswith(b'{"step": ')]
    return int(json.loads(lines[-1])['step']) if lines else 0
