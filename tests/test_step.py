"""The step: the same numbers on every mesh, nothing for what is frozen, EMAs, teachers, kinds, clamps."""

import functools
import math
import os
import subprocess
import sys

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import common

from bigvlm import model as model_lib, optim, step as step_lib
from bigvlm.core import flops, pairwise, paths
from bigvlm.core.parts import RecipeError
from bigvlm.plan import hlo
from bigvlm.state import example_batch

# name: (mesh, layout rules, changes of the recipe)
FSDP, ZERO1 = (('.*', 'fsdp'),), (('.*', 'zero1'),)
TENSOR = common.TENSOR  # what recipes use: attention, MLP and vocabulary
SETTINGS = {
    'data': (dict(data=8), FSDP, {}),
    'zero1': (dict(data=4, fsdp=2), ZERO1, {}),
    'fsdp': (dict(fsdp=8), FSDP, {}),
    'hsdp': (dict(data=2, fsdp=4), FSDP, {}),
    'hsdp over slices': (dict(replica=2, data=2, fsdp=2), FSDP, {}),
    'tensor': (dict(tensor=8), TENSOR, {}),
    'data x fsdp x tensor': (dict(data=2, fsdp=2, tensor=2), TENSOR, {}),
    'micro': (dict(data=1), FSDP, dict(micro=4)),
    'micro, data': (dict(replica=2, data=2), FSDP, dict(micro=4)),
    'micro, hsdp': (dict(data=2, fsdp=2), FSDP, dict(micro=4)),
    'micro, hsdp over slices': (dict(replica=2, fsdp=2), FSDP, dict(micro=2)),
    'micro, data x fsdp x tensor': (dict(data=2, fsdp=2, tensor=2), TENSOR, dict(micro=2)),
}
SIXTEEN = {
    'hsdp over slices': (dict(replica=2, data=2, fsdp=4), FSDP, {}),
    'data x fsdp x tensor': (dict(data=4, fsdp=2, tensor=2), TENSOR, {}),
}


def six_steps(mesh=None, layout=FSDP, changes=None, dtype='float32'):
    """(losses, initial parameters, final parameters) of six steps on different batches, transfers to the devices forbidden."""
    exchange = 'ring' if math.prod((mesh or {}).values()) == 8 else 'all_gather'
    objectives = {k: dict(v, exchange=exchange) for k, v in tiny.OBJECTIVES.items()}
    towers = {k: dict(v, dtype=dtype) for k, v in tiny.TOWERS.items()}
    s = tiny.Setting(tiny.config(objectives=objectives, towers=towers, layout=layout, **(changes or {})), mesh)
    state = s.init()
    before, losses = jax.device_get(paths.flatten(state.params)), []
    with jax.set_mesh(s.mesh):
        step = s.step()
        for t in range(6):
            batch = s.put(tiny.batch(seed=t % 2))
            with jax.transfer_guard('disallow'):
                state, metrics = step(state, batch)
            losses.append(float(metrics['loss']))
    return losses, before, jax.device_get(paths.flatten(state.params))


@functools.cache
def reference(dtype='float32'):
    losses, before, after = six_steps(dtype=dtype)
    assert losses[-1] < .9 * losses[0], 'the rate must move the loss, or equality says nothing'
    return losses, before, after


def check_equal(setting):
    losses, before, after = reference()
    losses_m, before_m, after_m = six_steps(*setting)
    np.testing.assert_allclose(losses_m, losses, rtol=2e-5)
    for path in before:
        np.testing.assert_array_equal(before_m[path], before[path])
        update, update_m = after[path] - before[path], after_m[path] - before_m[path]
        if path.endswith('key/bias'):  # its gradient is zero but for rounding: softmax does not see a shift of all keys
            continue
        assert np.abs(update_m - update).max() <= 1e-2 * np.abs(update).max(), path  # Adam makes much of rounding in small gradients


@pytest.mark.parametrize('setting', SETTINGS)
def test_same_losses_and_updates_however_the_work_is_split(setting):
    check_equal(SETTINGS[setting])


