"""Which example each row of each batch shows: for any recipe and hosts, exactly, and computed anywhere at once."""
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from bigvlm.core import stages as stages_lib
from bigvlm.core.parts import RecipeError
from bigvlm.data.datasets import Datasets
from bigvlm.data.draws import Draws
from bigvlm.data.lanes import Lanes, shared_pool
from bigvlm.data.mixture import Mixture
from bigvlm.data.order import Blocks, Shuffle, order

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def memory(count, **fields):
    return dict(source=dict(name='tests.data.toy_data.memory', count=count), **fields)


def draws(data, batch=8, name='train', seed=0, firsts=(0,), stage=0, sets=({},), end=None):
    config = dict(data=data, seed=seed, stages=tuple(
        dict(set=change, **({'until': 1} if i < len(sets) - 1 else {})) for i, change in enumerate(sets)))
    opened = []
    for staged in stages_lib.configs(config):
        opened.append(Datasets(staged, {}, opened[-1] if opened else None))
    return Draws(opened, name, batch, firsts, stage, end=end)


def drawn(found, first, stop):
    return [found.at(number, row) for number in range(first, stop) for row in range(found.batch)]


@FAST
@given(n=st.integers(1, 400), block=st.integers(1, 40), window=st.integers(1, 6), seed=st.integers(0, 2**32), epoch=st.integers(0, 9))
def test_orders_are_permutations(n, block, window, seed, epoch):
    for found in (Shuffle(seed, n), Blocks(seed, n, block, window)):
        assert sorted(found.at(epoch, i) for i in range(n)) == list(range(n))


