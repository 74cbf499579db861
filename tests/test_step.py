"""The step: the same numbers on every mesh, nothing for what is frozen, EMAs, teachers, kinds, clamps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bigvlm import optim, step as step_lib
from bigvlm.core import flops, paths
from bigvlm.core.parts import RecipeError
from bigvlm.state import example_batch

MESHES = {
    'one': dict(data=1), 'data': dict(data=8), 'data_fsdp': dict(data=4, fsdp=2), 'all': dict(data=2, fsdp=2, tensor=2),
    'replica': dict(replica=2, data=1, fsdp=4)}
# Tensor parallelism of the blocks by rules; the rest as the default.
TENSOR = (('.*/blocks/.*/(query|key|value|fc1)/kernel', (None, 'fsdp', 'tensor')),
          ('.*/blocks/.*/(out|fc2)/kernel', (None, 'tensor', 'fsdp')), ('.*', 'fsdp'))


def six_steps(mesh, **changes):
    """(losses, initial parameters, final parameters) of six steps on different batches, transfers to the devices forbidden."""
    objectives = {k: dict(v, exchange='ring' if mesh in ('data', 'all') else 'all_gather') for k, v in tiny.OBJECTIVES.items()}
    layout = TENSOR if mesh == 'all' else (('.*', 'fsdp'),)
    s = tiny.Setting(tiny.config(objectives=objectives, layout=layout, **changes), MESHES[mesh])
    state = s.init()
    before, losses, step = jax.device_get(paths.flatten(state.params)), [], s.step()
    with jax.set_mesh(s.mesh):
        for t in range(6):
            batch = s.put(tiny.batch(seed=t % 2))
            with jax.transfer_guard('disallow'):
                state, metrics = step(state, batch)
            losses.append(float(metrics['loss']))
    return losses, before, jax.device_get(paths.flatten(state.params))


@pytest.fixture(scope='module')
def reference():
    return six_steps('one')


@pytest.mark.parametrize('mesh', [m for m in MESHES if m != 'one'])
def test_same_losses_and_updates_on_every_mesh(mesh, reference):
    losses, before, after = reference
    assert losses[-1] < .9 * losses[0], 'the rate must move the loss, or equality says nothing'
    losses_m, before_m, after_m = six_steps(mesh)
    np.testing.assert_allclose(losses_m, losses, rtol=2e-5)
    for path in before:
        np.testing.assert_array_equal(before_m[path], before[path])
        update, update_m = after[path] - before[path], after_m[path] - before_m[path]
        if path.endswith('key/bias'):  # its gradient is zero but for rounding: softmax does not see a shift of all keys
            continue
        assert np.abs(update_m - update).max() <= 5e-3 * np.abs(update).max(), path


def test_micro_batches_change_no_update(reference):
    losses, before, after = reference
    losses_m, _, after_m = six_steps('one', micro=4)
    np.testing.assert_allclose(losses_m, losses, rtol=2e-5)
    for path in before:
        if not path.endswith('key/bias'):
            assert np.abs(after_m[path] - after[path]).max() <= 5e-3 * np.abs(after[path] - before[path]).max(), path


def test_frozen_tower_costs_no_backward_matmul_and_no_state():
    changes = dict(optim=dict(name='adamw', lr=1e-3, schedule=dict(name='constant'), freeze=('image/.*',)))
    free, frozen = tiny.Setting(tiny.config()), tiny.Setting(tiny.config(**changes))

    def cost(s):
        return step_lib.model_flops(s.config, s.optimizer, 'pairs', s.shapes['pairs'], s.abstract)
    tower = free.model.towers['image']()
    images = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.uint8)
    params = {'params': free.params['image']}
    forward = flops.count(lambda p, x: tower.apply(p, x).pooled_BD, params, images)
    # A backward pass costs two products for each of the forward's, but for the first layer's input, which has no gradient.
    first_layer = 2 * 16 * 16 * (8 * 8 * 3) * 32
    assert cost(free) - cost(frozen) == 2 * forward - first_layer
    assert any('image' in str(k) for k in optim.state_paths(free.abstract.opt, paths.flatten(free.params)))
    owners = {owner for owner, _ in optim.state_paths(frozen.abstract.opt, paths.flatten(frozen.params)).values()}
    assert owners and not any(owner and owner.startswith('image/') for owner in owners)

    state = frozen.init()
    before = jax.device_get(state.params)
    state, _ = frozen.step()(state, frozen.put(tiny.batch()))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(before['image']), jax.tree.leaves(jax.device_get(state.params['image']))))
    assert np.abs(before['text']['position'] - state.params['text']['position']).max() > 0


def test_ema_clamp_and_teacher():
    objectives = dict(tiny.OBJECTIVES, distil=dict(name='toys.distil', weight=10.))
    s = tiny.Setting(tiny.config(objectives=objectives, ema={'slow': .9}, clamp=(('contrast/t', 0., 2.66),)))
    state = s.init()
    first = jax.device_get(paths.flatten(state.params))
    step = s.step()
    state, metrics = step(state, s.put(tiny.batch()))
    assert metrics['distil/loss'] == 0., 'before the first update the teacher is the student'
    second = jax.device_get(paths.flatten(state.params))
    assert first['contrast/t'] > 2.659 and second['contrast/t'] <= np.float32(2.66)
    for path in ('image/position', 'text/out/kernel'):
        np.testing.assert_allclose(state.ema['slow'][path], first[path] + .1 * (second[path] - first[path]), atol=1e-7)
    _, metrics = step(state, s.put(tiny.batch()))
    assert metrics['distil/loss'] > 0.


def test_queue_is_carried_in_the_state():
    s = tiny.Setting(tiny.config(objectives=dict(queued=dict(name='toys.queued'))), shapes={'pairs': tiny_shapes()})
    state = s.init()
    assert not np.asarray(state.collections['queue']['queued']['texts']).any()
    state, _ = s.step()(state, s.put(tiny.batch()))
    queue = np.asarray(state.collections['queue']['queued']['texts'])
    assert queue[:16].any() and not queue[16:].any()


def tiny_shapes():
    return {'image': ((32, 32, 3), 'uint8'), 'text': ((8,), 'int32'), 'id': ((2,), 'uint32')}


def test_what_a_kind_does_not_reach_gets_no_update_at_all():
    """No gradient, no weight decay, no momentum: the other kind's parameters stay bit for bit."""
    objectives = dict(contrast=dict(name='contrastive', tile=4), distil=dict(name='toys.distil', kinds=('images',)))
    changes = dict(objectives=objectives, ema={'slow': .9}, kinds={k: dict(data='train', weight=1) for k in ('pairs', 'images')},
                   optim=dict(name='adamw', lr=1e-3, weight_decay=.1, schedule=dict(name='constant')))
    shapes = {'pairs': tiny_shapes(), 'images': {k: v for k, v in tiny_shapes().items() if k != 'text'}}
    s = tiny.Setting(tiny.config(**changes), shapes=shapes)
    state, _ = s.step('pairs')(s.init(), s.put(tiny.batch()))
    before = jax.device_get((paths.flatten(state.params), state.opt))
    images = {k: v for k, v in tiny.batch(seed=1).items() if k != 'text'}
    state, metrics = s.step('images')(state, s.put(images))
    assert 'contrast/loss' not in metrics
    after = jax.device_get((paths.flatten(state.params), state.opt))
    for path in before[0]:
        same = (before[0][path] == after[0][path]).all()
        assert same == (not path.startswith('image/')) or path.endswith('key/bias'), path
    for (path, old), (_, new) in zip(jax.tree_util.tree_flatten_with_path(before[1])[0], jax.tree_util.tree_flatten_with_path(after[1])[0]):
        name = paths.from_key_path(path)
        if '/text/' in name or 'contrast' in name:
            np.testing.assert_array_equal(old, new, err_msg=name)
    assert step_lib.reached_modules(s.model, 'images', shapes['images'], s.params, s.collections) == {'image', 'distil'}


def test_a_missing_batch_key_is_named():
    s = tiny.Setting(tiny.config())
    step = step_lib.make(s.model, s.optimizer, s.stored, s.config, 'pairs')
    batch = {k: v for k, v in example_batch(s.shapes['pairs'], 16).items() if k != 'text'}
    with pytest.raises(RecipeError, match="no key 'text'|no 'text'"):
        jax.eval_shape(step, s.abstract, batch)
