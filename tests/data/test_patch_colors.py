"""Patch colours: codes by hand."""

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.patch_colors import patch_colors


def test_codes_are_the_mean_colours_in_steps():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:2, :2] = (255, 0, 0)
    image[:2, 2:4] = (0, 128, 63)
    image[2:, 4:] = [[(200, 10, 70), (100, 10, 70)]] * 2  # mean (150, 10, 70)
    found = patch_colors(patch=2, levels=4)(dict(image=image), None)
    assert found['patch_codes'].tolist() == [3 * 16, 2 * 4, 0, 0, 0, 2 * 16 + 1] and found['patch_codes'].dtype == np.int32


def test_what_cannot_be_is_said():
    with pytest.raises(RecipeError, match='patch: patches of 4 pixels do not cut'):
        patch_colors(patch=4)(dict(image=np.zeros((4, 6, 3), np.uint8)), None)
    with pytest.raises(RecipeError, match='levels'):
        patch_colors(levels=1)
