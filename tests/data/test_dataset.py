"""Examples of one data set: what is drawn, what is unusable, what is tried again; and real draws through a stream."""
import time

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, TooManyBad
from bigvlm.data.order import order
from bigvlm.data.pipeline import Data, Dataset, Stream


def dataset(ops=('noise',), max_bad=.5, seed=0, **fields):
    return Dataset(spec(ops, max_bad, **fields), 'data.train', seed=seed)


def spec(ops=('noise',), max_bad=.5, **fields):
    return dict(source=dict(name='tests.data.toy_data.memory', **fields), max_bad=max_bad,
                ops=tuple(dict(name=f'tests.data.toy_data.{op}') for op in ops))


def stream(batch=8, workers=0, processes=0, start=0, **fields):
    data = Data(dict(seed=0, batch=batch, kinds=dict(pairs=dict(data='train', weight=1)), tokenizers={}, data=dict(train=spec(**fields))))
    return data, Stream(data.draws('pairs', 0, (0,)), batch, start, workers=workers, processes=processes)


def test_batches_follow_the_order():
    _, found = stream(count=13)
    ids = np.concatenate([next(found)['id'] for _ in range(5)])
    assert ids.tolist() == [[0, order(0, 13, p // 13, p % 13)] for p in range(40)]


@pytest.mark.parametrize('how', [dict(workers=3), dict(workers=2, processes=2)])
def test_real_draws_are_the_same_in_threads_and_processes(how):
    bad = {4: 'broken', 5: 'empty'}
    data, one = stream(count=40, bad=bad)
    other_data, other = stream(count=40, bad=bad, **how)
    for _ in range(12):
        a, b = next(one), next(other)
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    other.close()
    lost = other_data.lost()['train']
    assert lost == data.lost()['train'] == {
        'broken': dict(count=1, items=['memory:4']), 'empty': dict(count=1, items=['memory:5'])}


def test_a_caption_is_drawn_for_each_epoch():
    data = dataset(count=40)
    drawn = np.array([[data.example(i, epoch)['drawn'] for i in range(40)] for epoch in range(12)])
    assert np.array_equal(drawn[3], [data.example(i, 3)['drawn'] for i in range(40)])
    assert all(len(set(of_one)) > 1 for of_one in drawn.T)
    assert np.all(abs(np.bincount(drawn.ravel(), minlength=3) / drawn.size - 1 / 3) < .08)
    assert not np.array_equal(drawn[0], [dataset(count=40, seed=1).example(i)['drawn'] for i in range(40)])


def test_a_bad_example_is_replaced_by_the_next_and_named_once():
    data = dataset(count=13, bad={4: 'broken', 5: 'empty', 12: 'broken'})
    assert [data.example(i, epoch)['id'].tolist() for epoch in (0, 1) for i in (4, 5, 12)] == 2 * [[0, 6], [0, 6], [0, 0]]
    assert {reason: sorted(names) for reason, names in data.lost.items()} == {
        'broken': ['memory:12', 'memory:4'], 'empty': ['memory:5']}
    with pytest.raises(BadExample, match='empty'):
        data.example(5, substitute=False)


def test_endless_bad_examples_stop_the_run():
    data = dataset(count=500, bad={i: 'broken' for i in range(100, 300)}, max_bad=1.)
    with pytest.raises(TooManyBad, match='in a row'):
        data.example(120)


def test_a_passing_failure_is_retried_and_a_lasting_one_raised(monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    data = dataset(count=6, flaky={2: 2})
    assert data.example(2)['value'][0] == 2 and not data.lost
    with pytest.raises(OSError, match='hiccuped') as caught:
        next(stream(count=6, flaky={2: 99}, workers=2)[1])
    assert 'memory:2' in ' '.join(caught.value.__notes__)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bug_surfaces_with_the_example_named(workers):
    with pytest.raises(ZeroDivisionError) as caught:
        next(stream(ops=('explode',), count=6, workers=workers)[1])
    assert 'memory:3' in ' '.join(caught.value.__notes__) and 'data.train' in ' '.join(caught.value.__notes__)


@pytest.mark.parametrize('spec, message', [
    (dict(ops=()), 'data.x.source: this field is required'),
    (dict(source=dict(name='tests.data.toy_data.memory'), op=()), 'data.x.op: unknown field'),
    (dict(source=dict(name='tests.data.toy_data.memory'), max_bad=2.), 'data.x.max_bad'),
    (dict(source=dict(name='tests.data.toy_data.memory', count=0)), 'no examples'),
    (dict(source=dict(name='tests.data.toy_data.memory'), ops=(dict(name='resize', size=0),)), 'data.x.ops.*size'),
    (dict(source=dict(name='tests.data.toy_data.memory'), ops=(dict(name='tokenize'),)), "no tokenizer 'text'"),
    (dict(source=dict(name='webdataset', files='/nowhere/*.tar')), 'nothing matches'),
])
def test_wrong_recipes(spec, message):
    with pytest.raises(RecipeError, match=message):
        Dataset(spec, 'data.x')


def test_recipes_know_the_fields_of_data_sets():
    """recipe.py must not import the data libraries, so it says their defaults again."""
    from bigvlm import recipe
    from bigvlm.data.dataset import FIELDS
    from bigvlm.data.datasets import MIX_FIELDS
    assert dict(recipe._DATASET) == {key: value for key, value in FIELDS.items() if key != 'ops'}
    assert {'mix', *dict(recipe._MIXTURE)} == set(MIX_FIELDS)


def test_data_sets_of_other_numbers_draw_otherwise():
    drawn = [Dataset(spec(count=6) | dict(number=number), 'data.train').example(3)['noise'] for number in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
