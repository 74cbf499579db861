import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from bigvlm.core.parts import RecipeError
from bigvlm.data.prepare import dedup, hashes
from tests.data.fakes import encoded
from tests.data.listed import Listed


def bits(a, b):
    return bin(int(a) ^ int(b)).count('1')


def planted(rng, n=300, copies=60):
    """Random hashes, some of which are others with a few bits flipped."""
    found = rng.integers(0, 2 ** 63, n, np.uint64)
    for place in rng.choice(n, copies, replace=False).tolist():
        flips = rng.choice(64, int(rng.integers(0, 6)), replace=False)
        found[place] = found[int(rng.integers(n))] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=0)
    return found


@pytest.mark.parametrize('distance', [1, 2, 3, 5, 8, 15])
def test_near_pairs_are_those_of_all_comparisons(distance):
    found = np.unique(planted(np.random.default_rng(distance)))
    a, b = dedup.near(found, distance)
    expected = [(i, j) for i in range(len(found)) for j in range(i + 1, len(found)) if bits(found[i], found[j]) <= distance]
    assert list(zip(a.tolist(), b.tolist())) == expected and expected


@pytest.mark.parametrize('distance', [0, 1, 3, 6])
def test_the_first_of_each_group_stays(distance):
    """Groups by walking from each to all that are alike."""
    found = planted(np.random.default_rng(9))
    group = list(range(len(found)))
    for i in range(len(found)):
        for j in range(i):
            if bits(found[i], found[j]) <= distance and group[i] != group[j]:
                old, new = max(group[i], group[j]), min(group[i], group[j])
                group = [new if g == old else g for g in group]
    assert dedup.repeated(found, distance).tolist() == [g != i for i, g in enumerate(group)]
    assert dedup.repeated(found, distance).any()


@pytest.mark.parametrize('distance', [0, 2, 5])
def test_overlap_with_an_evaluation_set(distance):
    both = planted(np.random.default_rng(3), 400, 120)
    train, test = both[:300], both[300:]
    mine, theirs = dedup.overlap(train, test, distance)
    assert mine.tolist() == [any(bits(a, b) <= distance for b in test) for a in train]
    assert theirs.tolist() == [any(bits(a, b) <= distance for a in train) for b in test]
    assert mine.any() and theirs.any()


def test_crowded_bands_and_bounds():
    same_band = np.arange(2000, dtype=np.uint64) << np.uint64(50)
    a, b = dedup.near(same_band, 1)
    assert all(bits(same_band[i], same_band[j]) == 1 for i, j in zip(a, b)) and len(a) == sum(
        bits(i, j) == 1 for i in range(2000) for j in (i ^ (1 << k) for k in range(11)) if i < j < 2000)
    with pytest.raises(RecipeError, match='--distance'):
        dedup.near(same_band, 16)
    assert not dedup.repeated(np.zeros(0, np.uint64), 3).size and not dedup.overlap(same_band, np.zeros(0, np.uint64), 2)[0].any()


def photo(seed=0, size=288):
    """Smooth noise: what a photograph is to a difference hash."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size * 3 // 4), Image.Resampling.BICUBIC))


def test_dhash_is_the_formula():
    """Grey means of 8 x 9 cells of a PNG, whose sides the cells divide: ITU-R 601 luminance, as Pillow rounds it."""
    image_HWC = photo(1, 288)
    gray_HW = np.asarray(Image.fromarray(image_HWC).convert('L'), float)
    cells = gray_HW.reshape(8, 27, 9, 32).mean((1, 3)).round()
    expected = ''.join('01'[int(left < right)] for row in cells for left, right in zip(row, row[1:]))
    assert bits(hashes.dhash(encoded('PNG', pixels=image_HWC)), int(expected, 2)) <= 1  # Pillow rounds in two passes
    assert hashes.dhash(image_HWC) == hashes.dhash(encoded('PNG', pixels=image_HWC))


def test_dhash_survives_scaling_and_recompression_and_tells_pictures_apart():
    for seed in range(20):
        image_HWC = photo(seed)
        own = hashes.dhash(encoded('PNG', pixels=image_HWC))
        for scale, quality in ((1., 60), (.5, 85), (1.7, 90)):
            file = io.BytesIO()
            picture = Image.fromarray(image_HWC)
            picture.resize((int(288 * scale), int(216 * scale)), Image.Resampling.LANCZOS).save(file, 'JPEG', quality=quality)
            assert bits(own, hashes.dhash(file.getvalue())) <= 3
        assert bits(own, hashes.dhash(encoded('PNG', pixels=photo(seed + 100)))) > 8


def test_flat_pictures_are_not_alike():
    white, grey = (encoded('PNG', pixels=np.full((30, 40, 3), level, np.uint8)) for level in (255, 128))
    assert hashes.dhash(white) != hashes.dhash(grey) and hashes.dhash(white) == hashes.of_bytes(white)


def test_hashes_of_texts_and_bytes():
    assert hashes.of_bytes(b'abc') == int.from_bytes(hashlib.sha256(b'abc').digest()[:8], 'little')
    assert hashes.normal('  A ﬁne\tDOG,—Straße! ') == 'a fine dog strasse'
    assert hashes.of_caption('A dog.') == hashes.of_caption('a  DOG') != hashes.of_caption('a dog 2')
    assert hashes.of_captions(['b', 'A']) == hashes.of_captions(['a', 'B']) != hashes.of_captions(['a'])
    assert hashes.of_bytes(np.zeros((2, 3), np.uint8)) != hashes.of_bytes(np.zeros((3, 2), np.uint8))


def test_collect_reads_once_and_leaves_out_the_unusable():
    one, two = (encoded('PNG', pixels=photo(seed)) for seed in (1, 2))
    source = Listed([{'image': one, 'captions': ('a',)}, 'gone', {'image': one, 'captions': ('b',)}, {'image': two, 'captions': ('A',)},
                     {'captions': ('c',)}, {'image': one, 'captions': ('A!',)}, {'image': one[:80], 'captions': ('d',)}])
    found = dedup.collect(source, dedup.KEYS, workers=2)
    assert found.indices.tolist() == [0, 2, 3, 5]
    assert found.unusable == {'gone': 1, 'no image': 1, 'truncated image': 1} and sorted(source.asked) == list(range(7))
    again = {key: found.indices[dedup.repeated(found.by[key])].tolist() for key in dedup.KEYS}
    assert again == {'image': [2, 5], 'caption': [3, 5], 'pair': [5], 'near': [2, 5]}
    with pytest.raises(RecipeError, match='--by'):
        dedup.collect(source, ('image', 'sound'))
    captions = dedup.collect(Listed([{'captions': ('a',)}, {'captions': ('A',)}, {'captions': ()}]), ('caption',))
    assert captions.unusable == {'no caption': 1} and dedup.repeated(captions.by['caption']).tolist() == [False, True]
