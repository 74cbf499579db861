"""LAMB, SGD, Lion, Muon and lookahead against NumPy written from the papers; the same on a mesh as on one device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm import optim
from bigvlm.core import layout as layout_lib, mesh as mesh_lib, paths
from bigvlm.core.parts import RecipeError
from bigvlm.optim import muon
from tests import fast

RUN = dict(total_steps=100, batch=10, examples_per_epoch=250)
LAYERS = 'image/blocks/mlp/kernel'


def make_params():
    """``blocks`` are stacked: three layers. ``zero`` starts at 0, where a ratio of norms has no meaning."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    blocks = {'mlp': {'kernel': normal(3, 8, 12), 'bias': normal(3, 12)}, 'out': {'kernel': normal(3, 12, 8)}}
    blocks['mlp']['kernel'] *= np.array([.1, 1., 10.], np.float32)[:, None, None]
    return {'image': {'patch_embed': {'kernel': normal(12, 8)}, 'blocks': blocks, 'conv': {'kernel': normal(2, 2, 4, 8)}},
            'text': {'embed': {'embedding': normal(16, 8)}, 'heads': {'kernel': normal(8, 4, 6)}, 'zero': np.zeros(8, np.float32)},
            'match': {'t': normal()}}


FLAT = paths.flatten(make_params())


def build(**spec):
    spec = {'lr': .01, 'schedule': {'name': 'constant'}, **spec}
    return optim.build(spec, params=make_params(), **RUN)


def gradients(steps):
    rng = np.random.default_rng(1)
    return [{path: rng.normal(size=x.shape).astype(np.float32) for path, x in FLAT.items()} for _ in range(steps)]


def train(optimizer, steps):
    params, state, update = FLAT, fast.jit(optimizer.tx.init)(FLAT), fast.jit(optimizer.update)
    for gradient in gradients(steps):
        params, state = update(gradient, state, params)
    return params


def agree(got, expected, rtol=5e-6, atol=2e-6):
    assert got.keys() == expected.keys()
    for path in got:
        np.testing.assert_allclose(got[path], expected[path], rtol=rtol, atol=atol, err_msg=path)


def by_numpy(steps, one):
    """{path: parameter} after ``one(path, x, gradients of it)`` in float64."""
    grads = gradients(steps)
    return {path: one(path, x.astype(np.float64), [g[path].astype(np.float64) for g in grads]) for path, x in FLAT.items()}


def adam_directions(grads, b1, b2, eps):
    m = v = 0.
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g ** 2
        yield m / (1 - b1 ** t) / (np.sqrt(v / (1 - b2 ** t)) + eps)


# LAMB.

@pytest.mark.parametrize('adapt', ['all', 'decayed'])
def test_lamb_scales_each_layer_with_its_decay(adapt):
    lr, wd = .02, .3

    def layer(x, directions, decay, adapts):
        for r in directions:
            u = r + decay * x
            norms = np.linalg.norm(x), np.linalg.norm(u)
            x = x - lr * (norms[0] / norms[1] if adapts and all(norms) else 1.) * u
        return x

    def one(path, x, grads):
        decays = path.endswith('kernel')
        directions = list(adam_directions(grads, .8, .9, 1e-3))
        fields = wd * decays, adapt == 'all' or decays
        if 'blocks' not in path:
            return layer(x, directions, *fields)
        return np.stack([layer(x[i], [d[i] for d in directions], *fields) for i in range(3)])
    got = train(build(name='lamb', lr=lr, weight_decay=wd, b1=.8, b2=.9, eps=1e-3, adapt=adapt), 4)
    agree(got, by_numpy(4, one))


def test_lamb_is_optax_s_where_nothing_is_stacked():
    got = train(build(name='lamb', weight_decay=.1, decay=(('.*', 1.),)), 3)
    tx, params = optax.lamb(.01, eps=1e-6, weight_decay=.1), {p: jnp.array(x) for p, x in FLAT.items() if 'blocks' not in p}
    state, update = tx.init(params), fast.jit(tx.update)
    for gradient in gradients(3):
        step, state = update({p: gradient[p] for p in params}, state, params)
        params = optax.apply_updates(params, step)
    agree({p: got[p] for p in params}, params)


# SGD, Lion, and weight decay in the gradient.

def numpy_sgd(x, grads, lr, momentum, nesterov, decay):
    buffer = 0.
    for g in grads:
        g = g + decay * x
        buffer = momentum * buffer + g
        x = x - lr * (g + momentum * buffer if nesterov else buffer)
    return x


