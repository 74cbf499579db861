"""Codebooks: k-means and its parts against independent formulas, the file, the op, and the tool as a user types it."""
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster import vq

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _codebook
from bigvlm.data.ops.patch_codes import patch_codes
from bigvlm.data.prepare import codebook as learning
from tests.data.fakes import encoded, picture, sample, write_tar
from tools import train_codebook

CORNERS = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [30, 30]], np.float32)


def blobs(count=200, seed=0):
    rng = np.random.default_rng(seed)
    return (CORNERS[:, None] + .3 * rng.normal(size=(len(CORNERS), count, 2))).reshape(-1, 2).astype(np.float32)


def images(count=30, side=16, seed=0):
    """Each of 4-pixel tiles of one of six kinds with a little noise."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 256, (6, 4, 4, 3))
    kinds[0], kinds[1] = 20, 230
    index = rng.integers(0, 6, (count, side // 4, side // 4))
    clean = kinds[index].swapaxes(2, 3).reshape(count, side, side, 3)
    return np.clip(clean + rng.integers(-3, 4, clean.shape), 0, 255).astype(np.uint8), index.reshape(count, -1)


def learned(codes=6, **settings):
    image, index = images()
    patch = np.concatenate([_codebook.cut(one, 4) for one in image])
    return learning.learn(patch, learning.Settings(codes=codes, patch=4, features=12, **settings)), image, index


def test_kmeans_finds_the_groups_whatever_it_starts_from():
    for seed in range(5):
        found = learning.kmeans(blobs(), 5, 3, np.random.default_rng(seed))
        wanted = blobs().reshape(5, -1, 2).mean(1)
        np.testing.assert_allclose(found[np.lexsort(np.rint(found).T)], wanted[np.lexsort(np.rint(wanted).T)], atol=2e-4)


def test_kmeans_is_as_good_as_lloyds_algorithm():
    """Without groups: the mean distance is near that of scipy's, which goes over everything at once."""
    x = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)

    def error(codes_of):
        return np.mean([np.square(vq.vq(x, codes_of(seed))[1]).mean() for seed in range(3)])
    found = error(lambda seed: learning.kmeans(x, 40, 6, np.random.default_rng(seed)))
    scipy = error(lambda seed: vq.kmeans2(x, 40, iter=30, minit='++', rng=seed)[0])
    start = error(lambda seed: learning.seeds(x, 40, np.random.default_rng(seed)))
    print(found, scipy, start)
    assert found < 1.05 * scipy < .85 * start


def test_nearest_equals_scipy(monkeypatch):
    monkeypatch.setattr(learning, '_SCORES', 1000)  # several pieces
    rng = np.random.default_rng(0)
    x, code = rng.normal(size=(700, 5)).astype(np.float32), rng.normal(size=(33, 5)).astype(np.float32)
    index, square = learning.nearest(x, code)
    wanted, distance = vq.vq(x, code)
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_allclose(square, distance ** 2, rtol=1e-4, atol=1e-5)


def test_seeds_prefer_what_is_far_and_never_repeat():
    x = np.concatenate([np.zeros((900, 2)), np.ones((100, 2)), [[40., 40.]]]).astype(np.float32)
    for seed in range(10):
        found = learning.seeds(x[np.random.default_rng(seed).permutation(len(x))], 3, np.random.default_rng(seed))
        assert {tuple(row) for row in found} <= {(0, 0), (1, 1), (40, 40)} and len({tuple(row) for row in found}) == 3
    with pytest.raises(RecipeError, match='--codes: found 4; valid: at most 3'):
        learning.seeds(x, 4, np.random.default_rng(0))


def test_dead_codes_are_set_on_far_patches(monkeypatch):
    """One that nothing is near to: without a new place for it two groups would have to share a code."""
    far = np.concatenate([CORNERS[:4], [[1e3, 1e3]]]).astype(np.float32)
    monkeypatch.setattr(learning, 'seeds', lambda *args: far.copy())
    found = learning.kmeans(blobs(), 5, 4, np.random.default_rng(0))
    assert vq.vq(blobs(), found)[1].max() < 2


