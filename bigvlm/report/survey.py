"""Several methods under one budget: ranks, ties, curves, cost. Worked out here, run by ``tools/survey.py``."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from bigvlm.report import compare, side_by_side, targets
from bigvlm.report.compare import Column, Group
from bigvlm.report.read import Run
from bigvlm.report.spread import ALPHA, Ranked, differ, p_value, ranks
from bigvlm.report.svg import percent

_BUDGET = ('batch', 'steps', 'towers', 'tokenizers', 'data', 'optim')


@dataclasses.dataclass(frozen=True)
class Method:
    """``final``: its seeds at the chosen rate. ``tuned``: {rate: run} of the tuning seed. ``missing``: why it has no result."""
    name: str
    lr: str
    final: Group
    tuned: Mapping[str, Run]
    missing: str = ''


@dataclasses.dataclass(frozen=True)
class Study:
    """All methods on the same data. ``metric``: what they are tuned and ranked by, EVALUATOR/METRIC."""
    name: str
    metric: str
    methods: tuple[Method, ...]

    @property
    def groups(self) -> list[Group]:
        return [method.final for method in self.methods if method.final.runs]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def column(self) -> Column | None:
        return compare.by_key(self.runs, self.metric)

    def ranked(self, column: Column) -> list[Ranked]:
        return ranks({group.name: group.spread(column) for group in self.groups}, bool(column.less))


def choose(tuned: Mapping[str, Run], metric: str) -> str | None:
    """The rate whose run has the best final value; None if no run has a finite one. Of equal ones the first."""
    column = compare.by_key(list(tuned.values()), metric)
    if column is None:
        return None
    sign = 1 if column.less else -1
    scores = {lr: sign * value for lr, run in tuned.items() if (value := column.of(run)) is not None and math.isfinite(value)}
    return min(scores, key=scores.get) if scores else None


def text(study: Study) -> str:
    """The ranking for the terminal."""
    column = study.column
    missing = [f'not run: {m.name}: {m.missing}' for m in study.methods if m.missing]
    if column is None:
        return '\n'.join([f'{study.name}: no run has {study.metric} yet', *missing])
    wanted = [c for c in compare.columns(study.runs) if c.headline]
    lines = [['', 'rank', 'lr', *(c.title for c in wanted)]]
    for one in study.ranked(column):
        method = next(m for m in study.methods if m.name == one.name)
        lines.append([one.name, _rank(one), method.lr, *(method.final.spread(c).text(c.form) for c in wanted)])
    title = f'{study.name}, ranked by {study.metric}; = is a tie (Welch t-test, p > {ALPHA:g})'
    return '\n'.join([title, compare.aligned(lines), *missing])


def page(title: str, about: Sequence[tuple[str, str]], studies: Sequence[Study], how: str, published: Sequence[dict[str, str]]) -> str:
    sections = [f'<p class="soft">{escape(how)}</p>']
    for study in studies:
        sections += [f'<h2>On {escape(study.name)}</h2>', *_study(study)]
    names = {method.name for study in studies for method in study.methods}
    rows = [row for row in published if any(row in targets.of(published, name) for name in names)]
    return side_by_side.whole(title, about, [*sections, targets.table(rows)])


def _study(study: Study) -> list[str]:
    column, groups = study.column, study.groups
    missing = ''.join(f'<div class="error">{escape(m.name)} is not complete: {escape(m.missing)}</div>' for m in study.methods if m.missing)
    if column is None:
        return [f'<p class="soft">No run has {escape(study.metric)} yet.</p>{missing}']
    columns = compare.columns(study.runs)
    return [_ranking(study, column, columns), missing, side_by_side.everything(groups, columns), _pairs(study, column),
            _rates(study, column), _budget(groups), side_by_side.curves(groups)]


def _rank(one: Ranked) -> str:
    return f'{one.rank}{"=" if one.ties else ""}'


def _ranking(study: Study, column: Column, columns: Sequence[Column]) -> str:
    kept = [c for c in columns if c.headline]
    marks = {c.key: compare.best(study.groups, c) for c in kept}
    rows = []
    for one in study.ranked(column):
        method = next(m for m in study.methods if m.name == one.name)
        cells = [f'<td class="best">{escape(method.final.spread(c).text(c.form))}</td>' if one.name in marks[c.key] else
                 escape(method.final.spread(c).text(c.form)) for c in kept]
        rows.append([escape(one.name), _rank(one), f'<td class="left">{escape(", ".join(one.ties)) or "–"}</td>', str(one.spread.n),
                     escape(method.lr), *cells])
    head = ['', 'rank', '<th class="left">cannot be told from</th>', 'seeds', 'lr', *(escape(c.title) for c in kept)]
    note = (f'Ranked by {column.title}. Rank: 1 + the methods that are better by more than the spread; = shares its place with those '
            'beside it. Mean ± sd over seeds; green: the best mean of a column and what cannot be told from it, unless that is all. Two '
            f'means differ if Welch’s two-sided t-test over seeds gives p ≤ {ALPHA:g}, not corrected for the number of comparisons; '
            'otherwise they are a tie. The sd of a share is taken for half an example at least.')
    return f'{side_by_side.table(head, rows, "fit")}<p class="soft">{escape(note)}</p>'


def _pairs(study: Study, column: Column) -> str:
    """Every method against every other on the ranking metric."""
    order = [one.name for one in study.ranked(column)]
    spreads = {group.name: group.spread(column) for group in study.groups}
    rows = []
    for a in order:
        cells = []
        for b in order:
            p = p_value(spreads[a], spreads[b])
            if a == b or math.isnan(p):
                cells.append('' if a == b else 'one seed')
                continue
            gap = spreads[a].mean - spreads[b].mean
            shown = f'{100 * gap:+.1f} points' if column.form is percent else f'{gap:+.3g}'
            cells.append(f'{shown}, p = {p:.2g}' if differ(spreads[a], spreads[b]) else f'<td class="same">tie ({shown}, p = {p:.2g})</td>')
        rows.append([escape(a), *cells])
    head = ['', *map(escape, order)]
    return f'<h3>Differences of {escape(column.title)}, row − column</h3>{side_by_side.table(head, rows)}' if len(order) > 1 else ''


def _rates(study: Study, column: Column) -> str:
    """What tuning found; a choice at the edge of the grid may not be the best there is."""
    rates = list(dict.fromkeys(lr for method in study.methods for lr in method.tuned))
    if len(rates) < 2:
        return ''
    rows = []
    for method in study.methods:
        cells = []
        for lr in rates:
            value = column.of(method.tuned[lr]) if lr in method.tuned else None
            shown = '' if value is None else column.form(value)
            cells.append(f'<td class="best">{shown}</td>' if lr == method.lr else shown)
        edge = method.lr in (rates[0], rates[-1]) and len(rates) > 2
        rows.append([escape(method.name), *cells, 'at the edge of the grid' if edge else ''])
    return (f'<h3>Learning rates: {escape(column.title)} of the tuning seed</h3>'
            f'{side_by_side.table(["", *map(escape, rates), ""], rows)}')


def _budget(groups: Sequence[Group]) -> str:
    """What is not the same for all methods, of what a budget should hold equal."""
    configs = [{key: group.runs[0].config.get(key) for key in _BUDGET} for group in groups]
    found = compare.differences(configs)
    if len(configs) < 2:
        return ''
    if not found:
        return '<h3>Unequal on purpose</h3><p class="soft">Nothing: batch, length, towers, tokenizers, data and optimizer are the same.</p>'
    rows = [[f'<code>{escape(key)}</code>', *map(side_by_side.value_cell, values)] for key, values in found]
    head = ['', *(escape(group.name) for group in groups)]
    return (f'<h3>What the methods need differently</h3><p class="soft">Of batch, length, towers, tokenizers, data and optimizer; all else '
            f'of these is the same.</p>{side_by_side.table(head, rows, "keys")}')


def write_csv(path: Path, studies: Sequence[Study]) -> None:
    """A row per data, method and metric: mean, sd, seeds, rank and ties where one direction is better."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['data', 'method', 'lr', 'metric', 'mean', 'sd', 'seeds', 'rank', 'ties'])
        for study in studies:
            lr = {method.name: method.lr for method in study.methods}
            for column in compare.columns(study.runs):
                for one in study.ranked(column):
                    placed = [one.rank, ' '.join(one.ties)] if column.less is not None else ['', '']
                    sd = '' if math.isnan(one.spread.sd) else repr(one.spread.sd)
                    if one.spread.n:
                        writer.writerow([study.name, one.name, lr[one.name], column.key, repr(one.spread.mean), sd, one.spread.n, *placed])
