"""Batch norm against NumPy loops in float64 and against PyTorch; its groups; meshes; micro-batches, running statistics too."""

import functools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import mesh as mesh_lib, rounds as rounds_lib
from bigvlm.core.parts import RecipeError
from bigvlm.nn.norm import BatchNorm

RNG = np.random.default_rng(0)
C, FIELDS = 5, dict(momentum=.8, epsilon=.01)
PARAMS = {'scale': 1 + RNG.normal(size=C), 'bias': RNG.normal(size=C)}
STATS = {'mean': RNG.normal(size=C), 'var': 1 + RNG.random(C)}
SHAPES = {'vectors': (12, C), 'images': (12, 3, 2, C)}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def groups(examples, group=0, blocks=1):
    """Lists of the examples of each group."""
    if not group or examples <= group:
        return [range(examples)]
    block = examples // blocks
    return [range(start + k, start + block, block // group) for start in range(0, examples, block) for k in range(block // group)]


def formula(x, params, members):
    """(y, mean of the groups' means, of their unbiased variances) in NumPy."""
    y, means, variances = np.zeros_like(x), [], []
    for group in members:
        rows = x[list(group)].reshape(-1, C)
        means.append(rows.mean(0))
        variances.append(rows.var(0, ddof=1))
        y[list(group)] = (x[list(group)] - means[-1]) / np.sqrt(rows.var(0) + FIELDS['epsilon']) * params['scale'] + params['bias']
    return y, np.mean(means, 0), np.mean(variances, 0)


@functools.cache
def compiled(**fields):
    """params, statistics, x, weight -> (y, statistics), gradients of Σ weight·y by params and x."""
    norm = BatchNorm(**FIELDS | fields)

    def run(params, stats, x, weight):
        def loss(params, x):
            y, updated = norm.apply({'params': params, 'batch_stats': stats}, x, True, mutable=['batch_stats'])
            return jnp.sum(weight * y), (y, updated['batch_stats'])
        (_, found), gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return found, gradient
    return fast.jit(run)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('fields', [{}, dict(group=4), dict(group=3, blocks=2)], ids=str)
def test_value_gradient_and_running_statistics_equal_the_formula(float64, shape, fields):
    x, weight = 3. + RNG.normal(size=SHAPES[shape]), RNG.normal(size=SHAPES[shape])
    members = groups(len(x), **fields)
    (y, stats), (d_params, d_x) = compiled(**fields)(PARAMS, STATS, x, weight)
    expected, mean, variance = formula(x, PARAMS, members)
    assert reference.relative(y, expected) < 1e-12
    assert reference.relative(stats['mean'], .8 * STATS['mean'] + .2 * mean) < 1e-12
    assert reference.relative(stats['var'], .8 * STATS['var'] + .2 * variance) < 1e-12
    errors = reference.slope_errors(lambda p: np.sum(weight * formula(p['x'], p, members)[0]), {**PARAMS, 'x': x}, {**d_params, 'x': d_x})
    assert max(errors.values()) < 1e-7, errors


def test_which_examples_form_a_group():
    assert [list(g) for g in groups(12, 3, 2)] == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    x = RNG.normal(size=(12, C)).astype(np.float32)
    given = dict(params=jax.tree.map(jnp.float32, PARAMS), stats=jax.tree.map(jnp.float32, STATS), weight=jnp.zeros((12, C)))
    run = compiled(group=3, blocks=2)
    before, after = (run(x=x + bump, **given)[0][0] for bump in (np.zeros((12, 1), np.float32), 9 * np.eye(12, 1, -3, np.float32)))
    assert np.flatnonzero(np.abs(after - before).max(1) > 1e-3).tolist() == [1, 3, 5]  # example 3 was changed


def test_running_statistics_are_used_outside_training_and_stay():
    x = RNG.normal(size=(4, 2, C)).astype(np.float32)
    variables = {'params': jax.tree.map(jnp.float32, PARAMS), 'batch_stats': jax.tree.map(jnp.float32, STATS)}
    y, updated = BatchNorm(**FIELDS, group=4).apply(variables, x, False, mutable=['batch_stats'])
    expected = (x - STATS['mean']) / np.sqrt(STATS['var'] + .01) * PARAMS['scale'] + PARAMS['bias']
    assert reference.relative(y, expected) < 1e-6
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(updated['batch_stats']), dict(variables['batch_stats'])))


