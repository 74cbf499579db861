"""Training steps of convolutional towers: the same on one device, on meshes with parameters in parts, in micro-batches."""

import functools

import jax
import numpy as np
import pytest
import tiny

from bigvlm.core import paths

BN = dict(image=32, out_dim=8, dtype='float32', bn_group=4, bn_blocks=2)
TEXT = dict(name='text', size='', width=8, depth=1, heads=2, vocab=64, length=8, out_dim=8, dtype='float32', remat='none')
RESNETS = dict(plain=dict(name='resnet', size='', depths=(1,), width=8, remat='hidden', **BN),
               clip=dict(name='modified_resnet', size='', depths=(1,), width=16, remat='full', **BN))
EFFICIENT = dict(efficient=dict(name='efficientnet', size='', wider=.1, deeper=.25, head=False, drop_path=.5, **BN))
FAST = {'xla_backend_optimization_level': 0}  # compiling is nearly all of the time


@functools.cache
def two_steps(efficient, micro=1, **mesh):
    """(losses, first parameters and statistics, last ones, parts of each kernel) of two steps on different batches."""
    towers = EFFICIENT if efficient else RESNETS
    objectives = {f'{name}_text': dict(name='contrastive', image_tower=name, tile=16) for name in towers}
    optim = dict(name='adamw', lr=3e-3, eps=1e-3, schedule=dict(name='constant'))
    config = tiny.config(towers=towers | dict(text=TEXT), objectives=objectives, layout=(('.*', 'fsdp'),), micro=micro, optim=optim)
    s = tiny.Setting(config, mesh)

    def variables(state):
        return {**paths.flatten(state.params), **paths.flatten(state.collections)}
    with jax.set_mesh(s.mesh):
        state = s.placed.init().lower(np.uint32(0)).compile(FAST)(np.uint32(0))
        parts = {path: x.size // x.addressable_shards[0].data.size for path, x in variables(state).items()
                 if path.endswith('conv1/kernel')}
        first, losses = jax.device_get(variables(state)), []
        batches = [s.put(tiny.batch(seed=seed)) for seed in range(2)]
        step = s.step().lower(state, batches[0]).compile(FAST)
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(float(metrics['loss']))
    return losses, first, jax.device_get(variables(state)), parts


@pytest.mark.parametrize('efficient, setting', [
    (False, dict(data=2, fsdp=2, micro=2)), pytest.param(False, dict(data=2, fsdp=4), marks=pytest.mark.slow),
    pytest.param(True, dict(data=2, fsdp=4), marks=pytest.mark.slow)], ids=str)
def test_same_losses_updates_and_running_statistics_however_the_work_is_split(efficient, setting):
    losses, first, last, _ = two_steps(efficient, data=1)
    losses_m, first_m, last_m, parts = two_steps(efficient, **setting)
    assert {*parts.values()} <= {setting['fsdp']} and losses[1] != losses[0]
    np.testing.assert_allclose(losses_m, losses, rtol=1e-4)
    assert first.keys() == first_m.keys()
    if efficient:  # AdamW makes updates of gradients that are zero but for rounding, of which it has many: the second loss tells
        return
    for path, start in first.items():
        np.testing.assert_array_equal(first_m[path], start)
        update, update_m = last[path] - start, last_m[path] - start
        if not path.endswith('key/bias'):  # its gradient is zero but for rounding
            assert 0 < np.abs(update).max(), path
            rounding = 1e-6  # running means that are zero in exact arithmetic
            assert np.abs(update_m - update).max() <= 2e-2 * np.abs(update).max() + rounding, path
