"""A checkpoint on every one of the survey's evaluation sets that is there: zero-shot, linear probe, retrieval; a table and a CSV.

    python tools/suite.py --workdir runs/clip --data ~/tensorflow_datasets
    python tools/suite.py --checkpoint hf:DIR --data ~/tensorflow_datasets            # another library's model
    python tools/suite.py --workdir runs/clip --data /data/sets --sets cifar10,pets --kinds zero_shot --prompts prompts.md --limit 500

With --published MODEL the published numbers of docs/anchors.csv stand beside; the exit code is 1 if one is more than --within points off.
What a folder of sets must look like, and which sets there are: bigvlm/evals/suite.py. Sets that are not there, or cannot be
evaluated, are listed as not run, with the reason; averages say over how many of how many sets they are.
"""

import argparse
import csv
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from ml_collections import ConfigDict  # noqa: E402

from bigvlm import evaluate, prepared, recipe  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.evals import suite  # noqa: E402
from bigvlm.interop.source import Source, open_source  # noqa: E402

COLUMNS = ('set', 'title', 'kind', 'metric', 'value', 'n', 'survey_n', 'reason', 'note')


class Result(NamedTuple):
    """``values``: what the evaluator found, without its name; {} and a reason if it was not run."""
    row: suite.Row
    values: Mapping[str, float]
    reason: str = ''

    def cells(self) -> tuple[Any, ...]:
        known = suite.SETS[self.row.set]
        return (self.row.set, known.title, self.row.kind, self.row.metric, self.values.get(self.row.metric, ''),
                int(self.values['n']) if self.values else '', known.test, self.reason, known.note)


def planned(source: Source, options: argparse.Namespace) -> tuple[dict[str, Any], suite.Plan]:
    """(a recipe with the suite as its evaluators, the plan). Images are prepared and texts as long as the model's are, unless asked."""
    config = {**recipe.new().to_dict(), 'kinds': {}, **source.config}
    name = options.objective or prepared.first_with_embeddings(prepared.module_of(source))
    if name not in config['objectives']:
        raise RecipeError(f'--objective: {name!r}; valid: {", ".join(config["objectives"])}')
    length = options.length or prepared.text_length(source, name)
    ops = (dict(name='resize', size=options.image),) if options.image else prepared.image_ops(source, name)
    plan = suite.specs(
        list(filter(None, options.sets.split(','))), options.data, (dict(name='decode'), *ops),
        kinds=options.kinds.split(','), tokenizer=options.tokenizer or prepared.tokenizer_of(config), length=length,
        prompts=options.prompts, canonicalize=options.canonicalize, limit=options.limit, objective=name, batch=options.batch)
    whole = ConfigDict({**config, 'data': {**config['data'], **plan.data}, 'evals': plan.evals})
    return recipe.resolve(recipe.complete(whole)), plan


def results(config: Mapping[str, Any], plan: suite.Plan, checkpoint: str) -> tuple[list[Result], str]:
    """Every row's result, and what the checkpoint is. One set that fails does not stop the others."""
    found = []
    with evaluate.opened(checkpoint, config) as (run, model):
        for row in plan.rows:
            if not row.evaluator:
                found.append(Result(row, {}, row.reason))
                continue
            print(f'{row.set}: {row.kind} …', flush=True)
            try:
                numbers = {name: value for name, value in run([row.evaluator]) if isinstance(value, float)}
            except (RecipeError, FloatingPointError) as error:
                found.append(Result(row, {}, str(error)))
                continue
            found.append(Result(row, {name.removeprefix(f'{row.evaluator}/'): value for name, value in numbers.items()}))
    return found, str(model.where if model.source.step is None else model.source.step)


def averages(found: Sequence[Result]) -> list[str]:
    """A line for each kind: the mean of the sets' own measures, and over how many sets it is."""
    lines = []
    for kind in dict.fromkeys(result.row.kind for result in found):
        of_kind = [result for result in found if result.row.kind == kind]
        values = [result.values[result.row.metric] for result in of_kind if result.values]
        mean = f'{100 * sum(values) / len(values):.2f}' if values else 'none'
        lines.append(f'{kind}: mean {mean} over {len(values)} of {len(of_kind)} sets')
    return lines


