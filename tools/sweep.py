"""Trains a recipe with every combination of some values, each with several seeds, and says which is best.

  python tools/sweep.py --config configs/quickstart.py --set optim.lr=1e-3,3e-4 --seeds 3 --workdir runs/lr
  python tools/sweep.py --config configs/quickstart.py --set optim.lr=1e-3,3e-4 --set batch=64,128 --workdir runs/grid --jobs 2
  python tools/sweep.py --config configs/clip_b32.py:data='DIR/*.tar' --set optim.lr=5e-4,1e-3 --workdir DIR --slurm lr.sbatch

Each run has a folder of its own below --workdir. The same command again goes on: finished runs are skipped, interrupted
ones resume, failed ones are tried again, and it ends with the table. --config.key=value holds for all runs.
"""

import argparse
import csv
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.report import compare, side_by_side  # noqa: E402
from bigvlm.report.compare import Column, Group  # noqa: E402
from bigvlm.report.read import read  # noqa: E402
from bigvlm.report.spread import ALPHA, ranks  # noqa: E402
from tools import _points  # noqa: E402
from tools._points import Point  # noqa: E402
from tools._runner import Runner  # noqa: E402


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog='sweep.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                    allow_abbrev=False)
    found.add_argument('--config', default='', help='the recipe, FILE[:arguments]')
    found.add_argument('--set', action='append', default=[], metavar='KEY=VALUE,VALUE,…', help='a key of the recipe and its values')
    found.add_argument('--seeds', type=int, default=3, help='how many, from 0')
    found.add_argument('--metric', default='', help='what is best, EVALUATOR/METRIC or loss; the first headline metric by default')
    add_running(found)
    return found


def add_running(found: argparse.ArgumentParser) -> None:
    """The options of whatever trains many runs."""
    found.add_argument('--workdir', default='', help='the folder that gets a folder per run')
    found.add_argument('--jobs', type=int, default=1, help='runs at a time')
    found.add_argument('--devices', default='', help='GPUs given out to the jobs in equal shares: 0,1,2,3; all to each by default')
    found.add_argument('--slurm', default='', metavar='FILE', help='run nothing: write a job array, and FILE.points beside it')
    found.add_argument('--slurm_options', default='', metavar="'--x=y …'",
                       help='of every task; as --slurm_options=, since it begins with dashes')
    found.add_argument('--show', action='store_true', help='run nothing: the table of what there is')
    found.add_argument('--points', default='', help='(in a job array) the points file')
    found.add_argument('--point', type=int, default=0, help='(in a job array) which of its points to run')


def main(arguments: Sequence[str]) -> int:
    options, overrides = parse(parser(), arguments)
    try:
        if options.points:
            run_one(options)
        if not options.config or not options.workdir:
            raise RecipeError('--config, --workdir: which recipe, and where to keep the runs, must be given')
        points = _points.grid(options.config, overrides, _points.settings(options.set), range(options.seeds))
        for point in points:
            _points.check_metric(point.config(), options.metric)
        trained = train(options, points)
        if trained is None:
            return 0
        if found := groups(Path(options.workdir), points):
            if missing := len(points) - sum(len(group.runs) for group in found):
                print(f'{missing} of {len(points)} runs are not finished, and not in the table')
            print(report(Path(options.workdir), found, options.metric, f'{options.config} × {", ".join(options.set) or "seeds"}'))
        return 0 if trained else 1
    except RecipeError as error:
        print(f'bigvlm: {error}', file=sys.stderr)
        return 2


