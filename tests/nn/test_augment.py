"""Augmentation against PIL, colorsys, SciPy and NumPy; draws that belong to examples; what a recipe may say.

B examples, H, W pixels, C colours.
"""

import colorsys
import itertools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from bigvlm import recipe
from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.nn import augment
from bigvlm.nn.augment import blur, jitter

RNG = np.random.default_rng(0)
BYTE = 1 / 255
SLIP = {'image': (dict(name='jitter'), dict(name='gray'), dict(name='blur'), dict(name='solarize'))}


def photo(height=40, width=56, seed=0):
    """uint8 [H, W, 3] with smooth and hard parts, extremes and pure greys."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (3, 3, 0))
    image_HWC = np.clip(128 + 90 * noise / noise.std(), 0, 255).astype(np.uint8)
    image_HWC[:6, :6] = rng.integers(0, 256, (6, 6, 1))
    image_HWC[-4:, -4:] = rng.choice([0, 255], (4, 4, 3))
    return image_HWC


def planes(image_HWC):
    return jnp.asarray(np.moveaxis(image_HWC.astype(np.float32) / 255, -1, 0))


def back(image_CHW):
    return np.moveaxis(np.asarray(image_CHW, np.float64), 0, -1)


def run(spec, image_HWC, key=0):
    """One step of a recipe on one image, [H, W, 3] in [0, 1]."""
    (step,) = augment.build({'image': (spec,)})['image']
    return back(fast.jit(step)(planes(image_HWC), jax.random.key(key)))


def batch(size=64, side=16, seed=0):
    rng = np.random.default_rng(seed)
    return dict(image=rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8), text=np.zeros((size, 4), np.int32),
                id=np.stack([np.arange(size) % 3, np.arange(size)], 1).astype(np.uint32))


# Formulas.

def test_hue_is_turned_as_by_colorsys():
    turns = [-.5, -.37, -.1, 0., .02, .3, .5]
    found = fast.jit(lambda x: [jitter.turn_hue(x, t) for t in turns])(planes(photo()))
    for turn, image_CHW in zip(turns, found):
        wanted = np.empty(photo().shape)
        for y, x in np.ndindex(wanted.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*(photo()[y, x] / 255))
            wanted[y, x] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
        assert np.abs(back(image_CHW) - wanted).max() < 5e-6, turn


def changed(image_HWC, which, amount):
    """One change in float64, as torchvision has it: a blend with black, with the mean luma, with the luma; or the hue."""
    luma_HW = image_HWC @ [.299, .587, .114]
    if which == jitter.HUE:
        rgb = [colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*p) for p in image_HWC.reshape(-1, 3))]
        return np.array(rgb).reshape(image_HWC.shape)
    partner = {jitter.BRIGHTNESS: 0., jitter.CONTRAST: luma_HW.mean(), jitter.SATURATION: luma_HW[..., None]}[which]
    return np.clip(amount * image_HWC + (1 - amount) * partner, 0, 1)


def test_all_orders_of_all_changes():
    image_HWC, amount_4 = photo(12, 15), np.array([1.35, .6, 1.7, -.08], np.float32)
    orders = np.array(list(itertools.permutations(range(4))))
    found = fast.jit(jax.vmap(jitter.change, (None, 0, None)))(planes(image_HWC), orders, amount_4)
    results = []
    for order, image_CHW in zip(orders, found):
        wanted = image_HWC / 255
        for which in order:
            wanted = changed(wanted, which, float(amount_4[which]))
        assert np.abs(back(image_CHW) - wanted).max() < 1e-5, order
        results.append(wanted)
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(results, 2)) > 1e-3, 'the order must matter here'


@pytest.mark.parametrize('name,enhance,which', [('brightness', ImageEnhance.Brightness, 0), ('contrast', ImageEnhance.Contrast, 1),
                                                ('saturation', ImageEnhance.Color, 2)])
def test_factors_are_pils(name, enhance, which):
    for factor in (0., .55, 1., 1.8):
        amount_4 = jnp.ones(4).at[which].set(factor)
        found = back(jitter.change(planes(photo()), jnp.array([which]), amount_4, turned=False))
        wanted = np.asarray(enhance(Image.fromarray(photo())).enhance(factor)) / 255
        assert np.abs(found - wanted).max() < 1.6 * BYTE, (name, factor)  # PIL rounds the luma, its mean and the result


def test_gray_is_pils_luma():
    found = run(dict(name='gray', probability=1.), photo())
    assert (found[..., :1] == found).all()
    assert np.abs(found[..., 0] - np.asarray(Image.fromarray(photo()).convert('L')) / 255).max() < .51 * BYTE


def test_solarize_is_pils():
    found = run(dict(name='solarize', probability=1.), photo())
    np.testing.assert_allclose(found, np.asarray(ImageOps.solarize(Image.fromarray(photo()))) / 255, atol=1e-7)


@pytest.mark.parametrize('sigma,kernel,shape', [(.1, 0, (60, 41)), (1.3, 0, (60, 41)), (2., 23, (41, 60)), (30., 5, (12, 7)),
                                                (2., 13, (7, 7))])
def test_blur_is_a_gaussian_over_reflected_edges(sigma, kernel, shape):
    taps = kernel or {41: 5}[min(shape)]
    found = run(dict(name='blur', sigma=(sigma, sigma), kernel=kernel, probability=1.), photo(*shape))
    weights = np.exp(-.5 * (np.arange(taps) - taps // 2) ** 2 / sigma ** 2)
    wanted = photo(*shape) / 255
    for axis in (0, 1):
        wanted = ndimage.correlate1d(wanted, weights / weights.sum(), axis=axis, mode='mirror')
    assert np.abs(found - wanted).max() < 2e-6


def test_blur_is_near_pils():
    """PIL, which SLIP uses, makes its Gaussian of three boxes and repeats the edges: inside they agree within a few bytes."""
    image_HWC = photo(96, 96)
    found = run(dict(name='blur', sigma=(2., 2.), kernel=23, probability=1.), image_HWC)[12:-12, 12:-12]
    wanted = np.asarray(Image.fromarray(image_HWC).filter(ImageFilter.GaussianBlur(2.)))[12:-12, 12:-12] / 255
    assert np.abs(found - wanted).max() < 3 * BYTE < .05 < np.abs(found - image_HWC[12:-12, 12:-12] / 255).max()


def test_kernels_are_a_tenth_of_the_side():
    assert [blur.taps(side) for side in (16, 32, 96, 224, 384)] == [3, 3, 9, 23, 39]


# Draws.

def drawn(monkeypatch, size=3000, **fields):
    """What jitter draws for ``size`` examples: (orders, amounts [·, 4])."""
    monkeypatch.setattr(jitter, 'change', lambda image, order, amount, turned: (order, amount))
    step = jitter.jitter(**fields, probability=1.)
    return map(np.asarray, fast.jit(jax.vmap(lambda key: step(None, key)))(jax.random.split(jax.random.key(0), size)))


def test_factors_and_orders_are_uniform_and_independent(monkeypatch):
    orders, amounts = drawn(monkeypatch, brightness=.4, contrast=1.5, saturation=.2, hue=.1)
    for low, high, amount in zip((.6, 0., .8, -.1), (1.4, 2.5, 1.2, .1), amounts.T):
        assert low <= amount.min() < low + .01 * (high - low) and high - .01 * (high - low) < amount.max() <= high
        counts = np.histogram(amount, 4, (low, high))[0]
        assert np.abs(counts / len(amount) - .25).max() < .03
    assert np.abs(np.corrcoef(amounts.T) - np.eye(4)).max() < .07
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(found) == 24 and counts.min() > 80 and counts.max() < 175 and (np.sort(found, 1) == np.arange(4)).all()


def test_changes_of_size_zero_are_left_out(monkeypatch):
    orders, _ = drawn(monkeypatch, size=50, contrast=0., hue=0.)
    assert {tuple(o) for o in orders} == {(0, 2), (2, 0)}


def test_sigma_is_drawn_per_example_within_its_range(monkeypatch):
    monkeypatch.setattr(blur, 'matrix', lambda side, sigma, half: jnp.full((side, side), sigma))
    step = blur.blur((.5, 2.), probability=1.)
    image_CHW = jnp.full((3, 8, 8), 1 / 8)
    keys_B = jax.random.split(jax.random.key(1), 1000)
    sigma_B = np.sqrt(np.asarray(fast.jit(jax.vmap(lambda key: step(image_CHW, key)[0, 0, 0]))(keys_B)) / 8)
    assert .5 <= sigma_B.min() < .52 and 1.98 < sigma_B.max() <= 2. and abs(sigma_B.mean() - 1.25) < .05


@pytest.mark.parametrize('probability', [0., .3, 1.])
def test_a_probability_is_of_each_example(probability):
    steps = augment.build({'image': (dict(name='solarize', threshold=0., probability=probability),)})
    given = batch(2000, 2)
    found = np.asarray(fast.jit(lambda b: augment.augment(steps, b, jax.random.key(0))['image'])(given))
    scaled = given['image'] / 255
    whole = np.isclose(found, 1 - scaled, atol=1e-6).all((1, 2, 3))
    assert (whole | np.isclose(found, scaled, atol=1e-6).all((1, 2, 3))).all() and abs(whole.mean() - probability) < .04


# The whole: one program, the same wherever an example lies.

@pytest.fixture(scope='module')
def whole():
    steps = augment.build(SLIP)
    return fast.jit(lambda b, key: augment.augment(steps, b, key))


def test_bytes_become_floats_and_all_else_stays(whole):
    given = batch()
    found = whole(given, jax.random.key(0))
    assert found['image'].dtype == jnp.float32 and found['image'].shape == given['image'].shape
    assert found['image'].min() >= 0. and found['image'].max() <= 1.
    assert found.keys() == given.keys() and (found['id'] == given['id']).all() and (found['text'] == given['text']).all()
    assert len(np.unique(np.asarray(found['image']).mean((1, 2, 3)))) == 64


def test_the_same_in_another_place_of_another_batch_on_another_mesh(whole):
    given, key = batch(), jax.random.key(3)
    wanted = np.asarray(whole(given, key)['image'])
    turned = whole({name: x[::-1][:7] for name, x in given.items()}, key)['image']
    np.testing.assert_allclose(turned, wanted[::-1][:7], atol=2e-6)
    for spec in (dict(data=8), dict(data=2, fsdp=2, tensor=2)):
        mesh = meshes.make_mesh(spec)
        with jax.set_mesh(mesh):
            found = whole(meshes.put_batch(given, mesh, 64), key)['image']
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_steps_views_and_examples_draw_apart():
    always = (dict(name='jitter', probability=1.),)
    steps = augment.build({'views/0': always, 'views/1': always})
    image_HWC = photo(16, 16)
    given = {'views/0': np.stack([image_HWC] * 32), 'views/1': np.stack([image_HWC] * 32), 'id': batch(32)['id']}
    run = fast.jit(lambda b, key: augment.augment(steps, b, key))
    first, second = run(given, jax.random.key(0)), run(given, jax.random.key(1))
    mean = np.concatenate([np.asarray(found[view]).mean((1, 2, 3)) for found in (first, second) for view in given if view != 'id'])
    assert len(np.unique(mean)) == 4 * 32


def test_steps_run_in_the_order_given():
    invert, gray = dict(name='solarize', threshold=.3, probability=1.), dict(name='gray', probability=1.)
    given = batch(2)
    for specs in ((invert, gray), (gray, invert)):
        wanted = given['image'] / 255
        for spec in specs:
            if spec is gray:
                wanted = np.repeat((wanted @ [.299, .587, .114])[..., None], 3, -1)
            else:
                wanted = np.where(wanted >= .3, 1 - wanted, wanted)
        found = augment.augment(augment.build({'image': specs}), given | {'image': jnp.asarray(given['image'])}, jax.random.key(0))
        assert np.abs(found['image'] - wanted).max() < 1e-6


def test_the_program_stays_small():
    """At 224 pixels, as compiled for one device: a loop of changes and two products, whatever the batch."""
    steps = augment.build({'image': SLIP['image'][:3]})
    shapes = dict(image=jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.uint8), id=jax.ShapeDtypeStruct((4, 2), jnp.uint32))
    text = jax.jit(lambda b, key: augment.augment(steps, b, key)).lower(shapes, jax.eval_shape(lambda: jax.random.key(0))).as_text()
    assert text.count('stablehlo.dot_general') == 2 and text.count(' = ') < 2000


# Recipes.

def test_a_step_of_the_users_own():
    (step,) = augment.build({'image': (dict(name='toys.darken', factor=.5),)})['image']
    assert (step(jnp.ones((3, 2, 2)), None) == .5).all()


@pytest.mark.parametrize('spec,message', [
    (dict(name='jiter'), r"augment.image\[1\].name: no part 'jiter' .*did you mean 'jitter'.*blur, gray, jitter, solarize"),
    (dict(name='blur', sigmas=(1., 2.)), r"augment.image\[1\].sigmas: unknown field; did you mean 'sigma'.*kernel, probability, sigma"),
    (dict(name='blur', sigma=(2., 1.)), r'augment.image\[1\]: sigma: found .*low <= high'),
    (dict(name='blur', kernel=4), r'kernel: found 4; valid: 0, or an odd number'),
    (dict(name='gray', probability=1.2), r'augment.image\[1\]: probability: found 1.2; valid: 0 to 1'),
    (dict(name='jitter', hue=.6), r'hue: found 0.6; valid: 0 to .5 turns'),
    (dict(name='jitter', contrast=-.1), r'contrast: found -0.1; valid: 0 or more'),
    (dict(name='jitter', brightness=0., contrast=0., saturation=0., hue=0.), r'at least one above'),
    (dict(name='solarize', threshold=128), r'threshold: found 128; valid: 0 to 1')])
def test_mistakes_are_named(spec, message):
    with pytest.raises(RecipeError, match=message):
        augment.build({'image': (dict(name='gray'), spec)})


def test_what_a_recipe_may_say():
    config = recipe.new()
    config.augment = {'views/0': [dict(step) for step in SLIP['image']]}  # as JSON would have it
    config.kinds = {}
    assert recipe.resolve(config)['augment'] == {'views/0': SLIP['image']}
    for wrong in ((), dict(name='gray'), ('gray',)):
        with pytest.raises(RecipeError, match='augment.image: must be a tuple of steps such as'):
            tiny.config(augment={'image': wrong})


def test_keys_that_no_batch_has_and_what_is_no_image():
    shapes = {'pairs': {'image': ((4, 4, 3), 'uint8'), 'id': ((2,), 'uint32')}, 'texts': {'text': ((4,), 'int32')}}
    augment.check({'image': ()}, shapes)
    with pytest.raises(RecipeError, match='augment.images: no batch has this key .there are: image, text.'):
        augment.check({'images': ()}, shapes)
    steps = augment.build(SLIP)
    texts = {k: v for k, v in batch().items() if k != 'image'}
    assert augment.augment(steps, texts, jax.random.key(0)).keys() == texts.keys()
    with pytest.raises(RecipeError, match=r'augment.image: takes uint8 images \[B, H, W, 3\], not float32\[2, 4, 4, 3\]'):
        augment.augment(steps, dict(image=jnp.ones((2, 4, 4, 3)), id=jnp.ones((2, 2), jnp.uint32)), jax.random.key(0))


def test_a_kernel_wider_than_the_image_is_refused():
    with pytest.raises(RecipeError, match='kernel: 15 taps reach beyond the reflection of images of 7×9'):
        run(dict(name='blur', kernel=15, probability=1.), photo(7, 9))
