import numpy as np
import pytest
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _augmentations as augmentations
from bigvlm.data.ops import auto_augment as auto_file
from bigvlm.data.ops.auto_augment import POLICY, auto_augment
from bigvlm.data.ops.rand_augment import rand_augment

RNG = np.random.default_rng(3)
# Smooth with some noise and not the whole range, so that every operation has something to do.
IMAGE = (np.asarray(Image.fromarray(RNG.integers(40, 200, (6, 8, 3), np.uint8)).resize((52, 41), Image.Resampling.BICUBIC)).astype(int)
         + RNG.integers(-9, 10, (41, 52, 3))).clip(20, 230).astype(np.uint8)

TOTALS = {
    'auto_contrast': (2, 1.2, 0), 'color': (6, 3.8, 18), 'contrast': (2, 2.0, 16), 'equalize': (17, 11.2, 0), 'invert': (3, 1.8, 0),
    'posterize': (5, 2.8, 32), 'rotate': (6, 3.6, 45), 'sharpness': (1, 0.4, 7), 'shear_x': (1, 0.6, 5), 'solarize': (7, 3.6, 36)}


def done(operation, strength, image=IMAGE, method='nearest', fill=0):
    return augmentations.apply(image, [(operation, strength)], augmentations.canvas(method, fill)).astype(int)


def moved(source, fill=0, image=IMAGE):
    """Nearest neighbours: output pixel (x, y) shows source(x, y), both at pixel centres; `fill` beyond the image."""
    y, x = np.mgrid[:image.shape[0], :image.shape[1]] + .5
    x, y = source(x, y)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (0 <= column) & (column < image.shape[1]) & (0 <= row) & (row < image.shape[0])
    return np.where(inside[..., None], image[row.clip(0, image.shape[0] - 1), column.clip(0, image.shape[1] - 1)], fill)


def differing(a, b):
    """The share of pixels that differ: where a source lies on a pixel's edge, rounding decides."""
    return (a != b).any(-1).mean()


@pytest.mark.parametrize('strength', [.3, 1., -.6])
def test_shear_and_translation(strength):
    slope = .3 * strength
    assert differing(done(augmentations.shear_x, strength), moved(lambda x, y: (x + slope * y, y))) < .01
    assert differing(done(augmentations.shear_y, strength), moved(lambda x, y: (x, y + slope * x))) < .01
    right, down = (int(150 / 331 * side * strength) for side in (52, 41))
    assert right and down
    assert np.array_equal(done(augmentations.translate_x, strength), moved(lambda x, y: (x - right, y)))
    assert np.array_equal(done(augmentations.translate_y, strength, fill=(9, 8, 7)), moved(lambda x, y: (x, y - down), (9, 8, 7)))


def test_translations_are_shares_of_the_image():
    wide = RNG.integers(0, 256, (3, 1000, 3), dtype=np.uint8)
    assert np.array_equal(done(augmentations.translate_x, 1., wide)[:, 453:], wide[:, :-453])  # 1000 * 150 / 331, cut


@pytest.mark.parametrize('strength', [.5, -1.])
def test_rotation(strength):
    angle = np.deg2rad(30 * strength)

    def source(x, y):  # anticlockwise on a screen, where y points down
        x, y = x - 26, y - 20.5
        return 26 + np.cos(angle) * x - np.sin(angle) * y, 20.5 + np.sin(angle) * x + np.cos(angle) * y
    assert differing(done(augmentations.rotate, strength, fill=128), moved(source, 128)) < .01


def test_moved_images_are_sampled_as_asked():
    smooth = done(augmentations.rotate, .4, method='bilinear', fill=128)
    assert 0 < np.abs(smooth - done(augmentations.rotate, .4, fill=128)).mean() < 12
    assert (smooth[0, 0] == 128).all()


def grey(image):
    return (image.astype(int) @ (19595, 38470, 7471) + 0x8000) >> 16  # ITU-R 601-2 in 16 bits, as Pillow converts to L


