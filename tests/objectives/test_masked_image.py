"""Masked image modelling: its formula and gradient, its positions, any mesh, any number of micro-batches, what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes, rounds
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.masked_image import MaskedImage
from tests import reference
from tests.fast import jit
from tests.objectives import masked
from tests.objectives.masked import PATCH, Both, Tower, images, patches

B, L, V = 8, 12, 7
MEAN, STD = (.4, .5, .6), (.2, .3, .25)


def masks(counts, seed=1):
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(np.arange(L) < count) for count in counts])


def batch(counts=(5,) * B):
    codes = np.random.default_rng(2).integers(0, V, (B, L)).astype(np.int32)
    return dict(image=jnp.asarray(images(B)), patch_mask=jnp.asarray(masks(counts)), patch_codes=jnp.asarray(codes))


def objective(**fields):
    return MaskedImage(**{**dict(vocab=V, patch=PATCH, mean=MEAN, std=STD), **fields})


def model(data, cls=True, **fields):
    both = Both(Tower(cls), objective(**fields))
    return both, {'params': reference.randomise(both.init(jax.random.key(0), data)['params'])}


def errors(data, p, fields, cls=True):
    """[B, L] errors, [B, L] hits, from the paper's formulas in float64."""
    found = masked.tokens(np.asarray(data['image']), p['tower'], np.asarray(data['patch_mask']), cls=cls)[:, -L:]
    head = p['objective']
    if fields.get('transform'):
        found = reference.layer_norm(reference.gelu(reference.dense(found, head['transform'])), head['norm'], 1e-5)
    found = reference.dense(found, head['head'])
    if fields.get('target') == 'pixels':
        target = patches(np.asarray(data['image']), MEAN, STD)
        if fields.get('normalize'):
            target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        difference = found - target
        return (np.abs(difference) if fields.get('norm', 'l1') == 'l1' else difference ** 2).mean(-1), None
    code = np.asarray(data['patch_codes'])
    loss = [[math.log(sum(math.exp(v - row[c]) for v in row)) for row, c in zip(rows, codes)] for rows, codes in zip(found, code)]
    return np.array(loss), found.argmax(-1) == code


CASES = ((dict(), True), (dict(), False), (dict(transform=True), True), (dict(count=5), True), (dict(target='pixels'), True),
         (dict(target='pixels', norm='l2', normalize=True), True))


@pytest.mark.parametrize('fields, cls', CASES, ids=str)
def test_value_and_gradient(fields, cls):
    counts = (5,) * B if 'count' in fields else (5, 0, 12, 3, 4, 5, 6, 1)
    data = batch(counts)
    both, variables = model(data, cls, **fields)

    def wanted(p):
        error_BL, _ = errors(data, p, fields, cls)
        return error_BL[np.asarray(data['patch_mask'])].mean()
    with jax.numpy_dtype_promotion('strict'):
        (loss, metrics), gradient = jit(jax.value_and_grad(lambda p: both.apply({'params': p}, data), has_aux=True))(variables['params'])
    assert abs(loss - wanted(reference.float64(variables['params']))) < 1e-5 * loss
    assert max(reference.slope_errors(wanted, variables['params'], gradient).values()) < 2e-3
    assert metrics['masked'] == np.mean(counts) and metrics['loss_B'].shape == (B,)
    assert abs(metrics['loss_B'].mean() - loss) < 1e-6
    if fields.get('target') == 'pixels':
        assert metrics['error'] == loss
    else:
        _, right_BL = errors(data, reference.float64(variables['params']), fields, cls)
        assert abs(metrics['accuracy'] - right_BL[np.asarray(data['patch_mask'])].mean()) < 1e-6


def test_only_masked_patches_count_and_their_pixels_are_not_seen():
    """What is under the mask changes the target of pixels and not the prediction; a seen patch's code changes nothing."""
    data = batch()
    both, variables = model(data)
    loss = both.apply(variables, data)[0]
    mask = np.asarray(data['patch_mask'])
    other = np.where(mask, np.asarray(data['patch_codes']), (np.asarray(data['patch_codes']) + 1) % V)
    assert both.apply(variables, {**data, 'patch_codes': jnp.asarray(other)})[0] == loss
    painted = np.asarray(data['image']).copy()
    for b, l in zip(*np.nonzero(mask)):
        row, column = divmod(int(l), 4)
        painted[b, row * PATCH:(row + 1) * PATCH, column * PATCH:(column + 1) * PATCH] = 7
    assert both.apply(variables, {**data, 'image': jnp.asarray(painted)})[0] == loss


