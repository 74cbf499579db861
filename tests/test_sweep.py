"""tools/sweep.py: which runs a sweep has, that each is trained once whatever happens, and what the table says."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigvlm.core.parts import RecipeError
from tests.data.fakes import sample, write_tar
from tests.sweeping import Fake
from tools import _points, sweep
from tools._runner import Runner

ROOT = Path(__file__).resolve().parent.parent
RECIPE = f'{ROOT}/configs/quickstart.py'


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Fake(tmp_path, monkeypatch, _points, tmp_path / 'sweep')


def run(capsys, root, *more):
    code = sweep.main(['--config', RECIPE, '--set', 'optim.lr=1e-3,3e-4', '--seeds', '2', '--workdir', str(root), *more])
    said = capsys.readouterr()
    return code, said.out, said.err


# Points.

@pytest.mark.parametrize('text, parts', [
    ('1e-3,3e-4', ['1e-3', '3e-4']), ('(1,(2,3)),(4)', ['(1,(2,3))', '(4)']), ('(1,2', None), ("'a", None),
    ("(1,2),[3,4],'a,b',x", ['(1,2)', '[3,4]', "'a,b'", 'x']),
    ('one', ['one']), ('1,,2', None), ('', None)])
def test_values_are_split_at_commas_outside_brackets(text, parts):
    if parts is None:
        with pytest.raises(RecipeError, match='--set: cannot read'):
            _points.split(text)
    else:
        assert _points.split(text) == parts


@pytest.mark.parametrize('given, message', [(['optim.lr'], 'found'), (['a=1', 'a=2'], 'each key once'), (['seed=1,2'], '--seeds')])
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        _points.settings(given)


def test_names_are_short_and_readable_and_differ():
    points = _points.grid('r.py', [('batch', '8')], {'optim.lr': ['1e-3', '3e-4'], 'optim.schedule.warmup': ['10%', "'5 steps'"]}, range(2))
    assert len({point.name for point in points}) == 8
    assert points[0].name.startswith('lr=1e-3_warmup=10-') and points[0].name.endswith('_seed=0')
    assert all(re.fullmatch(r'[\w.+=-]+', point.name) for point in points)
    assert points[1].group == points[0].group and points[2].group != points[0].group
    assert points[0].overrides == (('batch', '8'), ('optim.lr', '1e-3'), ('optim.schedule.warmup', '10%'), ('seed', '0'))
    # Keys with the same last part say more; values that no file name can hold differ all the same.
    both = _points.grid('r.py', (), {'towers.image.width': ['8'], 'towers.text.width': ['8']}, [0])
    assert both[0].name == 'image.width=8_text.width=8_seed=0'
    odd = _points.grid('r.py', (), {'files': ['a/*', 'a/?']}, [0])
    assert odd[0].name != odd[1].name
    assert [point.name for point in _points.grid('r.py', (), {}, range(2))] == ['seed=0', 'seed=1']


def test_the_same_run_twice_is_refused():
    with pytest.raises(RecipeError, match='same run twice'):
        _points.check(_points.grid(RECIPE, (), {'optim.lr': ['1e-3', '.001']}, [0]))


def test_a_recipe_that_cannot_be_is_refused_before_anything_runs(fake, tmp_path, capsys):
    for argument, message in (('--config.optim.rate=1', 'optim.rate'), ('--metric=zeroshot/top1', 'valid: a metric of baseline'),
                              (f'--slurm={tmp_path}/no/lr.sbatch', 'no folder')):
        code, _, error = run(capsys, tmp_path / 'sweep', argument)
        assert code == 2 and message in error and not fake.launches


# Running.

def test_a_sweep_trains_every_point_once_and_says_which_is_best(fake, tmp_path, capsys):
    root = tmp_path / 'sweep'
    fake.told['values'] = {f'lr={lr}_seed={seed}': {'zero_shot/top1': (.01, value)}
                           for lr, seed, value in (('1e-3', 0, .50), ('1e-3', 1, .52), ('3e-4', 0, .10), ('3e-4', 1, .14))}
    code, out, _ = run(capsys, root)
    assert code == 0 and sorted(fake.names) == sorted(fake.told['values'])
    assert re.search(r'^lr=1e-3 +51\.0 % ± 1\.4 % \*', out, re.MULTILINE), out
    assert re.search(r'^lr=3e-4 +12\.0 % ± 2\.8 %  ', out, re.MULTILINE), out
    assert 'best zero_shot/top1: lr=1e-3, 51.0 % ± 1.4 % (n = 2)\n' in out
    assert re.search(r'\[2/4\] .* finished in \d+s · 2 left, eta', out)
    with open(root / 'runs.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['zero_shot/top1']) for row in rows] == [.50, .52, .10, .14] and {row['status'] for row in rows} == {'finished'}
    assert (root / 'compare.html').read_text().count('lr=3e-4') > 3

    code, out, _ = run(capsys, root)  # again: nothing is left to do
    assert code == 0 and len(fake.launches) == 4 and 'best zero_shot/top1: lr=1e-3' in out
    code, out, _ = run(capsys, root, '--metric', 'loss')
    assert 'best loss: ' in out and 'not told from it' in out
    code, _, error = run(capsys, root, '--metric', 'zero_shot/top2')
    assert code == 2 and 'zero_shot/top1' in error


def test_a_failure_is_reported_does_not_stop_the_others_and_is_tried_again(fake, tmp_path, capsys):
    root = tmp_path / 'sweep'
    fake.told['fail'] = {'lr=1e-3_seed=1': 'the rate is too high'}
    code, out, _ = run(capsys, root)
    assert code == 1 and len(fake.launches) == 4
    assert out.count('the rate is too high and what differs') == 2 and 'failed: lr=1e-3_seed=1: the rate is too high' in out
    assert '1 of 4 runs are not finished' in out
    fake.told['fail'] = {}
    code, out, _ = run(capsys, root)
    assert code == 0 and fake.names[4:] == ['lr=1e-3_seed=1'] and fake.launches[-1]['resumed']
    assert '3 of 4 runs are finished already' in out


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(fake, tmp_path, capsys):
    root = tmp_path / 'sweep'
    run(capsys, root)
    run(capsys, root, '--config.log.every=7 steps')  # changes nothing that is trained
    assert len(fake.launches) == 4
    code, out, _ = run(capsys, root, '--config.batch=32', '--show')
    assert code == 1 and len(fake.launches) == 4 and 'best' not in out
    run(capsys, root, '--config.batch=32')
    assert len(fake.launches) == 8


def test_a_signal_stops_the_running_one_which_saves_and_the_same_command_goes_on(fake, tmp_path):
    root = tmp_path / 'sweep'
    points = _points.grid(RECIPE, (), {'optim.lr': ['1e-3', '3e-4']}, range(2))
    fake.told['seconds'] = {points[1].name: 30}
    said = []

    def say(line):
        said.append(line)
        if line.startswith('[2/4]') and 'starts' in line:
            marked = root / points[1].name / 'run.json'
            while not marked.exists() or not marked.read_text():
                time.sleep(.01)
            signal.raise_signal(signal.SIGTERM)
    _points.check(points)
    before = signal.getsignal(signal.SIGTERM)
    runner = Runner(root, say=say)
    assert not runner.run(points) and runner.stopping
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((root / points[1].name / 'run.json').read_text())['status'] == 'stopped'
    assert fake.names == [points[0].name] and said[-1] == 'stopped; the same command goes on'
    fake.told['seconds'] = {}
    fake.write()
    assert Runner(root, say=said.append).run(points)
    assert [(launch['name'], launch['resumed']) for launch in fake.launches[1:]] == [
        (points[1].name, True), (points[2].name, False), (points[3].name, False)]
    assert f'[2/4] {points[1].name}: goes on' in said


def test_jobs_run_at_a_time_each_on_its_share_of_the_devices(fake, tmp_path, capsys):
    root = tmp_path / 'sweep'
    fake.told['seconds'] = {f'lr={lr}_seed={seed}': .5 for lr in ('1e-3', '3e-4') for seed in (0, 1)}
    code, _, _ = run(capsys, root, '--jobs', '2', '--devices', '0,1,2,3')
    assert code == 0
    first, second, *others = sorted(fake.launches, key=lambda launch: launch['began'])
    assert first['ended'] > second['began'] and others[0]['began'] >= min(first['ended'], second['ended'])
    assert {first['gpu'], second['gpu']} == {'0,1', '2,3'}
    assert run(capsys, root, '--jobs', '2', '--devices', '0')[0] == 2
    assert run(capsys, root, '--jobs', '0')[0] == 2


# Slurm.

def test_a_job_array_runs_one_point_per_task(fake, tmp_path, capsys, monkeypatch):
    root, script = tmp_path / 'sweep', tmp_path / 'lr.sbatch'
    fake.told['fail'] = {'lr=1e-3_seed=1': 'x'}
    run(capsys, root)
    code, out, _ = run(capsys, root, '--slurm', str(script), '--slurm_options=--partition=gpu --time=4:00:00')
    assert code == 0 and 'sbatch' in out and len(fake.launches) == 4
    text = script.read_text()
    for line in ('--array=0-0', '--partition=gpu', '--time=4:00:00', '--requeue', '--signal=B:TERM@120', '--open-mode=append'):
        assert f'#SBATCH {line}\n' in text
    assert subprocess.run(['bash', '-n', str(script)]).returncode == 0
    became = []

    class Became(Exception):
        """What a process that becomes another never raises."""

    def execve(*args):
        became.append(args)
        raise Became
    monkeypatch.setattr(os, 'execve', execve)
    with pytest.raises(Became):
        sweep.main(['--workdir', str(root), '--points', f'{script}.points', '--point', '0'])
    (_, command, environment), = became
    point, = (p for p in _points.grid(RECIPE, (), {'optim.lr': ['1e-3']}, [1]))
    assert command == point.command(root) and str(ROOT) in environment['PYTHONPATH'].split(os.pathsep)
    assert sweep.main(['--workdir', str(root), '--points', f'{script}.points', '--point', '1']) == 2


@pytest.mark.slow
def test_two_real_runs_one_of_them_as_a_task_of_a_job_array(tmp_path):
    tar = write_tar(tmp_path / 'a.tar', {f'{i:04d}': sample(i) for i in range(16)})
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0',
                                'BIGVLM_CACHE': str(tmp_path / 'cache')}
    root, script = tmp_path / 'sweep', tmp_path / 'lr.sbatch'
    command = [sys.executable, f'{ROOT}/tools/sweep.py', '--config', f'{ROOT}/tests/tiny_recipe.py:steps=3,data={tar}',
               '--set', 'optim.lr=1e-3,3e-3', '--seeds', '1', '--workdir', str(root)]

    def call(*arguments, **more):
        return subprocess.run(arguments, env=environment | more, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert call(*command, '--slurm', str(script)).returncode == 0
    task = call('bash', str(script), SLURM_ARRAY_TASK_ID='1')
    assert task.returncode == 0, task.stdout + task.stderr
    assert json.loads((root / 'lr=3e-3_seed=0' / 'run.json').read_text())['status'] == 'finished'
    done = call(*command, '--metric', 'retrieval/image_to_text_r1')
    assert done.returncode == 0, done.stdout + done.stderr
    assert '1 of 2 runs are finished already' in done.stdout and '[1/2] lr=1e-3_seed=0: starts' in done.stdout
    assert 'best retrieval/image_to_text_r1: ' in done.stdout and '; one seed:' in done.stdout
    assert (root / 'compare.html').is_file() and len((root / 'runs.csv').read_text().splitlines()) == 3
