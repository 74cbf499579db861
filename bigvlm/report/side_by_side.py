"""The page that compares runs: one HTML file that needs no other. What it shows is worked out in ``compare``."""

from collections.abc import Sequence
from html import escape

from bigvlm.report import compare, data_page, overlay, shown
from bigvlm.report.compare import Column, Group
from bigvlm.report.svg import number

_CSS = '''
td.same { color: var(--soft); } .keys td, .keys th { white-space: normal; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.fit thead th { white-space: normal; min-width: 64px; } .fit td, .fit th { padding-left: 8px; padding-right: 12px; }
.keys td code { font-size: 12px; } th.left, td.left { text-align: left; }
'''
_LONG = 160  # characters of a value before it is folded


def page(title: str, groups: Sequence[Group], about: Sequence[tuple[str, str]] = ()) -> str:
    """Differences, results and curves of the groups."""
    columns = compare.columns([run for group in groups for run in group.runs])
    sections = [differences(groups), results(groups, columns), everything(groups, columns), curves(groups)]
    return whole(title, [('runs', str(sum(len(group.runs) for group in groups))), *about], sections)


def whole(title: str, about: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """A page with what these sections need: colours of the lines, and their script."""
    return data_page.page(title, about, [f'<style>{overlay.CSS}{_CSS}</style>', *sections, f'<script>{overlay.SCRIPT}</script>'])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = '') -> str:
    """Cells are HTML already."""
    top = ''.join(cell if cell.startswith('<th') else f'<th>{cell}</th>' for cell in head)
    body = ''.join(f'<tr><th>{row[0]}</th>{"".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row[1:])}</tr>'
                   for row in rows)
    return f'<div class="card scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def differences(groups: Sequence[Group], title: str = 'What differs') -> str:
    """Keys whose values are not the same in all groups; seeds of a group count as one."""
    found = compare.differences([group.runs[0].config for group in groups])
    if not found:
        note = 'The recipes are the same.' if len(groups) > 1 else 'One recipe: nothing to compare it with.'
        return f'<h2>{title}</h2><p class="soft">{note}</p>'
    rows = [[f'<code>{escape(key)}</code>', *map(value_cell, values)] for key, values in found]
    return f'<h2>{title}</h2>{table(["", *(escape(group.name) for group in groups)], rows, "keys")}'


def value_cell(text: str) -> str:
    """A value of a recipe; long ones are folded."""
    if text == compare.ABSENT:
        return f'<td class="same">{text}</td>'
    code = f'<code>{escape(text)}</code>'
    return code if len(text) <= _LONG else f'<details><summary>{escape(text[:40])}…</summary>{code}</details>'


def results(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """A row per group, headline columns."""
    kept = [column for column in columns if column.headline]
    marks = [compare.best(groups, column) for column in kept]
    rows = []
    for group in groups:
        cells = [_cell(group, column, mark) for column, mark in zip(kept, marks)]
        rows.append([escape(group.name), f'<td class="left">{escape(group.state)}</td>', *cells])
    head = ['', '<th class="left">state</th>', *(escape(column.title) for column in kept)]
    seeds = any(len(group.runs) > 1 for group in groups)
    note = ('Mean ± sd over seeds. Green: the best mean and those that it does not differ from (Welch t-test, p &gt; .05), unless '
            'that is all.' if seeds else 'Green: the best value. One seed each: a difference may be no more than the spread of seeds.')
    return f'<h2>Results</h2>{table(head, rows, "fit")}<p class="soft">{note} Loss: mean of its last values. Rates: median.</p>'


def everything(groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """All columns, a row each."""
    if all(column.headline for column in columns):
        return ''
    rows = [[escape(column.title), *(_cell(group, column, compare.best(groups, column)) for group in groups)] for column in columns]
    head = ['', *(escape(group.name) for group in groups)]
    return f'<details class="card"><summary>All numbers</summary>{table(head, rows)}</details>'


def _cell(group: Group, column: Column, mark: set[str]) -> str:
    text = escape(group.spread(column).text(column.form))
    return f'<td class="best">{text}</td>' if group.name in mark else f'<td>{text}</td>'


def curves(groups: Sequence[Group]) -> str:
    """The loss, each objective's own, and every metric that was evaluated more than once."""
    runs = [run for group in groups for run in group.runs]
    examples = len({run.config.get('batch') for run in runs}) > 1
    unit = 'example' if examples else 'step'
    names = list(dict.fromkeys(name for run in runs for name in run.curves if not run.is_evaluation(name)))
    own = [name for name in names if name.endswith('/loss')]
    training = [name for name in names if name == 'loss'] + (own if len(own) > 1 else [])  # the only one is the loss itself
    cards = [overlay.chart(shown.words(name), compare.lines_of(groups, name, examples), smooth=True, unit=unit) for name in training]
    metrics = {column.key: column for column in compare.columns(runs) if '/' in column.key}
    for key, column in metrics.items():
        if any(key in run.curves and len(run.curves[key].steps) > 1 for run in runs):
            chance = next((run.curves[f'{key}_chance'].values[-1] for run in runs if f'{key}_chance' in run.curves), None)
            cards.append(overlay.chart(column.title, compare.lines_of(groups, key, examples), column.form, unit=unit,
                                       references=[] if chance is None else [('chance', float(chance))]))
    for name in ('lr', 'examples_per_s'):
        if name in names:
            lines = compare.lines_of(groups, name, examples)
            cards.append(overlay.chart(name.replace('_per_s', '/s'), lines, number, smooth=True, unit=unit))
    key = overlay.legend([group.name for group in groups])
    over = 'examples seen, since the batches differ' if examples else 'steps'
    return (f'<h2>Curves</h2><p class="soft">Over {over}. Bands: ± sd over seeds. Point at a name to see it alone.</p>'
            f'{key}<div class="charts">{"".join(cards)}</div>') if cards else ''
