"""``report.html``: one self-contained page that shows what a run did and what the model learned."""

import datetime
import json
import os
import re
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.report import shown, targets
from bigvlm.report.read import Run, read
from bigvlm.report.style import CSS, SCRIPT
from bigvlm.report.svg import Curve, chart, number, percent

_THROUGHPUT = ('examples_per_s', 'step_time', 'data_wait', 'mfu', 'device_memory_peak', 'host_memory_peak')
_FIRST = ('loss', 'lr', 'grad_norm')
_TITLES = {'loss': 'Loss', 'lr': 'Learning rate', 'grad_norm': 'Gradient norm', 'examples_per_s': 'Examples per second',
           'step_time': 'Seconds per step', 'data_wait': 'Share of time waiting for data',
           'mfu': 'Model FLOPs utilisation', 'device_memory_peak': 'Device memory at its peak, bytes',
           'host_memory_peak': 'Host memory at its peak, bytes'}
_SHARES = ('data_wait', 'mfu')


def write(workdir: str | os.PathLike) -> Path:
    """Writes ``workdir/report.html``, atomically, from whatever the run has recorded so far; returns its path."""
    path = Path(workdir, 'report.html')
    partial = path.with_name(f'.report.{os.getpid()}.partial')
    partial.write_text(page(read(workdir)), encoding='utf-8')
    partial.replace(path)
    return path


def summary(workdir: str | os.PathLike) -> str:
    """The evaluations of a run as a table in plain text."""
    return shown.summary(read(workdir))


def page(run: Run) -> str:
    training, *others = _curves(run)
    sections = [_header(run), _tiles(run), training, shown.table(run), _targets(run), shown.figures(run), shown.charts(run), *others,
                _data(run), _lost(run), _record(run)]
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(_title(run))} · bigvlm</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
            f'<body><main>{"".join(sections)}</main><script>{SCRIPT}</script></body></html>\n')


def _title(run: Run) -> str:
    """The recipe as the command names it, or else the folder."""
    found = re.search(r'--config[= ](\S+)', _text(run.info.get('command') or ''))
    return found[1] if found else run.name


def _header(run: Run) -> str:
    info, status = run.info, str(run.info.get('status') or 'unknown')
    about = run.config.get('about') or {}
    told = [escape(str(about[key])) for key in ('paper', 'data', 'expected') if about.get(key)]
    parts = [f'<header><div class="title"><h1>{escape(_title(run))}</h1>'
             f'<span class="status {escape(status)}">{escape(status)}</span></div>']
    if told:
        parts.append(f'<p class="soft">{" · ".join(told)}</p>')
    if info.get('error'):
        parts.append(f'<div class="error">{escape(str(info["error"]))}</div>')
    if info.get('command'):
        parts.append(f'<code class="command card">{escape(_text(info["command"]))}</code>')
    if run.total_steps:
        done = min(1., run.step / run.total_steps)
        parts.append(f'<div class="bar"><i style="width:{100 * done:.1f}%"></i></div>')
    parts.append(f'<div class="facts">{"".join(_facts(run, status))}</div></header>')
    return ''.join(parts)


def _facts(run: Run, status: str) -> list[str]:
    now = time.time()
    facts = [('step', f'{run.step:,}' + (f' of {run.total_steps:,}' if run.total_steps else ''))]
    left = run.seconds_left()
    if left is not None and status == 'running':
        facts.append(('remaining', duration(left)))
    if len(run.times.values) > 1:
        facts.append(('elapsed', duration(float(run.times.values[-1] - run.times.values[0]))))
    launches = run.info.get('launches')
    if isinstance(launches, list) and len(launches) > 1:
        facts.append(('launches', str(len(launches))))
    wanted = [key for key in ('devices', 'git_commit', 'started') if run.info.get(key)]
    facts += [(key.replace('_', ' '), _text(run.info[key])) for key in wanted]
    versions = run.info.get('versions')
    if isinstance(versions, Mapping):
        wanted = [k for k in ('bigvlm', 'python', 'jax', 'flax') if k in versions]
        facts += [(k, str(versions[k])) for k in wanted]
    html = [f'<span>{escape(key)} <b>{escape(value)}</b></span>' for key, value in facts]
    stamp = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    return [*html, f'<span data-written="{now:.0f}">report of {stamp}</span>']


def _tiles(run: Run) -> str:
    """The numbers one looks for first: results, then loss and speed."""
    tiles = []
    for row in shown.rows(run):
        if row.headline:
            chance = f'chance {row.form(row.chance)}' if row.chance is not None else f'step {row.curve.steps[-1]:,.0f}'
            tiles.append((row.title, row.form(float(row.curve.values[-1])), f'{shown.words(row.evaluator)}, {chance}'))
    curves = run.curves
    if 'loss' in curves:
        tiles.append(('Loss', number(float(tail(curves['loss']))), f'from {number(float(curves["loss"].values[0]))}'))
    if 'examples_per_s' in curves:
        tiles.append(('Examples per second', number(float(median(curves['examples_per_s']))), 'median'))
    if 'step_time' in curves:
        waiting = f'{percent(median(curves["data_wait"]))} waiting for data' if 'data_wait' in curves else 'median'
        tiles.append(('Seconds per step', number(float(median(curves['step_time']))), waiting))
    if 'mfu' in curves:
        tiles.append(('MFU', percent(median(curves['mfu'])), 'median'))
    batch = run.config.get('batch')
    if isinstance(batch, int) and run.step:
        tiles.append(('Examples seen', number(float(batch * run.step)), f'{run.step:,} steps of {batch:,}'))
    cards = ''.join(f'<div class="card tile"><span>{escape(a)}</span><b>{escape(b)}</b><small>{escape(c)}</small></div>'
                    for a, b, c in tiles)
    return f'<div class="tiles">{cards}</div>' if tiles else '<p class="soft">No metrics have been written yet.</p>'


