"""Writes the table of docs/scaling.md: every recipe at its published batch, planned for pods named in advance.

    python tools/scaling_table.py                              # all of it: an hour or two on 2 cores
    python tools/scaling_table.py --recipes clip_b32 --topologies v5e:16x16,h100:64

Each plan is made by tools/plan.py and kept as JSON in --cache, by recipe and topology; what is there for the recipe as it
is now is not made again, so that the command can be stopped and resumed. --again makes all anew, after a change of code.
"""

import hashlib
import json
import os
import subprocess
import sys

from absl import flags

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bigvlm.plan import environment  # noqa: E402

os.environ.update(environment.variables(os.environ))  # before jax is imported

from bigvlm import recipe  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.plan import text  # noqa: E402

TOPOLOGIES = ('v5e:16x16', 'v6e:16x16', 'v5p:8x8x8', 'h100:64')
EPOCH = 400_000_000   # examples, for recipes that count in epochs: LAION-400M
BEGIN, END = '<!-- scaling table: written by tools/scaling_table.py -->', '<!-- end of scaling table -->'

_RECIPES = flags.DEFINE_list('recipes', None, 'Names of configs/*.py; all but the quickstart by default.')
_TOPOLOGIES = flags.DEFINE_list('topologies', list(TOPOLOGIES), 'What to plan for.')
_CACHE = flags.DEFINE_string('cache', os.path.join(ROOT, 'runs', 'scaling'), 'Where plans are kept.')
_AGAIN = flags.DEFINE_bool('again', False, 'Make plans anew that are there.')
_DOCS = flags.DEFINE_string('docs', os.path.join(ROOT, 'docs', 'scaling.md'), 'The file to write the table into.')


def main(_):
    rows = []
    for name in _RECIPES.value or recipes():
        for topology in _TOPOLOGIES.value:
            found = cached(name, topology)
            rows.append(row(name, topology, found))
            print(' | '.join(rows[-1].values()), flush=True)
    write(_DOCS.value, text.markdown(rows))


def recipes() -> list[str]:
    files = (file.removesuffix('.py') for file in sorted(os.listdir(os.path.join(ROOT, 'configs'))) if file.endswith('.py'))
    return [name for name in files if name not in ('__init__', 'common', 'quickstart')]


def cached(name: str, topology: str) -> dict:
    """The plan of a recipe for a topology as JSON, or ``{'error': its last line}``; made if it is not there."""
    path = os.path.join(ROOT, 'configs', f'{name}.py')
    config = json.dumps(recipe.resolve(recipe.from_command_line(path)), sort_keys=True, default=str)
    key = hashlib.sha256(config.encode()).hexdigest()[:12]
    file = os.path.join(_CACHE.value, f'{name}-{topology.replace(":", "-")}-{key}.json')
    if _AGAIN.value or not os.path.exists(file):
        os.makedirs(_CACHE.value, exist_ok=True)
        done = subprocess.run(
            [sys.executable, os.path.join(ROOT, 'tools', 'plan.py'), '--config', path, '--topology', topology,
             '--examples_per_epoch', str(EPOCH), '--json', f'{file}.part'], capture_output=True, text=True)
        if done.returncode:
            return {'error': (done.stderr.strip() or f'exit {done.returncode}').splitlines()[-1]}
        os.replace(f'{file}.part', file)
    with open(file, encoding='utf-8') as opened:
        return json.load(opened)


def row(name: str, topology: str, plan: dict) -> dict[str, str]:
    """One row of the table."""
    head = {'recipe': f'`{name}`', 'on': topology}
    if 'error' in plan:
        keys = ('batch', 'mesh', 'micro', 'remat', 'GiB', 'fits', 'TFLOP', 'MiB', 'ms', 'examples/s', 'days', 'compile s')
        return head | dict.fromkeys(keys, '–') | {'fits': plan['error'].replace('|', '/')[:120]}
    memory, run = plan['memory'], plan['run']
    head |= {
        'batch': f'{plan["batch"]:,}', 'mesh': ' '.join(f'{axis}={n}' for axis, n in plan['mesh'].items() if n > 1),
        'micro': str(plan['micro']), 'remat': ' / '.join(dict.fromkeys(plan['remat'].values())),
        'GiB': f'{memory["needed"] / text.GIB:.2f} of {memory["limit"] / text.GIB:.2f}' + ' (d)' * (memory['limit_source'] == 'datasheet'),
        'fits': 'yes' if memory['fits'] else 'no', 'TFLOP': f'{plan["compiled_flops"] / 1e12:.2f}'}
    figures = dict.fromkeys(('MiB', 'ms', 'examples/s', 'days'), '–') if run is None else {
        'MiB': f'{plan["traffic"]["bytes"] / text.MIB:.0f} (least {plan["minimum_bytes"] / text.MIB:.0f})',
        'ms': f'{1e3 * plan["estimate"]["seconds"]:.0f}', 'examples/s': f'{run["examples_per_second"]:,.0f}',
        'days': f'{run["hours"] / 24:.2f}'}
    return head | figures | {'compile s': f'{plan["compile_seconds"]:.0f}'}


def write(path: str, table: str) -> None:
    with open(path, encoding='utf-8') as file:
        page = file.read()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise RecipeError(f'--docs: {path} needs the lines {BEGIN!r} and {END!r} once each, for the table between them')
    before, rest = page.split(BEGIN)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(f'{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}')


if __name__ == '__main__':
    recipe.run(main, config_required=False)