def functions(both):
    def call(method):
        return lambda params, collections, *args: both.apply({'params': params}, *args, method=method)
    return rounds.Rounds(features=lambda p, c, data: (call('features')(p, c, data), c),
                         loss=lambda p, c, features, *_: (lambda found: (found[0], (found[1], c)))(call('loss')(p, c, features)))


@pytest.mark.parametrize('fields, on_mesh', [(dict(transform=True), True), (dict(target='pixels', normalize=True), False)], ids=str)
def test_same_in_micro_batches_and_on_a_mesh(fields, on_mesh):
    """Masks of different sizes: a mean of micro-batches' means would differ."""
    data = batch((1, 12, 3, 4, 5, 0, 7, 2))
    both, variables = model(data, **fields)

    def run(micro):
        return jit(lambda p, data: rounds.value_and_grad(functions(both), p, {}, data, micro=micro))
    wanted = run(1)(variables['params'], data)
    if on_mesh:
        mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
        with jax.set_mesh(mesh):
            found = run(2)(variables['params'], jax.device_put(data, meshes.batch_sharding(mesh)))
    else:
        found = run(4)(variables['params'], data)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_reconstructions():
    data = batch()
    both, variables = model(data)
    found = both.apply(variables, data, method='reconstruct')
    assert found['codes_BL'].shape == (B, L) and found['codes_BL'].dtype == jnp.int32
    _, right_BL = errors(data, reference.float64(variables['params']), {})
    np.testing.assert_array_equal(np.asarray(found['codes_BL']) == np.asarray(data['patch_codes']), right_BL)
    both, variables = model(data, target='pixels', normalize=True)
    found = both.apply(variables, data, method='reconstruct')
    original, seen = np.asarray(data['image']) / 255., ~np.asarray(data['patch_mask'])
    shown = patches(np.asarray(found['image_BHWC']) * 255, (0,) * 3, (1,) * 3)
    np.testing.assert_allclose(shown[seen], patches(original * 255, (0,) * 3, (1,) * 3)[seen], atol=1e-5)
    assert np.abs(shown - patches(original * 255, (0,) * 3, (1,) * 3))[~seen].mean() > .05 and shown.min() >= 0 and shown.max() <= 1


def test_a_short_training_learns_the_codes():
    """Codes that are a function of the brightness of the row: the neighbours tell what a masked patch has."""
    import optax
    rng = np.random.default_rng(0)
    level = rng.integers(0, V, (B, 3))
    image = np.repeat(np.repeat(level[..., None] * 36, 4 * PATCH, -1), PATCH, 1)[..., None] * np.ones(3)
    data = {**batch(), 'image': jnp.asarray(image.astype(np.uint8)), 'patch_codes': jnp.asarray(np.repeat(level, 4, 1).astype(np.int32))}
    both = Both(Tower(), objective())
    params = both.init(jax.random.key(0), data)['params']
    tx = optax.adam(.02)
    state = tx.init(params)

    @jit
    def step(params, state):
        (_, metrics), gradient = jax.value_and_grad(lambda p: both.apply({'params': p}, data), has_aux=True)(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics['accuracy']
    first = None
    for _ in range(120):
        params, state, accuracy = step(params, state)
        first = accuracy if first is None else first
    assert first < .45 and accuracy > .9, (first, accuracy)


@pytest.mark.parametrize('fields', [dict(target='code'), dict(norm='l3'), dict(vocab=1), dict(count=-1), dict(patch=0),
                                    dict(std=(0., 1., 1.))])
def test_impossible_fields(fields):
    with pytest.raises(RecipeError, match=f'^{next(iter(fields))}: found '):
        MaskedImage(**fields)


@pytest.mark.parametrize('change, fields, said', [
    (dict(patch_mask=jnp.ones((B, 14), bool)), {}, 'mask: found 14'),
    (dict(patch_codes=jnp.zeros((B, 6), jnp.int32)), {}, 'codes: found 6'),
    ({}, dict(count=13), 'count: found 13'), ({}, dict(target='pixels', patch=5), 'patch: found 5'),
    (dict(patch_codes=None), {}, "no 'patch_codes'")])
def test_impossible_batches(change, fields, said):
    data = {key: value for key, value in {**batch(), **change}.items() if value is not None}
    both = Both(Tower(blind='patch_mask' in change), objective(**fields))
    with pytest.raises(RecipeError, match=said):
        both.init(jax.random.key(0), data)
