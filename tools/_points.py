"""The runs that a sweep consists of: what each is called, which command trains it, and how far it is."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigvlm import recipe, workdir
from bigvlm.core.parts import RecipeError

ROOT = Path(__file__).resolve().parent.parent
TRAINER = (sys.executable, '-m', 'bigvlm.train')
_LONGEST = 120  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Point:
    """One run. ``name``: its folder below the sweep's. ``group``: the name that its seeds share."""
    name: str
    group: str
    spec: str                                # FILE[:arguments]
    overrides: tuple[tuple[str, str], ...]   # (key, text), the seed too

    def command(self, root: Path) -> list[str]:
        changes = [f'--config.{key}={text}' for key, text in self.overrides]
        return [*TRAINER, '--config', self.spec, *changes, '--workdir', str(root / self.name)]

    def config(self) -> dict[str, Any]:
        """The resolved recipe, as it lies in the workdir.

        Raises:
            RecipeError: the recipe cannot be had with these values.
        """
        return _resolved(self.spec, self.overrides)

    def state(self, root: Path) -> str:
        """'finished', 'started' or 'new'. A finished run of another recipe is 'started': the trainer then says what differs."""
        try:
            info, before = (json.loads((root / self.name / file).read_text(encoding='utf-8')) for file in ('run.json', 'config.json'))
        except (OSError, ValueError):
            return 'new'
        return 'finished' if info.get('status') == 'finished' and _matters(before) == _matters(self.config()) else 'started'


@functools.cache
def _resolved(spec: str, overrides: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return json.loads(workdir.dump(recipe.resolve(recipe.from_command_line(spec, overrides))))


def _matters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a resume may change."""
    return {key: value for key, value in config.items() if not any(re.fullmatch(rule, key) for rule in workdir.HARMLESS)}


def split(text: str) -> list[str]:
    """``a,(1,(2,3)),c`` at the commas that are in no bracket and no quotes."""
    parts, depth, quote = [''], 0, ''
    for letter in text:
        if quote:
            quote = '' if letter == quote else quote
        elif letter in '\'"':
            quote = letter
        else:
            depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and not depth and not quote:
            parts.append('')
        else:
            parts[-1] += letter
    if depth or quote or not all(parts):
        raise RecipeError(f'--set: cannot read {text!r}; valid: KEY=VALUE,VALUE,…')
    return parts


def settings(given: Sequence[str]) -> dict[str, list[str]]:
    """``['optim.lr=1e-3,3e-4', …]`` as {key: values}."""
    found = {}
    for one in given:
        key, equals, text = one.partition('=')
        if not equals or not key or key in found:
            raise RecipeError(f'--set: found {one!r}; valid: KEY=VALUE,VALUE,… with each key once')
        if key == 'seed':
            raise RecipeError('--set: seeds are given by --seeds')
        found[key] = split(text)
    return found


def grid(spec: str, fixed: Sequence[tuple[str, str]], varied: Mapping[str, Sequence[str]], seeds: Sequence[int],
         below: str = '') -> list[Point]:
    """Every combination of values, each with every seed. ``below``: a folder before the names, with its slash."""
    short = _short(list(varied))
    found = []
    for values in itertools.product(*varied.values()):
        chosen = tuple(zip(varied, values))
        group = below + folder('_'.join(f'{short[key]}={text}' for key, text in chosen))
        for seed in seeds:
            name = f'{group}_seed={seed}' if group != below else f'{group}seed={seed}'
            found.append(Point(name, group or 'all', spec, (*fixed, *chosen, ('seed', str(seed)))))
    return found


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last parts, as few as tell it from the others: ``lr`` of ``optim.lr``."""
    def tail(key: str, n: int) -> str:
        return '.'.join(key.split('.')[-n:])
    return {key: next(tail(key, n) for n in range(1, key.count('.') + 2)
                      if sum(tail(other, n) == tail(key, n) for other in keys) == 1) for key in keys}


def folder(text: str) -> str:
    """A name that a shell and a file system take as it is; what was changed or cut is told apart by a hash."""
    plain = re.sub(r'[^\w.+=-]+', '-', text)
    if plain == text and len(plain) <= _LONGEST:
        return plain
    return f'{plain[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}'


def check(points: Sequence[Point]) -> None:
    """Before anything is trained.

    Raises:
        RecipeError: a recipe cannot be had, or two points are the same run.
    """
    seen: dict[str, str] = {}
    for point in points:
        content = json.dumps([point.name.rpartition('/')[0], point.config()], sort_keys=True)
        if point.name in seen.values() or content in seen:
            raise RecipeError(f'{point.name} and {seen.get(content, point.name)}: the same run twice; valid: points that differ')
        seen[content] = point.name


def check_metric(config: Mapping[str, Any], metric: str, where: str = '') -> None:
    """Raises RecipeError if no evaluator or objective of a recipe is that of ``NAME/METRIC``; other scalars are not known before."""
    if '/' in metric and metric.partition('/')[0] not in {**config['evals'], **config['objectives']}:
        valid = ', '.join(config['evals']) or '(no evaluators)'
        raise RecipeError(f'{where}--metric: found {metric!r}; valid: a metric of {valid}, or loss')


def save(path: Path, points: Sequence[Point]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(json.dumps(dataclasses.asdict(point)) for point in points) + '\n', encoding='utf-8')


def load(path: Path, number: int) -> Point:
    """Point ``number``, from 0, of a points file."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except OSError as e:
        raise RecipeError(f'--points: cannot read {path}: {e.strerror}') from None
    if not 0 <= number < len(lines):
        raise RecipeError(f'--point: found {number}; valid: 0 to {len(lines) - 1}, the points of {path}')
    content = json.loads(lines[number])
    return Point(**content | {'overrides': tuple(map(tuple, content['overrides']))})


def environment() -> dict[str, str]:
    """The process's own, and bigvlm importable where it is not installed."""
    return os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))}
