"""Walking, checking and counting, on lists whose content is known."""
import threading
import time

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops.patchify import grid
from bigvlm.data.prepare import check, drawn, spec, stats, walk
from bigvlm.data.prepare.images import header
from tests.data.fakes import encoded, picture
from tests.data.listed import Listed, Together


@pytest.mark.parametrize('kind', [Listed, Together])
@pytest.mark.parametrize('indices', [None, range(37, 170), [5, 3, 3, 199, 0], []])
def test_walk_keeps_the_order(kind, indices):
    source = kind([{'n': n} if n % 50 else 'broken' for n in range(200)])

    def slow(index, example):
        time.sleep(.002 * (index % 3 == 0))
        assert threading.current_thread() is not threading.main_thread()
        return index, example['n']

    found = list(walk.walk(source, slow, indices, workers=4))
    wanted = list(range(200) if indices is None else indices)
    assert [i for i, _ in found] == wanted
    assert [str(r) if isinstance(r, BadExample) else r for _, r in found] == [(i, i) if i % 50 else 'broken' for i in wanted]
    if kind is Together and indices is None:
        assert len(source.requests) <= 10 and not source.asked  # neighbours in one request


def test_walk_raises_what_the_storage_raises_and_stops():
    source = Listed([{'n': 0}] * 100 + [OSError('disk on fire')] + [{'n': 0}] * 5000)
    with pytest.raises(OSError, match='on fire'):
        list(walk.walk(source, lambda i, e: i, workers=2))
    assert max(source.asked) < 1000
    early = walk.walk(Listed([{'n': 0}] * 5000), lambda i, e: i, workers=2)
    assert next(early) == (0, 0)
    early.close()


def test_spread():
    assert walk.spread(10, 0) == range(10) == walk.spread(10, 10) and walk.spread(5, 9) == range(5)
    assert walk.spread(101, 3) == [0, 50, 100] and len(set(walk.spread(1000, 999))) == 999


@pytest.mark.parametrize('text, expected', [
    ('webdataset,files=/a b/*.tar', dict(name='webdataset', files='/a b/*.tar')),
    ('webdataset,files={00000..00099}.tar,require=()', dict(name='webdataset', files='{00000..00099}.tar', require=())),
    ("webdataset,files=('a,1.tar', 'b.tar'),extra=('score',)", dict(name='webdataset', files=('a,1.tar', 'b.tar'), extra=('score',))),
    ("tfds,dataset=coco/2017,split='train[:1%]',label=''", dict(name='tfds', dataset='coco/2017', split='train[:1%]', label='')),
    ('mine.squares,count=3,share=.5,on=True', dict(name='mine.squares', count=3, share=.5, on=True)),
    ("subset,of=dict(name='folder', root='x', deep={'a': (1,)}),keep=k.npy",
     dict(name='subset', of=dict(name='folder', root='x', deep={'a': (1,)}), keep='k.npy')),
    ('webdataset,files={a,b}.tar', dict(name='webdataset', files='{a,b}.tar')), ('squares', dict(name='squares'))])
def test_sources_on_the_command_line(text, expected):
    assert spec.parse(text) == expected


@pytest.mark.parametrize('text', ['', '/a/b.tar', 'webdataset,/a/b.tar', 'webdataset,files', 'a b,c=1', 'x,1=2'])
def test_sources_that_are_none(text):
    with pytest.raises(RecipeError, match='--source'):
        spec.parse(text)


def test_check_finds_what_training_would_skip():
    good = encoded(pixels=picture(100, 100))
    source = Listed([{'image': good, 'captions': ('a',)}, {'image': good[:900], 'captions': ('b',)}, 'no caption', {'image': good}])
    source.damage = {'truncated tar': ['x.tar:9']}
    assert check.check(source).as_dict() == dict(examples=4, bad=1, share=2 / 5, checksums=None, skipped={'no caption': ['listed:2']},
                                                 damage={'truncated tar': ['x.tar:9']})
    decoded = check.check(source, decode=True)
    assert decoded.skipped == {'truncated image': ['listed:1'], 'no caption': ['listed:2']} and decoded.bad == 2

    def op(example, rng):
        if 'caption' not in example:
            raise BadExample('nothing to tokenise')
        return example
    assert check.check(source, ops=(op,), indices=[0, 3]).as_dict()['skipped'] == {'nothing to tokenise': ['listed:3']}


class Letters:
    """A tokenizer: letters, then 0 as end and filling."""
    eot_id = 0

    def __call__(self, texts, length):
        return np.array([([ord(c) for c in text] + [0] * length)[:length] for text in texts])


