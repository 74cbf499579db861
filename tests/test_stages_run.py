"""A run in three stages (resolution, mask ratio, text length: as CLIPA trains) on a mixture resumes inside each stage."""

import io
import json
import shutil
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from bigvlm import recipe, train, workdir
from bigvlm.core.parts import RecipeError


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    """Tokenizers, indices, and compiled programs: what a run compiled, the resumed ones load."""
    patch = pytest.MonkeyPatch()
    patch.setenv('BIGVLM_CACHE', str(tmp_path_factory.mktemp('cache')))
    device = jax.devices()[0]
    patch.setattr(jax, 'devices', lambda *_: [device])  # meshes have tests of their own; this one compiles three steps
    before = {key: getattr(jax.config, key) for key in ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')}
    jax.config.update('jax_compilation_cache_dir', str(tmp_path_factory.mktemp('programs')))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.)
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    patch.undo()


@pytest.fixture(scope='module')
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tars')
    rng = np.random.default_rng(0)
    for name, count in (('a', 20), ('b', 9)):
        with tarfile.open(folder / f'{name}.tar', 'w') as tar:
            for i in range(count):
                jpeg = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)).save(jpeg, 'JPEG')
                for end, data in (('jpg', jpeg.getvalue()), ('txt', f'picture number {i} of {name}'.encode())):
                    member = tarfile.TarInfo(f'{name}{i:03}.{end}')
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def config(tars, **changes):
    c = recipe.new()
    c.batch, c.steps = 8, '9 steps'
    c.tokenizers = dict(text=dict(name='sentencepiece', train_on='train', vocab=40, pad='eos'))
    small = dict(size='', width=16, depth=1, heads=2, out_dim=8, dropout=.1, dtype='float32')
    c.towers = dict(image=dict(name='vit', image=32, patch=8, **small), text=dict(name='text', vocab=40, length=8, **small))
    c.objectives = dict(match=dict(name='sigmoid'))
    ops = (dict(name='decode'), dict(name='random_resized_crop', size=32, area=(.5, 1.)), dict(name='tokenize', length=8))
    c.data = dict(a=dict(source=dict(name='webdataset', files=f'{tars}/a.tar'), ops=ops),
                  b=dict(source=dict(name='webdataset', files=f'{tars}/b.tar'), ops=ops, order='blocks', block=2, pool=4),
                  train=dict(mix=dict(a=3, b=1)))
    low = {f'data.{name}.ops.1.size': 16 for name in 'ab'} | {f'data.{name}.ops.2.length': 4 for name in 'ab'}
    c.stages = (dict(until=3, set={**low, 'towers.image.patch_dropout': .5}),
                dict(until=6, set={'towers.image.patch_dropout': .25, 'data.train.mix': dict(a=1, b=1)}),
                dict())
    c.optim = dict(name='adamw', lr=3e-3, schedule=dict(name='cosine', warmup='2 steps'))
    c.checkpoint = dict(every='1 steps', keep=100, keep_every=0)
    c.log.every = '1 steps'
    c.update(changes)
    return recipe.resolve(recipe.complete(c))


def losses(folder, resolved):
    with workdir.open_workdir(folder, resolved, ['test']) as work:
        run = train.prepare(resolved)
        with jax.set_mesh(run.mesh):
            train.train(run, work)
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {row['step']: row['loss'] for row in rows if 'loss' in row}, run


def test_resumes_inside_each_stage_with_equal_losses(tars, tmp_path):
    resolved = config(tars)
    wanted, run = losses(tmp_path / 'whole', resolved)
    assert run.first_steps == (0, 3, 6) and sorted(wanted) == list(range(1, 10))
    shapes = [placed.plan.shapes['pairs'] for placed in run.stages]
    assert [(s['image'][0], s['text'][0]) for s in shapes] == [((16, 16, 3), (4,)), ((32, 32, 3), (8,)), ((32, 32, 3), (8,))]
    noted = json.loads((tmp_path / 'whole' / 'data.json').read_text())
    assert {name: (entry['examples'], entry['surviving']) for name, entry in noted.items()} == {'a': (20, 20), 'b': (9, 9)}
    for step in (1, 4, 8):  # inside the first, the second and the third stage
        folder = tmp_path / f'from-{step}'
        shutil.copytree(tmp_path / 'whole', folder)
        for checkpoint in (folder / 'checkpoints').iterdir():
            if checkpoint.name.isdigit() and int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        found, _ = losses(folder, resolved)
        assert found == wanted, step


def test_a_stage_may_not_change_parameters(tars):
    with pytest.raises(RecipeError, match=r"stages.0: params/text/position is \(6, 16\) here and \(8, 16\) in the last stage"):
        train.prepare(config(tars, stages=(
            dict(until=3, set={'towers.text.length': 6, 'data.a.ops.2.length': 6, 'data.b.ops.2.length': 6}), dict())))


def test_what_is_wrong_in_a_stage_names_the_stage(tars):
    for wrong, message in (({'towers.image.patch_dropuot': .5}, r'stages.0: towers.image.patch_dropuot: unknown field'),
                           ({'data.a.ops.2.length': 99, 'data.b.ops.2.length': 99}, r'stages.0: towers.text.length: texts of 99 tokens'),
                           ({'micro': 3}, r'stages.0: micro: 3 micro-batches do not divide')):
        with pytest.raises(RecipeError, match=message):
            train.prepare(config(tars, stages=(dict(until=3, set=wrong), dict())))


def test_a_resume_with_another_batch_is_refused(tars):
    run = train.prepare(config(tars, stages=()))
    train.check_positions(run, {'pairs': 32}, 4)
    with pytest.raises(RecipeError, match=r"batch, kinds: .* step 2 has seen {'pairs': 32} examples.*be {'pairs': 16}"):
        train.check_positions(run, {'pairs': 32}, 2)


def test_members_of_a_mixture_must_agree(tars):
    with pytest.raises(RecipeError, match=r'data.b.ops: examples hold .* those of the other members of data.train'):
        train.prepare(config(tars, stages=(dict(until=3, set={'data.b.ops.1.size': 16}), dict())))


def test_a_mixture_is_not_for_evaluation(tars):
    with pytest.raises(RecipeError, match='data.train: a mixture is for training; name one of its members: a, b'):
        run = train.prepare(config(tars))
        run.data.datasets('train')
