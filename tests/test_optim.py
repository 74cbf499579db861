"""The optimizers against NumPy written from the papers' formulas; schedules against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from bigvlm import optim
from bigvlm.core.parts import RecipeError

RUN = dict(total_steps=100, batch=10, examples_per_epoch=250)


def make_params():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {'image': {'embed': {'kernel': normal(3, 40, 34), 'bias': normal(34)}, 'head': {'kernel': normal(4, 5)}},
            'text': {'embed': {'kernel': normal(6, 4), 'bias': normal(4)}}, 'match': {'t': normal()}}


def build(params=None, **spec):
    spec = {'name': 'adamw', 'lr': .01, 'schedule': {'name': 'constant'}, **spec}
    return optim.build(spec, params=params or make_params(), **RUN)


def train(optimizer, params, steps):
    """Parameters after ``steps`` with gradients drawn from a fixed seed, and the gradients."""
    trainable, frozen = optim.split(params, optimizer.trainable)
    state, update = optimizer.tx.init(trainable), jax.jit(optimizer.update)
    rng, gradients = np.random.default_rng(1), []
    for _ in range(steps):
        gradients.append({path: rng.normal(size=x.shape).astype(x.dtype) for path, x in trainable.items()})
        trainable, state = update(gradients[-1], state, trainable)
    return {**trainable, **frozen}, gradients


def numpy_adamw(x, gradients, rate, b1, b2, eps, decay):
    """``rate`` and ``decay`` per step: p -= rate · direction + decay · p; in float64."""
    x, m, v = x.astype(np.float64), 0., 0.
    for t, g in enumerate(gradients, 1):
        g = g.astype(np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g ** 2
        x = x - rate[t - 1] * (m / (1 - b1 ** t)) / (np.sqrt(v / (1 - b2 ** t)) + eps) - decay[t - 1] * x
    return x


@pytest.mark.parametrize('decay_by', ['lr', 'schedule'])
def test_adamw(decay_by):
    params, lr, wd = make_params(), .01, .1
    rules = dict(decay=(('image/.*/kernel', 1.), ('text/.*/kernel', .5), ('.*', 0.)),
                 rates=(('text/.*', .25), ('.*', 1.)))
    got, gradients = train(build(lr=lr, b1=.8, b2=.9, eps=1e-3, weight_decay=wd, decay_by=decay_by,
                                 schedule=dict(name='linear', warmup=2), **rules), params, 5)
    schedule = np.array([.5, 1., 1., 97 / 98, 96 / 98])
    for path, decay, rate in [('image/embed/kernel', 1., 1.), ('text/embed/kernel', .5, .25),
                              ('text/embed/bias', 0., .25), ('match/t', 0., 1.)]:
        per_weight = lr * rate if decay_by == 'lr' else 1.
        start = optim.split(params, dict.fromkeys(got, True))[0][path]
        expected = numpy_adamw(start, [g[path] for g in gradients], lr * rate * schedule, .8, .9, 1e-3,
                               per_weight * schedule * wd * decay)
        np.testing.assert_allclose(got[path], expected, rtol=2e-6, atol=1e-6, err_msg=path)


def test_all_is_float64_where_jax_is():
    params = {'image': {'kernel': np.random.default_rng(2).normal(size=(3, 4))}}
    with jax.enable_x64(True):
        schedule = dict(name='cosine', warmup=2)
        optimizer = build(params, lr=.01, b1=.8, b2=.9, eps=1e-3, mu_dtype='float64', weight_decay=.1, clip=1e9, schedule=schedule)
        got, gradients = train(optimizer, params, 5)
        norm = optim.global_norm(gradients[0])
        names = [dict(name='rsqrt', warmup=3), dict(name='wsd', warmup=10, cooldown=7), dict(name='cosine_restarts', cycles=3)]
        assert all(build(params, schedule=name).schedule(np.int32(95)).dtype == jnp.float64 for name in names)
    rate = .01 * np.array([.5, 1., *(.5 * (1 + np.cos(np.pi * np.arange(3) / 98)))])
    expected = numpy_adamw(params['image']['kernel'], [g['image/kernel'] for g in gradients], rate, .8, .9, 1e-3, .1 * rate)
    np.testing.assert_allclose(got['image/kernel'], expected, rtol=1e-13)
    assert norm.dtype == jnp.float64 and norm == pytest.approx(np.linalg.norm(gradients[0]['image/kernel']), rel=1e-15)


def test_the_first_moment_can_be_bfloat16():
    optimizer = build(mu_dtype='bfloat16')
    dtypes = {path.split('/')[1]: x.dtype for path, x in leaves(optimizer).items() if path.endswith('kernel')}
    assert dtypes == {'count': jnp.int32, 'mu': jnp.bfloat16, 'nu': jnp.float32}


def numpy_adafactor(x, gradients, lr, momentum, cap, averaged):
    """``averaged``: (dimension averaged by the row moment, by the column moment), or None if not factored."""
    x, m, row, column, v = x.astype(np.float64), 0., 0., 0., 0.
    for t, g in enumerate(gradients, 1):
        g = g.astype(np.float64)
        b2, square = min(cap, 1 - t ** -.8), g ** 2 + 1e-30
        if averaged:
            row = b2 * row + (1 - b2) * square.mean(averaged[0], keepdims=True)
            column = b2 * column + (1 - b2) * square.mean(averaged[1], keepdims=True)
            second = row * column / row.mean(averaged[1], keepdims=True)
        else:
            second = v = b2 * v + (1 - b2) * square
        m = momentum * m + (1 - momentum) * g / np.sqrt(second)
        x = x - lr * m
    return x


@pytest.mark.parametrize('path, averaged', [
    ('image/embed/kernel', (1, 2)), ('image/embed/bias', None), ('text/embed/kernel', None)])
def test_adafactor(path, averaged):
    params = make_params()
    got, gradients = train(build(name='adafactor', momentum=.7, momentum_dtype='float32', b2_cap=.6), params, 5)
    start = optim.split(params, dict.fromkeys(got, True))[0][path]
    expected = numpy_adafactor(start, [g[path] for g in gradients], .01, .7, .6, averaged)
    np.testing.assert_allclose(got[path], expected, rtol=2e-6, atol=1e-6)


def test_adafactor_keeps_two_bytes_a_weight():
    kept = {path: x for path, x in leaves(build(name='adafactor')).items() if path.endswith('image/embed/kernel')}
    assert sum(x.size * x.dtype.itemsize for x in kept.values()) == 2 * 3 * 40 * 34 + 4 * (3 * 34 + 3 * 40 + 1)


def test_clipping_by_the_global_norm():
    params = {'a': np.zeros(3, np.float32), 'b': np.zeros((), np.float32)}
    # A huge eps makes Adam's direction gradient / eps.
    optimizer = build(params, clip=2., eps=1e3, b1=0., b2=0., decay=(('.*', 0.),))
    gradient = {'a': jnp.array([3., 0., 4.]), 'b': jnp.array(12.)}
    assert optim.global_norm(gradient) == 13.
    got, _ = optimizer.update(gradient, optimizer.tx.init(params), params)
    np.testing.assert_allclose(got['b'], -.01 * 12 * 2 / 13 / 1e3, rtol=1e-2)
    np.testing.assert_allclose(got['a'] / got['b'], [3 / 12, 0, 4 / 12], rtol=1e-2)


def leaves(optimizer, params=None):
    trainable, _ = optim.split(params or make_params(), optimizer.trainable)
    state = jax.eval_shape(optimizer.tx.init, trainable)
    return dict(zip(optim.state_paths(state, trainable), jax.tree.leaves(state)))


@pytest.mark.parametrize('name, per_parameter', [('adamw', 3), ('adafactor', 4)])
def test_frozen_parameters_have_no_state_and_do_not_move(name, per_parameter):
    params = make_params()
    optimizer = build(name=name, freeze=('image/.*',))
    trainable, _ = optim.split(params, optimizer.trainable)
    owners = [owner for owner, _ in optim.state_paths(jax.eval_shape(optimizer.tx.init, trainable), trainable).values()]
    assert {owner for owner in owners if owner} == {'text/embed/kernel', 'text/embed/bias', 'match/t'}
    assert sum(owner is not None for owner in owners) == per_parameter * 3
    assert optimizer.table['image/embed/kernel'] == (0., 0.) and optimizer.table['text/embed/kernel'] == (1., 1.)
    got, _ = train(optimizer, params, 2)
    assert np.array_equal(got['image/embed/kernel'], params['image']['embed']['kernel'])
    assert not np.array_equal(got['text/embed/kernel'], params['text']['embed']['kernel'])


def test_split_and_merge():
    params = make_params()
    trainable, frozen = optim.split(params, build(freeze=('image/.*',)).trainable)
    assert set(frozen) == {'image/embed/kernel', 'image/embed/bias', 'image/head/kernel'}
    jax.tree.map(np.testing.assert_array_equal, optim.merge(trainable, frozen), params)


@pytest.mark.parametrize('spec, message', [
    (dict(decay=(('.*/kernal', 1.), ('.*', 0.))), r"optim\.decay: the rule '\.\*/kernal' matches no parameter"),
    (dict(rates=(('image/.*', 1.),)), r'optim\.rates: no rule covers'),
    (dict(freeze=('images/.*',)), r'optim\.freeze: .*matches no parameter'),
    (dict(freeze=('.*',)), r'optim\.freeze: every parameter is frozen'),
    (dict(rates=(('.*', 0.),)), r'optim\.rates: .*use optim\.freeze'),
    (dict(b3=.9), r'optim\.b3: adamw has no such field \(valid: lr, weight_decay, .*b1, b2'),
    (dict(name='adam'), r'optim\.name: .*valid: adamw, adafactor'),
    (dict(lr=0.), r'optim\.lr'), (dict(lr='1e-3'), r'optim\.lr'), (dict(b1=1.), r'optim\.b1'),
    (dict(mu_dtype='float16'), r'optim\.mu_dtype: .*valid: float32, bfloat16'),
    (dict(mu_dtype='float64'), r'optim\.mu_dtype: .*JAX_ENABLE_X64'),
    (dict(decay_by='wd'), r'optim\.decay_by'),
    (dict(schedule=dict(name='cos')), r'optim\.schedule\.name: .*valid: constant, linear, cosine, cosine_restarts, step_decay, '),
    (dict(schedule=dict(name='cosine', timescale=3)), r'optim\.schedule\.timescale: cosine .*\(valid: warmup, end\)'),
    (dict(schedule=dict(name='cosine', warmup='100 steps')), r'optim\.schedule\.warmup: 100 steps .* of 100 steps'),
    (dict(schedule=dict(name='cosine', end=.1)), r'optim\.schedule\.end'),
    (dict(schedule=dict(name='wsd', warmup=50, cooldown='60%')), r'optim\.schedule: warmup .*longer than the run'),
    (dict(schedule=dict(name='wsd', shape='round')), r'optim\.schedule\.shape: .*valid: linear, sqrt'),
    (dict(schedule=dict(name='cosine_restarts', cycles=2.5)), r'optim\.schedule\.cycles: 2\.5 must be a whole number'),
    (dict(schedule=dict(name='step_decay')), r'optim\.schedule\.milestones: \(\) \(valid: pairs of a duration and a factor'),
    (dict(schedule=dict(name='step_decay', milestones=((5, -1.),))), r'optim\.schedule\.milestones\.0: the factor -1\.0'),
    (dict(schedule=dict(name='step_decay', milestones=(('x', .1),))), r'optim\.schedule\.milestones\.0: '),
    (dict(schedule=dict(name='step_decay', milestones=((5, .1),), end=.001)), r'optim\.schedule\.end: step_decay'),
])
def test_errors_name_the_key(spec, message):
    with pytest.raises(RecipeError, match=message):
        build(**spec)


@pytest.mark.parametrize('schedule, points', [
    # 100 steps; 25 steps an epoch
    (dict(name='constant'), {0: 1., 99: 1.}),
    (dict(name='constant', warmup=4), {0: .25, 1: .5, 3: 1., 4: 1., 99: 1.}),
    (dict(name='linear', warmup='20%', end=.001), {0: .05, 19: 1., 20: 1., 60: .55, 100: .1, 150: .1}),
    (dict(name='cosine', warmup='.8 epochs'), {20: 1., 40: .5 * (1 + math.cos(math.pi / 4)), 60: .5, 100: 0.}),
    (dict(name='cosine', end=.002), {0: 1., 50: .6, 100: .2}),
    # Two steps of warm-up, then 7 times 14 steps.
    (dict(name='cosine_restarts', warmup=2, cycles=7, end=.001),
     {0: .5, 2: 1., 9: .55, 15: .1 + .45 * (1 + math.cos(math.pi * 13 / 14)), 16: 1., 30: 1., 86: 1., 93: .55, 100: .1, 120: .1}),
    (dict(name='cosine_restarts'), {0: 1., 5: .5, 10: 1., 99: .5 * (1 + math.cos(math.pi * .9)), 100: 0.}),
    (dict(name='step_decay', warmup=2, milestones=(('40%', .1), ('3 epochs', .5), ('90 steps', 0.))),
     {0: .5, 2: 1., 39: 1., 40: .1, 74: .1, 75: .05, 89: .05, 90: 0., 100: 0.}),
    (dict(name='rsqrt', warmup='100 examples', timescale='8 steps'), {9: 1., 10: 1., 34: .5, 74: 1 / 3}),
    (dict(name='rsqrt', timescale=33, cooldown=10), {90: (1 + 90 / 33) ** -.5, 95: (1 + 95 / 33) ** -.5 / 2, 100: 0.}),
    (dict(name='wsd', warmup=10, cooldown='40%'), {4: .5, 10: 1., 60: 1., 80: .5, 99: 1 / 40, 100: 0.}),
    (dict(name='wsd', cooldown=16, shape='sqrt', end=.001), {84: 1., 88: .1 + .9 * .5, 100: .1}),
])
def test_schedules(schedule, points):
    rate = build(lr=.01, schedule=schedule).schedule
    for step, expected in points.items():
        assert float(rate(step)) == pytest.approx(.01 * expected, rel=1e-5, abs=1e-9), step
        assert rate(step).dtype == jnp.float32


def test_clamp():
    got = optim.clamp({'a/t': jnp.array([-1., 2., 9.]), 'b/t': jnp.array(9.), 'c': jnp.array(9.)},
                      (('a/t', 0., math.log(100.)), ('.*/t', None, 5.)))
    np.testing.assert_allclose(got['a/t'], [0., 2., math.log(100.)], rtol=1e-6)
    assert got['b/t'] == 5. and got['c'] == 9.
    with pytest.raises(RecipeError, match=r"clamp: the rule '\.\*/scale' matches no parameter"):
        optim.clamp({'a/t': jnp.zeros(())}, (('.*/scale', 0., 1.),))
    with pytest.raises(RecipeError, match=r'clamp: .*is not \(regex, low, high\)'):
        optim.clamp({'a/t': jnp.zeros(())}, (('a/t', 1., 0.),))


def test_ema():
    still = jax.random.normal(jax.random.key(0), (1000,))
    got = optim.ema_update({'a': jnp.array([1.]), 'still': still}, {'a': jnp.array([2.]), 'still': still}, .9)
    np.testing.assert_allclose(got['a'], [1.1], rtol=1e-6)
    assert np.array_equal(got['still'], still)


def test_state_follows_its_parameters_layout():
    mesh = jax.make_mesh((2, 2), ('fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    specs = {'image/embed/kernel': P(None, 'fsdp', 'tensor'), 'image/embed/bias': P('tensor'),
             'image/head/kernel': P('fsdp'), 'text/embed/kernel': P(), 'text/embed/bias': P(), 'match/t': P()}
    params = make_params()
    for name, moments in [('adamw', {'adamw/mu/': P(None, 'fsdp', 'tensor'), 'adamw/nu/': P(None, 'fsdp', 'tensor')}),
                          ('adafactor', {'adafactor/0/v_row/': P(None, 'tensor'), 'adafactor/0/v_col/': P(None, 'fsdp'),
                                         'adafactor/0/v/': P(), 'adafactor/2/ema/': P(None, 'fsdp', 'tensor')})]:
        optimizer = build(name=name)
        trainable, _ = optim.split(params, optimizer.trainable)
        state = jax.eval_shape(optimizer.tx.init, trainable)
        shardings = optim.state_shardings(state, trainable, specs, mesh)
        found = dict(zip(optim.state_paths(state, trainable), jax.tree.leaves(shardings)))
        assert {key: found[f'{key}image/embed/kernel'].spec for key in moments} == moments
        assert found[f'{list(moments)[0]}text/embed/bias'].spec == found['step/count'].spec == P()
        made = jax.jit(optimizer.tx.init, out_shardings=shardings)(trainable)  # every layout fits its shape
        assert jax.tree.structure(made) == jax.tree.structure(shardings)


def test_the_state_of_unreached_parameters_stays():
    params = make_params()
    optimizer = build()
    trainable, _ = optim.split(params, optimizer.trainable)
    old = optimizer.tx.init(trainable)
    _, new = optimizer.update(jax.tree.map(jnp.ones_like, trainable), old, trainable)
    kept = optim.keep_unreached(new, old, trainable, lambda path: path.startswith('text'))
    assert not kept['adamw'].mu['image/embed/kernel'].any() and kept['adamw'].mu['text/embed/kernel'].all()
    assert kept['adamw'].count['text/embed/kernel'] == 1 and kept['adamw'].count['image/embed/kernel'] == 0
