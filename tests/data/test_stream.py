"""Batches by number, made by threads; what must hold for processes too is in test_workers.py."""
import gc
import threading
import time

import jax
import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import Lost, TooManyBad
from bigvlm.data.stream import Stream
from tests.data.toy_data.toy_draws import Stubborn, ToyDraws


def batches(draws, count, batch=8, start=0, rows=slice(None), workers=0, **fields):
    stream = Stream(draws, batch, start, rows, workers, **fields)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def same(a, b):
    def equal(x, y):
        keys = x.keys() - {'pid'}
        return keys == y.keys() - {'pid'} and all(np.array_equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in keys)
    return len(a) == len(b) and all(map(equal, a, b))


def test_rows_are_those_of_draws():
    ids = np.concatenate([b['id'] for b in batches(ToyDraws(), 3, batch=5, start=7)])
    assert ids.tolist() == [[number, row] for number in (7, 8, 9) for row in range(5)]
    assert ids.dtype == np.uint32


@pytest.mark.parametrize('workers', [1, 4])
@pytest.mark.parametrize('prefetch', [1, 5])
def test_any_number_of_workers_gives_the_same(workers, prefetch):
    assert same(batches(ToyDraws(), 6, batch=20), batches(ToyDraws(), 6, batch=20, workers=workers, prefetch=prefetch))


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_the_same_global_batches(hosts):
    share = 8 // hosts
    parts = [batches(ToyDraws(), 4, rows=slice(h * share, (h + 1) * share), workers=h % 2) for h in range(hosts)]
    assert same(batches(ToyDraws(), 4), [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts)])


def test_rows_may_be_any():
    rows = np.array([5, 1, 6])
    assert batches(ToyDraws(), 1, rows=rows)[0]['id'][:, 1].tolist() == [5, 1, 6]


def test_resumes_at_any_batch():
    wanted = batches(ToyDraws(), 6)
    assert same(wanted[4:], batches(ToyDraws(), 2, start=4, workers=2))
    assert not same(wanted[:2], wanted[2:4])


def test_what_a_batch_holds():
    batch = batches(ToyDraws(pixels=3), 1)[0]
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        'count': (np.int32, (8,)), 'flag': (bool, (8,)), 'id': (np.uint32, (8, 2)), 'image': (np.uint8, (8, 3, 3, 3)),
        'pid': (np.int32, (8,)), 'real': (np.float32, (8,))}


def test_arrays_stay_as_they_are_while_somebody_has_them():
    stream = Stream(ToyDraws(pixels=128), 8, workers=2, prefetch=1)
    kept = [next(stream) for _ in range(9)]
    views = [batch['image'][2:4, ::2] for batch in kept]
    copies = [batch['image'].copy() for batch in kept]
    most = stream.stats()['buffer_bytes']
    assert most >= 9 * copies[0].nbytes
    del kept
    gc.collect()
    later = [next(stream)['image'].sum() for _ in range(30)]  # memory that is still in use must not be among what is used again
    for view, copy in zip(views, copies):
        assert np.array_equal(view, copy[2:4, ::2])
    del views, view
    gc.collect()
    for _ in range(4):
        next(stream)
    stats = stream.stats()
    assert stats['buffer_bytes'] <= 8 * copies[0].nbytes < most  # what was let go of was used again, or given back
    assert len(set(later)) > 20
    stream.close()


def test_jax_may_keep_the_memory():
    """On CPUs device_put uses large aligned host arrays in place: a buffer must not be filled anew while it does."""
    stream, wanted = Stream(ToyDraws(pixels=128), 8, workers=2, prefetch=1), batches(ToyDraws(pixels=128), 5)
    on_device = [jax.device_put(next(stream)['image'], jax.devices()[0]) for _ in range(5)]
    for _ in range(12):
        next(stream)
    for found, batch in zip(on_device, wanted):
        assert np.array_equal(np.asarray(found), batch['image'])
    stream.close()


def test_a_small_array_does_not_keep_the_pixels():
    stream = Stream(ToyDraws(pixels=128), 8, workers=2, prefetch=1)
    ids = [next(stream)['id'] for _ in range(20)]
    assert [i[0, 0] for i in ids] == list(range(20))
    assert stream.stats()['buffer_bytes'] <= 6 * 8 * 128 * 128 * 3
    stream.close()


def test_reads_ahead_but_not_far():
    draws = ToyDraws()
    stream = Stream(draws, 10, workers=2, prefetch=3)
    next(stream)
    time.sleep(.2)
    assert len(draws.made) == 40  # the batch taken and three in waiting
    assert stream.number == 1 and stream.wait_s > 0
    stats = stream.stats()
    assert (stats['batches_ready'], stats['examples'], stats['requests'], stats['bytes']) == (3, 40, 40, 400)
    assert len(stats['worker_s']) == 1 and 0 < stats['worker_s'][0] < 5 and stats['rss_bytes'] > 1 << 20
    stream.close()
    assert next(stream, None) is None


