import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigvlm import workdir
from bigvlm.workdir import WorkdirError, open_workdir

CONFIG = {'seed': 0, 'optim': {'lr': .001, 'decay': (('.*/kernel', 1.), ('.*', 0.))}, 'about': {},
          'resume': {'allow': ()}, 'data': {'train': {'ops': ({'name': 'decode'}, {'name': 'resize', 'size': 224})}}}


def launch(path, config=CONFIG, allow=()):
    return open_workdir(path, config, ['python', '-m', 'bigvlm.train', '--config', 'my recipe.py'], allow)


def change(**changes):
    return {**json.loads(json.dumps(CONFIG)), **changes}


def run_with_a_checkpoint(path):
    launch(path).close()
    (path / 'checkpoints' / '10').mkdir(parents=True)


def info(path):
    return json.loads((path / 'run.json').read_text())


def test_what_a_run_leaves(tmp_path):
    path = tmp_path / 'runs' / 'one'
    with launch(path) as work:
        work.describe_devices(['cpu', 'cpu'])
        work.note(total_steps=7)
        assert info(path)['status'] == 'running'
        logging.getLogger('bigvlm.test').warning('seen in the log')
        work.finish()
    found = info(path)
    assert found['command'] == "python -m bigvlm.train --config 'my recipe.py'"
    assert (found['status'], found['devices'], found['total_steps']) == ('finished', '2 × cpu', 7)
    assert {'bigvlm', 'python', 'jax', 'flax'} <= set(found['versions']) and len(found['launches']) == 1
    assert 'seen in the log' in (path / 'log.txt').read_text()
    assert json.loads((path / 'config.json').read_text()) == json.loads(json.dumps(CONFIG))
    logging.getLogger('bigvlm.test').warning('after it')
    assert 'after it' not in (path / 'log.txt').read_text()


def test_how_a_run_ended(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with launch(tmp_path):
            raise ZeroDivisionError('too bad')
    assert (info(tmp_path)['status'], info(tmp_path)['error']) == ('failed', 'ZeroDivisionError: too bad')
    with launch(tmp_path):
        pass
    assert info(tmp_path)['status'] == 'stopped' and 'error' not in info(tmp_path)
    assert len(info(tmp_path)['launches']) == 2


def test_a_second_live_run_is_refused(tmp_path):
    with launch(tmp_path):
        with pytest.raises(WorkdirError, match=rf'in use by process {os.getpid()} on \S+; stop'):
            launch(tmp_path)
    launch(tmp_path).close()


@pytest.mark.multiprocess
def test_the_lock_holds_between_processes_and_ends_with_a_kill(tmp_path):
    code = ('import sys; from bigvlm.workdir import open_workdir; work = open_workdir(sys.argv[1], {}, []); '
            'print(1, flush=True); sys.stdin.read()')
    child = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])})
    assert child.stdout.readline() == b'1\n'
    with pytest.raises(WorkdirError, match=f'in use by process {child.pid} '):
        launch(tmp_path)
    child.kill()
    child.wait()
    launch(tmp_path).close()


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path):
    run_with_a_checkpoint(tmp_path)
    launch(tmp_path).close()  # the same one resumes
    ops = ({'name': 'decode'}, {'name': 'resize', 'size': 256})
    changed = change(optim={'lr': .01, 'b1': .9, 'decay': CONFIG['optim']['decay']}, data={'train': {'ops': ops}})
    with pytest.raises(WorkdirError) as error:
        launch(tmp_path, changed)
    assert str(error.value).split('\n  ')[1:] == [
        'data.train.ops.1.size: 224 → 256', 'optim.b1: (absent) → 0.9', 'optim.lr: 0.001 → 0.01']
    assert json.loads((tmp_path / 'config.json').read_text()) == json.loads(json.dumps(CONFIG))
    launch(tmp_path).close()  # refusing let go of the lock


def test_allowed_changes(tmp_path):
    run_with_a_checkpoint(tmp_path)
    changed = change(optim={**CONFIG['optim'], 'lr': .01}, resume={'allow': ('optim.lr',)}, about={'paper': 'x'})
    with pytest.raises(WorkdirError, match='optim.lr'):
        launch(tmp_path, changed, allow=('optim',))
    launch(tmp_path, changed, allow=('optim.lr',)).close()
    assert 'optim.lr: 0.001 → 0.01' in info(tmp_path)['launches'][-1]['changed']
    launch(tmp_path, changed).close()  # it is this run's recipe now


def test_before_the_first_checkpoint_all_may_change(tmp_path):
    launch(tmp_path).close()
    launch(tmp_path, change(seed=1)).close()
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1


def test_dump():
    assert workdir.dump({'a': {'b': (1, 2.5), 'c': {}}, 'd': ('ü', None, True)}) == (
        '{\n  "a": {\n    "b": [1, 2.5],\n    "c": {}\n  },\n  "d": ["ü", null, true]\n}')
    long = {'rules': tuple((f'a quite long regex number {i}', i) for i in range(9))}
    assert json.loads(workdir.dump(long)) == json.loads(json.dumps(long)) and len(workdir.dump(long).splitlines()) == 13
