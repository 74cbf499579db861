import json
import string
from collections import Counter

import numpy as np
import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops.canonicalize import canonical, canonicalize
from bigvlm.data.ops.eda import eda
from bigvlm.data.ops.pick_caption import pick_caption
from bigvlm.data.ops.prompt import prompt
from bigvlm.data.ops.tokenize import tokenize
from bigvlm.data.ops.tokenize_all import tokenize_all
from tests.data.letters import Letters

N = 4000  # draws of a statistic; its bounds are four standard deviations


def rng(seed=0):
    return np.random.default_rng(seed)


def shares(op, example, key='caption', draws=N):
    found = Counter(op(example, rng(seed))[key] for seed in range(draws))
    return {value: count / draws for value, count in found.items()}


def near(share, expected):
    return abs(share - expected) < 4 * (expected * (1 - expected) / N) ** .5


def test_pick_caption_by_language_and_by_rank():
    example = {'captions': ('one', 'two', 'three'), 'captions_de': ('eins', 'zwei')}
    found = shares(pick_caption({'captions': 3., 'captions_de': 1.}, weights=(.5, .5)), example)
    expected = {'one': .375, 'two': .1875, 'three': .1875, 'eins': .125, 'zwei': .125}
    assert found.keys() == expected.keys() and all(near(found[text], expected[text]) for text in found)
    alike = shares(pick_caption({'captions': 1.}), example)
    assert all(near(alike[text], 1 / 3) for text in ('one', 'two', 'three'))


def test_pick_caption_leaves_out_fields_without_text():
    op = pick_caption({'captions': 1., 'captions_de': 1., 'captions_fr': 2.}, which='language')
    some = {'captions': (' ',), 'captions_de': ('eins',), 'captions_fr': 'un'}
    found = shares(op, some, 'language')
    assert near(found[1], 1 / 3) and near(found[2], 2 / 3)
    drawn = op(some, rng())
    assert drawn['language'].dtype == np.int32 and drawn['caption'] == ('', 'eins', 'un')[drawn['language']]
    assert 'language' not in pick_caption({'captions_de': 1.})(some, rng())
    for nothing in ({}, {'captions': ()}, {'captions': ('', '\n')}, {'captions_de': None}):
        with pytest.raises(BadExample, match='no caption'):
            op(nothing, rng())
    with pytest.raises(BadExample, match='no caption'):  # what there is has no weight
        pick_caption({'captions': 0., 'captions_de': 1.})({'captions': ('one',)}, rng())


def test_pick_caption_where_only_weightless_texts_are_there():
    assert shares(pick_caption({'captions': 1.}, weights=(0., 1.)), {'captions': ('one',)}, draws=20) == {'one': 1}
    assert shares(pick_caption({'captions': 1.}, weights=(0., 1.)), {'captions': ('one', 'two')}, draws=20) == {'two': 1}


def test_pick_caption_says_that_a_field_is_never_there(caplog):
    op = pick_caption({'captions': 1., 'caption_de': 1.})
    for seed in range(1100):
        op({'captions': ('one',)}, rng(seed))
    assert [record.message for record in caplog.records] == [
        'pick_caption: none of the first 1024 examples had a text in caption_de']


def test_prompt():
    op = prompt(('a photo of a {}.', 'the {}'), names=('cat', 'great {white} shark'))
    found = shares(op, {'label': 1})
    assert near(found['the great {white} shark'], .5) and found.keys() == {'the great {white} shark', 'a photo of a great {white} shark.'}
    assert op({'label': -1, 'caption': 'kept'}, rng())['caption'] == 'kept'
    for example, reason in (({'label': 2}, 'without a name'), ({'label': -2}, 'without a name'), ({}, 'no label')):
        with pytest.raises(BadExample, match=reason):
            op(example, rng())
    built = parts.build('bigvlm.data.ops', {'name': 'prompt', 'templates': ['{}']}, 'ops', label_names=('dog',))
    assert built({'label': np.int64(0)}, rng())['caption'] == 'dog'


def test_canonical_forms():
    # big_vision's own cases, and what str.lower and Unicode's white space do beyond ASCII.
    for text, plain in {'test_test': 'test test', 'test___test': 'test test', 'test.': 'test', ' test \n': 'test',
                        'test {}': 'test', 'test  test': 'test test', "Great-White's": 'greatwhites', '«Ça» — ÉTÉ!': '«ça» — été',
                        'a\u00a0b\u2003c': 'a b c', 'ΟΔΟΣ': 'οδος', string.punctuation: ''}.items():
        assert canonical(text) == plain
    assert canonical('«Ça»_et‿là — ÉTÉ! 5€ 😀', punctuation='unicode') == 'ça et là été 5€ 😀'
    assert canonical('A_b,  C!', punctuation='keep') == 'a_b, c!'
    assert canonical('A_b,  C!', lower=False) == 'A b C'


def test_canonicalize():
    op = canonicalize(key='caption', out='plain')
    assert op({'caption': 'A cat!'}, rng()) == {'caption': 'A cat!', 'plain': 'a cat'}
    assert canonicalize(punctuation='keep')({'caption': 'A cat!'}, rng()) == {'caption': 'a cat!'}
    for nothing in ({'caption': '...'}, {}):
        with pytest.raises(BadExample, match='no caption'):
            op(nothing, rng())


@pytest.fixture
def thesaurus(tmp_path):
    path = tmp_path / 'synonyms.tsv'
    path.write_text('Red\tscarlet\tcrimson\nstar\tsun\nlone\n', encoding='utf-8')
    return str(path)