def test_bfloat16_agrees_within_a_bound_however_the_work_is_split():
    """Sums over other parts round differently, and Adam makes much of small gradients: 1 % of the losses, 10 % of the update."""
    losses, before, after = reference('bfloat16')
    losses_m, _, after_m = six_steps(*SETTINGS['data x fsdp x tensor'], dtype='bfloat16')
    np.testing.assert_allclose(losses_m, losses, rtol=1e-2)
    update, difference = (np.concatenate([(x[path] - y[path]).ravel() for path in before]) for x, y in ((after, before), (after_m, after)))
    assert np.linalg.norm(difference) <= .1 * np.linalg.norm(update)


@pytest.mark.slow
def test_the_same_on_sixteen_devices():
    program = 'import test_step\nfor setting in test_step.SIXTEEN.values(): test_step.check_equal(setting)'
    here = os.path.dirname(__file__)
    env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=16',
                        'PYTHONPATH': os.pathsep.join((here, os.path.dirname(here)))}
    done = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_frozen_tower_costs_no_backward_matmul_and_no_state():
    changes = dict(optim=dict(name='adamw', lr=1e-3, schedule=dict(name='constant'), freeze=('image/.*',)))
    free, frozen = tiny.Setting(tiny.config()), tiny.Setting(tiny.config(**changes))

    def cost(s):
        return s.plan.model_flops('pairs')
    tower = free.plan.model.towers['image']()
    images = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.uint8)
    params = {'params': free.plan.abstract.params['image']}
    forward = flops.count(lambda p, x: tower.apply(p, x).pooled_BD, params, images)
    # A backward pass costs two products for each of the forward's, but for the first layer's input, which has no gradient.
    first_layer = 2 * 16 * 16 * (8 * 8 * 3) * 32
    assert cost(free) - cost(frozen) == 2 * forward - first_layer
    assert any('image' in str(k) for k in optim.state_paths(free.plan.abstract.opt, paths.flatten(free.plan.abstract.params)))
    owners = {owner for owner, _ in optim.state_paths(frozen.plan.abstract.opt, paths.flatten(frozen.plan.abstract.params)).values()}
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
    assert step_lib.reached_modules(
        s.plan.model, 'images', shapes['images'], s.plan.abstract.params, s.plan.abstract.collections, 16) == {'image', 'distil'}


def test_a_missing_batch_key_is_named():
    s = tiny.Setting(tiny.config())
    step = step_lib.make(s.plan.model, s.plan.optimizer, s.placed.stored, s.config, 'pairs')
    batch = {k: v for k, v in example_batch(s.plan.shapes['pairs'], 16).items() if k != 'text'}
    with pytest.raises(RecipeError, match="no key 'text'|no 'text'"):
        jax.eval_shape(step, s.plan.abstract, batch)


def collectives(mesh, micro):
    """Of the compiled step."""
    s = tiny.Setting(tiny.config(micro=micro), mesh)
    with jax.set_mesh(s.mesh):
        program = s.step().lower(s.placed.state(), s.placed.batch('pairs')).compile().as_text()
    found = hlo.collectives(program, dict(s.mesh.shape))
    assert not found.unknown
    return found


AUGMENT = {'image': (dict(name='jitter', brightness=.4, hue=.2), dict(name='gray'), dict(name='blur'), dict(name='solarize'))}
SPLITS = {'data': (dict(data=8), 1), 'tensor, micro': (dict(data=2, fsdp=2, tensor=2), 4)}
SOURCES = {2: 'photos', 5: 'none', 7: 'scenes'}


def mixed_batch():
    """Of two of three data sets, with captions that come twice."""
    batch = tiny.batch()
    batch['id'][:, 0] = np.random.default_rng(0).choice([2, 7], 16, p=[.3, .7])
    batch['text'][8:12] = batch['text'][:4]
    return batch