@pytest.mark.parametrize('momentum, nesterov', [(.9, False), (.9, True), (0., False)])
def test_sgd_with_decay_in_the_gradient(momentum, nesterov):
    got = train(build(name='sgd', momentum=momentum, nesterov=nesterov, weight_decay=.2, decay_by='gradient'), 4)
    agree(got, by_numpy(4, lambda path, x, g: numpy_sgd(x, g, .01, momentum, nesterov, .2 * path.endswith('kernel'))))


def test_decoupled_decay_passes_by_the_momentum():
    def one(path, x, grads):
        buffer = 0.
        for g in grads:
            buffer = .9 * buffer + g
            x = x - .01 * (buffer + .2 * path.endswith('kernel') * x)
        return x
    agree(train(build(name='sgd', weight_decay=.2), 4), by_numpy(4, one))


def test_lion():
    def one(path, x, grads):
        m = 0.
        for g in grads:
            x, m = x - .01 * (np.sign(.8 * m + .2 * g) + .1 * path.endswith('kernel') * x), .7 * m + .3 * g
        return x
    agree(train(build(name='lion', b1=.8, b2=.7, weight_decay=.1), 4), by_numpy(4, one))


# Lookahead.

@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_lookahead_goes_part_of_the_way_every_k_steps(name):
    def one(path, x, grads):
        slow, start, x = x, x, x
        for count in range(1, len(grads) + 1):
            if name == 'sgd':  # from the start, so that the momentum runs on through the synchronisations
                step = numpy_sgd(start, grads[:count], .01, .9, False, 0.) - numpy_sgd(start, grads[:count - 1], .01, .9, False, 0.)
            else:
                step = -.01 * list(adam_directions(grads[:count], .9, .999, 1e-8))[-1]
            x = x + step
            if count % 3 == 0:
                slow = slow + .25 * (x - slow)
                x = slow
        return x
    agree(train(build(name=name, lookahead=3, lookahead_alpha=.25), 7), by_numpy(7, one))


def test_lookahead_that_goes_all_the_way_changes_nothing():
    agree(train(build(name='sgd', lookahead=2, lookahead_alpha=1.), 5), train(build(name='sgd'), 5), rtol=1e-6, atol=1e-6)


# Muon.

def numpy_muon(x_Nio, grads, lr, decay, rms):
    """Each matrix on its own; through the singular values, on which the quintic acts."""
    n, fan_in, fan_out = x_Nio.shape
    scale = rms * math.sqrt(max(fan_in, fan_out)) if rms else math.sqrt(max(1, fan_out / fan_in))
    m = np.zeros_like(x_Nio)
    for g in grads:
        m = .95 * m + .05 * g
        for i in range(n):
            ahead = .05 * g[i] + .95 * m[i]
            u, s, v = np.linalg.svd(ahead / np.linalg.norm(ahead), full_matrices=False)
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
            x_Nio[i] = x_Nio[i] - lr * (scale * (u * s) @ v + decay * x_Nio[i])
    return x_Nio


AS_MATRICES = {  # path: from the parameter to [N, i, o], and back
    LAYERS: (lambda x: x.copy(), lambda x: x),
    'image/blocks/out/kernel': (lambda x: x.copy(), lambda x: x),
    'image/conv/kernel': (lambda x: x.reshape(1, 16, 8).copy(), lambda x: x.reshape(2, 2, 4, 8)),
    'text/heads/kernel': (lambda x: np.stack([x[:, :, :3].reshape(8, 12), x[:, :, 3:].reshape(8, 12)]),
                          lambda x: np.concatenate([x[0].reshape(8, 4, 3), x[1].reshape(8, 4, 3)], axis=2)),
}
MATRICES = (('text/heads/kernel', 'ioo/2'), ('image/(blocks|conv)/.*kernel', 'auto'), ('.*', 'adamw'))


@pytest.mark.parametrize('rms', [.2, 0.])
def test_muon_takes_each_layer_each_head_and_each_kernel_as_a_matrix(rms):
    def one(path, x, grads):
        decay = .1 * path.endswith('kernel')
        if path in AS_MATRICES:
            to, back = AS_MATRICES[path]
            return back(numpy_muon(to(x), [to(g) for g in grads], .01, decay, rms))
        for r in adam_directions(grads, .9, .95, 1e-8):
            x = x - .01 * (r + decay * x)
        return x
    got = train(build(name='muon', weight_decay=.1, rms=rms, ns_dtype='float32', matrices=MATRICES), 3)
    agree(got, by_numpy(3, one), rtol=2e-4, atol=2e-5)


