import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.dataset import Dataset
from bigvlm.data.sources._packing import pack
from tests.data.letters import Letters

END = 27
TEXTS = (('abc', 'de'), ('fghijklmnop',), None, ('q',), ('', ' '), ('rs',), ('tuv',))


def packed(texts=TEXTS, together=False, fails=0, **fields):
    spec = dict(name='packed', of=dict(name='tests.data.toy_data.documents', texts=texts, together=together, fails=fails)) | fields
    return parts.build('bigvlm.data.sources', dict(length=8, rows=4, window=4) | spec, 'data.train.source', tokenizers={'text': Letters()})


def pieces(example, key='text'):
    """The texts of a row, one after another; checks segments, positions and padding."""
    ids, segments, positions = (example[key + part] for part in ('', '_segment', '_position'))
    assert ids.dtype == segments.dtype == positions.dtype == np.int32 and ids.shape == segments.shape == positions.shape
    used = int((segments > 0).sum())
    assert (segments[:used] > 0).all() and not ids[used:].any() and not positions[used:].any()
    found = [tuple(ids[segments == number].tolist()) for number in range(1, segments.max() + 1)]
    assert np.array_equal(segments[:used], np.repeat(np.arange(len(found)) + 1, list(map(len, found))))
    assert positions[:used].tolist() == [place for piece in found for place in range(len(piece))]
    return found


@pytest.mark.parametrize('together', [False, True])
def test_known_windows(together):
    source = packed(together=together)
    assert len(source) == 8 and source.io.requests == 0
    assert pieces(source[0]) == [tuple(range(6, 14))]  # 12 ids are a row of 8 and a rest of 4
    assert pieces(source[1]) == [(1, 2, 3, END)] and pieces(source[3]) == [(14, 15, 16, END)]  # were in one row, the other was empty
    assert pieces(source[2]) == [(4, 5, END), (17, END)]
    assert pieces(source[4]) == [(20, 21, 22, END)] and pieces(source[5]) == [(18, 19, END)]
    for empty in (6, 7):
        with pytest.raises(BadExample, match='empty row'):
            source[empty]
    assert source.describe(1) == 'row 1 of documents:0 to documents:3' and source.describe(7) == 'row 3 of documents:4 to documents:6'
    assert source.damage == {'cut': ['documents:9']} and source.captions(0) == () and source.label_names == ()
    assert source.packing == (28, 0, 8, 2, 2, 8) and source.packing.fill == 28 / 64 and source.packing.lost == 0
    for beyond in (8, -1):
        with pytest.raises(IndexError):
            source[beyond]


@settings(max_examples=120, deadline=None)
@given(texts=st.lists(st.one_of(st.none(), st.lists(st.text('abcdef', max_size=12), max_size=3).map(tuple)), min_size=1, max_size=15),
       length=st.integers(2, 9), count=st.integers(1, 4), window=st.integers(1, 6), together=st.booleans())
def test_nothing_is_lost_twice_or_mixed(texts, length, count, window, together):
    """Every token of a window is in one of its rows or counted as dropped."""
    source = packed(tuple(texts), together, length=length, rows=count, window=window)
    kept = dropped = 0
    for number in range(len(source) // count):
        documents = [text for listed in texts[number * window:(number + 1) * window] for text in listed or () if text]
        ids = [Letters().encode(text) for text in documents]
        expected = Counter(tuple(i[start:start + length]) for i in ids for start in range(0, len(i), length))
        found = Counter(piece for row in source.read(number * count, (number + 1) * count) if not isinstance(row, BadExample)
                        for piece in pieces(row))
        assert found <= expected
        missing = expected - found
        kept += sum(map(len, found.elements()))
        dropped += sum(map(len, missing.elements()))
        if missing:  # whatever was dropped fits into no row
            room = [length - sum(map(len, pieces(row))) for row in source.read(number * count, (number + 1) * count)]
            assert max(room) < min(map(len, missing))
    assert source.packing[:2] == (kept, dropped)
    again = packed(tuple(texts), not together, length=length, rows=count, window=window)
    for index in reversed(range(len(source))):
        assert _same(source, again, index)


def _same(a, b, index):
    found = []
    for source in (a, b):
        try:
            found.append({key: value.tolist() for key, value in source[index].items()})
        except BadExample as bad:
            found.append(str(bad))
    return found[0] == found[1]


def naive(sizes, count, length):
    """First-fit decreasing of the first pieces that the rows could hold, then first-fit of the others, as it is told."""
    found, dropped, taken = [[] for _ in range(count)], [], 0
    while taken < len(sizes) and sum(sizes[:taken + 1]) <= count * length:
        taken += 1
    for number in [*sorted(range(taken), key=lambda k: (-sizes[k], k)), *range(taken, len(sizes))]:
        for row in found:
            if sum(sizes[k] for k in row) + sizes[number] <= length:
                row.append(number)
                break
        else:
            dropped.append(number)
    while not all(found) and any(len(row) > 1 for row in found):
        empty, most = found.index([]), max(found, key=len)
        found[empty], most[:] = most[1::2], most[::2]
    return found, dropped


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 10), max_size=30), count=st.integers(1, 6))
def test_first_fit_decreasing(sizes, count):
    assert pack(sizes, count, 10) == naive(sizes, count, 10)


