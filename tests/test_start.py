"""Runs that begin with what other runs have learned (other libraries' files: tests/interop)."""

import re

import jax
import numpy as np
import pytest
import tiny

from bigvlm import checkpoint, optim, start, workdir
from bigvlm.core import paths
from bigvlm.core.parts import RecipeError
from bigvlm.interop.source import open_source
from configs import common

ALL = (('.*', r'\g<0>'),)


def entry(checkpoint, load=ALL, resize=(), optimizer='reset'):
    return dict(checkpoint=str(checkpoint), load=load, resize=resize, optimizer=optimizer)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """(folder, state) of a run of three steps with averages, as the trainer leaves it."""
    folder = tmp_path_factory.mktemp('run')
    setting = tiny.Setting(tiny.config(ema=dict(slow=.5), seed=3))
    with jax.set_mesh(setting.mesh):
        state, step = setting.init(3), setting.step()
        for number in range(3):
            state, _ = step(state, setting.put(tiny.batch(seed=number)))
        with_checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
        with_checkpoints.save(3, state, {})
        with_checkpoints.close()
    (folder / 'config.json').write_text(workdir.dump(setting.config), encoding='utf-8')
    return folder, jax.device_get(state.replace(key=None))


def begin(mesh=None, **changes):
    setting = tiny.Setting(tiny.config(**{'ema': dict(slow=.5), **changes}), mesh)
    with jax.set_mesh(setting.mesh):
        return setting, start.begin(setting.placed)


def flat(state):
    return {path: np.asarray(x) for path, x in paths.flatten(state.params).items()}


def test_all_of_a_run_on_another_mesh(run):
    folder, before = run
    setting, state = begin(dict(data=2, fsdp=2), start=dict(run=entry(f'{folder}@3')))
    found = flat(state)
    for path, x in paths.flatten(before.params).items():
        assert np.array_equal(found[path], x), path
    assert jax.tree.map(lambda x: x.sharding, state.params) == setting.placed.shardings.params
    for path, x in state.ema['slow'].items():
        assert np.array_equal(x, found[path]), 'averages begin with what was loaded'
    assert int(state.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(state.opt))


def test_some_of_a_run_under_other_names(run):
    folder, before = run
    _, drawn = begin()
    _, state = begin(start=dict(tower=entry(folder, load=(('image/encoder/norm/.*', ''), ('(image)/encoder/(.*)', r'\1/encoder/\2'),
                                                          ('text/out/bias', 'image/out/bias')))))
    there, drawn, found = paths.flatten(before.params), flat(drawn), flat(state)
    taken = {path for path in found if path.startswith('image/encoder/blocks')}
    for path in found:
        expected = there[path] if path in taken else there['image/out/bias'] if path == 'text/out/bias' else drawn[path]
        assert np.array_equal(found[path], expected), path
    assert taken


def test_the_optimizer_is_kept_and_its_schedule_begins_anew(run):
    folder, before = run
    setting, state = begin(start=dict(run=entry(folder, optimizer='keep')))
    moments, there = jax.tree.leaves(optim.restarted(before.opt)), jax.tree.leaves(state.opt)
    assert all(np.array_equal(a, b) for a, b in zip(moments, there, strict=True)) and any(np.any(x) for x in there)
    counts = [np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(state.opt)[0] if 'count' in str(path)]
    assert 0 in counts and 3 in counts, 'the schedule is at its beginning, the moments have seen three steps'
    assert all(np.array_equal(before.ema['slow'][path], x) for path, x in state.ema['slow'].items())
    with jax.set_mesh(setting.mesh):
        state, metrics = setting.step()(state, setting.put(tiny.batch(seed=3)))
    assert np.isfinite(float(metrics['loss'])) and int(state.step) == 1


def test_what_has_another_shape_is_resized_where_a_rule_says_so(run):
    folder, before = run
    towers = {**tiny.TOWERS, 'image': dict(tiny.TOWERS['image'], image=48), 'text': dict(tiny.TOWERS['text'], vocab=70)}
    with pytest.raises(RecipeError, match=r'^start.run: image/position is \[36, 32\] here and \[16, 32\] in .*; valid: the same'):
        begin(start=dict(run=entry(folder)), towers=towers)
    _, drawn = begin(towers=towers)
    _, state = begin(start=dict(run=entry(folder, resize=('.*/position', '.*/embedding'))), towers=towers)
    found, there = flat(state), paths.flatten(before.params)
    assert np.array_equal(found['text/embed/embedding'][:64], there['text/embed/embedding'])
    assert np.array_equal(found['text/embed/embedding'][64:], flat(drawn)['text/embed/embedding'][64:])
    old, new = there['image/position'].reshape(4, 4, -1), found['image/position'].reshape(6, 6, -1)
    assert abs(new.mean(axis=(0, 1)) - old.mean(axis=(0, 1))).max() < .1 * old.std()


