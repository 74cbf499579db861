"""Compares runs: what their recipes differ in, their curves in the same charts, and a table of results, speed and memory.

  python tools/compare.py runs/a runs/b                    # prints the table, writes compare.html
  python tools/compare.py runs/lr/* --pool_seeds --html lr.html
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm.report import compare, side_by_side  # noqa: E402
from bigvlm.report.read import read  # noqa: E402

_WIDEST = 60  # characters of a value on the terminal


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog='compare.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument('workdirs', nargs='+', metavar='DIR', help='work directories; files are passed over')
    found.add_argument('--pool_seeds', action='store_true', help='runs that differ in nothing but the seed are one: mean ± sd')
    found.add_argument('--html', default='compare.html', help='the page to write')
    return found


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    folders = [Path(folder) for folder in options.workdirs if (Path(folder) / 'config.json').is_file()]
    for other in map(Path, options.workdirs):
        if other not in folders and not other.is_file():
            print(f'left out: {other} holds no run (no config.json)', file=sys.stderr)
    if not folders or not Path(options.html).absolute().parent.is_dir():
        print(f'bigvlm: {"--html: no such folder" if folders else "no run to compare"}', file=sys.stderr)
        return 2
    groups = compare.grouped([read(folder) for folder in folders], options.pool_seeds)
    print(text(groups))
    Path(options.html).write_text(side_by_side.page('Comparison of runs', groups), encoding='utf-8')
    print(f'page: {options.html}')
    return 0


def text(groups: Sequence[compare.Group]) -> str:
    """Differences and results for the terminal."""
    found = compare.differences([group.runs[0].config for group in groups])
    cut = [[key, *(value if len(value) <= _WIDEST else value[:_WIDEST - 1] + '…' for value in values)] for key, values in found]
    parts = [compare.aligned([['', *(group.name for group in groups)], *cut])] if cut else []
    runs = [run for group in groups for run in group.runs]
    return '\n\n'.join([*parts, compare.text_table(groups, compare.columns(runs))]) + '\n'


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
