import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.patchify import grid, patchify, waste
from tests.data.fakes import picture

SIDES = st.integers(1, 3000)


def taken(height, width, scale):
    return max(1, math.ceil(scale * height)), max(1, math.ceil(scale * width))


def by_bisection(height, width, tokens, patch=16, error=1e-5):
    """NaFlex's search for the largest scale in pixels; patches are counted at the scale that is known to fit."""
    low, high = error / 10, 100.
    while high - low >= error:
        middle = (low + high) / 2
        rows, columns = taken(height, width, middle / patch)
        low, high = (middle, high) if rows * columns <= tokens else (low, middle)
    return taken(height, width, low / patch)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.sampled_from((1, 2, 7, 64, 196, 256, 576, 1024)))
def test_the_grid_is_the_largest_that_fits(height, width, tokens):
    rows, columns = grid(height, width, tokens)
    scales = {Fraction(n, side) for side in (height, width) for n in range(1, tokens + 1)}
    best = max(scale for scale in scales if math.prod(taken(height, width, scale)) <= tokens)
    assert (rows, columns) == taken(height, width, best)
    assert 1 <= rows * columns <= tokens
    assert (columns, rows) == grid(width, height, tokens)


@settings(max_examples=200, deadline=None)
@given(st.integers(16, 1000), st.integers(16, 1000), st.sampled_from((64, 196, 256, 576, 1024)))
def test_the_grid_is_naflex(height, width, tokens):
    """Up to 1000 pixels two scales at which a side passes a whole number are further apart than the bisection's error."""
    assert grid(height, width, tokens) == by_bisection(height, width, tokens)


@pytest.mark.parametrize('height, width, expected', [
    (16, 16, (16, 16)), (224, 224, (16, 16)), (1080, 1920, (12, 21)), (1920, 1080, (21, 12)), (3, 39, (4, 52)), (1, 10_000, (1, 256)),
    (65_500, 1, (256, 1)), (375, 500, (14, 18))])
def test_known_grids(height, width, expected):
    assert grid(height, width, 256) == expected


@pytest.mark.parametrize('height, width', [(375, 500), (60, 20), (5, 5), (1, 900)])
@pytest.mark.parametrize('patch, tokens', [(16, 64), (4, 256)])
def test_patchify(height, width, patch, tokens):
    image = picture(height, width)
    example = patchify(patch, tokens)({'image': image, 'label': 3}, np.random.default_rng(0))
    assert {key: (value.shape, value.dtype) for key, value in example.items() if key != 'label'} == {
        'patches': ((tokens, patch * patch * 3), np.uint8), 'patch_valid': ((tokens,), bool),
        'patch_position': ((tokens, 2), np.int32), 'patch_grid': ((2,), np.int32)}
    rows, columns = example['patch_grid']
    assert (rows, columns) == grid(height, width, tokens)
    scaled = np.asarray(Image.fromarray(image).resize((columns * patch, rows * patch), Image.Resampling.BILINEAR))
    valid = example['patch_valid']
    assert valid[:rows * columns].all() and not valid[rows * columns:].any()
    assert len({tuple(position) for position in example['patch_position'][valid]}) == rows * columns
    for pixels, (row, column) in zip(example['patches'][valid], example['patch_position'][valid]):
        cut = scaled[row * patch:(row + 1) * patch, column * patch:(column + 1) * patch]
        assert np.array_equal(pixels.reshape(patch, patch, 3), cut)
    assert (np.diff(example['patch_position'][valid] @ (1000, 1)) > 0).all()  # row by row
    assert not example['patches'][~valid].any() and not example['patch_position'][~valid].any()


def test_an_image_of_the_right_size_is_not_scaled():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    patches = patchify(8, 32)({'image': image}, np.random.default_rng(0))['patches']
    assert np.array_equal(patches.reshape(4, 8, 8, 8, 3).swapaxes(1, 2).reshape(32, 64, 3), image)


def test_waste():
    sizes = [(375, 500), (500, 375), (256, 256)]
    valid = [patchify(4, 256)({'image': picture(*size)}, np.random.default_rng(0))['patch_valid'].mean() for size in sizes]
    assert waste(sizes, 256) == pytest.approx(1 - np.mean(valid)) and waste([(9, 9)], 256) == 0
    assert waste(iter(sizes), 256) == pytest.approx((2 * (1 - 14 * 18 / 256) + 0) / 3)
    with pytest.raises(ValueError, match='no images'):
        waste([], 256)


@pytest.mark.parametrize('fields, field', [(dict(patch=0), 'patch'), (dict(tokens=2.5), 'tokens'), (dict(method='area'), 'method')])
def test_impossible_fields(fields, field):
    with pytest.raises(RecipeError, match=f'^{field}: '):
        patchify(**fields)