def test_blocks_keep_neighbours_together_and_mix_within_a_window():
    found = Blocks(3, 10_000, 50, 4)
    for start in range(0, 9_600, 200):
        indices = [found.at(0, i) for i in range(start, start + 200)]
        assert Counter(i // 50 for i in indices).most_common()[0][1] == 50 and len({i // 50 for i in indices}) == 4
    changes = sum(a // 50 != b // 50 for a, b in zip(indices, indices[1:]))
    assert changes > 120  # of 199, where a shuffle of four blocks has about 149
    firsts = [found.at(0, i) // 50 for i in range(0, 10_000, 200)]
    assert firsts != sorted(firsts) and found.at(0, 17) != found.at(1, 17)


@FAST
@given(batch=st.integers(1, 48), lanes=st.integers(1, 8), span=st.integers(1, 7), batches=st.integers(1, 15))
def test_lanes_lose_and_repeat_nothing_up_to_their_end(batch, lanes, span, batches):
    lanes = max(d for d in range(1, lanes + 1) if batch % d == 0)
    found = Lanes(batch, lanes, span, end=batches)
    positions = [found.position(number, row) for number in range(batches) for row in range(batch)]
    assert sorted(positions) == list(range(batch * batches))


def test_a_lane_goes_along_its_stretch():
    found = Lanes(batch=64, lanes=4, span=10)
    of_third = [found.position(number, row) for number in range(10) for row in range(32, 48)]
    assert of_third == list(range(320, 480))


@FAST
@given(weights=st.lists(st.sampled_from((1, 2, 7, .5, .1, '1/3', 1000, 12_345)), min_size=1, max_size=6), seed=st.integers(0, 99),
       cells=st.integers(1, 3), rest=st.integers(0, 1000))
def test_mixtures_hit_their_weights_at_every_position(weights, seed, cells, rest):
    weights = {f'member{i}': weight for i, weight in enumerate(weights)}
    length = cells * 16 + rest
    found = Mixture(weights, seed, end=length)
    places = {name: [] for name in weights}
    for position in range(length):
        name, place = found.at(position)
        places[name].append(place)
    assert found.counts(length) == {name: len(p) for name, p in places.items()}
    total = sum(map(_number, weights.values()))
    for name, place in places.items():
        assert sorted(place) == list(range(len(place)))
        assert abs(len(place) - length * _number(weights[name]) / total) < 4


def _number(weight):
    return 1 / 3 if weight == '1/3' else weight


def test_a_mixture_has_its_shares_within_short_stretches_but_no_pattern():
    found = Mixture(dict(a=3, b=1), seed=0)
    names = [found.at(p)[0] for p in range(4096)]
    for start in range(0, 4096, 64):
        assert names[start:start + 64].count('b') == 16
    columns = [''.join(names[row::8]).count('b') for row in range(8)]  # a batch of 8: no row belongs to a member
    assert min(columns) > 90 and max(columns) < 170


@pytest.mark.parametrize('fields', [{}, dict(order='blocks', block=4, pool=32)])
@pytest.mark.parametrize('batch', [8, 12])
def test_every_epoch_has_every_example_once(fields, batch):
    n = 300
    found = draws(dict(train=memory(n, **fields)), batch)
    seen = Counter()
    for number in range(3 * n // batch + 60):
        for row in range(batch):
            seen[found.at(number, row)[1:]] += 1
    for epoch in range(3):
        assert [seen[epoch, i] for i in range(n)] == [1] * n
    assert max(seen.values()) == 1


def test_blocks_are_shared_by_few_hosts():
    """The blocks that a host of 8 touches, against the least possible, for 2^17 examples."""
    n, batch, hosts = 1 << 17, 1024, 8
    found = draws(dict(train=memory(n, order='blocks', block=32, pool=2048)), batch)
    rows, blocks = batch // hosts, 0
    for host in range(hosts):
        touched = {found.at(number, row)[2] // 32 for number in range(64) for row in range(host * rows, (host + 1) * rows)}
        blocks += len(touched)
    assert blocks < 1.3 * 64 * batch / 32
    plain = draws(dict(train=memory(n)), batch)
    touched = {plain.at(number, row)[2] // 32 for number in range(64) for row in range(rows)}
    assert len(touched) > 20 * 64 * rows / 32 / 8  # a true shuffle touches nearly one block an example


@FAST
@given(data=st.data())
def test_mixed_stages_lose_and_repeat_nothing(data):
    """Weights, homogeneous batches, blocks and stages, all at random: each member is drawn epoch by epoch, in full."""
    batch = data.draw(st.sampled_from((4, 6, 16)))
    sizes = data.draw(st.lists(st.integers(5, 90), min_size=2, max_size=3))
    homogeneous = data.draw(st.booleans())
    members = {f'm{i}': memory(n, **({'order': 'blocks', 'block': 3, 'pool': 24} if data.draw(st.booleans()) else {}))
               for i, n in enumerate(sizes)}
    weight = st.sampled_from((1, 2, .3))
    mixes = [{m: data.draw(weight) for m in members} for _ in range(3)]
    recipe = members | dict(train=dict(mix=mixes[0], homogeneous=homogeneous))
    firsts = (0, data.draw(st.integers(1, 20)), data.draw(st.integers(21, 40)))
    last = firsts[2] + 25
    seen = {m: Counter() for m in members}
    for stage, (first, stop) in enumerate(zip(firsts, (*firsts[1:], last))):
        found = draws(recipe, batch, firsts=firsts, stage=stage, sets=[{'data.train.mix': mix} for mix in mixes])
        for number in range(first, stop):
            members_of_batch = set()
            for row in range(batch):
                member, epoch, index = found.at(number, row)
                seen[member][epoch * sizes[int(member[1])] + index] += 1
                members_of_batch.add(member)
            assert len(members_of_batch) == 1 or not homogeneous
    for member, n in zip(members, sizes):
        assert max(seen[member].values(), default=1) == 1, 'repeated within an epoch'
        # All epochs but those still going on (of the last stage, whose end is open) are complete.
        whole = (sum(seen[member].values()) - 16 * batch * 8) // n
        for epoch in range(whole):
            assert all(seen[member][epoch * n + i] for i in range(n)), 'lost within an epoch'


def test_hosts_and_restarts_do_not_matter():
    data = dict(a=memory(50), b=memory(31, order='blocks', block=4, pool=16), train=dict(mix=dict(a=2, b=1)))
    wanted = drawn(draws(data, 16), 0, 40)
    again = draws(data, 16)
    assert [again.at(p // 16, p % 16) for p in reversed(range(640))][::-1] == wanted
    assert drawn(draws(data, 16), 30, 40) == wanted[480:]
    assert drawn(draws(data, 16, seed=1), 0, 40) != wanted


@pytest.mark.parametrize('homogeneous', [False, True])
def test_a_mixture_reads_each_block_once(homogeneous, monkeypatch):
    """On one host, and with what two worker processes share."""
    from tests.data.toy_data.memory import Memory
    reads = Counter()
    read = Memory.read
    monkeypatch.setattr(Memory, 'read', lambda self, first, stop: reads.update([(id(self), first)]) or read(self, first, stop))
    data = dict(a=memory(60_000, order='blocks', block=16, pool=512), b=memory(5000), c=memory(40_000, order='blocks', block=16, pool=512),
                train=dict(mix=dict(a=3, b=1, c=1), homogeneous=homogeneous))
    for rows in ([range(64)], [range(32), range(32, 64)]):
        reads.clear()
        for share in rows:
            found = draws(data, 64)
            for number in range(64):
                for row in share:
                    found.example(number, row)
            found.close()
        used = 64 * 64 * 4 / 5  # examples of a and c
        # What was read ahead and not needed yet, at most the pools, is counted too; lanes' ends are shared by two processes.
        assert sum(reads.values()) < 1.25 * used / 16 + 2 * 2 * 512 / 16, sum(reads.values()) * 16 / used


def test_small_members_leave_the_large_ones_mixing_as_it_is():
    large = memory(100_000, order='blocks', block=16, pool=4096)
    alone = draws(dict(train=large), 256)
    mixed = draws(dict(web=large, shop=memory(120, order='blocks', block=16), train=dict(mix=dict(web=1, shop='.001'))), 256)
    blocks = [{found.at(5, row)[2] // 16 for row in range(256) if found.at(5, row)[0] != 'shop'} for found in (alone, mixed)]
    assert len(blocks[1]) > .8 * len(blocks[0]) > 100


def test_a_new_member_does_not_disturb_the_epoch_of_the_others():
    data = dict(web=memory(3000, order='blocks', block=8, pool=256), new=memory(200, order='blocks', block=8),
                train=dict(mix=dict(web=1)))
    seen = Counter()
    for stage, (first, stop) in enumerate(((0, 40), (40, 75))):
        found = draws(data, 32, firsts=(0, 40), stage=stage, sets=({}, {'data.train.mix': dict(web=1, new='.1')}), end=75)
        seen.update(found.at(number, row)[1:] for number in range(first, stop) for row in range(32) if found.at(number, row)[0] == 'web')
    assert max(seen.values()) == 1 and len(seen) > 2000


def test_a_run_that_ends_within_a_stretch_has_seen_all_it_could():
    found = draws(dict(train=memory(1000, order='blocks', block=4, pool=64)), 32, end=31)
    assert len({found.at(number, row) for number in range(31) for row in range(32)}) == 31 * 32 and found._segment.lanes[''].span > 1
    assert len({found.at(number, row)[2] for number in range(31) for row in range(32)}) == 31 * 32  # of 1,000: no second epoch yet


def test_an_order_cannot_change_within_a_run():
    with pytest.raises(RecipeError, match=r"stages.1: data.train.block is 64 here and 4 before; it cannot change within a run"):
        draws(dict(train=memory(50, order='blocks')), firsts=(0, 5), stage=1, sets=({'data.train.block': 4}, {}))


def test_max_bad_holds_for_the_whole_run():
    with pytest.raises(RecipeError, match='data.train.max_bad: 0.5 in one stage and 0.01 in another'):
        draws(dict(train=memory(50)), firsts=(0, 5), stage=1, sets=({'data.train.max_bad': .5}, {}))


def test_a_union_takes_every_example_of_all_once_an_epoch():
    data = dict(a=memory(50), b=memory(30), train=dict(mix=('a', 'b')))
    found = draws(data, 8)
    taken = drawn(found, 0, 10 * 10)  # ten epochs of the union
    assert abs(sum(member == 'a' for member, _, _ in taken) - 500) < 8


def test_ids_tell_members_apart_in_every_stage():
    data = dict(x=memory(5), b=memory(5), c=memory(5, number=7), train=dict(mix=dict(x=1, b=1, c=1)))
    found = draws(data)
    assert {name: d.number for name, d in found.datasets.items()} == {'b': 0, 'x': 2, 'c': 7}
    data['b']['number'] = 2
    with pytest.raises(RecipeError, match='different numbers'):
        draws(data)


def test_stages_share_the_open_source_and_what_it_lost():
    found = draws(dict(train=memory(20)), firsts=(0, 5), stage=1, sets=({'data.train.ops': ({'name': 'tests.data.toy_data.noise'},)}, {}))
    assert len(found.datasets) == 1 and found.datasets['train'].ops == ()
    opened = [Datasets(dict(data=dict(train=memory(20)), seed=0), {})]
    opened.append(Datasets(dict(data=dict(train=memory(20, order='blocks')), seed=0), {}, opened[0]))
    assert opened[0]('train').source is opened[1]('train').source and opened[0]('train').lost_log is opened[1]('train').lost_log


@pytest.mark.parametrize('data, message', [
    (dict(train=dict(mix=dict(a=1))), r"data.train.mix: 'a' is no data set with a source \(there are: none\)"),
    (dict(a=memory(3), train=dict(mix=dict(a=0))), r'mix.a: the weight of a member is a positive number, found 0'),
    (dict(a=memory(3), train=dict(mix=dict(a=1), ops=())), r'data.train.ops: unknown field of a mixture'),
    (dict(a=memory(3), train=dict(mix={})), r'data.train.mix: name data sets, each once.*found {}'),
    (dict(w=memory(3), train=dict(mix='w')), r"data.train.mix: name data sets, each once.*found 'w'"),
    (dict(train=memory(3, number=-1)), r'data.train.number: a whole number from 0'),
    (dict(train=memory(3, order='random')), r"data.train.order: 'random' is none of shuffle, blocks"),
    (dict(train=memory(3, order='blocks', block=0)), r'data.train.block: a positive number of examples, found 0'),
    (dict(train=memory(3, shard=1)), r'data.train.shard: unknown field'),
])
def test_impossible_data_is_refused(data, message):
    with pytest.raises(RecipeError, match=message):
        draws(data)


def test_a_source_that_cannot_read_neighbours_is_refused_in_blocks(monkeypatch):
    from tests.data.toy_data.memory import Memory
    monkeypatch.delattr(Memory, 'read')
    with pytest.raises(RecipeError, match="order: 'blocks' needs a source that reads neighbours"):
        draws(dict(train=memory(9, order='blocks')))


def test_the_pool_is_cut_into_lanes_that_divide_the_batch():
    assert shared_pool(32_768, 10**9, 16_384, 64) == (64, 8, 4)
    assert shared_pool(100, 1000, 16_384, 64) == (1, 1, 1)
    for batch in (96, 1000, 4096):
        lanes, span, window = shared_pool(batch, 10**7, 16_384, 64)
        assert batch % lanes == 0 and lanes * window * 64 <= 16_384 and window >= 4
        assert span * batch <= 10**7 / 8


def test_resuming_far_away_costs_nothing():
    found = draws(dict(a=memory(10**9), b=memory(10**8, order='blocks'), train=dict(mix=dict(a=5, b=1))), 32_768)
    member, epoch, index = found.at(10**6, 17)
    assert epoch >= 0 and index < 10**9
    assert order(0, 10**9, 0, 900_000_000) < 10**9


def test_an_example_is_the_same_in_any_order():
    """What ops draw at random depends on (seed, number, epoch, index), not on how the example was read."""
    ops = (dict(name='tests.data.toy_data.noise'),)
    by_order = {}
    for order_name in ('shuffle', 'blocks'):
        found = draws(dict(train=memory(48, ops=ops, order=order_name, block=4, pool=16)))
        by_order[order_name] = {}
        for number in range(12):
            for row in range(8):
                example = found.example(number, row)
                by_order[order_name][found.at(number, row)[1:]] = example['noise'], example['drawn'], example['id'].tolist()
        found.close()
    assert by_order['shuffle'] == by_order['blocks'] and len(by_order['blocks']) == 96


def test_blocks_of_the_next_window_are_read_ahead():
    found = draws(dict(train=memory(4000, order='blocks', block=8, pool=64)), 8)
    found.example(0, 0)
    blocks = found.datasets['train'].blocks
    assert len(blocks) == 2  # the example's own, and one that the next window needs
    found.close()