def test_stats_count_what_is_there():
    source = Listed([{'image': encoded(pixels=picture(40, 80)), 'captions': ('A dog', 'der Hund'), 'label': 2},
                     {'image': encoded('PNG', pixels=picture(40, 20)), 'captions': ('собака',), 'label': 2},
                     {'captions': ('a  DOG!', '犬が走る', '123')}, 'gone', {'image': picture(60, 30), 'captions': (), 'label': 0}])
    found = stats.stats(source, tokenizers={'letters': Letters()}, budgets=(16,), workers=2)
    assert (found.total, found.examples, found.unusable) == (5, 4, {'gone': ['listed:3']})
    assert {k: v.tolist() for k, v in found.columns.items()} | {'bytes': None} == {
        'width': [80, 20, 30], 'height': [40, 40, 60], 'bytes': None, 'captions': [2, 1, 3, 0], 'characters': [5, 8, 6, 7, 4, 3],
        'words': [2, 2, 1, 2, 1, 1], 'tokens (letters)': [6, 9, 7, 8, 5, 4], 'aspect': [2., .5, .5]}
    assert found.counts == {'format': {'JPEG': 1, 'PNG': 1, 'pixels': 1}, 'script': {'LATIN': 3, 'CYRILLIC': 1, 'CJK': 1, 'none': 1},
                            'label': {2: 2, 0: 1},
                            'parts': {'caption': 3, 'image': 3, 'label': 3, 'no label': 1, 'no image': 1, 'no caption': 1}}
    assert found.repeated == [('A dog', 2)] and found.distinct == 5 / 6
    shares = [1 - np.prod(grid(h, w, 16)) / 16 for h, w in ((40, 80), (40, 20), (60, 30))]
    assert found.padding == {16: pytest.approx(np.mean(shares))}
    assert found.quantiles()['width'][2] == 30 and stats.stats(source, limit=2).examples == 2
    source.label_names = ('cat', 'dog', 'cow')
    assert stats.stats(source).counts['label'] == {'2 cow': 2, '0 cat': 1}
    text = found.text()
    assert 'CYRILLIC 1' in text and 'repeated     2 times: A dog' in text and 'gone: listed:3' in text


def test_header_reads_heads_only():
    whole = encoded(pixels=picture(300, 200))
    assert header(whole[:700]) == header(whole) == ('JPEG', 200, 300) and header(picture(3, 4)) == ('pixels', 4, 3)
    for wrong in (b'', b'GIF89', b'\xff\xd8\xff' + bytes(50)):
        with pytest.raises(BadExample):
            header(wrong)


def test_drawn_shows_pictures_masks_and_texts():
    image = picture(32, 32, seed=3)
    mask = np.zeros(16, bool)
    mask[5] = True
    example = {'image': image, 'views/0': image[:8, :8], 'stack': np.stack([image, image]), 'patch_mask': mask, 'captions': ('a', 'b'),
               'text': np.arange(3, 30), 'label': 4, 'score': np.float32([.25]),
               'text_mask': np.ones(16, bool), 'target': np.array([-1, 5])}
    pictures, texts = drawn.drawn(example, dict.fromkeys(('text', 'target'), lambda ids: f'{len(ids)} tokens'))
    assert [key for key, _ in pictures] == ['image', 'views/0', 'stack/0', 'stack/1', 'patch_mask: 6% masked']
    covered = pictures[-1][1]
    assert (covered[8:16, 8:16] == 128).all() and np.array_equal(np.where(covered == image, 0, 1).any(-1).sum(), 64)
    assert ('text decoded', '27 tokens') in texts and ('target decoded', '1 tokens') in texts
    assert ('captions', 'b') in texts and ('label', '4') in texts
    assert ('text', 'int64[27] 3 4 5 6 7 8 9 10 11 12 13 14 …') in texts and ('score', 'float32[1] 0.25') in texts
    assert drawn.drawn({'image': b'nothing'}) == ([], [('image', '7 bytes: not an image')])


def test_patches_are_put_together_again():
    from bigvlm.data.ops.patchify import patchify
    image = picture(64, 128, seed=1)
    example = patchify(patch=16, tokens=40)({'image': image}, np.random.default_rng(0))
    pictures, _ = drawn.drawn(example)
    rows, columns = grid(64, 128, 40)
    assert [key for key, _ in pictures] == ['patches'] and pictures[0][1].shape == (rows * 16, columns * 16, 3)
    for corner in (0, -1):
        assert abs(pictures[0][1][corner, corner].astype(int) - image[corner, corner]).max() < 8
