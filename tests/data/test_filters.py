import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.prepare import filtering, filters
from tests.data.fakes import encoded, picture
from tests.data.listed import Listed

ALIGN = filters.named('align')


def image(width, height, seed=0):
    return encoded(pixels=picture(height, width, seed=seed))


def pair(*captions, width=300, height=201, seed=0, **more):
    return {'image': image(width, height, seed), 'captions': captions, **more}


def kept(examples, *rules, **given):
    return filtering.run(Listed(examples), [filters.rule(r) if isinstance(r, str) else r for r in rules], workers=2, **given)


def test_align_at_its_bounds():
    """Shorter side over 200, aspect under 3, 3 to 20 words: arXiv 2102.05918, section 3."""
    words = [' '.join(['word'] * n) + str(n) for n in (2, 3, 20, 21)]
    examples = [pair('a good text', height=200), pair('a good text', height=201), pair('a good text', width=603, height=201),
                pair('a good text', width=602, height=201), *(pair(text) for text in words)]
    found = kept(examples, *ALIGN)
    assert found.indices.tolist() == [1, 3, 5, 6]
    assert {rule: n for rule, n in found.fails.items() if n} == {'side>200': 1, 'aspect<3': 1, 'words>=3': 1, 'words<=20': 1}


def test_the_others_at_theirs():
    """DataComp's basic filter and COYO keep sides of 200 and an aspect of 3; LAION asks for 5 characters and 5 kB."""
    edge = [pair('three good words', width=600, height=200), pair('three good words', width=601, height=200),
            pair('three good words', width=600, height=199), pair('two words')]
    assert kept(edge, *filters.named('datacomp_basic')).indices.tolist() == [0]
    five = [{'image': bytes(0), 'captions': ('1234',)}, pair('1234'), pair('12345')]
    found = filtering.run(Listed(five), [filters.rule('characters>=5')])
    assert found.indices.tolist() == [2] and found.unusable == {}  # the images are not looked at
    sizes = [{'image': encoded('PNG', pixels=np.random.default_rng(0).integers(0, 256, (40, n, 3), np.uint8)), 'captions': ('12345',)}
             for n in (20, 60)]
    assert [len(e['image']) >= 5000 for e in sizes] == [False, True]
    assert kept(sizes, *filters.named('laion400m')).indices.tolist() == [1]


def test_every_caption_must_hold():
    assert kept([pair('one two three', 'one two'), pair('one two three', 'one two four')], 'words>=3').indices.tolist() == [1]


def test_counts_of_captions_and_images_match_a_plain_count():
    """shared: images with the same caption, up to case and punctuation; texts: captions of the same image."""
    rng = np.random.default_rng(1)
    picked = [(int(rng.integers(6)), int(rng.integers(8))) for _ in range(120)]
    files = [image(20, 20, seed=k) for k in range(6)]
    examples = [{'image': files[i], 'captions': ((f'Caption, {t}!' if n % 2 else f'caption {t}'),)} for n, (i, t) in enumerate(picked)]
    images_of = {t: {i for i, other in picked if other == t} for _, t in picked}
    texts_of = {i: {t for other, t in picked if other == i} for i, _ in picked}
    for bound in (3, 4, 5, 6):
        found = kept(examples, f'shared<={bound}', f'texts<={bound + 1}')
        shared = [len(images_of[t]) <= bound for _, t in picked]
        texts = [len(texts_of[i]) <= bound + 1 for i, _ in picked]
        assert found.indices.tolist() == [n for n in range(120) if shared[n] and texts[n]]
        assert found.fails == {f'shared<={bound}': shared.count(False), f'texts<={bound + 1}': texts.count(False)}


def test_scores_are_fields():
    scores = (dict(clip_score=score) for score in (.3, np.float32(.2), None, 'much', (.3, .4)))
    examples = [pair('a', **score) for score in scores] + [pair('a')]
    assert kept(examples, 'field:clip_score>=.28').indices.tolist() == [0, 4]


def test_unusable_examples_are_not_kept_and_counted():
    found = kept([pair('one two three'), 'truncated image', {'image': b'nonsense', 'captions': ('one two three',)}], 'words>=3', 'side>200')
    assert found.indices.tolist() == [0] and found.unusable == {'truncated image': 1, 'not an image': 1}


def test_queries_balance():
    """Each query draws at most so many pairs that have it as whole words; what no query draws goes."""
    texts = ['a dog', 'the dog runs', 'hot dog', 'Dogs', 'a cat, a dog', 'hotdog', 'DOG!', 'a cat']
    queries = filtering.Queries(['dog', 'hot dog', 'cat', '', 'Cat'])
    assert len(queries) == 3 and queries.found(['A hot-dog and a cat']) == {0, 1, 2} and queries.found(['Dogs']) == set()
    examples = [{'captions': (text,)} for text in texts]
    assert kept(examples, queries=queries).indices.tolist() == [0, 1, 2, 4, 6, 7]
    drawn = kept(examples, queries=queries, per_query=1)
    assert drawn.indices.tolist() == kept(examples, queries=queries, per_query=1).indices.tolist()
    assert 2 in drawn.indices and 1 <= len({4, 7} & set(drawn.indices.tolist())) <= 2 and len(drawn.indices) <= 3


@pytest.mark.parametrize('text', ['size>3', 'side', 'side=3', 'side>three', '', 'field:>3'])
def test_wrong_rules(text):
    with pytest.raises(RecipeError, match='--rule'):
        filters.rule(text)
    with pytest.raises(RecipeError, match='no published set'):
        filters.named(f'align,{text or "x"}')


def test_sets_share_rules_once():
    both = [str(rule) for rule in filters.named('datacomp_basic,coyo')]
    assert len(both) == len(set(both)) and both.count('side>=200') == 1


def test_pixels_have_no_file_size():
    with pytest.raises(RecipeError, match='bytes'):
        kept([{'image': picture(), 'captions': ('a',)}], 'bytes>=1')