def test_components_whiten():
    rng = np.random.default_rng(0)
    patch = np.clip(rng.normal(128, 30, (3000, 12)) + rng.normal(0, 40, (3000, 1)), 0, 255).astype(np.uint8)
    covariance = np.cov(patch / 255., rowvar=False, bias=True)
    for whiten in (0., .5, 1.):
        mean, projection, inverse = learning.components(patch, 4, whiten)
        np.testing.assert_allclose(mean, patch.mean(0) / 255, rtol=1e-5)
        spread = np.sqrt(np.sort(np.linalg.eigvalsh(covariance))[::-1][:4])
        features = (patch / 255. - mean) @ projection
        np.testing.assert_allclose(np.cov(features, rowvar=False, bias=True), np.diag(spread ** (2 - 2 * whiten)),
                                   atol=2e-3 * spread[0] ** (2 - 2 * whiten))
        np.testing.assert_allclose(inverse @ projection, np.eye(4), atol=1e-5)


def test_a_codebook_tells_the_kinds_of_patches_apart_and_paints_them():
    book, image, index = learned()
    codes = np.stack([book.codes(one) for one in image])
    assert codes.dtype == np.int32 and codes.shape == (30, 16)
    assert len({(a, b) for a, b in zip(codes.ravel(), index.ravel())}) == 6  # one code for each kind
    painted = book.picture(codes[0], 4)
    assert painted.shape == (16, 16, 3) and np.abs(painted.astype(int) - image[0]).max() < 8
    pieces = [_codebook.cut(one, 4) for one in image]
    found = learning.quality(book, iter(pieces))
    wanted = np.mean([np.square((book.pixels(book.codes(one)).astype(float) - piece) / 255) for one, piece in zip(image, pieces)])
    assert abs(found.error - wanted) < 1e-9 and abs(found.psnr + 10 * math.log10(wanted)) < 1e-9
    share = np.bincount(index.ravel()) / index.size
    assert abs(found.perplexity - np.exp(-(share * np.log(share)).sum())) < 1e-6
    assert found.as_dict()['explained'] > .99 and found.as_dict()['used'] == 6


def test_the_file_and_the_op(tmp_path):
    book, image, _ = learned()
    book.save(tmp_path / 'b.npz')
    np.testing.assert_array_equal(_codebook.load(tmp_path / 'b.npz').codes(image[3]), book.codes(image[3]))
    op = patch_codes(str(tmp_path / 'b.npz'))
    example = op({'image': image[3], 'label': 1}, np.random.default_rng(0))
    assert example.keys() == {'image', 'label', 'patch_codes'}
    np.testing.assert_array_equal(example['patch_codes'], book.codes(image[3]))
    # The same grid of codes at twice the resolution.
    double = patch_codes(str(tmp_path / 'b.npz'), size=16, out='c')({'image': image[3].repeat(2, 0).repeat(2, 1)}, np.random.default_rng(0))
    assert (double['c'] == book.codes(image[3])).mean() > .8 and double['c'].shape == (16,)
    with pytest.raises(RecipeError, match='do not cut an image of shape .* follow an op that crops'):
        op({'image': image[3][:15]}, np.random.default_rng(0))
    for fields, said in ((dict(size=-1), 'size: found -1'), (dict(size=10), 'size: found 10; valid: a multiple of 4'),
                         (dict(sha256='0' * 64), 'sha256 is')):
        with pytest.raises(RecipeError, match=said):
            patch_codes(str(tmp_path / 'b.npz'), **fields)
    (tmp_path / 'no.npz').write_bytes(b'x')
    np.savez(tmp_path / 'other.npz', a=1)
    for name in ('no.npz', 'other.npz'):
        with pytest.raises(RecipeError, match='is no codebook'):
            patch_codes(str(tmp_path / name))


def test_the_nearest_code_is_meant_not_the_most_alike():
    rng = np.random.default_rng(0)
    code, feature = rng.normal(0, np.arange(1, 41)[:, None], (40, 6)).astype(np.float32), rng.normal(size=(300, 6)).astype(np.float32)
    book = _codebook.Codebook(4, np.zeros(48, np.float32), np.zeros((48, 6), np.float32), np.zeros((6, 48), np.float32), code)
    np.testing.assert_array_equal(book.nearest(feature), vq.vq(feature, code)[0])


