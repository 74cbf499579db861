"""What a run has left in its work directory, read so that no half-written or missing file stops the report."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm import figures
from bigvlm.report.svg import Curve


_NOT_FINITE = ('NaN', 'Infinity', '-Infinity')  # JSON has no number for them


@dataclasses.dataclass(frozen=True)
class Run:
    """A work directory's content. ``curves``: scalar name -> values over steps. ``times``: seconds over steps."""
    name: str
    curves: dict[str, Curve]
    times: Curve
    config: dict[str, Any]
    info: dict[str, Any]  # run.json
    lost: dict[str, dict[str, dict[str, Any]]]  # dataset -> reason -> count, and the first items
    figures: dict[str, tuple[int, figures.Gallery | figures.Confusion]]
    bad_lines: int
    data: dict[str, dict[str, Any]]  # dataset -> source, examples, surviving, fingerprint

    @property
    def evaluators(self) -> tuple[str, ...]:
        return tuple(self.config.get('evals') or ())

    def is_evaluation(self, name: str) -> bool:
        """Whether an evaluator wrote this scalar; the recipe says what evaluators there are."""
        return name.split('/', 1)[0] in self.evaluators

    @property
    def step(self) -> int:
        return int(self.times.steps[-1]) if len(self.times.steps) else 0

    @property
    def total_steps(self) -> int | None:
        """From run.json, or from a recipe that gives its length in steps."""
        value = self.info.get('total_steps', self.config.get('steps'))
        match = re.fullmatch(r'([\d_.e]+)( steps?)?', str(value).strip())
        try:
            return int(float(match[1].replace('_', ''))) if match else None
        except ValueError:
            return None

    def seconds_left(self) -> float | None:
        """From the pace of the last tenth of the run."""
        if not self.total_steps or len(self.times.steps) < 3:
            return None
        tail = slice(-max(3, len(self.times.steps) // 10), None)
        steps, times = np.diff(self.times.steps[tail]), np.diff(self.times.values[tail])
        pace = np.median(times[steps > 0] / steps[steps > 0]) if (steps > 0).any() else np.nan
        return float(pace * max(0, self.total_steps - self.step)) if pace > 0 else None


def read(workdir: str | Path) -> Run:
    workdir = Path(workdir)
    curves, times, bad_lines = _metrics(workdir / 'metrics.jsonl')
    lost = {dataset: {reason: noted for reason, noted in reasons.items() if isinstance(noted, dict) and {'count', 'items'} <= set(noted)}
            for dataset, reasons in _object(workdir / 'lost.json').items() if isinstance(reasons, dict)}
    return Run(workdir.resolve().name, curves, times, _object(workdir / 'config.json'), _object(workdir / 'run.json'),
               lost, figures.latest(workdir), bad_lines,
               {name: noted for name, noted in _object(workdir / 'data.json').items() if isinstance(noted, dict)})


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or damaged: the report then lacks that section."""
    try:
        content = json.loads(path.read_text(encoding='utf-8', errors='replace'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _metrics(path: Path) -> tuple[dict[str, Curve], Curve, int]:
    """Every scalar over ascending steps. A resumed run may repeat steps: what was written last holds."""
    try:
        text = path.read_text(encoding='utf-8', errors='replace')
    except OSError:
        text = ''
    entries, bad = _lines(text)
    columns: dict[str, dict[int, float]] = {}
    for entry in entries:
        step = entry.get('step') if isinstance(entry, dict) else None
        if not isinstance(step, (int, float)):
            bad += 1
            continue
        for name, value in entry.items():
            if type(value) is str and value in _NOT_FINITE:
                value = float(value)
            if name != 'step' and type(value) in (float, int):
                columns.setdefault(name, {})[step] = value
    curves = {name: _curve(column) for name, column in columns.items()}
    return curves, curves.pop('time', Curve(np.zeros(0), np.zeros(0))), bad


def _lines(text: str) -> tuple[list[Any], int]:
    lines = [line for line in text.split('\n') if line.strip()]
    with contextlib.suppress(ValueError):  # then line by line
        return json.loads(f'[{",".join(lines)}]'), 0  # all at once is several times as fast
    entries, bad = [], 0
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:  # the last line of a run that is writing, or was killed
            bad += 1
    return entries, bad


def _curve(column: dict[int, float]) -> Curve:
    steps, values = np.array(list(column), float), np.array(list(column.values()), float)
    order = np.argsort(steps, kind='stable')
    return Curve(steps[order], values[order])