def test_muon_orthogonalizes():
    x_Nio = jax.random.normal(jax.random.key(0), (2, 24, 40))
    turned_Noi, y_Nio = map(np.asarray, fast.jit(lambda x: (muon.orthogonalize(x.transpose(0, 2, 1)), muon.orthogonalize(x)))(x_Nio))
    for x, y in zip(x_Nio, y_Nio):
        s = np.linalg.svd(y, compute_uv=False)
        assert .6 < s.min() and s.max() < 1.25
        u, _, v = np.linalg.svd(np.asarray(x), full_matrices=False)
        assert np.abs(u.T @ y @ v.T - np.diag(np.diag(u.T @ y @ v.T))).max() < 1e-4  # the same singular vectors
    np.testing.assert_allclose(turned_Noi, y_Nio.transpose(0, 2, 1), atol=1e-5)
    # Of a full-rank [24, 40] matrix: all 24 singular values are about 1, so the mean square is 24 / (24 · 40).
    assert float(np.sqrt(np.mean(.2 ** 2 * 40 * y_Nio ** 2))) == pytest.approx(.2, rel=.2)


def test_muon_s_default_rules_leave_tables_input_layers_and_stacked_vectors_to_adamw():
    state = jax.eval_shape(build(name='muon').tx.init, FLAT)['muon']
    assert set(state.momentum) == {LAYERS, 'image/blocks/out/kernel', 'image/conv/kernel', 'text/heads/kernel'}
    assert set(state.adamw.mu) == set(FLAT) - set(state.momentum)


# Sharded, kept, refused.

SPECS = [dict(name='lamb', weight_decay=.1), dict(name='sgd', nesterov=True, lookahead=2), dict(name='lion', lookahead=3),
         dict(name='muon', ns_dtype='float32', iterations=2, weight_decay=.1)]


@functools.cache
def on_one_device(number):
    return train(build(clip=1., **SPECS[number]), 3)


@pytest.mark.parametrize('number, shape, rule', [
    (0, dict(data=2, fsdp=2, tensor=2), 'column'), (1, dict(data=2, fsdp=2), 'zero1'), (2, dict(fsdp=4), 'fsdp'), (3, dict(fsdp=4), 'fsdp'),
    (3, dict(data=2, fsdp=2, tensor=2), 'column')])
def test_the_same_on_a_mesh(number, shape, rule):
    optimizer, expected = build(clip=1., **SPECS[number]), on_one_device(number)
    mesh = mesh_lib.make_mesh(shape, jax.devices()[:math.prod(shape.values())])
    stored = layout_lib.make((('.*', rule),), FLAT, mesh)
    moments = {path: stored.moment(path) for path in FLAT}
    state_layout = optim.state_shardings(jax.eval_shape(optimizer.tx.init, FLAT), FLAT, moments, mesh)
    layout = stored.shardings(mesh, FLAT)

    def update(gradient, state, params):
        with layout_lib.activate(stored):
            return optimizer.update(stored.as_moments(gradient), state, stored.as_moments(params))
    with jax.set_mesh(mesh):
        params, state = jax.device_put(FLAT, layout), fast.jit(optimizer.tx.init, out_shardings=state_layout)(FLAT)
        step = fast.jit(update, out_shardings=(layout, state_layout))
        for gradient in gradients(3):
            params, state = step(jax.device_put(gradient, layout), state, params)
    agree(params, expected, rtol=1e-4, atol=1e-5)
    if SPECS[number].get('lookahead'):
        assert state.slow[LAYERS].sharding.spec == moments[LAYERS] != P()


def test_muon_moves_whole_matrices_between_devices_not_products():
    mesh = mesh_lib.make_mesh(dict(fsdp=4), jax.devices()[:4])
    split = NamedSharding(mesh, P(None, None, 'fsdp'))
    x = jax.ShapeDtypeStruct((4, 8, 12), jnp.float32, sharding=split)
    with jax.set_mesh(mesh):
        text = jax.jit(lambda x: muon._spread(x, 5), out_shardings=split).lower(x).compile().as_text()
    assert text.count(' all-gather(') == text.count(' all-reduce(') == 0 and 0 < text.count(' all-to-all(') <= 3