def table(found: Sequence[Result]) -> str:
    """What was run, then what was not, then averages."""
    cells = [('set', 'kind', 'metric', '%', 'images')]
    cells += [(r.row.set, r.row.kind, r.row.metric, f'{100 * r.values[r.row.metric]:.2f}',
               f'{r.values["n"]:.0f}') for r in found if r.values]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    lines += ['', 'not run:', *(f'  {r.row.set} {r.row.kind}: {r.reason}' for r in found if not r.values)]
    return '\n'.join([*lines, '', *averages(found)])


def anchors(model: str, path: str = os.path.join(ROOT, 'docs', 'anchors.csv')) -> dict[tuple[str, str, str], float]:
    """{(set, kind, metric): published percent} of a model."""
    with open(path, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    found = {(row['set'], row['kind'], row['metric']): float(row['value']) for row in rows if row['model'] == model}
    if not found:
        raise RecipeError(f'--published: found {model!r}; valid: {", ".join(dict.fromkeys(row["model"] for row in rows))}')
    return found


def beside(found: Sequence[Result], published: Mapping[tuple[str, str, str], float], within: float) -> tuple[list[str], bool]:
    """(a line for each published number, whether all that were run are at most ``within`` points off)."""
    ours = {(result.row.set, result.row.kind, name): 100 * value for result in found for name, value in result.values.items()}
    lines, good = ['published numbers:'], True
    for key, value in published.items():
        if key not in ours:
            lines.append(f'  {key[0]} {key[2]}: {value:.1f} published, not run here')
            continue
        off = abs(ours[key] - value) > within
        good &= not off
        lines.append(f'  {key[0]} {key[2]}: {value:.1f} published, {ours[key]:.2f} here{"  OFF" if off else ""}')
    return lines, good


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--workdir', default='', help='the run')
    add('--checkpoint', default='', help='instead of a run: hf:DIR, hf:ORG/NAME, open_clip:FILE, npz:FILE')
    add('--data', required=True, help='the folder of evaluation sets, or of TFDS')
    add('--sets', default='', help=f'some of {",".join(suite.SETS)}; all if not given')
    add('--kinds', default=','.join(suite.KINDS), help='what to evaluate')
    add('--prompts', default='', help="CLIP's data/prompts.md, for its templates")
    add('--step', type=int, help='the checkpoint; the newest if not given')
    add('--objective', default='', help='whose embeddings; the first that has any if not given')
    add('--limit', type=int, default=0, help='images per set; 0: all')
    add('--batch', type=int, default=64)
    add('--image', type=int, default=0, help="side of images; the tower's if not given")
    add('--length', type=int, default=0, help="tokens of a text; the tower's if not given")
    add('--tokenizer', default='')
    add('--canonicalize', action='store_true', help='lower-case prompts without punctuation, as SigLIP')
    add('--published', default='', metavar='MODEL', help='the published numbers of this model of docs/anchors.csv, beside')
    add('--within', type=float, default=.3, help='points that they may be off')
    add('--csv', default='', help='where to; suite.csv in the workdir, or here, if not given')
    options = parser.parse_args(arguments)
    try:
        if bool(options.workdir) == bool(options.checkpoint):
            raise RecipeError("--workdir, --checkpoint: which? give a run's folder, or a checkpoint such as hf:DIR")
        if options.checkpoint and options.step is not None:
            raise RecipeError('--step: of --workdir; a checkpoint has it in its name, WORKDIR@STEP')
        published = anchors(options.published) if options.published else {}
        checkpoint = options.checkpoint or (options.workdir if options.step is None else f'{options.workdir}@{options.step}')
        config, plan = planned(open_source(checkpoint), options)
        found, step = results(config, plan, checkpoint)
    except RecipeError as error:
        sys.exit(f'suite: {error}')
    path = options.csv or os.path.join(options.workdir, 'suite.csv')
    with open(path, 'w', encoding='utf-8', newline='') as file:
        csv.writer(file).writerows([(*COLUMNS, 'step'), *((*result.cells(), step) for result in found)])
    print(f'\n{table(found)}\n\n{path} (step {step})')
    if published:
        lines, good = beside(found, published, options.within)
        print('\n'.join(lines))
        sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
