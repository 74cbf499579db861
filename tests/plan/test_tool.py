"""The command itself: what it says when it cannot plan, and JSON on standard output."""

import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def tool(*arguments):
    """Runs it with no environment of its own: it sets what it needs."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(('TPU_', 'JAX_', 'XLA_', 'ALLOW_', 'TF_'))}
    return subprocess.run([sys.executable, '-W', 'ignore', os.path.join(ROOT, 'tools', 'plan.py'), *arguments], env=environment,
                          text=True, capture_output=True, timeout=300, check=False)


def recipe_of(name):
    return ('--config', os.path.join(ROOT, 'configs', f'{name}.py'))


@pytest.mark.slow
@pytest.mark.parametrize('arguments, message', [
    (recipe_of('clip_b32'), 'bigvlm: --topology: which accelerators?'),
    ((*recipe_of('clip_b32'), '--topology', 'v9:2x2'), "bigvlm: --topology: 'v9:2x2' is none that can be compiled for (valid: v4:NxNxN"),
    (('--topology', 'v5e:2x2'), 'bigvlm: --config: which recipe?')])
def test_mistakes_are_one_line(arguments, message):
    done = tool(*arguments)
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count('\n') == 1 and not done.stdout


@pytest.mark.aot
@pytest.mark.slow
def test_epochs_need_their_size():
    done = tool(*recipe_of('clip_b32'), '--topology', 'v5e:2x2')
    assert done.returncode == 2
    assert done.stderr.startswith("bigvlm: --examples_per_epoch: give the size of the training set; steps: '32 epochs'")


@pytest.mark.aot
@pytest.mark.slow
def test_json_stands_alone():
    """The quickstart's model, so small that it compiles in seconds."""
    done = tool(*recipe_of('quickstart'), '--topology', 'v5e:2x2', '--config.batch=64', '--json', '-')
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['memory']['fits'] and found['devices'] == 4 and found['run']['steps'] == 1300
    assert 'fits, ' in done.stderr and 'WARNING' not in done.stderr and ' E0' not in done.stderr