@pytest.mark.parametrize('spec', SPECS, ids=lambda spec: spec['name'])
def test_what_a_step_does_not_reach_keeps_its_state(spec):
    optimizer = build(**spec)
    old = fast.jit(optimizer.tx.init)(FLAT)
    _, new = fast.jit(optimizer.update)(gradients(1)[0], old, FLAT)
    kept = optim.keep_unreached(new, old, FLAT, lambda path: path.startswith('text'))
    owned = optim.state_paths(new, FLAT)
    changed = {path for path, before, after in zip(owned, jax.tree.leaves(old), jax.tree.leaves(kept))
               if not np.array_equal(before, after)}
    assert {owned[path][0] for path in changed} - {None} and all((owned[path][0] or 'text').startswith('text') for path in changed)
    assert {owner for owner, _ in owned.values()} - {None} == set(FLAT)


@pytest.mark.parametrize('spec, message', [
    (dict(name='lamb', decay_by='schedule', weight_decay=.1), r"optim\.decay_by: 'schedule', but lamb's ratio .*\(valid: lr\)"),
    (dict(name='lamb', adapt='none'), r'optim\.adapt: .*valid: all, decayed'),
    (dict(name='sgd', momentum=1.), r'optim\.momentum'), (dict(name='sgd', b1=.9), r'optim\.b1: sgd has no such field'),
    (dict(name='sgd', momentum=0., nesterov=True), r'optim\.nesterov: needs a momentum'),
    (dict(name='sgd', lookahead=2.5), r'optim\.lookahead: 2\.5 must be a whole number'),
    (dict(name='sgd', lookahead=2, lookahead_alpha=0.), r'optim\.lookahead_alpha'),
    (dict(name='lion', mu_dtype='int8'), r'optim\.mu_dtype'), (dict(name='muon', shapes={}), r'optim\.shapes: muon has no such field'),
    (dict(name='muon', iterations=0), r'optim\.iterations'),
    (dict(name='muon', matrices=(('match/t', 'auto'), ('.*', 'adamw'))), r"optim\.matrices: 'auto' does not fit match/t \(\)"),
    (dict(name='muon', matrices=(('image/blocks/mlp/bias', 'auto'), ('.*', 'adamw'))), r"'auto' does not fit image/blocks/mlp/bias"),
    (dict(name='muon', matrices=(('text/heads/kernel', 'iio/4'), ('.*', 'adamw'))), r"'iio/4' does not fit text/heads/kernel"),
    (dict(name='muon', matrices=(('text/heads/kernel', 'io'), ('.*', 'adamw'))), r"'io' does not fit .*one of the letters b, i, o"),
    (dict(name='muon', matrices=(('text/heads/kernel', 'bio/6'), ('.*', 'adamw'))), r"is 4 × 1 by 'bio/6', which is no matrix"),
    (dict(name='muon', matrices=(('.*/kernel', 'auto'),)), r'optim\.matrices: no rule covers'),
])
def test_errors_name_the_key(spec, message):
    with pytest.raises(RecipeError, match=message):
        build(**spec)


@pytest.mark.parity
def test_equal_pytorch_s():
    torch = pytest.importorskip('torch')
    kernels = {path: FLAT[path] for path in ('image/patch_embed/kernel', 'text/heads/kernel')}

    def torch_train(make, view=lambda x: x):
        params = {path: torch.nn.Parameter(torch.tensor(view(x))) for path, x in kernels.items()}
        optimizer = make(list(params.values()))
        for gradient in gradients(4):
            for path, p in params.items():
                p.grad = torch.tensor(view(gradient[path]))
            optimizer.step()
        return {path: p.detach().numpy().reshape(kernels[path].shape) for path, p in params.items()}

    def ours(**spec):
        found = train(build(**spec), 4)
        return {path: found[path] for path in kernels}
    for nesterov in (False, True):
        theirs = torch_train(lambda p: torch.optim.SGD(p, .01, momentum=.9, nesterov=nesterov, weight_decay=.2))
        agree(ours(name='sgd', nesterov=nesterov, weight_decay=.2, decay_by='gradient'), theirs)
    for adjust, rms in (('original', 0.), ('match_rms_adamw', .2)):
        theirs = torch_train(lambda p: torch.optim.Muon(p, .01, momentum=.95, weight_decay=.1, adjust_lr_fn=adjust),
                             lambda x: x.reshape(len(x), -1).T.copy())  # its matrices are [out, in], and it iterates in bfloat16
        found = ours(name='muon', rms=rms, weight_decay=.1, ns_dtype='float32',
                     matrices=(('text/heads/kernel', 'ioo'), ('.*/patch_embed/kernel', 'io'), ('.*', 'adamw')))
        for path, x in kernels.items():
            moved = theirs[path].reshape(-1, len(x)).T.reshape(x.shape) - x
            assert np.linalg.norm(found[path] - x - moved) < .03 * np.linalg.norm(moved)