def test_products_in_pieces():
    rng = np.random.default_rng(0)
    for shape in ((196, 64, 500), (1, 768, 64), (65, 3, 7), (0, 4, 5), (3, 20000, 2)):
        a, b = rng.normal(size=shape[:2]).astype(np.float32), rng.normal(size=shape[1:]).astype(np.float32)
        np.testing.assert_allclose(_codebook._product(a, b), a @ b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('field', [dict(codes=0), dict(patch=0), dict(whiten=1.5), dict(epochs=0)])
def test_impossible_settings(field):
    with pytest.raises(RecipeError, match=f'--{next(iter(field))}: found '):
        learning.Settings(**field)


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Forty samples, of which one is damaged."""
    monkeypatch.setenv('BIGVLM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    samples = {f'{i:03d}': sample(i, jpg=encoded(pixels=np.roll(picture(48, 40, seed=i), 5 * i, 1))) for i in range(40)}
    samples['007']['jpg'] = samples['007']['jpg'][:-100]
    write_tar(tmp_path / 'a.tar', samples)


def run(capsys, *arguments, code=0):
    assert train_codebook.main(list(map(str, arguments))) == code
    said = capsys.readouterr()
    return said.err if code else said.out


TARS = ('--source', 'webdataset,files=a.tar', '--codes', 10, '--patch', 8, '--size', 32, '--per_image', 8, '--features', 10, '--epochs', 2)


def test_the_tool(tars, capsys):
    said = run(capsys, *TARS, '--out', 'c.npz', '--html', 'c.html')
    assert re.search(r'held out +32 patches: \d of 10 codes used, perplexity \d', said) and 'of 38 images' in said
    call = re.search(r'op +(dict\(.*?\))', said)[1]
    fields = eval(call)  # noqa: S307  what the tool prints is what a recipe holds
    assert fields.pop('name') == 'patch_codes'
    image = np.asarray(picture(40, 40, seed=1))
    assert patch_codes(**fields)({'image': image}, np.random.default_rng(0))['patch_codes'].shape == (16,)
    about = _codebook.load(Path('c.npz')).about
    assert about['images'] == 38 and about['fingerprint'] and about['settings']['codes'] == 10 and sum(about['counts']) == 32
    html = Path('c.html').read_text()
    assert html.count('data:image/jpeg') == 4 and html.count('data:image/png') == 1
    again = Path('c.npz').read_bytes()
    run(capsys, *TARS, '--out', 'd.npz')
    first, second = _codebook.load(Path('c.npz')), _codebook.load(Path('d.npz'))
    np.testing.assert_array_equal(first.code_KF, second.code_KF)
    assert again and first.about == second.about


def test_the_tool_sees_the_recipes_crops(tars, capsys):
    Path('recipe.py').write_text('''
from bigvlm import recipe

def get_config(arg=None):
    c = recipe.new()
    c.batch, c.steps = 4, '10 steps'
    ops = (dict(name='decode'), dict(name='random_resized_crop', size=24, area=(.3, .6)), dict(name='patch_codes', codebook='none.npz'),
           dict(name='tokenize', length=8))
    c.data = dict(train=dict(source=dict(name='webdataset', files='a.tar'), ops=ops))
    return c
''')
    said = run(capsys, '--config', 'recipe.py', '--codes', 6, '--patch', 8, '--per_image', 9, '--out', 'c.npz')
    assert re.search(r'patches +333 of 38 images', said)  # 37 usable ones, nine patches each


def test_what_the_tool_refuses(tars, capsys):
    for wrong, said in ((('--out', 'c.txt'), 'ends in .npz'), (('--out', 'no/c.npz'), 'no folder'),
                        ((*TARS, '--out', 'c.npz', '--size', 30), '--patch: '), (('--out', 'c.npz'), 'give one of'),
                        ((*TARS, '--out', 'c.npz', '--codes', 100000), '--codes: found 100000; valid: at most')):
        told = run(capsys, *wrong, code=2).splitlines()
        assert said in told[-1] and told[-1].startswith('bigvlm: ') and 'Traceback' not in ''.join(told), told
