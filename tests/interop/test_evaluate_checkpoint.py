"""A checkpoint of another library under our evaluators, without a recipe."""

import dataclasses
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigvlm import evaluate
from bigvlm.core.parts import RecipeError
from bigvlm.interop.source import open_source
from tools import convert, suite

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


def test_the_suite_needs_no_recipe_either(exported, files, tmp_path, capsys):
    (tmp_path / 'cifar10').mkdir()
    (tmp_path / 'cifar10/test').symlink_to(files / 'classes')
    (tmp_path / 'cifar10/classnames.txt').write_text('blue\ndog\nred\n')
    suite.main(['--checkpoint', exported, '--data', str(tmp_path), '--sets', 'cifar10,mnist', '--kinds', 'zero_shot', '--csv',
                str(tmp_path / 'suite.csv')])
    assert 'zero_shot: mean ' in capsys.readouterr().out and 'cifar10' in (tmp_path / 'suite.csv').read_text()


def test_what_to_evaluate_must_be_said(exported):
    with pytest.raises(RecipeError, match='^--config: hf:.* says nothing of evaluations; valid: --val, --folder'):
        with evaluate.opened(exported):
            pass


MASKED = dict(name='masked_image', patch=8, grid=(4, 4), transform=False, kinds=('pairs',))


def test_the_objective_is_the_first_that_embeds(run):
    source = open_source(str(run))
    source = dataclasses.replace(source, config={**source.config, 'objectives': dict(a=MASKED) | source.config['objectives'], 'towers': {
        name: {**spec, 'mask_token': True} if name == 'image' else spec for name, spec in source.config['towers'].items()}})
    found = evaluate.of_files('x.tar', '', 'photo', source)['evals']['retrieval']
    assert found['objective'] == 'contrast' and found['tokenizer'] == 'text' and found['length'] == 12


def test_a_run_without_embeddings(run, monkeypatch):
    """It has evaluators of its own: images reconstructed, say."""
    source = open_source(str(run))
    image = {**source.config['towers']['image'], 'pool': 'gap', 'mask_token': True}
    source = dataclasses.replace(source, config=dict(towers=dict(image=image), objectives=dict(rec=MASKED)), load=lambda wanted: {
        path: jnp.zeros(x.shape, x.dtype) for path, x in wanted.items()})
    monkeypatch.setattr(evaluate, 'open_source', lambda _: source)
    held_out = dict(name='held_out', data='val', objective='rec')
    with pytest.raises(RecipeError, match='^evals.x.data: there is no dataset'):  # of the evaluator, not of the model
        with evaluate.opened('run', dict(data={}, evals=dict(x=held_out))):
            pass
    with evaluate.opened('run', dict(data={}, evals={})) as (_, model):
        assert model.objective == 'rec'


@pytest.mark.parametrize('arguments, message', [
    (['--checkpoint', 'runs/x', '--step', '3'], '--step: of --workdir; a checkpoint has it in its name, WORKDIR@STEP'),
    ([], '--workdir, --checkpoint: which?'), (['--checkpoint', 'hf:nowhere/at/all', '--val', 'x.tar'], 'nowhere/at/all')])
def test_the_command_line(arguments, message):
    done = subprocess.run([sys.executable, '-m', 'bigvlm.evaluate', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
