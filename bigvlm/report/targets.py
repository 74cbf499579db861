"""Published results (docs/targets.csv), to be printed beside one's own."""

import csv
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bigvlm.core.parts import RecipeError

COLUMNS = ('method', 'encoder', 'data', 'examples', 'metric', 'value', 'source', 'status')


def read(path: str | Path) -> list[dict[str, str]]:
    """Its rows; none if there is no such file.

    Raises:
        RecipeError: the file lacks a column.
    """
    if not Path(path).exists():
        return []
    with open(path, newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise RecipeError(f'{path}: no column {missing[0]!r}; valid: {", ".join(COLUMNS)}')
        return [{column: (row[column] or '').strip() for column in COLUMNS} for row in reader]


def of(rows: Sequence[dict[str, str]], recipe: str) -> list[dict[str, str]]:
    """Those of a recipe's method: ``slip_b16`` is SLIP, ``chinese_clip_b16`` Chinese-CLIP; ``clippo_b16`` is not CLIP."""
    parts = re.split('[_=-]', recipe.lower())
    names = {''.join(parts[:n]) for n in range(1, len(parts) + 1)}
    found = [row for row in rows if _plain(row['method']) in names]
    longest = max((len(_plain(row['method'])) for row in found), default=0)  # of CLIP and CLIP-A the one that says more
    return [row for row in found if len(_plain(row['method'])) == longest]


def _plain(name: str) -> str:
    return re.sub(r'[^a-z0-9]', '', name.lower())


def table(rows: Sequence[dict[str, str]]) -> str:
    """HTML; '' without rows."""
    if not rows:
        return ''
    left = 'style="text-align: left"'
    head = ''.join(f'<th {left}>{column}</th>' for column in COLUMNS)
    body = ''.join(f'<tr>{"".join(f"<td {left}>{escape(row[column])}</td>" for column in COLUMNS)}</tr>' for row in rows)
    return (f'<h2>Published targets</h2><p class="soft">As their sources print them, for the model, data and examples that are '
            f'named.</p><div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
