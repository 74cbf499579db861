"""Several runs side by side: what their recipes differ in, their curves in the same charts, a table of what came out.

``Group`` is what one line or row stands for: one run, or the runs that differ in nothing but the seed.
"""

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.report import overlay, page, shown
from bigvlm.report.overlay import Line
from bigvlm.report.read import Run
from bigvlm.report.spread import Spread, ranks
from bigvlm.report.svg import number, percent

ABSENT = '–'
_SEED = ('seed',)
_PROSE = ('about',)
GIB = 2 ** 30


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs under one name; more than one are seeds of the same recipe."""
    name: str
    runs: tuple[Run, ...]

    def spread(self, column: 'Column') -> Spread:
        """The column's value of every run that has one."""
        values = [column.of(run) for run in self.runs]
        counts = [count for run in self.runs if (count := last(f'{column.key.partition("/")[0]}/n')(run))]
        return Spread(tuple(v for v in values if v is not None), .5 / min(counts) if counts and column.form is percent else 0.)

    @property
    def state(self) -> str:
        """``finished``, or what became of the runs that are not, and how far they are."""
        open_ = [run for run in self.runs if run.info.get('status') != 'finished']
        if not open_:
            return 'finished'
        told = [f'{run.info.get("status", "not started")} at step {run.step:,}' + (f' of {run.total_steps:,}' if run.total_steps else '')
                for run in open_]
        return ', '.join(dict.fromkeys(told)) if len(self.runs) == 1 else f'{len(open_)} of {len(self.runs)}: {told[0]}'


@dataclasses.dataclass(frozen=True)
class Column:
    """A number of a run. ``less``: whether less of it is better; None: neither. ``of(run)`` is None where a run has none."""
    key: str
    title: str
    form: Callable[[float], str]
    less: bool | None
    of: Callable[[Run], float | None]
    headline: bool = True


# Groups.

def grouped(runs: Sequence[Run], pool_seeds: bool = False) -> list[Group]:
    """One group per run, named by its folder; with ``pool_seeds`` runs of the same recipe but for the seed are one."""
    if not pool_seeds:
        return [Group(name, (run,)) for name, run in zip(_distinct([run.name for run in runs]), runs)]
    pools: dict[str, list[Run]] = {}
    for run in runs:
        pools.setdefault(json.dumps({k: v for k, v in run.config.items() if k not in (*_SEED, *_PROSE)}, sort_keys=True), []).append(run)
    names = [_shared([run.name for run in pool]) for pool in pools.values()]
    return [Group(name, tuple(pool)) for name, pool in zip(_distinct(names), pools.values())]


def _shared(names: Sequence[str]) -> str:
    """What ``lr=1e-3_seed=0`` and ``lr=1e-3_seed=1`` have in common: their first ``_`` parts that are equal."""
    if len(names) == 1:
        return names[0]
    same = []
    for parts in zip(*(name.split('_') for name in names)):
        if len(set(parts)) > 1:
            break
        same.append(parts[0])
    return '_'.join(same) or names[0]


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    count: dict[str, int] = {}
    found = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f'{name} ({count[name]})')
    return found


# What the recipes differ in.

def differences(configs: Sequence[Mapping[str, Any]], ignore: Sequence[str] = (*_PROSE, *_SEED)) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each config as JSON, ABSENT where it has none) of every key that is not the same in all.

    Goes into dicts and into lists that hold dicts (data ops); a part that only some have is one row.
    """
    return _differing('', [{k: v for k, v in config.items() if k not in ignore} for config in configs])


def _differing(path: str, values: list[Any]) -> list[tuple[str, list[str]]]:
    if all(value == values[0] for value in values[1:]):
        return []
    if all(_is_list_of_dicts(value) for value in values) and len({len(value) for value in values}) == 1:
        values = [{str(i): item for i, item in enumerate(value)} for value in values]
    if not all(isinstance(value, Mapping) for value in values):
        return [(path, [ABSENT if value is ABSENT else json.dumps(value, ensure_ascii=False) for value in values])]
    found = []
    for key in dict.fromkeys(key for value in values for key in value):
        found += _differing(f'{path}.{key}' if path else key, [value.get(key, ABSENT) for value in values])
    return found


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value)


# What came out.

def columns(runs: Sequence[Run]) -> list[Column]:
    """Every evaluator's metrics, headlines and of these top-1 first, then loss, speed, memory, time: what any of the runs has."""
    found: dict[str, Column] = {}
    for run in runs:
        rows = shown.rows(run)
        leading = {row.evaluator for row in rows if row.headline}
        for row in rows:
            key = f'{row.evaluator}/{row.metric}'
            if row.metric in shown.COUNTS or key in found:
                continue
            headline = row.headline or row.evaluator not in leading and row.evaluator not in {k.partition('/')[0] for k in found}
            found[key] = Column(key, f'{shown.words(row.evaluator)}: {row.title}', row.form, less_is_better(key), last(key), headline)
    evaluations = sorted(found.values(), key=lambda column: (not column.headline, not column.key.endswith('/top1')))
    own = [column for column in RECORDED if any(column.of(run) is not None for run in runs)]
    if any(run.config.get('objectives') != runs[0].config.get('objectives') for run in runs):  # then one loss says nothing of another
        own = [dataclasses.replace(c, title='loss (objectives differ)', less=None, headline=False) if c.key == 'loss' else c for c in own]
    return [*evaluations, *own]


