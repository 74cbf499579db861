import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import block_patch_mask as blocks_file
from bigvlm.data.ops.block_patch_mask import block_patch_mask
from bigvlm.data.ops.random_patch_mask import random_patch_mask


def masks(op, count, shape=(14, 14)):
    """Masks of seeds 0, 1, …: bool [count, rows, columns]."""
    return np.stack([op({'image': 1}, np.random.default_rng(seed))['patch_mask'].reshape(shape) for seed in range(count)])


def neighbours_alike(found):
    """The share of neighbouring patches of which both are masked or neither is."""
    return np.mean([(found[:, 1:] == found[:, :-1]).mean(), (found[:, :, 1:] == found[:, :, :-1]).mean()])


@pytest.mark.parametrize('patches, ratio, count', [((14, 14), .75, 147), ((7, 7), .4, 20), ((2, 3), 0., 0), ((2, 3), 1., 6)])
def test_random_masks_have_one_size(patches, ratio, count):
    example = random_patch_mask(patches, ratio)({'image': 1}, np.random.default_rng(0))
    assert example.keys() == {'image', 'patch_mask'}
    assert example['patch_mask'].shape == (patches[0] * patches[1],) and example['patch_mask'].dtype == bool
    assert (masks(random_patch_mask(patches, ratio), 20, patches).sum((1, 2)) == count).all()


def test_random_masks_are_uniform():
    found = masks(random_patch_mask((4, 4), .25), 4000, (4, 4)).reshape(4000, 16)
    assert np.abs(found.mean(0) - .25).max() < 5 * (.25 * .75 / 4000) ** .5
    together = (found[:, :, None] & found[:, None]).mean(0)[~np.eye(16, dtype=bool)]
    assert np.abs(together - 4 * 3 / (16 * 15)).max() < 5 * (.05 * .95 / 4000) ** .5


def test_masks_are_a_function_of_the_generator():
    for op in (random_patch_mask(), block_patch_mask()):
        assert np.array_equal(masks(op, 3), masks(op, 3)) and not np.array_equal(*masks(op, 2))


@pytest.mark.parametrize('patches, count, least', [((14, 14), 75, 16), ((14, 14), 118, 16), ((16, 16), 102, 16), ((3, 20), 25, 4),
                                                   ((4, 4), 15, 16), ((4, 4), 16, 1), ((5, 5), 0, 1), ((1, 9), 4, 2)])
def test_block_masks_have_one_size(patches, count, least):
    found = masks(block_patch_mask(patches, count, least), 60, patches)
    assert found.dtype == bool and (found.sum((1, 2)) == count).all()


def test_a_mask_is_full_even_if_no_block_finds_the_rest(monkeypatch):
    monkeypatch.setattr(blocks_file, '_DRAWS', 1)
    assert (masks(block_patch_mask((14, 14), 150, 16), 60).sum((1, 2)) == 150).all()


def test_the_last_block_loses_its_end_or_its_beginning():
    found = masks(block_patch_mask((4, 4), 3, 16, 1.), 200, (16,))  # the one block is the whole grid
    first, last = np.arange(16) < 3, np.arange(16) >= 13
    assert all(np.array_equal(mask, first) or np.array_equal(mask, last) for mask in found)
    assert 60 < found[:, 0].sum() < 140


def test_block_masks_are_blocks():
    found, single = masks(block_patch_mask(), 400), masks(random_patch_mask(ratio=75 / 196), 400)
    assert neighbours_alike(single) < .56 < .8 < neighbours_alike(found)
    # Blocks of at least 16 patches: nearly all masked patches lie in a masked square of 2 x 2. 75 single ones seldom do.
    def squared(masks):
        square = masks[:, 1:, 1:] & masks[:, :-1, 1:] & masks[:, 1:, :-1] & masks[:, :-1, :-1]
        padded = np.pad(square, ((0, 0), (1, 1), (1, 1)))
        member = padded[:, 1:, 1:] | padded[:, :-1, 1:] | padded[:, 1:, :-1] | padded[:, :-1, :-1]
        return (member & masks).sum() / masks.sum()
    assert squared(single) < .35 < .9 < squared(found)


def test_block_masks_have_no_side():
    often = masks(block_patch_mask(), 4000).mean(0)
    assert abs(often.mean() - 75 / 196) < 1e-9
    error = 5 * (2 * .4 * .6 / 4000) ** .5
    for mirrored in (often[::-1], often[:, ::-1], often.T):
        assert np.abs(often - mirrored).max() < error
    assert often[5:9, 5:9].mean() > 1.5 * often[:2, :2].mean()  # blocks stay inside, so the middle is hit more often


def test_the_size_and_shape_of_blocks():
    rng = np.random.default_rng(0)
    sides = np.array([[part.stop - part.start for part in blocks_file._block(rng, (50, 50), 16, 75, .3)] for _ in range(4000)])
    areas, shapes = sides.prod(1), sides[:, 0] / sides[:, 1]
    assert 12 <= areas.min() <= 17 and 70 <= areas.max() <= 85 and abs(areas.mean() - 45.5) < 1
    assert .2 < shapes.min() < .35 and 3 < shapes.max() < 4.5 and abs(np.log(shapes).mean()) < .05
    starts = np.array([[part.start for part in blocks_file._block(rng, (14, 14), 16, 16, 1.)] for _ in range(2000)])
    assert set(np.unique(starts)) == set(range(11))


@pytest.mark.parametrize('make, field', [
    (lambda: random_patch_mask((14,)), 'patches'), (lambda: random_patch_mask((0, 3)), 'patches'),
    (lambda: random_patch_mask(ratio=2), 'ratio'),
    (lambda: block_patch_mask((2, 2), 5), 'count'), (lambda: block_patch_mask(count=.4), 'count'),
    (lambda: block_patch_mask(least=0), 'least'),
    (lambda: block_patch_mask(aspect=0.), 'aspect')])
def test_impossible_fields(make, field):
    with pytest.raises(RecipeError, match=f'^{field}: '):
        make()
