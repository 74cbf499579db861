"""Positions: the sine-cosine formula; resampling against another library's and by its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.nn import positions

TABLE_LW = np.random.default_rng(0).normal(size=(4 * 6, 3)).astype(np.float32)


@pytest.mark.parametrize('wanted', [(7, 9), (2, 3), (3, 9)])
def test_resampling_equals_pillow_and_the_formula(wanted):
    found = positions.resample(jnp.asarray(TABLE_LW), (4, 6), wanted)
    assert found.shape == (wanted[0] * wanted[1], 3)
    for w in range(3):
        plane = Image.fromarray(TABLE_LW[:, w].reshape(4, 6)).resize(wanted[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[:, w], np.asarray(plane).ravel(), atol=1e-6)
    np.testing.assert_allclose(found, reference.resample(np.float64(TABLE_LW), (4, 6), wanted), atol=1e-6)


def test_resampling_keeps_the_same_grid_constants_and_directions():
    assert positions.resample(TABLE_LW, (4, 6), (4, 6)) is TABLE_LW
    np.testing.assert_allclose(positions.resample(jnp.full((24, 3), 5.), (4, 6), (3, 8)), 5., rtol=1e-6)
    rows, columns = np.mgrid[:4, :6]
    places_L2 = jnp.asarray(np.stack([rows.ravel(), columns.ravel()], 1), jnp.float32)
    grown = np.asarray(positions.resample(places_L2, (4, 6), (8, 12))).reshape(8, 12, 2)
    np.testing.assert_allclose(grown[1:-1, 0, 0], np.arange(.25, 3, .5), atol=1e-6)   # twice as fine, down only
    np.testing.assert_allclose(grown[0, 1:-1, 1], np.arange(.25, 5, .5), atol=1e-6)   # and across only
    # Halving averages: two by two cells under a triangle two cells wide to each side.
    gradient = jax.grad(lambda t: positions.resample(t, (4, 6), (2, 3))[:, 0].sum())(jnp.asarray(TABLE_LW))
    np.testing.assert_allclose(gradient[:, 0].sum(), 6., rtol=1e-6)


@pytest.mark.parametrize('grid, width', [((3, 5), 16), ((4, 4), 8)])
def test_sincos2d_equals_the_formula(grid, width):
    found = positions.sincos2d(grid, width)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference.sincos2d(*grid, width), atol=1e-6)


@pytest.mark.parametrize('width', [4, 6, 30])
def test_sincos2d_needs_four_parts_of_two_frequencies(width):
    with pytest.raises(RecipeError, match=f'width: .*not {width}'):
        positions.sincos2d((2, 2), width)