def test_initial_values_and_what_is_learned():
    made = BatchNorm(scale_init=nn.initializers.zeros).init(jax.random.key(0), jnp.full((4, C), 7.), True)
    assert jax.tree.map(lambda a: (a.shape, float(a[0])), made) == {
        'params': {'scale': ((C,), 0.), 'bias': ((C,), 0.)}, 'batch_stats': {'mean': ((C,), 0.), 'var': ((C,), 1.)}}
    bare = BatchNorm(affine=False)
    assert 'params' not in bare.init(jax.random.key(0), jnp.zeros((4, C)), True)
    x = RNG.normal(size=(8, C)).astype(np.float32)
    y, _ = bare.apply(bare.init(jax.random.key(0), x, True), x, True, mutable=['batch_stats'])
    assert reference.relative(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)) < 1e-5


def test_statistics_are_float32_of_bfloat16_and_survive_an_offset():
    """bfloat16 sums of 4096 values would stop growing at 256; squares of values near 1000 lose what is small beside them
    unless running statistics are near."""
    x = jnp.asarray(RNG.normal(size=(4096, C)), jnp.bfloat16)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, False)
    y, updated = norm.apply(variables, x, True, mutable=['batch_stats'])
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16 and {s.dtype for s in jax.tree.leaves(updated)} == {jnp.dtype('float32')}
    assert reference.relative(updated['batch_stats']['var'], .9 + .1 * wide.var(0, ddof=1)) < 1e-6
    assert reference.relative(y, (wide - wide.mean(0)) / wide.std(0)) < .01
    far = (1000. + RNG.normal(size=(512, C))).astype(np.float32)
    near = {**variables, 'batch_stats': {'mean': jnp.full(C, 990.), 'var': jnp.ones(C)}}
    y, _ = norm.apply(near, far, True, mutable=['batch_stats'])
    assert reference.relative(y, (far - far.mean(0, dtype=np.float64)) / far.std(0, dtype=np.float64)) < 1e-4


def test_groups_that_do_not_fit_are_an_error_and_few_examples_are_one_group():
    def shape(examples, **fields):
        return jax.eval_shape(lambda x: BatchNorm(**fields).init_with_output(jax.random.key(0), x, True)[0], jnp.zeros((examples, C))).shape
    assert shape(2, group=8, blocks=4) == (2, C)
    with pytest.raises(RecipeError, match=r'^group: 12 examples .* are not 1 equal blocks of groups of 8; valid: a divisor of 12'):
        shape(12, group=8)
    with pytest.raises(RecipeError, match='not 4 equal blocks of groups of 4; valid: a divisor of 6'):
        shape(24, group=4, blocks=4)


@pytest.mark.parametrize('spec, fields', [
    (dict(data=2, fsdp=4), {}), (dict(data=8), dict(group=4)), (dict(data=2, fsdp=4), dict(group=4, blocks=8)),
    (dict(replica=2, data=2, fsdp=2), dict(group=16, blocks=2))], ids=str)
def test_meshes_change_nothing(spec, fields):
    mesh = mesh_lib.make_mesh(spec)
    x, weight = (RNG.normal(size=(32, 3, C)).astype(np.float32) for _ in range(2))
    args = jax.tree.map(jnp.float32, PARAMS), jax.tree.map(jnp.float32, STATS), x, weight
    alone = compiled(**fields)(*args)
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P(mesh_lib.batch_axes(mesh)))
        lowered = compiled(**fields).lower(*jax.device_put(args[:2], NamedSharding(mesh, P())), *jax.device_put(args[2:], split)).compile()
        together = lowered(*jax.device_put(args[:2], NamedSharding(mesh, P())), *jax.device_put(args[2:], split))
    for found, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
        assert reference.relative(found, expected) < 1e-5
    assert 'all-gather' not in lowered.as_text() and 'all-to-all' not in lowered.as_text()


@pytest.mark.parametrize('fields, silent', [
    (dict(group=4, blocks=8), True), (dict(group=2, blocks=16), True), (dict(group=4), False)], ids=str)