def median(curve: Curve) -> float:
    """Without the first value, which holds compilation."""
    values = curve.values[1:] if len(curve.values) > 1 else curve.values
    return float(np.median(values))


def tail(curve: Curve) -> float:
    return float(np.mean(curve.values[-max(1, min(10, len(curve.values) // 10)):]))


def _curves(run: Run) -> list[str]:
    """A section per group of scalars that no evaluator wrote: loss and optimizer, speed, each objective's own."""
    names = [name for name in run.curves if not run.is_evaluation(name)]
    groups: dict[str, list[str]] = {'Training': [name for name in _FIRST if name in names],
                                    'Throughput': [name for name in _THROUGHPUT if name in names]}
    for name in sorted(set(names) - {*_FIRST, *_THROUGHPUT}):
        groups.setdefault(name.split('/', 1)[0] if '/' in name else 'Training', []).append(name)
    html = []
    for group, members in groups.items():
        cards = ''.join(_card(run, group, name) for name in members)
        html.append(f'<h2>{escape(group)}</h2><div class="charts">{cards}</div>' if cards else '')
    return html


def _card(run: Run, group: str, name: str) -> str:
    title = _TITLES.get(name, name.removeprefix(f'{group}/'))
    return chart(title, run.curves[name], percent if name in _SHARES else number, smooth=name != 'lr')


def _targets(run: Run) -> str:
    """Published results of the run's method; a checkout has them in docs, an installed package has none."""
    recipe = str(run.info.get('recipe') or '').partition(':')[0]
    return targets.table(targets.of(targets.read(Path(__file__).parents[2] / 'docs' / 'targets.csv'), recipe)) if recipe else ''


def _data(run: Run) -> str:
    """How many examples each data set had, how many of them could be used, and the hash that says which data they were."""
    def count(noted: Mapping[str, Any], key: str) -> str:
        return f'{noted[key]:,}' if isinstance(noted.get(key), int) else ''
    rows = ''.join(f'<tr><td>{escape(name)}</td><td>{escape(str(noted.get("source", "")))}</td><td>{count(noted, "examples")}</td>'
                   f'<td>{count(noted, "surviving")}</td><td><code>{escape(str(noted.get("fingerprint", "")))}</code></td></tr>'
                   for name, noted in sorted(run.data.items()))
    head = '<tr><th>data set</th><th>source</th><th>examples</th><th>usable, as far as seen</th><th>content</th></tr>'
    return f'<h2>Data sets</h2><div class="card"><table>{head}{rows}</table></div>' if rows else ''


def _lost(run: Run) -> str:
    cards = []
    for dataset, reasons in sorted(run.lost.items()):
        for reason, noted in sorted(reasons.items(), key=lambda pair: -pair[1]['count']):
            items, count = list(map(str, noted['items'][:200])), noted['count']
            listed = ''.join(f'<li><code>{escape(item)}</code></li>' for item in items)
            more = f'<li>and {count - len(items):,} more; lost.json names the first 1,000</li>' if count > len(items) else ''
            cards.append(f'<details><summary>{escape(dataset)}: {escape(reason)} '
                         f'<span class="count">{count:,}</span></summary><ul>{listed}{more}</ul></details>')
    none = '<details open><summary>No item was lost.</summary></details>'
    note = (f'<p class="soft">{run.bad_lines} unreadable line{"s" * (run.bad_lines > 1)} in metrics.jsonl '
            f'{"were" if run.bad_lines > 1 else "was"} left out.</p>' if run.bad_lines else '')
    intro = ('<p class="soft">Items that could not be used, each counted once. Training took another one instead; '
             'evaluations left them out.</p>')
    return f'<h2>Data lost</h2>{intro if cards else ""}<div class="card">{"".join(cards) or none}</div>{note}'


def _record(run: Run) -> str:
    parts = []
    for title, content in (('Resolved recipe', run.config), ('Environment', run.info)):
        if content:
            lines = '\n'.join(f'<span class="key">{escape(k)}</span> = {escape(value)}' for k, value in flat(content))
            parts.append(f'<details><summary>{title}</summary><pre>{lines}</pre></details>')
    return f'<h2>Record</h2><div class="card">{"".join(parts)}</div>' if parts else ''


def flat(content: Mapping[str, Any], prefix: str = '') -> list[tuple[str, str]]:
    """Nested keys as dotted lines, as they would be written on the command line."""
    lines = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            lines += flat(value, f'{prefix}{key}.')
        else:
            lines.append((f'{prefix}{key}', json.dumps(value, ensure_ascii=False)))
    return lines


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ', '.join(f'{k} {v}' for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ' '.join(map(str, value))
    return re.sub(r'\.\d+(?=[+Z]|$)', '', value) if isinstance(value, str) else str(value)


def duration(seconds: float) -> str:
    """In the two largest units."""
    for size, unit, smaller, name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'min'), (60, 'min', 1, 's')):
        if seconds >= size:
            return f'{int(seconds // size)} {unit} {int(seconds % size // smaller)} {name}'
    return f'{seconds:.0f} s'