WORDS = [f'w{i}' for i in range(20)]


def test_eda_swaps_as_many_pairs_as_it_says():
    op = eda(swap=1., delete=0., share=.1)  # two swaps: 2, 3 or 4 words move, or none where the second undoes the first
    moved = Counter()
    for seed in range(500):
        words = op({'caption': ' '.join(WORDS)}, rng(seed))['caption'].split()
        assert sorted(words) == sorted(WORDS)
        moved[sum(a != b for a, b in zip(words, WORDS))] += 1
    assert moved.keys() <= {0, 3, 4} and moved[4] > 350
    assert {op({'caption': 'a b'}, rng(seed))['caption'] for seed in range(9)} == {'b a'}
    assert op({'caption': 'alone'}, rng())['caption'] == 'alone'


def test_eda_deletes_at_its_rate_and_never_everything():
    op = eda(swap=0., delete=1., share=.3)
    left = [op({'caption': ' '.join(WORDS)}, rng(seed))['caption'].split() for seed in range(500)]
    assert all([word for word in WORDS if word in kept] == kept for kept in left)
    assert abs(sum(map(len, left)) / 500 / 20 - .7) < 4 * (.3 * .7 / 20 / 500) ** .5
    everything = eda(swap=0., delete=1., share=1.)
    found = {everything({'caption': 'a b'}, rng(seed))['caption'] for seed in range(30)}
    assert found == {'a', 'b'}


def test_eda_replaces_and_inserts_synonyms(thesaurus):
    replace = eda(swap=0., delete=0., replace=1., synonyms=thesaurus)
    found = shares(replace, {'caption': 'the "Red" moon, red.'}, draws=200)
    assert found.keys() == {'the "scarlet" moon, scarlet.', 'the "crimson" moon, crimson.'}
    found = shares(replace, {'caption': 'red star'}, draws=400)
    assert found.keys() == {'scarlet star', 'crimson star', 'red sun'} and abs(found['red sun'] - .5) < .1
    insert = eda(swap=0., delete=0., insert=1., synonyms=thesaurus)
    found = shares(insert, {'caption': 'the star'}, draws=300)
    assert found.keys() == {'sun the star', 'the sun star', 'the star sun'} and min(found.values()) > .23
    for op in (replace, insert):
        assert op({'caption': 'no such'}, rng())['caption'] == 'no such'


def test_eda_draws_its_ways_by_weight_and_keeps_the_original(thesaurus, tmp_path):
    path = tmp_path / 'synonyms.json'
    path.write_text(json.dumps({'b': ['B']}))
    op = eda(swap=2., delete=1., replace=1., share=1., synonyms=str(path), out='caption_2')
    ways = Counter()
    for seed in range(N):
        example = op({'caption': 'a b c d e f g h'}, rng(seed))
        assert example['caption'] == 'a b c d e f g h'
        changed = example['caption_2']
        ways['replace' if 'B' in changed else 'delete' if len(changed) == 1 else 'swap'] += 1
    assert near(ways['swap'] / N, .5) and near(ways['delete'] / N, .25) and near(ways['replace'] / N, .25)
    tokens = tokenize({'text': Letters()}, key='text_2', caption='caption_2', length=4)
    assert tokens({'caption': 'a', 'caption_2': 'bc'}, rng())['text_2'].tolist() == [2, 3, 27, 0]


@pytest.mark.parametrize('text', ['[1]', '{"a": "b"}', '{"a": []}', '{'])
def test_eda_names_a_bad_thesaurus(text, tmp_path):
    path = tmp_path / 'synonyms.json'
    path.write_text(text)
    with pytest.raises(RecipeError, match='synonyms.*synonyms.json'):
        eda(replace=1., synonyms=str(path))


def test_tokenize_all():
    op = tokenize_all({'text': Letters()}, count=3, length=3)
    found = Counter()
    for seed in range(600):
        texts = op({'captions': ('a', 'b', 'c', 'd')}, rng(seed))['texts']
        assert texts.shape == (3, 3) and texts.dtype == np.int32 and len({*texts[:, 0].tolist()}) == 3
        found.update([tuple(texts[:, 0].tolist())])
    assert len(found) == 24
    few = op({'captions': ('a', 'b')}, rng())['texts'][:, 0].tolist()
    assert {*few} == {1, 2} and few[0] == few[2]
    with pytest.raises(BadExample, match='no captions'):
        op({'captions': ()}, rng())


@pytest.mark.parametrize('make, message', [
    (lambda: pick_caption({}), 'weights'), (lambda: pick_caption({'a': -1.}), 'negative'), (lambda: pick_caption({'a': 0.}), 'positive'),
    (lambda: pick_caption('captions'), 'dict'), (lambda: pick_caption({'a': 1.}, weights=(0., 0.)), 'weights'),
    (lambda: prompt(names=('a',), templates=('no place',)), 'templates'), (lambda: prompt(), 'names'),
    (lambda: canonicalize(punctuation='remove'), 'ascii, unicode, keep'), (lambda: eda(replace=1.), 'replace: needs `synonyms`'),
    (lambda: eda(insert=1.), 'insert: needs `synonyms`'), (lambda: eda(swap=0., delete=0.), 'swap'), (lambda: eda(share=1.5), 'share'),
    (lambda: eda(replace=1., synonyms='/nowhere.json'), 'synonyms'), (lambda: tokenize({}), 'no tokenizer'),
    (lambda: tokenize_all({'text': Letters()}, count=0), 'count')])
def test_impossible_fields(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
