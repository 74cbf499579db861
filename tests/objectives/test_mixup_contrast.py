"""Coin-flip mixup: what is mixed, the loss by loops, and through a whole step with micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast
import tiny
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.mixup_contrast import MixupContrast

B, D = 8, 5
RNG = np.random.default_rng(0)
IMAGE_BHWC = RNG.integers(0, 256, (B, 4, 4, 3), dtype=np.uint8)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('images', [0., 1.])
def test_either_images_or_texts_are_mixed_and_both_partners_count(images):
    objective = MixupContrast(alpha=2., images=images, temperature=.1, tile=4)
    batch = fast.jit(lambda b, key: objective.prepare(b, key))(dict(image=IMAGE_BHWC), jax.random.key(3))
    share, texts = np.asarray(batch['mixup'], np.float64)[0]
    assert 0. < share < 1. and texts == 1. - images and (batch['mixup'] == batch['mixup'][0]).all()
    own = share if images else 1.
    np.testing.assert_allclose(batch['image'], (own * IMAGE_BHWC + (1 - own) * IMAGE_BHWC[::-1].astype(float)) / 255., atol=1e-6)

    x, y = unit(RNG.normal(size=(B, D))), RNG.normal(size=(B, D))
    features = dict(image_BD=jnp.asarray(x, jnp.float32), text_BD=jnp.asarray(y, jnp.float32), mixup_B2=batch['mixup'])
    variables = objective.init(jax.random.key(0), features, method='loss')
    loss, _ = fast.jit(lambda v, f: objective.apply(v, f, method='loss'))(variables, features)
    # Mixed before they are scaled, as zerovl/ZeroVL does in models/pipelines/clip.py.
    y = unit(share * y + (1. - share) * y[::-1] if texts else y)
    total = 0.
    for logits in (10. * x @ y.T, 10. * y @ x.T):
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        total -= sum(share * log_p[i, i] + (1. - share) * log_p[i, B - 1 - i] for i in range(B))
    np.testing.assert_allclose(loss, total / (2 * B), rtol=1e-5)


def test_a_step_mixes_the_global_batch_whatever_the_micro_batches():
    found = []
    for micro in (1, 2):
        setting = tiny.Setting(tiny.config(objectives=dict(contrast=dict(name='mixup_contrast', alpha=1., tile=4)), micro=micro),
                               dict(data=2))
        state = setting.init()
        with jax.set_mesh(setting.mesh):
            state, metrics = setting.step()(state, setting.put(tiny.batch()))
        found.append((float(metrics['loss']), float(metrics['grad_norm'])))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_impossible_fields_are_named():
    for fields in (dict(alpha=0.), dict(images=1.5)):
        with pytest.raises(RecipeError, match='alpha, images'):
            MixupContrast(**fields)