def smoothed(image):
    """The 3 x 3 kernel of ones with 5 in the middle; the border stays."""
    out = image.astype(float)
    window = sum(out[i:i + out.shape[0] - 2, j:j + out.shape[1] - 2] for i in range(3) for j in range(3)) + 4 * out[1:-1, 1:-1]
    out[1:-1, 1:-1] = (window / 13).round()
    return out


@pytest.mark.parametrize('strength', [.3, 1., -.7])
def test_enhancements(strength):
    factor = 1 + .9 * strength
    dull = {augmentations.brightness: np.zeros_like(IMAGE), augmentations.color: grey(IMAGE)[..., None],
            augmentations.contrast: int(grey(IMAGE).mean() + .5), augmentations.sharpness: smoothed(IMAGE)}
    for operation, base in dull.items():
        expected = (base + factor * (IMAGE.astype(float) - base)).clip(0, 255)
        assert np.abs(done(operation, strength) - expected).max() <= 1.01, operation.__name__
        assert np.abs(done(operation, strength) - IMAGE).max() > 2


@pytest.mark.parametrize('strength, bits, threshold', [(0., 8, 255), (.2, 7, 204), (9 / 30, 7, 178.5), (.5, 6, 127.5), (1., 4, 0)])
def test_posterize_and_solarize(strength, bits, threshold):
    assert np.array_equal(done(augmentations.posterize, strength), IMAGE >> (8 - bits) << (8 - bits))
    assert np.array_equal(done(augmentations.solarize, strength), np.where(IMAGE < threshold, IMAGE, 255 - IMAGE.astype(int)))


