"""Trains several methods under one budget and ranks them: same data, examples, batch, seeds and grid of learning rates.

  python tools/survey.py --recipes clip_b32 siglip_b16 --examples 60000 --batch 64 --lr 5e-4 1e-3 2e-3 --seeds 3 --workdir runs/survey
  python tools/survey.py --recipes clip_b32 siglip_b16 --data 'DIR/train-*.tar' --val 'DIR/val-*.tar' --workdir runs/survey
  python tools/survey.py --thresholds --workdir runs/terms       # does each loss term do what it is there for? (tools/terms.csv)

A recipe NAME is configs/NAME.py:smoke; FILE.py[:arguments] is taken as it is. Each method is trained at every rate of --lr with
seed 0; the rate with the best --metric is then trained with seeds 1 to --seeds, and only these are counted. The same command
again goes on where it was. Writes survey.html, survey.csv and runs.csv (terms.html, terms.csv) into --workdir.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.report import compare, survey, targets  # noqa: E402
from bigvlm.report.compare import Group  # noqa: E402
from bigvlm.report.survey import Study  # noqa: E402
from tools import _points, _survey_entry, _survey_terms, sweep  # noqa: E402
from tools._points import ROOT  # noqa: E402
from tools._survey_entry import Entry  # noqa: E402

Overrides = Sequence[tuple[str, str]]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog='survey.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                    allow_abbrev=False)
    found.add_argument('--recipes', nargs='+', default=[], metavar='NAME', help='NAME or FILE.py[:arguments]')
    found.add_argument('--examples', type=float, default=0, help='that each run sees; 0: as each recipe says')
    found.add_argument('--batch', type=int, default=0, help='of all; 0: as each recipe says')
    found.add_argument('--lr', nargs='+', default=[], metavar='RATE', help="the grid; one: no tuning; none: each recipe's own")
    found.add_argument('--seeds', type=int, default=3, help='that are counted, from 1; with --thresholds: of untrained models, from 0')
    found.add_argument('--metric', default='zero_shot/top1', help='on scenes, what rates are chosen and methods ranked by')
    found.add_argument('--data', default='', help='image-text tars: a second study, on these')
    found.add_argument('--val', default='', help='tars for retrieval, with --data')
    found.add_argument('--data_metric', default='retrieval/image_to_text_r1', help='as --metric, of the study on --data')
    found.add_argument('--no_scenes', action='store_true', help='only the study on --data')
    found.add_argument('--thresholds', action='store_true', help='check the loss terms instead')
    found.add_argument('--terms', default=str(ROOT / 'tools' / 'terms.csv'), help='the table of loss terms')
    found.add_argument('--targets', default=str(ROOT / 'docs' / 'targets.csv'), help='published results, printed beside')
    sweep.add_running(found)
    return found


def main(arguments: Sequence[str]) -> int:
    options, overrides = sweep.parse(parser(), arguments)
    try:
        if options.points:
            sweep.run_one(options)
        if not options.workdir:
            raise RecipeError('--workdir: where the runs are to be kept is not given')
        return (thresholds if options.thresholds else run)(options, overrides)
    except RecipeError as error:
        print(f'bigvlm: {error}', file=sys.stderr)
        return 2


def named(recipe: str) -> tuple[str, str]:
    """(its name on the page and of its folder, FILE:arguments)."""
    path, _, arguments = recipe.partition(':')
    if path.endswith('.py'):
        return _points.folder('-'.join(filter(None, (Path(path).stem, arguments)))), recipe
    return _points.folder(recipe.replace(':', '-')), f'{ROOT / "configs" / path}.py:{",".join(filter(None, ("smoke", arguments)))}'


# Methods under one budget.

def run(options: argparse.Namespace, overrides: Overrides) -> int:
    root, studied, failures = Path(options.workdir), studies(options, overrides), {}
    every = [entry for entries in studied.values() for entry in entries]
    for entry in every:
        entry.check()
    if (tuning := _survey_entry.points(every)) and sweep.train(options, tuning, failures) is None:
        return 0
    final = _survey_entry.points(every, root)
    if final and sweep.train(options, final, failures) is None:
        return 0
    found = [Study(title, entries[0].metric, tuple(entry.method(root, failures) for entry in entries))
             for title, entries in studied.items()]
    write(root, options, found)
    return 1 if any(method.missing for study in found for method in study.methods) else 0


def studies(options: argparse.Namespace, overrides: Overrides) -> dict[str, list[Entry]]:
    """{the data as the page calls them: an entry for each recipe}."""
    recipes = dict(map(named, options.recipes))
    if not recipes or options.seeds < 1 or len(recipes) < len(options.recipes):
        raise RecipeError('--recipes, --seeds: at least one recipe, none of them twice, and one seed are needed')
    arguments = ','.join(filter(None, (f'data={options.data}', options.val and f'val={options.val}')))
    data = [] if options.no_scenes else [('rendered scenes', 'scenes', '', options.metric)]
    data += [(options.data, _points.folder(options.data), arguments, options.data_metric)] if options.data else []
    if not data:
        raise RecipeError('--no_scenes: without --data there is nothing to train on')
    budget = [*overrides, *([('batch', str(options.batch))] if options.batch else []),
              *([('steps', f'{options.examples:.0f} examples')] if options.examples else [])]
    return {title: [Entry(place, name, with_arguments(spec, more), metric, tuple(budget), tuple(options.lr), options.seeds)
                    for name, spec in recipes.items()] for title, place, more, metric in data}


def with_arguments(spec: str, more: str) -> str:
    return f'{spec}{"," if ":" in spec else ":"}{more}' if more else spec


def write(root: Path, options: argparse.Namespace, studies: Sequence[Study]) -> None:
    published = targets.read(options.targets)
    root.mkdir(parents=True, exist_ok=True)
    rate = {0: f"each recipe's own learning rate, seeds 1 to {options.seeds}",
            1: f'learning rate {"".join(options.lr)}, seeds 1 to {options.seeds}'}.get(len(options.lr), (
                f'each rate of the grid {", ".join(options.lr)} was trained with seed 0, the best by the ranking metric was then trained '
                f'with seeds 1 to {options.seeds}, and only these are counted'))
    how = (f'All methods saw the same data and number of examples in batches of the same size where a budget is given; {rate}. '
           'Equal examples are not equal compute: see examples/s and time. What the methods need differently is listed below.')
    about = [('examples', f'{options.examples:,.0f}' if options.examples else "each recipe's own"),
             ('batch', str(options.batch or "each recipe's own")), ('seeds', str(options.seeds)),
             ('rates', ', '.join(options.lr) or "each recipe's own")]
    (root / 'survey.html').write_text(survey.page('Survey of methods', about, studies, how, published), encoding='utf-8')
    survey.write_csv(root / 'survey.csv', studies)
    runs = [run for study in studies for run in study.runs]
    renamed = [Group(f'{study.name}/{group.name}', group.runs) for study in studies for group in study.groups]
    sweep.write_csv(root / 'runs.csv', renamed, compare.columns(runs))
    print('\n\n'.join(map(survey.text, studies)))
    print(f'\npage: {root / "survey.html"}, numbers: {root / "survey.csv"}, {root / "runs.csv"}')


# Loss terms.

def thresholds(options: argparse.Namespace, overrides: Overrides) -> int:
    if options.seeds < 2:
        raise RecipeError(f'--seeds: found {options.seeds}; valid: 2 or more untrained models, which have a spread')
    root, found = Path(options.workdir), []
    for term in _survey_terms.load(Path(options.terms), options.recipes):
        name, spec = named(term.recipe)
        found.append((term, _survey_terms.runs(term, spec, name, overrides, options.seeds)))
    points = {point.name: point for _, some in found for point in some.all}  # terms of a recipe share models
    failures: dict[str, str] = {}
    if sweep.train(options, list(points.values()), failures) is None:
        return 0
    judged = _survey_terms.judged(root, found, failures)
    root.mkdir(parents=True, exist_ok=True)
    (root / 'terms.html').write_text(_survey_terms.page(judged), encoding='utf-8')
    _survey_terms.write_csv(root / 'terms.csv', judged)
    print(_survey_terms.text(judged))
    print(f'page: {root / "terms.html"}, numbers: {root / "terms.csv"}')
    return 0 if all(one.passed for one in judged) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