def test_what_is_dropped_is_not_the_short_texts():
    sizes = np.random.default_rng(0).integers(1, 60, 2000)
    rows, dropped = pack(sizes, 400, 100)
    kept = [int(sizes[k]) for row in rows for k in row]
    assert sum(kept) > .99 * 40000 and len(dropped) > 400
    assert abs(np.mean(sizes[dropped]) - np.mean(kept)) < 3


def test_a_window_is_tokenised_once_for_all_its_rows():
    source = packed()
    for row in (0, 1, 2, 0, 4, 1):
        source[row]
    assert source._of.reads == Counter(range(7))
    texts = tuple((f'{chr(97 + i % 26)}',) for i in range(100))
    many = packed(texts, rows=1)
    for index in [*range(25), 0]:  # 25 windows are more than are kept: the first is made again
        many[index]
    assert many._of.reads[0] == 2 and many._of.reads[99] == 1 and len(many._kept) == 16
    assert many.packing.packed == 200  # and counted once


def test_threads_wait_for_one_another():
    source, found = packed(), {}

    def work(number):
        found[number] = [source[row]['text'].tolist() for row in (0, 1, 2, 4)]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(count == found[0] for count in found.values()) and source._of.reads == Counter(range(7))


def test_failing_storage_is_asked_again():
    source = packed(fails=2)
    for _ in range(2):
        with pytest.raises(OSError, match='hiccuped'):
            source[0]
    assert pieces(source[0]) and source.packing.rows == 4


def test_survey_says_what_more_countwould_do():
    texts = tuple(('abcdefg'[:1 + i % 7],) for i in range(64))
    few, many = (packed(texts, window=16, rows=count, length=16).survey() for count in (3, 6))
    assert few.lost > .2 and few.fill > .95 and many.lost == 0 and many.fill < .9 and (few.rows, many.rows) == (12, 24)
    assert packed(texts, window=16).survey(2).rows == 8 and '3' in str(few) and '% filled' in str(few)


def test_fields():
    assert pieces(packed(key='doc', texts='document')[0], key='doc')
    assert packed(texts='document').packing != packed().survey()
    prints = {packed(**changed).fingerprint for changed in ({}, dict(rows=3), dict(length=9), dict(window=5), dict(texts='document'))}
    assert len(prints) == 5


def test_as_a_data_set_in_blocks_and_shuffled():
    texts = tuple((f'{chr(97 + i % 26)}' * (1 + i % 5),) for i in range(64))
    source = dict(name='packed', of=dict(name='tests.data.toy_data.documents', texts=texts), length=8, rows=2, window=4)
    datasets = [Dataset(dict(source=source, order=order, block=4, pool=8), 'data.train', {'text': Letters()})
                for order in ('blocks', 'shuffle')]
    for index in (5, 0, 31):
        a, b = (dataset.example(index) for dataset in datasets)
        assert a.keys() == b.keys() == {'text', 'text_segment', 'text_position', 'id'}
        assert all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('fields, message', [
    (dict(length=0), 'length'), (dict(rows=0), 'rows'), (dict(window=.5), 'window'), (dict(tokenizer='bert'), "'bert'.*there are: text"),
    (dict(of=dict(name='nothing')), 'of.name')])
def test_impossible_fields(fields, message):
    with pytest.raises(RecipeError, match=f'data.train.source.*{message}'):
        packed(**fields)


def test_tokenizers_that_cannot_be_used():
    spec = dict(name='packed', of=dict(name='tests.data.toy_data.documents', texts=TEXTS), length=8, rows=4)
    with pytest.raises(RecipeError, match='encode'):
        parts.build('bigvlm.data.sources', spec, 'source', tokenizers={'text': len})
    with pytest.raises(RecipeError, match='trained on the texts themselves'):
        parts.build('bigvlm.data.sources', spec, 'source')
