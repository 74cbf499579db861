from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.corrupt_spans import corrupt_spans, counts, lengths
from bigvlm.data.ops.mask_tokens import mask_tokens
from bigvlm.data.ops.split_prefix import split_prefix
from tests.data.letters import Letters

TOKENIZERS = {'text': Letters(extra=40)}
MASK, END = 29, 27


def rng(seed=0):
    return np.random.default_rng(seed)


def text(words, length=64):
    return {'text': TOKENIZERS['text']([words], length)[0]}


def test_mask_tokens_chooses_as_bert_does():
    """Of 60 letters 9 are predicted: 80 % masks, 10 % others, 10 % as they are, everywhere alike."""
    example = text('abcdefghij' * 6)
    op = mask_tokens(TOKENIZERS)
    fates, places, others = Counter(), np.zeros(64), Counter()
    for seed in range(2000):
        found = op(example, rng(seed))
        read, target, ids = found['masked_text'], found['text_target'], example['text']
        chosen = target >= 0
        assert chosen.sum() == 9 and np.array_equal(target[chosen], ids[chosen]) and np.array_equal(read[~chosen], ids[~chosen])
        assert read.dtype == target.dtype == np.int32 and (target[~chosen] == -1).all()
        places += chosen
        for new, old in zip(read[chosen], ids[chosen]):
            fates['mask' if new == MASK else 'same' if new == old else 'other'] += 1
            others.update([int(new)] if new not in (MASK, old) else [])
    assert not places[60:].any()
    total = 18000
    # A random piece is the token itself once in 27 times (26 letters and the space). Four standard deviations.
    for fate, share in {'mask': .8, 'other': .1 * 26 / 27, 'same': .1 + .1 / 27}.items():
        assert abs(fates[fate] / total - share) < 4 * (share * (1 - share) / total) ** .5
    assert np.abs(places[:60] / 2000 - .15).max() < 4.5 * (.15 * .85 / 2000) ** .5
    assert others.keys() == {*range(1, 27), 28}


@pytest.mark.parametrize('words, masked', [('a', 1), ('abc', 1), ('abcdefghij', 2), ('', 0)])
def test_at_least_one_is_masked_if_there_is_any(words, masked):
    found = mask_tokens(TOKENIZERS, mask=1., random=0.)(text(words), rng(3))
    assert (found['text_target'] >= 0).sum() == (found['masked_text'] == MASK).sum() == masked


def test_fields_of_mask_tokens_do_what_they_say():
    found = mask_tokens(TOKENIZERS, rate=1., mask=0., random=1., mask_id=5, out='a', target='b')(text('abcd', 6), rng())
    assert found['b'].tolist() == [1, 2, 3, 4, -1, -1] and found['a'][4:].tolist() == [END, 0] and 29 not in found['a']
    assert mask_tokens(TOKENIZERS, rate=1., mask=1., random=0., mask_id=5)(text('ab', 3), rng())['masked_text'].tolist() == [5, 5, END]


def words_of(ids):
    """The places of each word, one by one."""
    found, word = [], []
    for place, token in enumerate(ids):
        if token in (0, END):
            break
        if token == 28:
            found += [word, [place]]
            word = []
        else:
            word.append(place)
    return [word for word in (*found, word) if word]


@settings(max_examples=150, deadline=None)
@given(words=st.text('abc ', max_size=50), seed=st.integers(0, 999), rate=st.floats(.05, .6))
def test_whole_words_are_masked_whole(words, seed, rate):
    example = text(words)
    found = mask_tokens(TOKENIZERS, rate=rate, whole_word=True)(example, rng(seed))
    chosen = {*np.flatnonzero(found['text_target'] >= 0).tolist()}
    tokens, there = len(words), words_of(example['text'])
    fit = [word for word in there if len(word) <= max(1, round(rate * tokens))]
    if fit:
        assert all({*word} <= chosen or not {*word} & chosen for word in there)
        assert 0 < len(chosen) <= max(1, round(rate * tokens))
    elif tokens:
        assert chosen in [{*word[:max(1, round(rate * 64))]} for word in there if len(word) == min(map(len, there))]


def test_whole_words_are_drawn_alike_and_cut_only_if_longer_than_all_places():
    example, op = text('aa bb cc dd ee', 16), mask_tokens(TOKENIZERS, whole_word=True)
    found = Counter(tuple(np.flatnonzero(op(example, rng(seed))['text_target'] > 0).tolist()) for seed in range(1800))
    # Two places for nine words, the four spaces being words here: one of five letters' words, or two spaces.
    pairs = [found[place, place + 1] for place in (0, 3, 6, 9, 12)]
    assert all(abs(count - 200) < 4 * 200 ** .5 for count in pairs) and sum(pairs) + sum(found[a, b] for a, b in found if b - a > 1) == 1800
    lone = mask_tokens(TOKENIZERS, rate=.25, whole_word=True)(text('abcdefgh', 12), rng())
    assert (lone['text_target'] >= 0).tolist() == [True] * 3 + [False] * 9


