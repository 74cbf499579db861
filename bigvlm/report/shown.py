"""The report's results: the evaluation table, curves over evaluations, retrieval galleries, confusion."""

import dataclasses
import re
from collections.abc import Callable
from html import escape

import numpy as np

from bigvlm.figures import Confusion, Gallery, Item, Row
from bigvlm.report.read import Run
from bigvlm.report.svg import Curve, chart, data_uri, heat_map, number, percent

_COLUMNS = 7  # evaluated steps shown side by side
COUNTS = ('n', 'captions', 'seconds')  # how much was evaluated and how fast: said in the heading, not in a row
_SHARE = re.compile(r'(.*_)?(top\d+|r\d+|mean_per_class|accuracy|balanced|agreement|exact|map|iou)')
LESS_IS_BETTER = re.compile(r'(.*_)?(rank|loss|error|perplexity)')
_HEADLINE = re.compile(r'(.*_)?(top1|r1)')
_WORDS = {'top1': 'top-1', 'top5': 'top-5', 'r1': 'R@1', 'r5': 'R@5', 'r10': 'R@10', 'n': 'examples', 'to': '→'}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row of the table: ``evaluator/metric``."""
    evaluator: str
    metric: str
    curve: Curve
    chance: float | None
    baselines: dict[str, float]

    @property
    def title(self) -> str:
        return words(self.metric)

    @property
    def form(self) -> Callable[[float], str]:
        return percent if self.chance is not None or _SHARE.fullmatch(self.metric) else number

    @property
    def headline(self) -> bool:
        return bool(_HEADLINE.fullmatch(self.metric))

    @property
    def best(self) -> int:
        """Position of the best evaluation."""
        sign = -1 if LESS_IS_BETTER.fullmatch(self.metric) else 1
        return int(np.argmax(np.where(np.isfinite(self.curve.values), sign * self.curve.values, -np.inf)))


def words(name: str) -> str:
    """``text_to_image_r1`` as people write it."""
    parts = name.replace('/', '_').split('_')
    return ' '.join(_WORDS.get(part, f'R@{part[1:]}' if re.fullmatch(r'r\d+', part) else part) for part in parts)


def rows(run: Run) -> list[Metric]:
    """Every evaluator's metrics; ``NAME/ROW``, where ROW is another one's metric, is that row's baseline NAME."""
    names = [name for name in run.curves if run.is_evaluation(name) and not name.endswith('_chance')]
    baselines: dict[str, dict[str, float]] = {}  # metric -> baseline -> value
    for name in names:
        baseline, _, metric = name.partition('/')
        if metric in names:
            baselines.setdefault(metric, {})[_part(run, baseline)] = float(run.curves[name].values[-1])
    found = []
    for name in names:
        evaluator, _, metric = name.partition('/')
        if metric not in names:
            chance = run.curves.get(f'{name}_chance')
            found.append(Metric(evaluator, metric, run.curves[name],
                                None if chance is None else float(chance.values[-1]), baselines.get(name, {})))
    return sorted(found, key=lambda metric: run.evaluators.index(metric.evaluator))


def _part(run: Run, evaluator: str) -> str:
    """The part that an evaluator is: 'nearest_caption' tells more than the 'baseline' it is named in a recipe."""
    return run.config['evals'][evaluator].get('name', evaluator)


def table(run: Run) -> str:
    metrics = rows(run)
    counts = {(m.evaluator, m.metric): m for m in metrics if m.metric in COUNTS}
    metrics = [m for m in metrics if m.metric not in COUNTS]
    if not metrics:
        return ''
    steps = _columns(sorted({int(s) for m in metrics for s in m.curve.steps}))
    baselines = list(dict.fromkeys(b for m in metrics for b in m.baselines))
    aside = (['chance'] if any(m.chance is not None for m in metrics) else []) + [words(b) for b in baselines]
    heads = [f'<th class="aside{" edge" if i == len(aside) - 1 else ""}">{escape(a)}</th>' for i, a in enumerate(aside)]
    heads += [f'<th>{"untrained<br>" if step == 0 else ""}step {step:,}</th>' for step in steps]
    body, previous = [], None
    for m in metrics:
        if m.evaluator != previous:
            told = ' · '.join(f'{counts[m.evaluator, c].curve.values[-1]:,.0f} {words(c)}'
                              for c in COUNTS if (m.evaluator, c) in counts)
            body.append(f'<tr class="group"><th colspan="{1 + len(aside) + len(steps)}">'
                        f'<b>{escape(words(m.evaluator))}</b>{escape(told)}</th></tr>')
            previous = m.evaluator
        body.append(_table_row(m, aside, baselines, steps))
    return (f'<h2>Evaluation</h2><div class="card scroll"><table><thead><tr><th></th>{"".join(heads)}</tr></thead>'
            f'<tbody>{"".join(body)}</tbody></table></div>'
            '<p class="soft">Best value of each row in green.</p>')


