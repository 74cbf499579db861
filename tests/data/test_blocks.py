"""Blocks of a source, read at once and ahead: what is read, how often, and how much is kept."""
import subprocess
import sys
import threading
import time

import pytest

from bigvlm.data.bad import BadExample
from bigvlm.data.blocks import BlockCache
from bigvlm.data.order import Blocks


class Storage:
    """Numbers, and a list of what was read."""

    def __init__(self, count=100, bad=(), fails=0, pause=0.):
        self.count, self.bad, self.fails, self.pause, self.reads = count, bad, fails, pause, []

    def __len__(self):
        return self.count

    def read(self, first, stop):
        self.reads.append((first, stop))
        time.sleep(self.pause)
        if self.fails:
            self.fails -= 1
            raise OSError('the network hiccuped')
        return [BadExample('broken') if i in self.bad else {'value': i} for i in range(first, stop)]


def test_each_block_is_read_once_an_epoch_whoever_asks():
    storage, order = Storage(count=103), Blocks(0, 103, 8, 3)
    cache = BlockCache(storage, 8, most=16)
    found = []

    def ask(first):
        found.extend(cache[order.at(0, i)]['value'] for i in range(first, 103, 4))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(found) == list(range(103))
    assert sorted(storage.reads) == [(first, min(first + 8, 103)) for first in range(0, 103, 8)]
    assert len(cache) == 0  # used up, gone


def test_no_more_blocks_than_allowed_are_kept():
    storage = Storage()
    cache = BlockCache(storage, 10, most=3)
    for index in (0, 10, 20, 30, 1):  # the first block was the longest unused: it is read again
        assert cache[index]['value'] == index
        assert len(cache) <= 3
    assert storage.reads.count((0, 10)) == 2


def test_what_will_be_needed_is_read_while_nobody_waits():
    storage = Storage(pause=.05)
    cache = BlockCache(storage, 10, most=4)
    cache.want(40)
    until = time.monotonic() + 20
    while not storage.reads and time.monotonic() < until:
        time.sleep(.01)
    assert storage.reads == [(40, 50)] and cache[42]['value'] == 42 and storage.reads == [(40, 50)]


def test_bad_examples_do_not_keep_a_block():
    storage, known = Storage(bad=(3,)), {7}
    cache = BlockCache(storage, 10, most=4, skipped=lambda index: index in known)
    for index in (*range(7), 8, 9, 4):  # 4 stands in for 3: asked for twice, and no block is read again for it
        try:
            cache[index]
        except BadExample:
            known.add(index)
        if index == 9:
            assert len(cache) == 0
    assert storage.reads == [(0, 10), (0, 10)]


def test_a_read_that_hangs_does_not_keep_the_process():
    code = """
import time
from bigvlm.data.blocks import BlockCache
class Hangs:
    def __len__(self): return 100
    def read(self, first, stop): time.sleep(60)
cache = BlockCache(Hangs(), 10, 4)
cache.want(3)
time.sleep(.2)
"""
    began = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True, timeout=50)
    assert time.perf_counter() - began < 30


def test_bad_examples_stay_single_and_failures_can_be_tried_again():
    storage = Storage(bad=(3,), fails=1)
    cache = BlockCache(storage, 10, most=4)
    with pytest.raises(OSError, match='hiccuped'):
        cache[4]
    assert cache[4]['value'] == 4
    with pytest.raises(BadExample, match='broken'):
        cache[3]
    assert cache[5]['value'] == 5 and storage.reads == [(0, 10), (0, 10)]
