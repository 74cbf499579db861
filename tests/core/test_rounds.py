"""Micro-batched gradients equal full-batch ones, for a mixture of everything; naive accumulation does not.

In float64, where "equal" leaves no room: what is wrong by rounding and what is wrong by a term differ by ten digits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import model as model_lib
from bigvlm.core import paths, rounds as rounds_lib
from bigvlm.core.parts import RecipeError

BATCH = 16
EXACT = 1e-11


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


TOWERS = dict(
    image=dict(name='vit', size='', width=16, depth=2, heads=2, patch=8, image=32, pool='map', out_dim=16, dropout=.2,
               drop_path=.2, patch_dropout=.5, dtype='float64'),
    text=dict(name='text', size='', width=16, depth=2, heads=2, vocab=50, length=8, out_dim=16, dropout=.2, dtype='float64'))
OBJECTIVES = dict(
    contrast=dict(name='contrastive', tile=4, target='captions', smoothing=.1), match=dict(name='sigmoid', tile=4, weight=.5),
    itm=dict(name='toys.matching'), queued=dict(name='toys.queued'), distil=dict(name='toys.distil', weight=.3))


def batch(size=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    return dict(image=rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8), text=rng.integers(0, 50, (size, 8), dtype=np.int32),
                id=np.stack([np.zeros(size), np.arange(size)], 1).astype(np.uint32))


def setting(objectives=OBJECTIVES, towers=TOWERS):
    model = model_lib.from_config(dict(towers=towers, objectives=objectives))
    init = jax.jit(lambda key, batch: model.init(key, {'pairs': batch}, method='init_all'))
    variables = dict(init(jax.random.key(0), batch(4)))
    params = variables.pop('params')
    # Away from the initial point, where biases are zero and norms one: a dropped term could hide there.
    params = jax.tree.map(lambda x: jnp.float64(x) + .02 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    rounds = model_lib.rounds(model, jax.random.key(7), 'pairs', model_lib.has_second_round(model, 'pairs'))
    return rounds, params, variables


def run(rounds, params, variables, micro):
    slow = jax.tree.map(lambda x: x * 1.1, params)
    return jax.jit(lambda p, v, b: rounds_lib.value_and_grad(
        rounds, p, v, b, micro=micro, teacher=lambda features_of: {'slow': features_of(slow)}))(params, variables, batch())


def worst(a, b):
    """The largest error of any leaf, relative to the leaf's largest value."""
    a, b = paths.flatten(a), paths.flatten(b)
    assert a.keys() == b.keys()
    return max(float(jnp.abs(a[k] - b[k]).max() / (jnp.abs(a[k]).max() + 1e-3)) for k in a)


def test_micro_batched_gradients_equal_full_batch_ones():
    """Two contrastive losses, a second round with hard negatives, a queue and a teacher, with dropout, drop path and patch dropout."""
    setup = setting()
    (loss, metrics, collections), gradient = run(*setup, micro=1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert all(np.abs(np.asarray(g)).max() > 0 for path, g in paths.flatten(gradient).items() if 'key/bias' not in path)
    (loss_4, metrics_4, collections_4), gradient_4 = run(*setup, micro=4)
    assert abs(loss_4 - loss) < EXACT
    assert worst(gradient, gradient_4) < EXACT
    assert worst(metrics, metrics_4) < EXACT
    assert worst(collections, collections_4) < EXACT


def test_naive_accumulation_does_not_pass():
    """The mean of the micro-batches' own gradients is another gradient: the negatives differ."""
    rounds, params, variables = setting(dict(contrast=dict(name='contrastive', tile=4)))
    (_, _, _), gradient = run(rounds, params, variables, micro=1)
    pieces = [{k: v[n::4] for k, v in batch().items()} for n in range(4)]
    own = jax.jit(lambda piece: rounds_lib.value_and_grad(rounds, params, variables, piece)[1])
    naive = [own(piece) for piece in pieces]
    naive = jax.tree.map(lambda *g: sum(g) / 4, *naive)
    assert worst(gradient, naive) > .1


def test_randomness_depends_on_the_example_not_on_its_place():
    """The same example in another place of another batch draws the same dropout and loses the same patches."""
    rounds, params, variables = setting(dict(contrast=dict(name='contrastive', tile=4)))
    features = jax.jit(lambda batch: rounds.features(params, variables, batch)[0])
    whole, turned = features(batch()), features({k: v[::-1][:6] for k, v in batch().items()})
    np.testing.assert_allclose(whole['contrast']['image_BD'][::-1][:6], turned['contrast']['image_BD'], atol=EXACT)
    other = batch() | dict(id=batch()['id'] + 100)
    redrawn = features(other)
    assert np.abs(whole['contrast']['image_BD'] - redrawn['contrast']['image_BD']).max() > 1e-2


def test_collections_of_towers_are_carried_through_micro_batches_and_committed_once():
    towers = dict(image=dict(name='toys.running_mean'), text=dict(name='toys.running_mean'))
    rounds, params, variables = setting(dict(distil=dict(name='toys.distil')), towers)
    (_, _, collections), gradient = run(rounds, params, variables, micro=4)
    assert float(collections['statistics']['image']['seen']) == BATCH

    # The gradient is that of the outputs the first pass saw: micro-batch n runs with 4·n examples seen.
    def loss_by_hand(params):
        seen = lambda n: {'statistics': {t: {'seen': jnp.float64(4 * n)} for t in ('image', 'text')}}
        slow = jax.tree.map(lambda x: x * 1.1, params)
        total = 0.
        for n in range(4):
            piece = {k: v[n::4] for k, v in batch().items()}
            student = rounds.features(params, seen(n), piece)[0]['distil']['image_BD']
            teacher = jax.lax.stop_gradient(rounds.features(slow, seen(n), piece)[0]['distil']['image_BD'])
            total = total + jnp.square(student - teacher).sum()
        return total / (BATCH * 8)
    assert worst(jax.grad(loss_by_hand)(params), gradient) < EXACT


def test_each_tower_runs_once_whoever_asks():
    calls = []

    def count(call, args, kwargs, context):
        if context.module.path and len(context.module.path) == 1 and context.method_name == '__call__':
            calls.append(context.module.path[0])
        return call(*args, **kwargs)
    rounds, params, variables = setting()
    calls.clear()
    with nn.intercept_methods(count):
        jax.eval_shape(rounds.features, params, variables, batch())
    assert sorted(calls) == ['image', 'text']


def test_micro_batches_must_divide_the_batch():
    rounds, params, variables = setting(dict(contrast=dict(name='contrastive')))
    with pytest.raises(RecipeError, match='3 micro-batches do not divide 16'):
        run(rounds, params, variables, micro=3)
