"""Metrics of a run: always as JSON lines, and to TensorBoard and Weights & Biases when asked.

``metrics.jsonl`` holds one JSON object a line: ``{"step": 50, "time": seconds since 1970, "loss": 2.31, …}``. JSON has
no NaN: what is not finite is written as the strings "NaN", "Infinity", "-Infinity", which Python's ``float`` reads.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from bigvlm.core.parts import RecipeError


class Writer:
    """Writes scalars of process 0 of a run; in the other processes it does nothing.

    Args:
        directory: the run's work directory.
        tensorboard: also write to ``directory/tensorboard``.
        wandb: also write to this project of Weights & Biases; '' for not.
        config: the resolved recipe, shown there.
        clock: seconds since 1970.

    Raises:
        RecipeError: a package that ``log.tensorboard`` or ``log.wandb`` needs is not installed.
    """

    def __init__(self, directory: str | Path, *, tensorboard: bool = False, wandb: str = '',
                 config: Mapping[str, Any] | None = None, clock: Callable[[], float] = time.time):
        self._directory, self._clock, self._primary = Path(directory), clock, jax.process_index() == 0
        self._file = self._tensorboard = None  # opened by resume, or the first write
        self._summary_writer = self._wandb = None
        if self._primary and tensorboard:
            self._summary_writer = _import('tensorboardX', 'log.tensorboard').SummaryWriter
        if self._primary and wandb:
            self._wandb = _start_wandb(self._directory, wandb, config or {})

    def resume(self, step: int | None) -> None:
        """Forgets what was written about steps after ``step``, from which the run goes on (None: forgets nothing), and
        a last line that a kill left half written."""
        if not self._primary:
            return
        self._close_files()
        path = self._directory / 'metrics.jsonl'
        _truncate(path, math.inf if step is None else step)
        self._file = open(path, 'a', encoding='utf-8')
        if self._summary_writer is not None:
            self._tensorboard = self._summary_writer(str(self._directory / 'tensorboard'),
                                                     purge_step=None if step is None else step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars ``{name: number}`` of one step, and flushes: a killed run loses none."""
        if not self._primary:
            return
        if self._file is None:
            self.resume(None)
        numbers = {name: float(value) for name, value in values.items()}
        line = {'step': int(step), 'time': round(self._clock(), 3), **{k: _json(v) for k, v in numbers.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + '\n')
        self._file.flush()
        if self._tensorboard is not None:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        self._close_files()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _close_files(self) -> None:
        for file in (self._file, self._tensorboard):
            if file is not None:
                file.close()
        self._file = self._tensorboard = None


def _json(number: float) -> float | str:
    if math.isfinite(number):
        return number
    return 'NaN' if math.isnan(number) else 'Infinity' if number > 0 else '-Infinity'


def _truncate(path: Path, last: float) -> None:
    """Keeps the whole lines of steps up to ``last``. The file is replaced at once, so that a kill cannot lose it."""
    if not path.exists():
        return
    text = path.read_text(encoding='utf-8', errors='replace')
    kept = [line for line in text.splitlines(keepends=True) if _step(line) <= last]
    if ''.join(kept) != text:
        rewritten = path.with_suffix('.new')
        rewritten.write_text(''.join(kept), encoding='utf-8')
        os.replace(rewritten, path)


def _step(line: str) -> float:
    """The step of a line; NaN, which is not up to any step, if it is not a whole one."""
    try:
        return json.loads(line)['step'] if line.endswith('\n') else math.nan
    except (ValueError, KeyError, TypeError):
        return math.nan


def _start_wandb(directory: Path, project: str, config: Mapping[str, Any]) -> Any:
    """The run of this work directory: the same one each time it is resumed."""
    wandb = _import('wandb', 'log.wandb')
    identity = directory / 'wandb_id.txt'
    if not identity.exists():
        identity.write_text(os.urandom(6).hex())
    return wandb.init(project=project, id=identity.read_text().strip(), name=directory.resolve().name, resume='allow',
                      dir=str(directory), config=dict(config))


def _import(package: str, key: str) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise RecipeError(f'{key}: the package {package} is not installed; pip install {package}') from None