def test_positions_name_the_same_tokens():
    for seed, words in enumerate(('abcdefghijklmnopqrstuvwxyz', 'ab', '')):
        whole = mask_tokens(TOKENIZERS)(text(words, 40), rng(seed))
        found = mask_tokens(TOKENIZERS, positions='text_positions')(text(words, 40), rng(seed))
        assert np.array_equal(whole['masked_text'], found['masked_text'])
        assert found['text_positions'].shape == found['text_target'].shape == (6,)
        used = found['text_target'] >= 0
        assert np.array_equal(found['text_positions'][used], np.flatnonzero(whole['text_target'] >= 0))
        assert np.array_equal(found['text_target'][used], whole['text_target'][whole['text_target'] >= 0])
        assert not found['text_positions'][~used].any() and (found['text_target'][~used] == -1).all()


def test_split_prefix_leaves_something_to_predict_and_draws_all_lengths_alike():
    op, example = split_prefix(TOKENIZERS), text('abcdefg', 12)  # 8 tokens with the end
    found = Counter()
    for seed in range(1600):
        split = op(example, rng(seed))
        prefix = int(split['prefix_length'])
        assert split['prefix_length'].dtype == np.int32
        assert split['text_prefix'].tolist() == [True] * prefix + [False] * (12 - prefix)
        found[prefix] += 1
    assert found.keys() == {*range(8)} and all(abs(n - 200) < 4 * 200 ** .5 for n in found.values())
    assert {int(split_prefix(TOKENIZERS, least=5)(example, rng(seed))['prefix_length']) for seed in range(60)} == {5, 6, 7}
    assert split_prefix(TOKENIZERS, least=20)(example, rng())['prefix_length'] == 7
    assert split_prefix(TOKENIZERS)({'text': np.array([3, 4, 5, 0], np.int32)}, rng(1))['text_prefix'].sum() < 3  # cut, without an end
    assert split_prefix(TOKENIZERS)({'text': np.zeros(4, np.int32)}, rng())['prefix_length'] == 0


def test_lengths_are_t5s():
    # The paper's own: 568 tokens are read as 512 and predicted as 114, ends included, at 15 % and spans of 3.
    assert counts(568, .15, 3.) == (85, 28) and lengths(568, .15, 3.) == (512, 114)
    assert counts(512, .15, 3.) == (77, 26) and counts(100, .5, 10.) == (50, 5)
    assert [counts(n, .15, 3.) for n in range(4)] == [(0, 0), (0, 0), (1, 1), (1, 1)]
    assert counts(10, .9, 1.) == (9, 1)


def joined(read, target, first):
    """The text of an input and its target: spans put in the places of their sentinels."""
    spans, span = {}, None
    for token in target:
        if token in range(first - 40, first + 1):
            span = spans.setdefault(int(token), [])
        elif token == END:
            break
        else:
            span.append(int(token))
    found, used = [], []
    for token in read:
        if token == END:
            break
        found += spans[int(token)] if token in spans else [int(token)]
        used += [int(token)] if token in spans else []
    assert used == list(spans) == list(range(first, first - len(spans), -1))
    return found, [len(span) for span in spans.values()]


@settings(max_examples=150, deadline=None)
@given(words=st.text('abcdefgh', max_size=70), seed=st.integers(0, 999), rate=st.floats(.05, .5), mean=st.floats(1., 5.))
def test_input_and_target_make_up_the_text(words, seed, rate, mean):
    example = text(words, 64)
    found = corrupt_spans(TOKENIZERS, rate=rate, mean=mean)(example, rng(seed))
    inputs, targets = lengths(64, rate, mean)
    assert found['span_input'].shape == (inputs,) and found['span_target'].shape == (targets,)
    ids = [int(i) for i in example['text'] if i not in (0, END)]
    whole, spans = joined(found['span_input'], found['span_target'], first=68)
    assert whole == ids and (sum(spans), len(spans)) == counts(len(ids), rate, mean) and all(spans)
    for part in (found['span_input'], found['span_target']):
        assert part.dtype == np.int32 and (part == END).sum() == 1 and not part[np.flatnonzero(part == END)[0] + 1:].any()


def test_spans_are_anywhere_and_of_any_length():
    op, example = corrupt_spans(TOKENIZERS, rate=.5, mean=2.), text('abcdefgh', 9)
    found = Counter(tuple(op(example, rng(seed))['span_input'].tolist()) for seed in range(900))
    # 4 left and 4 cut, two spans each: 3 ways to part 4 in two, so 9 in all.
    assert len(found) == 9 and min(found.values()) > 60
    named = corrupt_spans(TOKENIZERS, first_sentinel=50)(example, rng())
    assert 50 in named['span_input'] and named['span_target'][0] == 50


@pytest.mark.parametrize('make, message', [
    (lambda: mask_tokens({'text': Letters()}), 'mask_id.*extra=1'), (lambda: mask_tokens(TOKENIZERS, mask_id=99), 'mask_id: 99'),
    (lambda: mask_tokens(TOKENIZERS, rate=2.), 'rate'), (lambda: mask_tokens(TOKENIZERS, random=.3), 'mask . random'),
    (lambda: mask_tokens({'text': len}), "'text' has no special"), (lambda: split_prefix(TOKENIZERS, least=-1), 'least'),
    (lambda: split_prefix(TOKENIZERS, tokenizer='bert'), 'bert'), (lambda: corrupt_spans(TOKENIZERS, rate=1.), 'rate'),
    (lambda: corrupt_spans(TOKENIZERS, mean=.5), 'mean'), (lambda: corrupt_spans(TOKENIZERS, first_sentinel=99), 'first_sentinel: 99'),
    (lambda: corrupt_spans({'text': Letters(extra=2)})(text('ab'), rng()), 'extra=3')])
def test_impossible_fields(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
