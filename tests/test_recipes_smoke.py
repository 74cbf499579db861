"""Every recipe can be had, as published and small; small ones of several families train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigvlm import recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py') if path.stem not in ('__init__', 'common'))
ABOUT = {'paper': str, 'data': str, 'devices': int, 'expected': str}


def of(name: str, arguments: str = '') -> dict:
    return recipe.resolve(recipe.from_command_line(f'{ROOT}/configs/{name}.py{":" * bool(arguments)}{arguments}'))


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_says_what_it_is(name):
    published, small = of(name), of(name, 'smoke')
    for config in (published, small):
        assert {key: type(config['about'][key]) for key in ABOUT} == ABOUT and all(config['about'].values())
    assert small['about'] == published['about']


@pytest.mark.parametrize('name', RECIPES)
def test_a_small_recipe_is_the_same_method(name):
    """The same objectives of the same weights, kinds and EMAs, the same optimizer's freezing; on scenes, with a tokenizer of its own."""
    published, small = of(name), of(name, 'smoke')
    assert small['batch'] <= 64 and small['mesh'] == dict(replica=1, data=-1, fsdp=1, tensor=1)
    assert small['kinds'].keys() == published['kinds'].keys() and small['ema'].keys() == published['ema'].keys()
    assert ({key: (spec['name'], spec['weight'], spec['kinds']) for key, spec in small['objectives'].items()}
            == {key: (spec['name'], spec['weight'], spec['kinds']) for key, spec in published['objectives'].items()})
    assert small['optim'].get('freeze') == published['optim'].get('freeze')
    for spec in small['data'].values():
        assert 'mix' in spec or spec['source']['dataset'] == 'bigvlm_scenes'
    assert not any(spec.get('model') or spec.get('vocab_file') for spec in small['tokenizers'].values())
    assert {'zero_shot', 'held_out'} & {spec['name'] for spec in small['evals'].values()}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['coca_b32', 'flava', 'slip_b16'])
def test_it_trains(name, tmp_path):
    """A step of each kind, and every evaluation, as its user would run it."""
    steps = len(of(name, 'smoke')['kinds'])
    command = [sys.executable, '-m', 'bigvlm.train', '--config', f'configs/{name}.py:smoke', f'--config.steps={steps} steps',
               '--config.batch=16', '--workdir', str(tmp_path / 'run'), *smaller(name)]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for line in (tmp_path / 'run' / 'metrics.jsonl').read_text(encoding='utf-8').splitlines():
        found |= json.loads(line)
    for evaluator in of(name, 'smoke')['evals']:
        assert any(key.startswith(f'{evaluator}/') for key in found), evaluator
    assert found['step'] == steps and found['loss'] > 0


def smaller(name: str) -> list[str]:
    """Overrides: one layer in each part, few examples in evaluations."""
    config = of(name, 'smoke')
    layers = [f'--config.{group}.{key}.depth=1' for group in ('towers', 'fusion', 'decoders') for key in config[group]]
    return layers + [f'--config.evals.{key}.limit=64' for key, spec in config['evals'].items() if 'limit' in spec]