def losses_per_example(image_BD, text_BD, batch):
    """{objective: [B]} by the formulas over the whole matrix, in float64."""
    image_BD, text_BD = np.asarray(image_BD, np.float64), np.asarray(text_BD, np.float64)
    same_BB = (batch['text'][:, None] == batch['text']).all(-1)
    assert 16 < same_BB.sum() < 40

    def cross_entropy(logits_BB):
        log_p_BB = logits_BB - np.log(np.exp(logits_BB).sum(1, keepdims=True))
        return -(same_BB * log_p_BB).sum(1) / same_BB.sum(1)
    cosine_BB = image_BD @ text_BD.T
    contrast_BB, match_BB = cosine_BB / .07, 10. * cosine_BB - 10.
    return {'contrast': .5 * (cross_entropy(contrast_BB) + cross_entropy(contrast_BB.T)),
            'match': np.logaddexp(0., np.where(same_BB, -match_BB, match_BB)).sum(1)}


def mixed(mesh=None, micro=1):
    """A setting that augments and knows equal captions."""
    objectives = {k: dict(v, target='captions') for k, v in tiny.OBJECTIVES.items()}
    return tiny.Setting(tiny.config(objectives=objectives, augment=AUGMENT, micro=micro), mesh)


@functools.cache
def mixed_whole():
    """(state, {objective: loss per example}, the same without augmentation, gradient norm) of the whole batch on one device."""
    s, batch = mixed(), mixed_batch()
    state = s.init()

    @fast.jit
    def whole(state):
        key = jax.random.fold_in(state.key, state.step)
        def features(params, train):
            return s.plan.model.apply({'params': params}, batch, key, method='features', train=train)
        def loss(params):
            return s.plan.model.apply({'params': params}, features(params, True), method='loss')[0]
        both = [features(state.params, train)['match'] for train in (True, False)]
        return both, optim.global_norm(jax.grad(loss)(state.params))
    both, norm = whole(state)
    return (jax.device_get(state.replace(key=jax.random.key_data(state.key))),
            *(losses_per_example(f['image_BD'], f['text_BD'], batch) for f in both), float(norm))


@pytest.mark.parametrize('split', SPLITS)
def test_augmented_losses_of_each_data_set_however_the_work_is_split(split):
    (state, wanted, plain, norm), batch = mixed_whole(), mixed_batch()
    s = mixed(*SPLITS[split])
    step = step_lib.jit(step_lib.make(s.plan.model, s.plan.optimizer, s.placed.stored, s.config, 'pairs', sources=SOURCES),
                        s.mesh, s.placed.shardings)
    with jax.set_mesh(s.mesh):
        given = jax.device_put(state.replace(key=jax.random.wrap_key_data(state.key)), s.placed.shardings), s.put(batch)
        _, metrics = step.lower(*given).compile({'xla_backend_optimization_level': 0})(*given)
    values = {name: float(value) for name, value in metrics.items()}
    for objective, loss_B in wanted.items():
        assert np.abs(plain[objective] - loss_B).max() > .01, 'augmentation must move the loss, or equality says nothing'
        np.testing.assert_allclose(values[f'{objective}/loss'], loss_B.mean(), rtol=2e-5)
        for number in (2, 7):
            name, its = SOURCES[number], batch['id'][:, 0] == number
            np.testing.assert_allclose(values[f'{objective}/loss/{name}'], loss_B[its].mean(), rtol=2e-5)
            assert values[f'examples/{name}'] == its.sum() > 0
            assert abs(loss_B[its].mean() - loss_B.mean()) > 1e-3
        assert values[f'{objective}/loss/none'] == 0.
    assert values['examples/none'] == 0.
    assert values.keys() - step_lib.present(values).keys() == {'contrast/loss/none', 'match/loss/none'}
    np.testing.assert_allclose(values['grad_norm'], norm, rtol=2e-4)


def test_evaluation_and_flops_know_no_augmentation():
    plain, augmented = (tiny.Setting(tiny.config(augment=augment)).plan for augment in ({}, AUGMENT))
    assert augmented.model.augment and augmented.model_flops('pairs') == plain.model_flops('pairs')
    images = {'image': tiny.batch(2)['image']}
    programs = [str(jax.make_jaxpr(lambda p, plan=plan: plan.model.apply({'params': p}, images, 'match', method='embed'))(
        plain.abstract.params)) for plan in (plain, augmented)]
    assert programs[0] == programs[1]