def test_closing_ends_a_wait_in_another_thread():
    stream = Stream(ToyDraws({(0, 3): 'sleep'}), 8, workers=1)
    got = []
    thread = threading.Thread(target=lambda: got.append(next(stream, 'ended')))
    thread.start()
    time.sleep(.1)
    began = time.monotonic()
    stream.close()
    thread.join(5)
    assert got == ['ended'] and time.monotonic() - began < 2


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_is_raised_in_its_batch_with_the_example_named(workers):
    stream = Stream(ToyDraws({(2, 5): 'explode', (2, 1): 'explode', (3, 0): 'explode'}), 8, workers=workers)
    assert [next(stream)['id'][0, 0] for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError) as caught:
        next(stream)
    assert 'toy[201] (toy:2/1), row 1 of batch 2' in ' '.join(caught.value.__notes__)
    assert next(stream, None) is None


@pytest.mark.parametrize('trouble, error', [
    ({(0, 2): 'late', (0, 20): 'stubborn'}, ZeroDivisionError), ({(0, 2): 'stubborn', (0, 20): 'late'}, Stubborn)])
def test_of_several_errors_the_first_in_the_batch_counts(trouble, error):
    with pytest.raises(error):
        batches(ToyDraws(trouble), 1, batch=32, workers=4)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('what, message', [
    ('ragged', r"'image' is uint8\[(2, 2|4, 4), 3\].*resize or drop"), ('other', "different keys.*'more'")])
def test_examples_of_a_batch_must_look_alike(workers, what, message):
    with pytest.raises(ValueError, match=message):
        batches(ToyDraws({(0, 11): what}), 1, batch=32, workers=workers)


def test_batches_may_differ():
    found = batches(ToyDraws({(1, row): 'larger' for row in range(8)}), 3, workers=2)
    assert [b['image'].shape[1] for b in found] == [4, 64, 4]


@pytest.mark.parametrize('workers', [0, 3])
def test_too_many_bad_examples_stop_the_run(workers):
    with pytest.raises(TooManyBad, match=r'3 of 20 .*max_bad=0.1.*toy:'):
        batches(ToyDraws({(0, 3): 'bad', (1, 7): 'bad', (2, 2): 'bad'}, max_bad=.1, total=20), 3, workers=workers)


def test_a_slow_example_is_named_once_and_a_hung_one_stops_the_run(caplog):
    batches(ToyDraws({(1, 3): 'sleep'}), 3, workers=2, slow_s=.3)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith('a data thread has been at toy[103] (toy:1/3) for 0.')
    stream = Stream(ToyDraws({(1, 3): 'hang'}), 8, workers=2, slow_s=.2, hang_s=.4)
    stream._makers._crew.stop = lambda: None  # which would wait for the thread
    next(stream)
    with pytest.raises(TimeoutError, match=r'toy\[103\].*more than hang_s=0.4.*loader.processes'):
        next(stream)


def test_lost_examples_are_named_once_and_told_once():
    lost = Lost(10, .2, 'toy')
    lost.tell()
    lost.note('truncated tar', ['a.tar'])
    for _ in range(2):
        lost.add(3, 'toy:3', 'broken')
    assert lost.items == {'truncated tar': ['a.tar'], 'broken': ['toy:3']} and lost.count == 1
    assert lost.new() == [(3, 'toy:3', 'broken')] and lost.new() == []
    other = Lost(10, .2, 'toy')
    other.tell()
    other.merge([(3, 'toy:3', 'broken'), (5, 'toy:5', 'empty')])
    lost.merge(other.new())
    assert lost.items == {'truncated tar': ['a.tar'], 'broken': ['toy:3'], 'empty': ['toy:5']}
    assert lost.reason(5) == 'empty' and lost.reason(4) is None and lost.new() == [(5, 'toy:5', 'empty')]
    with pytest.raises(TooManyBad):
        lost.merge([(6, 'toy:6', 'broken')])


@pytest.mark.parametrize('wrong', [
    dict(batch=0), dict(workers=-1), dict(rows=slice(8, 16)), dict(prefetch=0), dict(processes=-1), dict(processes=1, workers=0),
    dict(slow_s=0), dict(hang_s=-1.)])
def test_streams_that_cannot_be(wrong):
    with pytest.raises(RecipeError):
        Stream(ToyDraws(), **{'batch': 8, **wrong})


def test_of_many_lost_examples_the_first_are_named_and_all_counted():
    lost = Lost(10_000, 1., 'toy')
    for index in range(1500):
        lost.add(index, f'toy:{index}', 'broken')
        lost.add(index, f'toy:{index}', 'broken')
    assert lost.count == lost.record()['broken']['count'] == 1500 and len(lost.record()['broken']['items']) == 1000
    assert lost.reason(1400) == 'broken' and 'broken (1500): toy:0, toy:1, toy:2, …' in lost.summary()