def summary(run: Run) -> str:
    """The newest evaluation as plain text, beside the untrained model, baselines and chance; '' before there is one."""
    metrics = [m for m in rows(run) if m.metric not in COUNTS]
    if not metrics:
        return ''
    baselines = list(dict.fromkeys(b for m in metrics for b in m.baselines))
    untrained = any(m.curve.steps[0] == 0 for m in metrics) and run.step > 0
    head = ['', f'step {run.step:,}', *(['untrained'] if untrained else []), *map(words, baselines), 'chance']
    lines = [head]
    for m in metrics:
        first = m.form(float(m.curve.values[0])) if m.curve.steps[0] == 0 else ''
        beside = [m.baselines.get(b) for b in baselines] + [m.chance]
        lines.append([f'{words(m.evaluator)}: {m.title}', m.form(float(m.curve.values[-1])), *([first] if untrained else []),
                      *('' if value is None else m.form(value) for value in beside)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return '\n'.join('  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
                     for line in lines)


def _table_row(m: Metric, aside: list[str], baselines: list[str], steps: list[int]) -> str:
    beside = ([m.chance] if aside and aside[0] == 'chance' else []) + [m.baselines.get(b) for b in baselines]
    cells = [f'<td class="aside{" edge" if i == len(beside) - 1 else ""}">{"" if v is None else escape(m.form(v))}</td>'
             for i, v in enumerate(beside)]
    values, best = dict(zip(m.curve.steps.astype(int), m.curve.values)), m.curve.values[m.best]
    for step in steps:
        mark = ' class="best"' if len(values) > 1 and values.get(step) == best else ''
        cells.append(f'<td{mark}>{escape(m.form(float(values[step]))) if step in values else ""}</td>')
    return f'<tr><th>{escape(m.title)}</th>{"".join(cells)}</tr>'


def _columns(steps: list[int]) -> list[int]:
    """The first and last, and evenly spaced ones between."""
    if len(steps) <= _COLUMNS:
        return steps
    return [steps[int(i)] for i in np.linspace(0, len(steps) - 1, _COLUMNS).round()]


def charts(run: Run) -> str:
    """Metrics over training, with chance and baselines as lines; once there are three evaluations."""
    groups: dict[str, list[str]] = {}
    for m in rows(run):
        if len(m.curve.steps) > 2 and m.metric not in COUNTS:
            references = [(words(b), v) for b, v in m.baselines.items()]
            references += [('chance', m.chance)] if m.chance is not None else []
            groups.setdefault(m.evaluator, []).append(
                chart(m.title, m.curve, m.form, smooth=False, dots=True, references=references))
    return ''.join(f'<h2>{escape(words(name))} during training</h2><div class="charts">{"".join(cards)}</div>'
                   for name, cards in groups.items())


def figures(run: Run) -> str:
    """In the order of the evaluators; baselines last, since they are there to compare with."""
    baselines = {b for m in rows(run) for b in m.baselines}
    place = {name: i + len(run.evaluators) * (_part(run, name) in baselines) for i, name in enumerate(run.evaluators)}
    html = []
    for name, (step, figure) in sorted(run.figures.items(), key=lambda pair: place.get(pair[0].split('/')[0], -1)):
        html.append((confusion if isinstance(figure, Confusion) else gallery)(name, step, figure))
    return ''.join(html)


def gallery(name: str, step: int, figure: Gallery) -> str:
    return answers(figure, f'{words(name.split("/")[0])}, step {step:,}')


def answers(figure: Gallery, told: str) -> str:
    """A gallery under its title and a line that tells what it is of."""
    body = ''.join(_gallery_row(row) for row in figure.rows)
    return f'<h2>{escape(figure.title)}</h2><p class="soft">{escape(told)}</p><div class="card">{body}</div>'


def _gallery_row(row: Row) -> str:
    text = f'<p>{escape(row.query.text)}</p>' if row.query.text else ''
    note = f'<small>{escape(row.note)}</small>' if row.note else ''
    pictures = any(item.image is not None for item in row.items)
    answers = ''.join(_picture(item) if pictures else _sentence(item) for item in row.items)
    return (f'<div class="row"><div class="query">{_image(row.query)}{text}{note}</div>'
            f'<ol class="answers {"images" if pictures else "texts"}">{answers}</ol></div>')


def _image(item: Item) -> str:
    return f'<img alt="{escape(item.text)}" src="{data_uri(item.image)}">' if item.image is not None else ''


def _class(item: Item, *more: str) -> str:
    names = [*more, *(['right'] if item.right else [])]
    return f' class="{" ".join(names)}"' if names else ''


def _sentence(item: Item) -> str:
    return f'<li{_class(item)}><span>{escape(item.text)}</span><small>{_value(item)}</small></li>'


def _picture(item: Item) -> str:
    mark = '✓ ' if item.right else ''
    kind = _class(item, *(['captioned'] if item.text else []))
    return f'<li{kind}>{_image(item)}<small>{mark}{_value(item)}</small>{escape(item.text)}</li>'


def _value(item: Item) -> str:
    return '' if item.value is None else f'{item.value:.3f}'


def confusion(name: str, step: int, figure: Confusion) -> str:
    lines = ''.join(f'<tr><td>{escape(true)}</td><td>{escape(predicted)}</td><td>{count:,} of {of:,}</td></tr>'
                    for true, predicted, count, of in figure.pairs)
    pairs = ('<div><h3>Most confused</h3><table><thead><tr><th>true</th><th>predicted</th><th></th></tr></thead>'
             f'<tbody>{lines}</tbody></table></div>' if lines else
             '<p class="soft">No class was mistaken for another.</p>')
    return (f'<h2>{escape(figure.title)}</h2><p class="soft">{escape(words(name.split("/")[0]))}, step {step:,}; '
            f'{len(figure.names)} rows; stronger colour: larger share of the true class</p>'
            f'<div class="card confusion">{heat_map(figure)}{pairs}</div>')