def test_augmented_images_are_normalised_as_bytes_are():
    """Steps that change nothing: floats in [0, 1] meet the tower's mean and deviation as bytes do."""
    tower = dict(tiny.TOWERS['image'], mean=(.48, .46, .41), std=(.27, .26, .28))
    nothing = {'image': (dict(name='gray', probability=0.),)}
    models = [model_lib.from_config(tiny.config(augment=augment, towers=dict(tiny.TOWERS, image=tower))) for augment in ({}, nothing)]
    batch = tiny.batch(2)

    @fast.jit
    def embedded():
        params = models[0].init(jax.random.key(0), {'pairs': batch}, method='init_all')
        return [model.apply(params, batch, jax.random.key(1), method='features')['match']['image_BD'] for model in models]
    np.testing.assert_allclose(*embedded(), atol=1e-6)


def test_one_data_set_adds_no_metric():
    s = tiny.Setting(tiny.config())
    def step(sources):
        return step_lib.make(s.plan.model, s.plan.optimizer, s.placed.stored, s.config, 'pairs', sources=sources)
    def metrics(sources):
        return jax.eval_shape(step(sources), s.plan.abstract, example_batch(s.plan.shapes['pairs'], 16))[1]
    plain = metrics(None)
    assert plain == metrics({3: 'only'}) and all(x.shape == () for x in plain.values())
    assert metrics({3: 'a', 4: 'b'}).keys() - plain.keys() == {
        f'{m}/{name}' for m in ('contrast/loss', 'match/loss', 'examples') for name in 'ab'}


def test_losses_per_example_cost_nothing_unless_asked_for():
    """Asked for, one sum of a few numbers over the devices; otherwise the very program that has never heard of them."""
    mesh = tiny.mesh_lib.make_mesh(dict(data=8))
    with jax.set_mesh(mesh):
        layout = tiny.mesh_lib.batch_sharding(mesh)
        x, number = (jax.ShapeDtypeStruct(shape, dtype, sharding=layout) for shape, dtype in (((64, 8), jnp.float32), ((64,), jnp.uint32)))

        def compiled(loss_fn, finish, **more):
            def loss(rows, cols, number_B):
                value, metrics = loss_fn(rows, cols, 10., exchange='ring', tile=4, **more)
                return value, finish(metrics, number_B)
            program = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(x, x, number).compile().as_text()
            return program.count(' = '), hlo.collectives(program, dict(mesh.shape))

        for loss_fn, more in ((pairwise.softmax, {}), (pairwise.sigmoid, dict(bias=-10.))):
            def scalars(metrics):
                return {name: value for name, value in metrics.items() if value.ndim == 0}
            (plain, moved), (asked, moved_more) = (compiled(loss_fn, finish, **more) for finish in (
                lambda metrics, number_B: scalars(metrics),
                lambda metrics, number_B: scalars(metrics) | step_lib.by_source({'loss': metrics['loss_B']}, number_B, {1: 'a', 2: 'b'})))
            assert plain < asked
            assert sum(c.times for c in moved_more.collectives) <= sum(c.times for c in moved.collectives) + 1
            assert moved.bytes < moved_more.bytes <= moved.bytes + 64


def test_splitting_into_micro_batches_adds_no_collective():
    """Data parallel: not one execution, not one byte more. With fsdp weights are gathered, and gradients scattered, for every
    micro-batch, but nothing else moves: no batch, no activation."""
    mesh = dict(replica=2, data=4)
    whole, parts = collectives(mesh, 1), collectives(mesh, 2)
    assert whole.bytes > 0 and parts.bytes <= whole.bytes + 64, 'more than a few scalars'
    assert sum(c.times for c in parts.collectives) <= sum(c.times for c in whole.collectives)
    mesh = dict(data=2, fsdp=4)
    whole, parts = collectives(mesh, 1), collectives(mesh, 2)
    assert {c.kind for c in parts.collectives} <= {c.kind for c in whole.collectives}
    assert parts.bytes <= 3 * whole.bytes, "two forward passes and a backward one for each of two"
