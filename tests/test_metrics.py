import json
import sys

import pytest

from bigvlm import metrics
from bigvlm.core.parts import RecipeError
from bigvlm.progress import Progress, duration


def lines(folder):
    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')
    return [json.loads(line, parse_constant=refuse) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_one_json_object_a_line(tmp_path):
    writer = metrics.Writer(tmp_path, clock=lambda: 1234.5678)
    writer.write(1, {'loss': 2.5})
    writer.write(2, {'loss': float('nan'), 'a': float('inf'), 'b': -float('inf')})
    assert lines(tmp_path) == [{'step': 1, 'time': 1234.568, 'loss': 2.5},  # before it is closed: each line is flushed
                               {'step': 2, 'time': 1234.568, 'loss': 'NaN', 'a': 'Infinity', 'b': '-Infinity'}]
    writer.close()


def test_resuming_forgets_later_steps_only(tmp_path):
    writer = metrics.Writer(tmp_path)
    for step in (0, 5, 10, 15, 20):
        writer.write(step, {'loss': step})
    writer.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 7, "lo')  # killed while writing
    writer = metrics.Writer(tmp_path)
    writer.resume(10)
    writer.write(12, {'loss': 12})
    writer.close()
    assert [line['step'] for line in lines(tmp_path)] == [0, 5, 10, 12]
    writer = metrics.Writer(tmp_path)
    writer.write(13, {'loss': 13})  # not told of a resume: nothing is lost
    writer.close()
    assert [line['step'] for line in lines(tmp_path)] == [0, 5, 10, 12, 13]


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboardX')
    writer = metrics.Writer(tmp_path, tensorboard=True)
    writer.resume(0)
    writer.write(3, {'match/scale': 10.})
    writer.close()
    [events] = (tmp_path / 'tensorboard').iterdir()
    assert b'match/scale' in events.read_bytes()


@pytest.mark.parametrize('asked, package', [(dict(tensorboard=True), 'tensorboardX'), (dict(wandb='project'), 'wandb')])
def test_a_missing_package_is_named(tmp_path, monkeypatch, asked, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=rf'log\.{list(asked)[0]}: .* pip install {package}'):
        metrics.Writer(tmp_path, **asked)


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    class Fake:
        """Stands for the service, which a test cannot reach; keeps what it is told."""
        started, logged = [], []

        @classmethod
        def init(cls, **arguments):
            cls.started.append(arguments)
            return cls()

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.logged.append('finished')
    monkeypatch.setitem(sys.modules, 'wandb', Fake)
    for step in (1, 2):
        writer = metrics.Writer(tmp_path, wandb='vlm', config={'seed': 0})
        writer.write(step, {'loss': 1})
        writer.close()
    first, second = Fake.started
    assert first['id'] == second['id'] and first['project'] == 'vlm' and second['resume'] == 'allow'
    assert Fake.logged == [(1, {'loss': 1.}), 'finished', (2, {'loss': 1.}), 'finished']


class Clock:
    now = 0.

    def __call__(self):
        return self.now


def test_progress():
    clock = Clock()
    progress = Progress(total=1500, batch=256, peak=1e12, clock=clock)
    with progress.paused():
        clock.now = 100.  # evaluation of the untrained model
    clock.now += 31.
    assert progress.measure(1, 6.93, 1e9, waited=20.) == {}
    assert progress.line(1) == 'step 1/1500  loss 6.93  first step after 31s'
    progress.start(1, waited=20.)
    clock.now += 3.
    with progress.paused():
        clock.now += 100.  # an evaluation
    clock.now += 1.
    measured = progress.measure(21, 2.3149, 8e10, waited=20.4)
    assert measured == pytest.approx({'step_time': .2, 'examples_per_s': 1280., 'data_wait': .1, 'mfu': .4})
    assert progress.line(21) == 'step 21/1500  loss 2.315  1,280 ex/s  200 ms/step  wait 10%  mfu 40%  eta 4m56s'
    clock.now += 20.
    measured = progress.measure(31, 2., None, waited=20.4)
    assert measured == pytest.approx({'step_time': 2., 'examples_per_s': 128., 'data_wait': 0.})
    assert progress.line(31).endswith('2 s/step  wait 0%  eta 26m56s')  # the median pace, 1.1 s, of 1469 steps


@pytest.mark.parametrize('seconds, text', [
    (0.4, '0s'), (12, '12s'), (59.7, '1m00s'), (252, '4m12s'), (7500, '2h05m'), (273600, '3d04h')])
def test_duration(seconds, text):
    assert duration(seconds) == text
