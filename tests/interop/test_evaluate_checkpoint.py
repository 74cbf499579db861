"""A checkpoint of another library under our evaluators, without a recipe."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigvlm import evaluate
from bigvlm.core.parts import RecipeError
from bigvlm.interop.source import open_source
from tools import convert

pytestmark = pytest.mark.usefixtures('one_device')
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Twelve pictures: in a tar with captions, and in folders by class."""
    folder = tmp_path_factory.mktemp('files')
    rng = np.random.default_rng(0)
    with tarfile.open(folder / 'val.tar', 'w') as tar:
        for i in range(12):
            name = ('red', 'blue', 'dog')[i % 3]
            jpeg = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)).save(jpeg, 'JPEG')
            (folder / 'classes' / name).mkdir(parents=True, exist_ok=True)
            (folder / 'classes' / name / f'{i}.jpg').write_bytes(jpeg.getvalue())
            for end, content in (('jpg', jpeg.getvalue()), ('json', json.dumps({'captions': [f'a {name} number {i}']}).encode())):
                info = tarfile.TarInfo(f'{i:03}.{end}')
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    with pytest.MonkeyPatch.context() as patch:
        import jax
        device = jax.devices()[0]
        patch.setattr(jax, 'devices', lambda *_: [device])
        assert convert.main([str(run), f'hf:{folder}']) == 0
    return f'hf:{folder}'


def results(checkpoint, files):
    config = evaluate.of_files(f'{files}/val.tar', f'{files}/classes', 'ensemble', open_source(checkpoint))
    with evaluate.opened(checkpoint, config) as (run, model):
        return {name: value for name, value in run() if isinstance(value, float) and 'seconds' not in name}


def test_the_same_numbers_as_of_the_run_itself(run, exported, files):
    ours, theirs = results(str(run), files), results(exported, files)
    assert ours == theirs and ours['retrieval/n'] == ours['zero_shot/n'] == 12
    assert {'retrieval/image_to_text_r1', 'zero_shot/top1'} <= ours.keys()


def test_what_to_evaluate_must_be_said(exported):
    with pytest.raises(RecipeError, match='^--config: hf:.* says nothing of evaluations; valid: --val, --folder'):
        with evaluate.opened(exported):
            pass


@pytest.mark.parametrize('arguments, message', [
    ([], '--workdir, --checkpoint: which?'), (['--checkpoint', 'hf:nowhere/at/all', '--val', 'x.tar'], 'nowhere/at/all')])
def test_the_command_line(arguments, message):
    done = subprocess.run([sys.executable, '-m', 'bigvlm.evaluate', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
