"""The loop as its user runs it: train, kill, resume, stop, break, look at what it left behind."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
COLORS = {'red': (200, 20, 20), 'green': (20, 200, 20), 'blue': (20, 20, 200), 'white': (240, 240, 240)}


@pytest.fixture(scope='module')
def tars(tmp_path_factory):
    """24 coloured pictures with two captions each, and a truncated one, in two tars."""
    folder = tmp_path_factory.mktemp('tars')
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f'part-{shard}.tar', 'w') as tar:
            for i in range(12):
                name, color = list(COLORS.items())[i % 4]
                picture = np.clip(np.array(color) + rng.normal(0, 30, (40, 36, 3)), 0, 255).astype(np.uint8)
                jpeg = io.BytesIO()
                Image.fromarray(picture).save(jpeg, 'JPEG')
                data = jpeg.getvalue()[:200] if (shard, i) == (1, 5) else jpeg.getvalue()
                captions = [f'a {name} picture number {shard * 12 + i}', f'all {name}']
                for end, content in (('jpg', data), ('json', json.dumps({'captions': captions}).encode())):
                    info = tarfile.TarInfo(f'{shard:03}{i:03}.{end}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / 'part-*.tar')


def command(tars, workdir, *more, steps=8):
    return [sys.executable, '-m', 'bigvlm.train', '--config', f'{ROOT}/tests/tiny_recipe.py:steps={steps},data={tars}',
            '--workdir', str(workdir), *more]


def start(tars, workdir, *more, **kwargs):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'BIGVLM_CACHE': str(pathlib.Path(tars).parent / 'cache'),
                   'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(command(tars, workdir, *more, **kwargs), cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def run(*args, **kwargs):
    process = start(*args, **kwargs)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def lines(workdir):
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(workdir):
    return {line['step']: line['loss'] for line in lines(workdir) if 'loss' in line}


def until(process, condition, seconds=200):
    """Waits for a condition that a run is to reach."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(.02)


@pytest.fixture(scope='module')
def whole(tars, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    code, output = run(tars, workdir)
    assert code == 0, output
    return workdir, output


def test_a_run_leaves_everything_behind(whole):
    workdir, output = whole
    assert sorted(losses(workdir)) == list(range(1, 9))
    for name in ('config.json', 'run.json', 'log.txt', 'metrics.jsonl', 'lost.json', 'report.html', 'checkpoints', 'figures'):
        assert (workdir / name).exists(), name
    assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()) == [4, 6, 8]
    assert 'step 8/8  loss' in output and 'ex/s' in output and 'wait' in output and 'eta' in output
    info = json.loads((workdir / 'run.json').read_text())
    assert info['status'] == 'finished' and 'bigvlm.train' in info['command'] and info['total_steps'] == 8
    evaluated = {line['step'] for line in lines(workdir) if 'retrieval/image_to_text_r1' in line}
    assert evaluated == {4, 8}
    lost = json.loads((workdir / 'lost.json').read_text())
    for dataset in ('train', 'val'):
        assert list(lost[dataset].values()) == [dict(count=1, items=['part-1.tar:001005'])], 'each bad item is counted and named once'


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_at_any_moment_and_resumed_is_bit_exact(whole, tars, tmp_path):
    workdir, _ = whole
    process = start(tars, tmp_path / 'run')
    until(process, lambda: len(losses(tmp_path / 'run')) >= 5)
    process.kill()
    process.communicate()
    code, output = run(tars, tmp_path / 'run')
    assert code == 0 and 'resumed from step' in output, output
    assert losses(tmp_path / 'run') == losses(workdir)
    code, output = run(tars, tmp_path / 'run')
    assert code == 0 and 'is complete (8 steps)' in output, 'again: nothing to do'
    code, output = run(tars, tmp_path / 'run', '--config.optim.lr=1e-3')
    assert code == 2 and 'optim.lr: 0.003 → 0.001' in output and 'Traceback' not in output


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_saves_and_exits_0_and_a_second_live_run_is_refused(whole, tars, tmp_path):
    process = start(tars, tmp_path / 'run', steps=100_000)
    until(process, lambda: len(losses(tmp_path / 'run')) >= 3)
    code, output = run(tars, tmp_path / 'run', steps=100_000)
    assert code == 2 and f'in use by process {process.pid}' in output
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    last = max(losses(tmp_path / 'run'))
    saved = max(int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir() if p.name.isdigit())
    assert process.returncode == 0 and f'SIGTERM: saved step {saved}' in output and saved >= last
    assert json.loads((tmp_path / 'run' / 'run.json').read_text())['status'] == 'stopped'


@pytest.mark.slow
@pytest.mark.multiprocess
def test_profile_is_written(tars, tmp_path):
    code, output = run(tars, tmp_path / 'run', '--config.profile=(2,3)', steps=4)
    assert code == 0, output
    assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_nan_stops_with_step_examples_and_last_checkpoint(tars, tmp_path):
    code, output = run(tars, tmp_path / 'run', '--config.optim.lr=1e30', '--config.optim.schedule.warmup=0 steps')
    assert code == 1
    assert 'is nan at step' in output or 'is inf at step' in output
    assert 'its examples (source:index) are 0:' in output and 'the last good checkpoint is step' in output
    assert json.loads((tmp_path / 'run' / 'run.json').read_text())['status'] == 'failed'


@pytest.mark.slow
@pytest.mark.multiprocess
def test_evaluate_by_itself_gives_the_same_numbers(whole, tars):
    workdir, _ = whole
    done = subprocess.run([sys.executable, '-m', 'bigvlm.evaluate', '--workdir', str(workdir)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'XLA_FLAGS': '', 'BIGVLM_CACHE': str(pathlib.Path(tars).parent / 'cache')}, timeout=300)
    assert done.returncode == 0, done.stderr
    in_loop = next(line for line in lines(workdir) if line['step'] == 8 and 'retrieval/n' in line)
    by_itself = json.loads((workdir / 'evaluation.json').read_text())
    for name in ('retrieval/image_to_text_r1', 'retrieval/text_to_image_r10', 'retrieval/text_to_image_median_rank'):
        assert by_itself[name] == in_loop[name]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_dry_run_prints_everything_and_makes_nothing(tars, tmp_path):
    code, output = run(tars, tmp_path / 'run', '--dry_run', '--config.optim.lr=1e-3')
    assert code == 0, output
    assert not (tmp_path / 'run').exists()
    assert 'optim.lr: 0.003 -> 0.001' in output
    assert 'text/embed/embedding' in output and 'bytes per device' in output
    assert re.search(r"'(a \w+ picture number|all \w+)", output), 'the decoded captions of a batch'
