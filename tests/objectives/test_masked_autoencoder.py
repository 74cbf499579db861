"""Masked autoencoding: its formula and gradient, what its encoder sees, micro-batches, meshes, pictures, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes, rounds
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.masked_autoencoder import MaskedAutoencoder
from tests import reference
from tests.fast import jit
from tests.objectives import masked
from tests.objectives.masked import PATCH, Both, Tower, images, patches
from tests.objectives.test_masked_image import functions

B, L, K, W, HEADS, DEPTH = 8, 12, 4, 8, 2, 1
MEAN, STD = (.4, .5, .6), (.2, .3, .25)


def batch(count=B):
    rng = np.random.default_rng(1)
    kept = np.array([np.sort(rng.permutation(L)[:K]) for _ in range(count)])
    kept[0] = kept[0][::-1]  # any order will do
    return dict(image=jnp.asarray(images(count)), kept=jnp.asarray(kept, jnp.int32))


def model(data, cls=True, **fields):
    objective = MaskedAutoencoder(**{**dict(patch=PATCH, mean=MEAN, std=STD, width=W, depth=DEPTH, heads=HEADS, dtype='float32',
                                            remat='none'), **fields})
    both = Both(Tower(cls), objective)
    return both, {'params': reference.randomise(both.init(jax.random.key(0), data)['params'])}


def painted(data, p, cls=True):
    """[B, L, D] by the paper's description, example by example, in float64."""
    kept, head = np.asarray(data['kept']), p['objective']
    found = []
    for seen_KW, kept_K in zip(masked.tokens(np.asarray(data['image']), p['tower'], kept=kept, cls=cls), kept):
        seen_KW = reference.dense(seen_KW, head['embed'])
        row = [head['mask_token']] * L
        for place, value in zip(kept_K, seen_KW[-K:]):
            row[place] = value
        x = np.array(row) + reference.sincos2d(3, 4, W)
        x = np.concatenate([seen_KW[:-K], x])
        x, _ = reference.transformer(x, head['decoder'], HEADS, DEPTH)
        found.append(reference.dense(x[-L:], head['head']))
    return np.array(found)


def hidden(data):
    return np.array([[l not in kept for l in range(L)] for kept in np.asarray(data['kept']).tolist()])


@pytest.mark.parametrize('cls, normalize', [(True, True), (False, False)])
def test_value_and_gradient(cls, normalize):
    data = batch(2)
    both, variables = model(data, cls, normalize=normalize)
    target = patches(np.asarray(data['image']), MEAN, STD)
    if normalize:
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)

    def wanted(p):
        return np.square(painted(data, p, cls) - target).mean(-1)[hidden(data)].mean()
    (loss, metrics), gradient = jit(jax.value_and_grad(lambda p: both.apply({'params': p}, data), has_aux=True))(variables['params'])
    assert abs(loss - wanted(reference.float64(variables['params']))) < 1e-5 * loss
    assert max(reference.slope_errors(wanted, variables['params'], gradient).values()) < 2e-3
    assert metrics['masked'] == L - K and metrics['error'] == loss and abs(metrics['loss_B'].mean() - loss) < 1e-5


def test_hidden_pixels_are_not_seen():
    data = batch()
    both, variables = model(data)

    @jit
    def run(data):
        return both.apply(variables, data, method='reconstruct'), both.apply(variables, data)[0]

    before, loss = run(data)
    image, out = np.asarray(data['image']).copy(), hidden(data)
    for b, l in zip(*np.nonzero(out)):
        row, column = divmod(int(l), 4)
        patch = image[b, row * PATCH:(row + 1) * PATCH, column * PATCH:(column + 1) * PATCH]
        patch[:] = patch[::-1].copy()  # its mean and spread, which scale predictions back, stay
    after, other_loss = run({**data, 'image': jnp.asarray(image)})
    np.testing.assert_array_equal(before['masked_BL'], out)
    np.testing.assert_allclose(before['image_BHWC'], after['image_BHWC'], atol=1e-5)
    assert other_loss != loss


def test_reconstructions_scale_back_and_keep_what_was_seen():
    data = batch(2)
    both, variables = model(data)
    found = jit(lambda data: both.apply(variables, data, method='reconstruct'))(data)
    true, out = patches(np.asarray(data['image']), MEAN, STD), hidden(data)
    scaled = painted(data, reference.float64(variables['params'])) * np.sqrt(true.var(-1, ddof=1, keepdims=True) + 1e-6)
    wanted = np.where(out[..., None], scaled + true.mean(-1, keepdims=True), true)
    colors = np.tile(np.array(STD), PATCH ** 2), np.tile(np.array(MEAN), PATCH ** 2)
    shown = patches(np.asarray(found['image_BHWC']) * 255, (0,) * 3, (1,) * 3)
    np.testing.assert_allclose(shown, np.clip(wanted * colors[0] + colors[1], 0, 1), atol=1e-5)


def test_same_in_micro_batches_and_on_a_mesh():
    data = batch()
    both, variables = model(data)

    def run(micro):
        return jit(lambda p, data: rounds.value_and_grad(functions(both), p, {}, data, micro=micro))
    wanted = run(1)(variables['params'], data)
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found = run(2)(variables['params'], jax.device_put(data, meshes.batch_sharding(mesh)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-4, atol=2e-6)


def test_what_it_reads_without_data():
    assert MaskedAutoencoder().example() == {'kept': ((49,), 'int32')}


@pytest.mark.parametrize('fields, field', [(dict(width=10), 'width'), (dict(heads=3), 'heads'), (dict(depth=0), 'heads'),
                                           (dict(patch=0), 'patch')])
def test_impossible_fields(fields, field):
    with pytest.raises(RecipeError, match=f'^{field}: '):
        MaskedAutoencoder(**fields)


@pytest.mark.parametrize('change, said', [(dict(kept=jnp.zeros((B, 13), jnp.int32)), 'kept: found 13'), (dict(kept=None), "no 'kept'")])
def test_impossible_batches(change, said):
    data = {key: value for key, value in {**batch(), **change}.items() if value is not None}
    with pytest.raises(RecipeError, match=said):
        model(data)
