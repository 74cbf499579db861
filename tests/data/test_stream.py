import time

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, Lost, TooManyBad
from bigvlm.data.order import order
from bigvlm.data.pipeline import Dataset, Stream


def dataset(ops=('noise',), max_bad=.5, seed=0, **fields):
    return Dataset(dict(source=dict(name='tests.data.toy_data.memory', **fields), max_bad=max_bad,
                        ops=tuple(dict(name=f'tests.data.toy_data.{op}') for op in ops)), 'data.train', seed=seed)


def batches(data, count, batch=8, start=0, rows=slice(None), workers=0):
    stream = Stream(data, batch, start, rows, workers)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def same(a, b):
    def equal(x, y):
        return x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
    return len(a) == len(b) and all(map(equal, a, b))


def test_rows_follow_the_order():
    ids = np.concatenate([b['id'] for b in batches(dataset(count=13), 5)])
    assert ids.tolist() == [[0, order(0, 13, p // 13, p % 13)] for p in range(40)]
    assert ids.dtype == np.uint32


@pytest.mark.parametrize('workers', [1, 4])
def test_any_number_of_workers_gives_the_same(workers):
    wanted = batches(dataset(count=13, bad={4: 'broken', 5: 'broken'}), 6, batch=20)
    assert same(wanted, batches(dataset(count=13, bad={4: 'broken', 5: 'broken'}), 6, batch=20, workers=workers))


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_the_same_global_batches(hosts):
    wanted = batches(dataset(count=13), 4)
    share = 8 // hosts
    parts = [batches(dataset(count=13), 4, rows=slice(h * share, (h + 1) * share), workers=h % 2) for h in range(hosts)]
    assert same(wanted, [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts)])


def test_resumes_at_any_position():
    wanted = batches(dataset(count=13), 6)
    assert same(wanted[4:], batches(dataset(count=13), 2, start=32, workers=2))
    assert not same(wanted[:2], wanted[2:4])


def test_a_caption_is_drawn_for_each_epoch():
    data = dataset(count=40)
    drawn = np.array([[data.example(i, epoch)['drawn'] for i in range(40)] for epoch in range(12)])
    assert np.array_equal(drawn[3], [data.example(i, 3)['drawn'] for i in range(40)])
    assert all(len(set(of_one)) > 1 for of_one in drawn.T)
    assert np.all(abs(np.bincount(drawn.ravel(), minlength=3) / drawn.size - 1 / 3) < .08)
    assert not np.array_equal(drawn[0], [dataset(count=40, seed=1).example(i)['drawn'] for i in range(40)])


def test_a_bad_example_is_replaced_by_the_next_and_named_once():
    data = dataset(count=13, bad={4: 'broken', 5: 'empty', 12: 'broken'})
    for workers in (0, 4):
        batches(data, 10, batch=26, workers=workers)
    assert {reason: sorted(names) for reason, names in data.lost.items()} == {
        'broken': ['memory:12', 'memory:4'], 'empty': ['memory:5']}
    assert [data.example(i)['id'].tolist() for i in (4, 5, 12)] == [[0, 6], [0, 6], [0, 0]]
    with pytest.raises(BadExample, match='empty'):
        data.example(5, substitute=False)


def test_two_threads_that_meet_the_same_item_name_it_once():
    lost = Lost(10, .1, 'memory')
    lost.note('truncated tar', ['a.tar'])
    for _ in range(2):
        lost.add(3, 'memory:3', 'broken')
    assert lost.items == {'truncated tar': ['a.tar'], 'broken': ['memory:3']}
    with pytest.raises(TooManyBad):
        lost.add(4, 'memory:4', 'broken')


@pytest.mark.parametrize('workers', [0, 3])
def test_too_many_bad_examples_stop_the_run(workers):
    data = dataset(count=20, bad={3: 'broken', 7: 'broken', 11: 'empty'}, max_bad=.1)
    with pytest.raises(TooManyBad, match=r'3 of 20 .*max_bad=0.1.*memory:'):
        batches(data, 10, workers=workers)


def test_endless_bad_examples_stop_the_run():
    data = dataset(count=500, bad={i: 'broken' for i in range(100, 300)}, max_bad=1.)
    with pytest.raises(TooManyBad, match='in a row'):
        data.example(120)


def test_a_passing_failure_is_retried_and_a_lasting_one_raised(monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    data = dataset(count=6, flaky={2: 2})
    assert data.example(2)['value'][0] == 2 and not data.lost
    with pytest.raises(OSError, match='hiccuped') as caught:
        batches(dataset(count=6, flaky={2: 99}), 1, workers=2)
    assert 'memory:2' in ' '.join(caught.value.__notes__)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bug_surfaces_with_the_example_named(workers):
    with pytest.raises(ZeroDivisionError) as caught:
        batches(dataset(ops=('explode',), count=6), 3, workers=workers)
    assert 'memory:3' in ' '.join(caught.value.__notes__) and 'data.train' in ' '.join(caught.value.__notes__)


def test_shapes_must_agree():
    data = dataset(count=6)
    data.ops = (lambda example, rng: {**example, 'ragged': np.zeros(int(example['value'][0]))},)
    with pytest.raises(ValueError, match="'ragged' is float"):
        batches(data, 1)


def test_reads_ahead_but_not_far():
    data, made = dataset(count=1000), []
    data.ops = (lambda example, rng: made.append(1) or example,)
    stream = Stream(data, 10, workers=2, prefetch=3)
    next(stream)
    time.sleep(.2)
    assert len(made) == 40  # the batch taken and three in waiting
    assert stream.position == 10 and stream.wait_s > 0
    stream.close()
    assert next(stream, None) is None


def test_what_a_batch_holds():
    batch = batches(dataset(count=5), 1)[0]
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        'value': (np.float32, (8, 2)), 'noise': (np.float32, (8,)), 'drawn': (np.int32, (8,)),
        'id': (np.uint32, (8, 2))}


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


def test_streams_that_cannot_be():
    for wrong in (dict(batch=0), dict(batch=8, workers=-1), dict(batch=8, rows=slice(8, 16)),
                  dict(batch=8, prefetch=0)):
        with pytest.raises(RecipeError):
            Stream(dataset(), **wrong)