def test_blocks_need_no_communication(fields, silent):
    """Neither forward nor backward, but for the running statistics, which are the means of all groups'."""
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4))

    def run(x):
        def loss(x):
            return jnp.square(BatchNorm(**fields).init_with_output(jax.random.key(0), x, True)[0])
        return jax.vjp(loss, x)[1](jnp.ones_like(x))
    with jax.set_mesh(mesh):
        x = jax.device_put(RNG.normal(size=(32, 3, C)).astype(np.float32), NamedSharding(mesh, P(mesh_lib.batch_axes(mesh))))
        text = fast.jit(run).lower(x).compile().as_text()
    assert ('all-reduce' not in text) == silent and 'all-gather' not in text


class Tower(nn.Module):
    """Two layers of batch norm, so that statistics of the second depend on the groups of the first."""
    group: int
    blocks: int

    @nn.compact
    def __call__(self, x_BC):
        for name in ('first', 'second'):
            x_BC = nn.relu(nn.Dense(C, name=f'{name}_dense', param_dtype=jnp.float64)(x_BC))
            x_BC = BatchNorm(self.group, blocks=self.blocks, name=name)(x_BC, True)
        return x_BC


@pytest.mark.parametrize('fields, micro, exact', [(dict(group=4, blocks=1), 2, True), (dict(group=4, blocks=1), 6, True),
                                                  (dict(group=4, blocks=2), 6, True), (dict(group=16, blocks=1), 6, False)])
def test_micro_batches_of_whole_groups_change_nothing(float64, fields, micro, exact):
    """Loss, gradient and running statistics; not so where a micro-batch of 8 is smaller than a group of 16."""
    tower, x_BC = Tower(**fields), jnp.asarray(RNG.normal(size=(48, C)))
    variables = tower.init(jax.random.key(0), x_BC)
    stats = jax.tree.map(lambda s: s + 3., variables['batch_stats'])

    def features(params, collections, batch):
        return tower.apply({'params': params, **collections}, batch, mutable=['batch_stats'])

    def loss(params, collections, features, features2, teacher):
        similar_BB = jnp.einsum('ic,jc->ij', features, features)
        return jax.nn.logsumexp(similar_BB, axis=1).mean(), ({}, collections)
    run = fast.jit(lambda micro, params: rounds_lib.value_and_grad(
        rounds_lib.Rounds(features, loss), params, {'batch_stats': stats}, x_BC, micro=micro), static_argnums=0)
    whole, cut = (run(m, variables['params']) for m in (1, micro))
    errors = [reference.relative(a, b) for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True)]
    assert (max(errors) < 1e-10) == exact, errors
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), whole[0][2]['batch_stats'], stats)
    assert min(jax.tree.leaves(moved)) > .01


@pytest.mark.parity
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_pytorch(shape):
    torch = pytest.importorskip('torch')
    x, weight = RNG.normal(size=SHAPES[shape]).astype(np.float32), RNG.normal(size=SHAPES[shape]).astype(np.float32)
    params, stats = jax.tree.map(np.float32, PARAMS), jax.tree.map(np.float32, STATS)
    (y, moved), (d_params, d_x) = compiled()(params, stats, x, weight)
    theirs = torch.nn.BatchNorm1d(C, eps=FIELDS['epsilon'], momentum=.2)
    given = dict(weight=params['scale'], bias=params['bias'], running_mean=stats['mean'], running_var=stats['var'])
    theirs.load_state_dict({name: torch.tensor(value) for name, value in given.items()}, strict=False)
    channels_first = torch.tensor(x).reshape(len(x), -1, C).movedim(-1, 1).requires_grad_()
    out = theirs(channels_first)
    (out * torch.tensor(weight).reshape(len(x), -1, C).movedim(-1, 1)).sum().backward()

    def back(tensor):
        return tensor.detach().movedim(1, -1).reshape(x.shape).numpy()
    for found, expected in (
            (y, back(out)), (d_x, back(channels_first.grad)), (moved['mean'], theirs.running_mean), (moved['var'], theirs.running_var),
            (d_params['scale'], theirs.weight.grad), (d_params['bias'], theirs.bias.grad)):
        assert reference.relative(found, expected) < 1e-5
