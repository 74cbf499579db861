"""Recipes: arguments, overrides, what is filled in and what is refused, in one line."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from bigvlm import recipe
from bigvlm.core.parts import RecipeError

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = '''
    """A recipe of a user's own."""
    from bigvlm import recipe
    def get_config(arg=None):
        arg = recipe.parse_arg(arg, smoke=False, batch=64, patch=8, rate=.1, area=(.9, 1.), name='a')
        c = recipe.new()
        c.batch = 8 if arg.smoke else arg.batch
        c.towers = dict(image=dict(name='vit', size='mu', patch=arg.patch), text=dict(name='text', size='mu', vocab=50))
        c.objectives = dict(match=dict(name='sigmoid', temperature=10.))
        c.data = dict(train=dict(source=dict(name='webdataset', files='a.tar'), ops=()))
        c.optim = dict(name='adamw', lr=1e-3, schedule=dict(name='cosine', warmup='10%'), decay=(('.*', 0.),))
        return c
    '''


@pytest.fixture
def path(tmp_path):
    file = tmp_path / 'configs' / 'mine.py'
    file.parent.mkdir()
    file.write_text(textwrap.dedent(RECIPE))
    return str(file)


def refused(call, *args, **kwargs):
    with pytest.raises(RecipeError) as error:
        call(*args, **kwargs)
    assert '\n' not in str(error.value)
    return str(error.value)


def overridden(path, *overrides):
    return recipe.from_command_line(path, [tuple(o.split('=', 1)) for o in overrides])


# Arguments of the recipe file.

DEFAULTS = dict(smoke=False, batch=64, rate=.1, area=(.9, 1.), data='x', val='')


def test_arguments_take_the_types_of_their_defaults():
    assert recipe.parse_arg(None, **DEFAULTS).to_dict() == DEFAULTS == recipe.parse_arg('', **DEFAULTS).to_dict()
    found = recipe.parse_arg('smoke,batch=128,rate=1,data=DIR/{0..3}=a.tar', **DEFAULTS)
    assert found.smoke is True and found.batch == 128 and found.rate == 1. and isinstance(found.rate, float)
    assert found.data == 'DIR/{0..3}=a.tar' and found.area == (.9, 1.)
    assert recipe.parse_arg('smoke=False', **DEFAULTS).smoke is False
    assert recipe.parse_arg('batch=1,batch=2', **DEFAULTS).batch == 2, 'a recipe that forks another prepends its own'
    assert recipe.parse_arg('data=12', **DEFAULTS).data == '12'


@pytest.mark.parametrize('arg, message', [
    ('smok', "config argument 'smok': unknown (valid: smoke, batch, rate, area, data, val)"),
    ('batch', 'config argument batch=True: must be int, like the default 64'),
    ('batch=1.5', 'config argument batch=1.5: must be int, like the default 64'),
    ('batch=True', 'config argument batch=True: must be int, like the default 64'),
    ('smoke=1', 'config argument smoke=1: must be bool, like the default False'),
    ('batch=many', 'config argument batch=many: not a number, True, False or tuple')])
def test_arguments_that_do_not_fit_are_refused(arg, message):
    assert refused(recipe.parse_arg, arg, **DEFAULTS) == message


# The command line.

def test_a_recipe_is_completed_with_every_default_and_locked(path):
    config = recipe.from_command_line(path + ':smoke,patch=4')
    assert config.batch == 8 and config.towers.image.patch == 4 and config.is_locked
    assert config.towers.image.pool == 'map' and config.towers.image.mean == (.5, .5, .5)
    assert config.objectives.match.bias == -10. and config.objectives.match.temperature == 10.
    assert config.optim.b1 == .9 and config.optim.schedule.warmup == '10%'
    assert config.seed == 0 and config.mesh.data == -1 and config.layout == (('.*', 'fsdp'),)
    assert 'parent' not in config.towers.image and 'tokenizers' not in config.data.train.source
    with pytest.raises((KeyError, AttributeError)):
        config.sead = 1
    resolved = recipe.resolve(config)
    assert type(resolved['towers']['image']) is dict and resolved == recipe.resolve(resolved)


def test_overrides_keep_the_type_of_what_they_replace(path):
    config = overridden(path, 'optim.lr=3', 'batch=1e3', 'towers.image.out_dim=16', 'towers.text.causal=true',
                        'steps=3 epochs', 'optim.decay=(("image/.*", 1.), (".*", 0.))', 'profile=[10, 15]',
                        'log.wandb=my/project', 'mesh.fsdp=-1', 'towers.text.attention=xla')
    assert config.optim.lr == 3. and isinstance(config.optim.lr, float)
    assert config.batch == 1000 and isinstance(config.batch, int) and config.mesh.fsdp == -1
    assert config.towers.text.causal is True and config.steps == '3 epochs' and config.log.wandb == 'my/project'
    assert config.optim.decay == (('image/.*', 1.), ('.*', 0.)) and config.profile == (10, 15)
    assert config.towers.image.out_dim == 16 and config.towers.text.attention == 'xla'
    assert recipe.resolve(config)['optim']['decay'] == (('image/.*', 1.), ('.*', 0.))


def test_the_command_line_may_add_weights_to_begin_with(path):
    config = overridden(path, 'start.run.checkpoint=runs/x@5', 'start.run.optimizer=keep', "start.run.load=(('image/.*', r'\\g<0>'),)")
    assert config.start.run.to_dict() == dict(checkpoint='runs/x@5', load=(('image/.*', r'\g<0>'),), resize=(), optimizer='keep')
    assert refused(overridden, path, 'start.run.optimizer=keep').startswith('start.run: unknown key')


@pytest.mark.parametrize('override, message', [
    ('bach=3', "bach: unknown key; did you mean 'batch'? (valid: about, "),
    ('optim.lrr=3', "optim.lrr: unknown key; did you mean 'lr'? (valid: "),
    ('towers.image.pach=3', "towers.image.pach: unknown key; did you mean 'patch'? (valid: "),
    ('towers.img.patch=3', "towers.img: unknown key; did you mean 'image'? (valid: image, text)"),
    ('batch.size=3', 'batch.size: batch is a value, not a dict'),
    ('optim=3', '--config.optim: is a dict; override its keys ('),
    ('batch=1.5', '--config.batch=1.5: must be int, like 64'),
    ('batch=many', '--config.batch=many: must be int, like 64'),
    ('batch=True', '--config.batch=True: must be int, like 64'),
    ('optim.lr=fast', '--config.optim.lr=fast: must be float, like 0.001'),
    ('towers.text.causal=1', '--config.towers.text.causal=1: must be true or false'),
    ('optim.decay=1', '--config.optim.decay=1: must be tuple, like '),
    ('towers.image.name=vitt', "towers.image.name: no part 'vitt' in bigvlm.towers; did you mean 'vit'?")])
def test_overrides_that_do_not_fit_are_refused(path, override, message):
    assert refused(overridden, path, override).startswith(message)


def test_another_part_brings_its_own_fields(path):
    """A part's name is overridden first, so that what follows may name the new part's fields."""
    config = overridden(path, 'optim.schedule.timescale=7 steps', 'optim.schedule.name=rsqrt')
    assert config.optim.schedule.name == 'rsqrt' and config.optim.schedule.timescale == '7 steps'
    config = overridden(path, 'objectives.match.smoothing=.1', 'objectives.match.name=contrastive')
    assert config.objectives.match.smoothing == .1 and config.objectives.match.temperature == 10.


def test_differences_are_what_the_command_line_changed(path):
    argv = ['--config', f'{path}:smoke', '--workdir=x', '--config.optim.lr=.5',
            '--config.towers.image.mean=(.1,.2,.3)', '--config.batch=8']
    spec, overrides, rest = recipe._take_config(argv)
    assert rest == ['--workdir=x'] and len(overrides) == 3
    config = recipe.resolve(recipe.from_command_line(spec, overrides))
    assert recipe.differences(argv, config).splitlines() == [
        'optim.lr: 0.001 -> 0.5', 'towers.image.mean: (0.5, 0.5, 0.5) -> (0.1, 0.2, 0.3)']
    assert recipe.name(argv) == 'mine:smoke' and recipe.name([f'--config={path}']) == 'mine'


def test_flat():
    assert recipe.flat({'a': {'b': 1, 'c': {}}, 'd': (1, {'e': 2})}) == {'a.b': 1, 'a.c': {}, 'd': (1, {'e': 2})}


def test_files_that_are_no_recipes_are_named(tmp_path):
    (tmp_path / 'none.py').write_text('x = 1')
    assert refused(recipe.load, str(tmp_path / 'none.py')).endswith('none.py defines no get_config')
    assert 'cannot read' in refused(recipe.load, str(tmp_path / 'missing.py'))


# What the whole recipe may say.

@pytest.mark.parametrize('change, message', [
    (dict(bach=1), "bach: unknown key; did you mean 'batch'? (valid: about, seed, batch"),
    (dict(mesh=dict(data=1, model=2)), 'mesh.model: unknown key'), (dict(log=3), 'log: must be a dict with every, '),
    (dict(checkpoint=dict(evry='1%')),
     "checkpoint.evry: unknown key; did you mean 'every'? (valid: every, keep, keep_every)"),
    (dict(batch=0), 'batch: must be a positive integer, not 0'),
    (dict(batch=1.5), 'batch: must be a positive integer, not 1.5'),
    (dict(micro=0), 'micro: must be a positive integer, not 0'), (dict(seed=-1), 'seed: must be an integer from 0'),
    (dict(batch=10, micro=3), 'micro: 3 micro-batches do not divide the batch of 10'),
    (dict(kinds=dict(pairs=dict(data='trian', weight=1))), 'kinds.pairs: needs data, one of train'),
    (dict(kinds=dict(pairs=dict(weight=1))), 'kinds.pairs: needs data, one of train'),
    (dict(kinds=dict(pairs=dict(data='train', wait=1))), 'kinds.pairs: needs data, one of train'),
    (dict(eval_params='slow'), "eval_params: no EMA 'slow' (ema has: none)"),
    (dict(profile=(1,)), 'profile: must be (first step, last step), not (1,)')])
def test_impossible_recipes_are_refused(path, change, message):
    good = recipe.resolve(recipe.from_command_line(path))
    assert refused(recipe.resolve, good | change).startswith(message)


def test_a_batch_must_fit_the_mesh():
    recipe.check_mesh(dict(batch=48, micro=3), 8)
    assert refused(recipe.check_mesh, dict(batch=40, micro=3), 8) == \
        'batch: 40 examples are not divisible by 8 batch shards × 3 micro-batches; a multiple of 24 would be'


def test_a_command_ends_in_one_line_and_code_2(path):
    """Both where the command line is read and where the run finds a part impossible; on stderr, without a traceback."""
    environment = dict(os.environ, XLA_FLAGS='')
    tool = str(ROOT / 'tools' / 'bench_step.py')
    for override, message in (
            ('--config.towers.image.pach=4', "bigvlm: towers.image.pach: unknown key; did you mean 'patch'?"),
            ('--config.towers.image.pool=token',
             "bigvlm: towers.image.pool: unknown value 'token' (valid: cls, pooler, gap, map, queries, cascade)")):
        done = subprocess.run([sys.executable, tool, '--config', path, override], env=environment, capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(message) and done.stderr.count('\n') == 1 and not done.stdout