def less_is_better(key: str) -> bool:
    return bool(shown.LESS_IS_BETTER.fullmatch(key.rpartition('/')[2]))


def last(key: str) -> Callable[[Run], float | None]:
    """The newest value of a scalar."""
    return lambda run: float(run.curves[key].values[-1]) if key in run.curves else None


def by_key(runs: Sequence[Run], key: str) -> Column | None:
    """The column of a metric that was asked for by name: an evaluation's, a recorded one or any other scalar."""
    named = next((column for column in columns(runs) if column.key == key), None)
    if named is None and any(key in run.curves for run in runs):
        named = Column(key, key, number, less_is_better(key), last(key))
    return named


def _typical(key: str, scale: float = 1.) -> Callable[[Run], float | None]:
    return lambda run: page.median(run.curves[key]) * scale if key in run.curves else None


def _loss(run: Run) -> float | None:
    return page.tail(run.curves['loss']) if 'loss' in run.curves else None


def _highest(key: str) -> Callable[[Run], float | None]:
    return lambda run: float(np.nanmax(run.curves[key].values)) if key in run.curves else None


def _elapsed(run: Run) -> float | None:
    """Seconds from first to last line of metrics, evaluations too; without the gaps in which the run was launched again."""
    times = run.times.values
    starts = [datetime.datetime.fromisoformat(one['started']).timestamp() for one in run.info.get('launches') or () if 'started' in one]
    gaps = [b - a for a, b in zip(times[:-1], times[1:]) if not any(a < start <= b for start in starts)]
    return float(sum(gaps)) if len(times) > 1 else None


def gibibytes(value: float) -> str:
    return f'{value / GIB:.3g} GiB'


RECORDED = (
    Column('loss', 'loss', number, True, _loss),
    Column('examples_per_s', 'examples/s', number, None, _typical('examples_per_s')),
    Column('step_time', 'seconds/step', number, None, _typical('step_time'), headline=False),
    Column('data_wait', 'waiting for data', percent, None, _typical('data_wait'), headline=False),
    Column('mfu', 'MFU', percent, None, _typical('mfu')),
    Column('device_memory_peak', 'device memory, peak', gibibytes, None, _highest('device_memory_peak')),
    Column('host_memory_peak', 'host memory, peak', gibibytes, None, _highest('host_memory_peak')),
    Column('parameters', 'parameters', number, None, lambda run: run.info.get('parameters')),
    Column('elapsed', 'time', page.duration, None, _elapsed))


def best(groups: Sequence[Group], column: Column) -> set[str]:
    """The group whose mean is best, and those that cannot be told from it; with one seed each, those of the best value.

    None where neither direction is better, and where all are alike.
    """
    if column.less is None:
        return set()
    first, *others = ranks({group.name: group.spread(column) for group in groups}, column.less)
    if not math.isfinite(first.spread.mean):
        return set()
    seeds = any(group.spread(column).n > 1 for group in groups)
    found = {first.name, *(first.ties if seeds else (r.name for r in others if r.spread.mean == first.spread.mean))}
    return found if len(found) < len(groups) else set()


def text_table(groups: Sequence[Group], shown_columns: Sequence[Column]) -> str:
    """Plain text: a row per group, headline columns only; ``*`` marks the best and what cannot be told from it."""
    kept = [column for column in shown_columns if column.headline]
    marks = [best(groups, column) for column in kept]
    lines = [['', *(column.title for column in kept)]]
    for group in groups:
        cells = [group.spread(column).text(column.form) + (' *' if group.name in mark else '') for column, mark in zip(kept, marks)]
        lines.append([group.name, *cells])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join('  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def lines_of(groups: Sequence[Group], key: str, examples: bool) -> list[Line]:
    """The group's curves of a scalar, over steps or over examples seen; seeds as their mean with sd."""
    found = []
    for place, group in enumerate(groups):
        curves = [scaled(run, key, examples) for run in group.runs if key in run.curves]
        line = overlay.mean(group.name, place, curves)
        if line is not None:
            found.append(line)
    return found


def scaled(run: Run, key: str, examples: bool) -> overlay.Curve:
    curve = run.curves[key]
    return overlay.Curve(curve.steps * run.config.get('batch', 1), curve.values) if examples else curve