def test_auto_contrast_equalize_invert():
    low, high = IMAGE.min((0, 1)).astype(float), IMAGE.max((0, 1))
    assert np.abs(done(augmentations.auto_contrast, 0.) - (IMAGE - low) * 255 / (high - low)).max() <= 1
    for channel in range(3):
        levels = IMAGE[..., channel]
        histogram = np.bincount(levels.ravel(), minlength=256)
        step = (histogram.sum() - histogram[levels.max()]) // 255  # Pillow's: the brightest level's pixels do not count
        table = (step // 2 + np.concatenate([[0], histogram.cumsum()[:-1]])) // step
        assert np.array_equal(done(augmentations.equalize, 0.)[..., channel], table.clip(0, 255)[levels])
    assert np.array_equal(done(augmentations.invert, 0.), 255 - IMAGE.astype(int))
    assert np.array_equal(done(augmentations.identity, 1.), IMAGE)


def test_only_directions_are_signed():
    operations = {o for o in vars(augmentations).values() if callable(o) and getattr(o, '__code__', None)
                  and o.__code__.co_varnames[:3] == ('image', 'strength', 'on')}
    assert len(operations) == 15
    assert {o.__name__ for o in operations - augmentations.SIGNED} == {
        'identity', 'posterize', 'solarize', 'auto_contrast', 'equalize', 'invert'}


def outcomes(op, count):
    return [op({'image': IMAGE}, np.random.default_rng(seed))['image'] for seed in range(count)]


def test_rand_augment_draws_every_operation_and_direction():
    op = rand_augment(1, 9, fill=128)
    expected = {(o.__name__, sign): done(o, sign * .3, fill=128) for o in (*augmentations.SIGNED, *(
        augmentations.identity, augmentations.posterize, augmentations.solarize, augmentations.auto_contrast, augmentations.equalize))
        for sign in ((1, -1) if o in augmentations.SIGNED else (1,))}
    counts = dict.fromkeys(expected, 0)
    for image in outcomes(op, 700):
        assert image.shape == IMAGE.shape and image.dtype == np.uint8
        found = [key for key, value in expected.items() if np.array_equal(image, value)]
        assert found
        for key in found:
            counts[key] += 1
    for (name, sign), count in counts.items():  # 14 operations, two directions of nine
        share = 700 / 14 / (2 if (name, -sign) in counts else 1)
        assert abs(count - share) < 5 * share ** .5, (name, sign)


def test_rand_augment_is_a_chain():
    op, found = rand_augment(2, 10, 11, ('rotate', 'posterize')), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        chosen, signs = rng.integers(2, size=2), rng.choice((-1, 1), size=2)
        expected = IMAGE
        for index, sign in zip(chosen, signs):
            step = (augmentations.posterize, 1.) if index else (augmentations.rotate, float(sign))
            expected = done(*step, expected.astype(np.uint8))
        assert np.array_equal(op({'image': IMAGE}, np.random.default_rng(seed))['image'], expected)
        found.add(tuple(chosen))
    assert len(found) == 4
    assert np.array_equal(rand_augment(0)({'image': IMAGE}, RNG)['image'], IMAGE)


def test_auto_augment_follows_the_policy(monkeypatch):
    assert len(POLICY) == 25
    tried = []
    monkeypatch.setattr(augmentations, 'apply', lambda image, steps, on: tried.append(tuple(steps)) or image)
    outcomes(auto_augment(), 6000)
    # Two of the 25 pairs: invert with .6, then equalize always.
    inverted = sum(steps == ((augmentations.invert, 0.), (augmentations.equalize, 0.)) for steps in tried) / 6000
    assert abs(inverted - 2 / 25 * .6) < .012
    nothing = sum(not steps for steps in tried) / 6000
    expected = np.mean([(1 - first[1]) * (1 - second[1]) for first, second in POLICY])
    assert abs(nothing - expected) < .012
    angles = [strength for steps in tried for operation, strength in steps if operation is augmentations.rotate]
    assert set(np.abs(angles).round(6)) == {1., round(8 / 9, 6), round(3 / 9, 6)} and abs(np.mean(np.sign(angles))) < .1
    assert all(strength >= 0 for steps in tried for operation, strength in steps if operation not in augmentations.SIGNED)


def test_the_policy_is_the_published_one():
    """How often each operation comes, and the sums of its probabilities and magnitudes, counted in torchvision's table."""
    totals = {}
    for operation, probability, magnitude in (step for pair in POLICY for step in pair):
        count, probabilities, magnitudes = totals.get(operation.__name__, (0, 0., 0))
        totals[operation.__name__] = count + 1, round(probabilities + probability, 1), magnitudes + magnitude
    assert totals == TOTALS


def test_auto_augment_applies_what_it_drew():
    for seed, image in enumerate(outcomes(auto_augment(fill=128), 60)):
        rng = np.random.default_rng(seed)
        pair, chances, signs = POLICY[rng.integers(25)], rng.random(2), rng.choice((-1, 1), size=2)
        expected = IMAGE
        for (operation, probability, magnitude), chance, sign in zip(pair, chances, signs):
            if chance < probability:
                signed = sign if operation in augmentations.SIGNED else 1
                expected = done(operation, signed * magnitude / 9, expected.astype(np.uint8), fill=128)
        assert np.array_equal(image, expected)


@pytest.mark.parametrize('make', [rand_augment, auto_augment])
def test_the_image_given_stays_and_the_generator_decides(make):
    before, op = IMAGE.copy(), make()
    first, second = outcomes(op, 8), outcomes(op, 8)
    assert all(np.array_equal(a, b) for a, b in zip(first, second)) and np.array_equal(IMAGE, before)
    assert len({image.tobytes() for image in first}) > 3


@pytest.mark.parametrize('make, field', [
    (lambda: rand_augment(-1), 'count'), (lambda: rand_augment(magnitude=31), 'magnitude'), (lambda: rand_augment(levels=1), 'levels'),
    (lambda: rand_augment(operations=('rotate', 'blur')), 'operations'), (lambda: rand_augment(operations=()), 'operations'),
    (lambda: rand_augment(method='lanczos'), 'method'), (lambda: rand_augment(fill=300), 'fill'),
    (lambda: auto_file.auto_augment(fill=(1, 2, 3, 4)), 'fill')])
def test_impossible_fields(make, field):
    with pytest.raises(RecipeError, match=f'^{field}: '):
        make()