def parse(found: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The options, and the overrides (key, text) that hold for all runs."""
    options, rest = found.parse_known_args(arguments)
    unknown = [r for r in rest if not r.startswith('--config.') or '=' not in r]
    if unknown:
        found.error(f'unknown argument {unknown[0]!r}')
    return options, [tuple(r.removeprefix('--config.').split('=', 1)) for r in rest]


def run_one(options: argparse.Namespace) -> None:
    """Becomes the trainer of one point, so that the job's signals reach it. Does not return."""
    path = Path(options.points)
    command = _points.load(path, options.point).command(Path(options.workdir))
    os.execve(command[0], command, _points.environment())


def train(options: argparse.Namespace, points: Sequence[Point], failures: dict[str, str] | None = None) -> bool | None:
    """Trains what is not finished; whether all is. None if it was only to be written as a job array.

    ``failures``: gets {name: why} of the runs that failed.
    """
    devices = options.devices.split(',') if options.devices else []
    if options.jobs < 1 or devices and len(devices) < options.jobs:
        raise RecipeError(f'--jobs: found {options.jobs} with {len(devices) or "no"} devices; valid: from 1 to the number of devices')
    if not points:
        raise RecipeError('--seeds: found 0; valid: 1 or more')
    _points.check(points)
    root = Path(options.workdir)
    left = [point for point in points if point.state(root) != 'finished']
    if options.slurm and left:
        print(write_slurm(Path(options.slurm), root, left, options.slurm_options))
        return None
    if options.show or not left:
        return not left
    runner = Runner(root, options.jobs, devices)
    done = runner.run(points)
    if runner.stopping:
        raise SystemExit(1)
    for name, why in runner.failures.items():
        print(f'failed: {name}: {why}')
    if failures is not None:
        failures |= runner.failures
    return done


def write_slurm(path: Path, root: Path, points: Sequence[Point], options: str) -> str:
    """A job array of these points. A task that is preempted or runs out of time saves, and resumes when it runs again."""
    if not path.absolute().parent.is_dir():
        raise RecipeError(f'--slurm: no folder {path.parent} to write {path.name} to')
    listed = path.with_name(path.name + '.points')
    _points.save(listed, points)
    root.mkdir(parents=True, exist_ok=True)
    own = ''.join(f'#SBATCH {option}\n' for option in shlex.split(options))
    command = [sys.executable, str(Path(__file__).resolve()), '--workdir', str(root.absolute()), '--points', str(listed.absolute())]
    path.write_text('#!/bin/bash\n'
                    f'#SBATCH --job-name={path.stem}\n#SBATCH --array=0-{len(points) - 1}\n'
                    f'#SBATCH --output={root.absolute()}/slurm-%A_%a.txt\n#SBATCH --open-mode=append\n#SBATCH --requeue\n'
                    '# The trainer saves on SIGTERM; it is given two minutes for that before the time is up.\n'
                    f'#SBATCH --signal=B:TERM@120\n{own}'
                    f'cd {shlex.quote(os.getcwd())}\n'
                    f'exec {shlex.join(command)} --point "$SLURM_ARRAY_TASK_ID"\n', encoding='utf-8')
    return f'{len(points)} runs: sbatch {path}\nthen, for the table: the same command with --show instead of --slurm'


def groups(root: Path, points: Sequence[Point]) -> list[Group]:
    """The finished ones, seeds of one combination together."""
    found: dict[str, list] = {}
    for point in points:
        if point.state(root) == 'finished':
            found.setdefault(point.group, []).append(read(root / point.name))
    return [Group(name, tuple(runs)) for name, runs in found.items()]


def report(root: Path, found: Sequence[Group], metric: str, title: str) -> str:
    """The table as text and what is best; writes compare.html and runs.csv."""
    runs = [run for group in found for run in group.runs]
    columns = compare.columns(runs)
    (root / 'compare.html').write_text(side_by_side.page(title, found), encoding='utf-8')
    write_csv(root / 'runs.csv', found, columns)
    told = verdict(found, chosen(found, columns, metric)) if metric or any(c.less is not None for c in columns) else (
        'no metric by which one is better (losses of different objectives are not comparable)')
    return '\n'.join([compare.text_table(found, columns), '', told,
                      f'page: {root / "compare.html"}, numbers: {root / "runs.csv"}'])


def chosen(found: Sequence[Group], columns: Sequence[Column], metric: str) -> Column:
    """The column that says what is best.

    Raises:
        RecipeError: no run has that metric, or neither direction of it is better.
    """
    column = compare.by_key([run for group in found for run in group.runs], metric) if metric else next(
        (column for column in columns if column.less is not None), None)
    if column is None or column.less is None:
        valid = ', '.join(c.key for c in columns if c.less is not None)
        raise RecipeError(f'--metric: found {metric!r}; valid: {valid or "(no metrics yet)"}')
    return column


def verdict(found: Sequence[Group], column: Column) -> str:
    """The best group, and those that it cannot be told from."""
    first, *others = ranks({group.name: group.spread(column) for group in found}, column.less)
    if not math.isfinite(first.spread.mean):
        return f'no run has a finite {column.key}'
    told = f'best {column.key}: {first.name}, {first.spread.text(column.form)} (n = {first.spread.n})'
    if first.spread.n < 2 and others:
        return f'{told}; one seed: a difference may be no more than their spread'
    return f'{told}; not told from it (Welch t-test, p > {ALPHA:g}): {", ".join(first.ties)}' if first.ties else told


def write_csv(path: Path, found: Sequence[Group], columns: Sequence[Column]) -> None:
    """A row per run, all numbers in full."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['group', 'run', 'seed', 'status', 'step', *(column.key for column in columns)])
        for group in found:
            for run in group.runs:
                values = ['' if (value := column.of(run)) is None else repr(value) for column in columns]
                writer.writerow([group.name, run.name, run.config.get('seed', ''), run.info.get('status', ''), run.step, *values])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
