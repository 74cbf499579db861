"""The evaluator of masked images, over a model that is made up."""

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _codebook
from bigvlm.evals.reconstruction import Reconstruction
from bigvlm.figures import load, save

P, N = 4, 6
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 8, 12, 3), dtype=np.uint8)
MASKS = RNG.random((N, 6)) < .5


class Data:
    def __len__(self):
        return N

    def example(self, index, epoch=0):
        shown = 3 if index == 2 else index  # 2 is bad: 3 takes its place
        return dict(image=IMAGES[shown], patch_mask=MASKS[shown], patch_codes=np.arange(6, dtype=np.int32), caption='text',
                    id=np.array([0, shown], np.uint32))


class Embedder:
    """Gives ``arrays`` per example, and paints white, or code 5."""

    def __init__(self, codes=False, **arrays):
        self.codes, self.arrays, self.asked = codes, arrays, []

    def gather(self, values):
        return values

    def call(self, method, examples):
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        self.asked.append((method, len(examples), sorted(batch)))
        if method == 'features':
            return {name: np.asarray(values) for name, values in self.arrays.items()}
        painted = dict(codes_BL=np.full((len(examples), 6), 5)) if self.codes else dict(image_BHWC=np.ones(batch['image'].shape))
        return dict(masked_BL=batch['patch_mask'], **painted)


def found(evaluator, embedder):
    return dict(evaluator.run(embedder))


def pixels_of(masked_L):
    return np.repeat(np.repeat(masked_L.reshape(2, 3), P, 0), P, 1)


def test_means_over_patches_and_pictures_of_pixels(tmp_path):
    embedder = Embedder(error_B=[6., 0., 9.], count_B=[3., 1., 2.])
    values = found(Reconstruction(datasets=lambda name: Data(), examples=3, limit=3), embedder)
    assert {key: value for key, value in values.items() if key != 'examples'} == dict(error=1.5, masked=2., n=2.)  # of 0 and 1
    keys = ['id', 'image', 'patch_codes', 'patch_mask']
    assert embedder.asked == [('features', 3, keys), ('reconstruct', 3, keys)]
    gallery = values['examples']
    for row, index in zip(gallery.rows, (0, 3, 5), strict=True):
        np.testing.assert_array_equal(row.query.image, IMAGES[index])
        shown, painted = (item.image for item in row.items)
        hidden = pixels_of(MASKS[index])
        assert (shown[hidden] == 128).all() and (shown[~hidden] == IMAGES[index][~hidden]).all() and (painted == 255).all()
        assert shown.dtype == painted.dtype == np.uint8
    assert load(save(tmp_path, 1, 'x/examples', gallery)).title == gallery.title


@pytest.mark.parametrize('patch', (4, 2))
def test_codes_are_painted_by_their_codebook(tmp_path, patch):
    size = patch * patch * 3
    level = np.arange(6, dtype=np.float32)[:, None] / 10
    _codebook.Codebook(patch, np.zeros(size, np.float32), np.ones((size, 1), np.float32) / size, np.ones((1, size), np.float32),
                       level).save(tmp_path / 'c.npz')
    embedder = Embedder(True, error_B=[2.], count_B=[4.], right_B=[1.])
    values = found(Reconstruction(datasets=lambda name: Data(), limit=1, examples=2, codebook=str(tmp_path / 'c.npz')), embedder)
    assert values['accuracy'] == .25 and values['error'] == .5
    _, painted, own = (item.image for item in values['examples'].rows[1].items)
    hidden, image = pixels_of(MASKS[5]), IMAGES[5]
    np.testing.assert_array_equal(painted, np.where(hidden[..., None], np.uint8(128), image))  # rint(.5 * 255)
    codes = np.rint(pixels_of(np.arange(6)) * 25.5).astype(np.uint8)
    np.testing.assert_array_equal(own, np.where(hidden[..., None], codes[..., None], image))


def test_codes_without_a_codebook_have_no_figure():
    values = found(Reconstruction(datasets=lambda name: Data(), limit=1), Embedder(True, error_B=[2.], count_B=[4.], right_B=[1.]))
    assert 'examples' not in values and values['accuracy'] == .25


def test_another_objective_is_refused():
    with pytest.raises(RecipeError, match='objective: found scale of 1 examples; valid: one that masks patches'):
        found(Reconstruction(datasets=lambda name: Data(), limit=1), Embedder(scale=[1.]))