@pytest.mark.parametrize('changes, message', [
    (dict(load=(('imag/.*', ''),)), r'^start.run.load: the rule .imag/.*. matches no parameter'),
    (dict(load=(('image/.*', ''),)), '^start.run.load: nothing is loaded'),
    (dict(load=(('image/.*', r'picture/\g<0>'),)), r'^start.run.load: .*@3 has no picture/image/'),
    (dict(load=(('.*/out/bias', 'image/out/bias'),)), '^start.run.load: two parameters would be loaded from one'),
    (dict(resize=('imag/.*',)), '^start.run.resize: the rule'),
    (dict(optimizer='take'), "^start.run.optimizer: found 'take'; valid: reset, keep"),
    (dict(checkpoint=''), '^start.run.checkpoint: which?')])
def test_what_cannot_be(run, changes, message):
    with pytest.raises(RecipeError, match=message):
        begin(start=dict(run={**entry(run[0]), **changes}))


def test_two_entries_may_not_give_one_parameter(run):
    with pytest.raises(RecipeError, match='^start.b.load: another entry gives image/'):
        begin(start=dict(a=entry(run[0]), b=entry(run[0], load=(('image/.*', r'\g<0>'),))))


def test_towers_that_compute_otherwise_are_told(run, caplog):
    image = {**tiny.TOWERS['image'], 'activation': 'gelu', 'mean': (.1, .2, .3)}
    with caplog.at_level('WARNING', 'bigvlm.start'):
        begin(start=dict(run=entry(run[0])), towers={**tiny.TOWERS, 'image': image})
    told = [record.getMessage() for record in caplog.records if record.name == 'bigvlm.start']
    assert [line.split(' is ')[0] for line in told] == ['start.run: towers.image.activation', 'start.run: towers.image.mean']
    assert "is 'gelu' here and was 'gelu_tanh' in " in told[0]


def test_a_neck_and_a_projection_are_not_in_every_file():
    (pattern, _), = common.begin_with('hf:a', 'hf:b', out='image')['text']['load']
    names = ('text/embed/embedding', 'text/pooler/kernel', 'text/out/kernel', 'text/neck/kernel', 'text/neck_norm/bias', 'image/out/kernel')
    assert [name for name in names if re.fullmatch(pattern, name)] == ['text/embed/embedding', 'text/pooler/kernel']


def test_another_optimizer_cannot_be_kept(run):
    with pytest.raises(RecipeError, match=r'^start.run.optimizer: opt/.* is .* here and .* in .*@3; valid: the same optimizer'):
        begin(start=dict(run=entry(run[0], optimizer='keep')), optim=dict(name='sgd', lr=.1, schedule=dict(name='constant')))


@pytest.mark.parametrize('load', [(('image/.*', r'\g<0>'),),
                                  (('text/out/bias', 'image/out/bias'), ('image/out/bias', 'text/out/bias'), *ALL)])
def test_moments_of_what_is_not_loaded_are_not_kept(run, load):
    with pytest.raises(RecipeError, match='^start.run.optimizer: .* does not begin with its own value of .*@3'):
        begin(start=dict(run=entry(run[0], load=load, optimizer='keep')))


@pytest.mark.parametrize('place, message', [('nowhere', "'nowhere' is no checkpoint; valid: hf:"), ('{}@x', 'is no checkpoint'),
                                            ('{}@7', r'no complete checkpoint of step 7 \(there are: 3\)')])
def test_places_without_a_checkpoint(run, place, message):
    with pytest.raises(RecipeError, match=message):
        open_source(place.format(run[0]))


def test_a_folder_may_have_an_at_in_its_name(run, tmp_path):
    (tmp_path / 'a@b').symlink_to(run[0])
    assert open_source(str(tmp_path / 'a@b')).step == open_source(str(tmp_path / 'a@b@3')).step == 3


def test_only_what_is_asked_for_is_read(run, monkeypatch):
    folder, before = run
    source, device = open_source(str(folder)), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    path = 'text/encoder/blocks/mlp/fc1/kernel'
    wanted = jax.ShapeDtypeStruct(source.abstract[path].shape, np.float32, sharding=device)
    found = source.load({path: wanted})
    assert list(found) == [path] and np.array_equal(found[path], paths.flatten(before.params)[path])
