"""Does each loss term do what it is there for? The runs that tell, from a table of terms; judged by ``report/terms.py``."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from bigvlm import recipe
from bigvlm.core.parts import RecipeError
from bigvlm.report import compare, side_by_side, terms
from bigvlm.report.terms import Found, Term
from tools._points import Point, folder, grid
from tools._survey_entry import finished

COLUMNS = ('recipe', 'objective', 'evaluator', 'metric', 'better', 'set')


@dataclasses.dataclass(frozen=True)
class Runs:
    """The points of a term."""
    untrained: tuple[Point, ...]
    trained: Point
    without: Point

    @property
    def all(self) -> list[Point]:
        return [*self.untrained, self.trained, self.without]


def load(path: Path, only: Sequence[str] = ()) -> list[Term]:
    """The rows of a table of terms; those of the recipes ``only``, if any are given.

    Raises:
        RecipeError: no such file, a column is missing, or a value is not valid.
    """
    try:
        with open(path, newline='', encoding='utf-8') as file:
            rows = list(csv.DictReader(file))
    except OSError as e:
        raise RecipeError(f'--terms: cannot read {path}: {e.strerror}') from None
    found = []
    for line, row in enumerate(rows, start=2):
        if set(row) != set(COLUMNS) or None in row.values():
            raise RecipeError(f'{path}:{line}: found {", ".join(map(str, row))}; valid: the columns {", ".join(COLUMNS)}')
        if row['better'] not in ('higher', 'lower'):
            raise RecipeError(f'{path}:{line}: better: found {row["better"]!r}; valid: higher, lower')
        changes = [tuple(one.strip().split('=', 1)) for one in row['set'].split(';') if one.strip()]
        if any(len(change) != 2 for change in changes):
            raise RecipeError(f'{path}:{line}: set: found {row["set"]!r}; valid: KEY=VALUE;KEY=VALUE')
        found.append(Term(**row | {'set': tuple(changes)}))
    if unknown := set(only) - {term.recipe for term in found}:
        raise RecipeError(f'--recipes: {sorted(unknown)[0]}: no such recipe in {path}; valid: '
                          f'{", ".join(dict.fromkeys(t.recipe for t in found))}')
    return [term for term in found if not only or term.recipe in only]


def runs(term: Term, spec: str, name: str, overrides: Sequence[tuple[str, str]], seeds: int) -> Runs:
    """``seeds`` untrained models, one trained with seed 0, one trained so without the term.

    Raises:
        RecipeError: the recipe has no such objective or evaluator.
    """
    fixed = (*term.set, *overrides)
    config = recipe.resolve(recipe.from_command_line(spec, fixed))
    for group, part in (('objectives', term.objective), ('evals', term.evaluator)):
        if part not in config[group]:
            raise RecipeError(f'{name}: {group[:-1]}: found {part!r}; valid: {", ".join(config[group]) or "(none)"}')
    changed = ''.join(f'{key.rpartition(".")[2]}={text}_' for key, text in term.set)
    below = f'{name}/{folder(changed.replace(" ", "-"))}'
    # Evaluated before it is trained, and not again after as few steps as there can be: one a stage.
    once = {'eval_first': 'true', 'steps': f'{max(1, len(config["stages"]))} steps'}
    once |= {f'evals.{one}.every': 'start' for one in config['evals']}
    once |= {f'optim.schedule.{key}': '0 steps' for key in ('warmup', 'cooldown') if key in config['optim']['schedule']}
    untrained = tuple(change for change in fixed if change[0] not in once)
    return Runs(tuple(grid(spec, (*untrained, *once.items()), {}, range(seeds), f'{below}untrained_')),
                *grid(spec, fixed, {}, (0,), f'{below}trained_'),
                *grid(spec, (*fixed, (f'objectives.{term.objective}.weight', '0')), {}, (0,), f'{below}without={term.objective}_'))


def judged(root: Path, found: Sequence[tuple[Term, Runs]], failures: Mapping[str, str]) -> list[Found]:
    result = []
    for term, points in found:
        bad = {point.name: failures[point.name] for point in points.all if point.name in failures}
        untrained = [run for point in points.untrained if (run := finished(root, point)) is not None]
        result.append(terms.judge(term, untrained, finished(root, points.trained), finished(root, points.without), bad))
    return result


def text(found: Sequence[Found]) -> str:
    passed = sum(one.passed for one in found)
    return '\n'.join([compare.aligned([terms.HEAD, *terms.rows(found)]), f'{passed} of {len(found)} terms pass'])


def page(found: Sequence[Found]) -> str:
    def result(one: Found, text: str) -> str:
        return f'<td class="{"best" if one.passed else "bad"}">{escape(text)}</td>'
    rows = [[*map(escape, row[:-1]), result(one, row[-1])] for one, row in zip(found, terms.rows(found))]
    note = f'<p class="soft">{escape(" ".join(terms.__doc__.split()))} SDS is {terms.SDS:g}.</p>'
    return side_by_side.whole('Loss terms', [('terms', str(len(found))), ('pass', str(sum(one.passed for one in found)))],
                              [note, side_by_side.table(terms.HEAD, rows)])


def write_csv(path: Path, found: Sequence[Found]) -> None:
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['recipe', 'objective', 'metric', 'better', 'untrained_mean', 'untrained_sd', 'sd', 'threshold', 'trained',
                         'weight_0', 'result'])
        for one in found:
            numbers = [one.untrained.mean, one.untrained.sd, one.sd, one.threshold, one.trained, one.without]
            writer.writerow([one.term.recipe, one.term.objective, one.term.key, one.term.better, *map(repr, numbers), one.why])
