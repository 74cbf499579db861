"""Worker processes: the same batches, whatever happens to the workers."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import TooManyBad
from bigvlm.data.stream import Stream
from bigvlm.data.workers import WorkersDie
from tests.data.test_stream import batches, same
from tests.data.toy_data.toy_draws import ToyDraws

TOY = 'tests.data.toy_data.toy_draws:'


def stream(draws, batch=8, processes=2, workers=2, opener='open_toy', **fields):
    return Stream(draws, batch, workers=workers, processes=processes, opener=TOY + opener, **fields)


def made(draws, count, **fields):
    found = stream(draws, **fields)
    try:
        return [next(found) for _ in range(count)], found
    finally:
        found.close()


def gone(pid):
    """Whether a process has ended, its parent having asked for its status or not."""
    try:
        return 'Z' in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError:
        return True


@pytest.mark.parametrize('processes, workers, prefetch', [(1, 1, 1), (2, 3, 2), (9, 1, 4)])
def test_any_number_of_processes_gives_the_same(processes, workers, prefetch):
    wanted = batches(ToyDraws(), 5, start=3, rows=slice(1, 5))
    found, used = made(ToyDraws(), 5, start=3, rows=slice(1, 5), processes=processes, workers=workers, prefetch=prefetch)
    assert same(wanted, found)
    for batch in found:
        assert os.getpid() not in batch['pid'] and len(set(batch['pid'].tolist())) == min(processes, 4)


def test_each_process_serves_the_same_rows():
    found, _ = made(ToyDraws(), 6, batch=12, processes=3)
    assert len({tuple(batch['pid'].tolist()) for batch in found}) == 1
    pids = found[0]['pid'].tolist()
    assert [pids.index(pid) for pid in dict.fromkeys(pids)] == [0, 4, 8]


def test_workers_import_neither_jax_nor_the_main_module():
    found, _ = made(ToyDraws({(0, row): 'modules' for row in range(8)}), 1)
    assert not found[0]['jax'].any() and not found[0]['main'].any()


def test_batches_may_differ_and_memory_grows_with_them():
    trouble = {(number, row): 'larger' for number in (4, 6) for row in range(8)}
    found, _ = made(ToyDraws(trouble), 8)
    assert same(found, batches(ToyDraws(trouble), 8))
    assert [batch['image'].shape[1] for batch in found] == [4, 4, 4, 4, 64, 4, 64, 4]


def test_what_is_counted():
    used = stream(ToyDraws({(1, 5): 'bad', (3, 5): 'bad', (2, 6): 'bad'}), prefetch=1)
    kept = [next(used) for _ in range(4)]
    until = time.monotonic() + 20
    while used.stats()['batches_ready'] < 1 and time.monotonic() < until:
        time.sleep(.01)
    stats = used.stats()
    used.close()
    made = 5 * 8 + 2 * 2 * 2  # and for the first two batches one example of each thread or so, to learn how large they are
    assert 5 * 8 <= stats['examples'] <= made and 5 * 8 <= stats['requests'] <= made and stats['bytes'] == 10 * stats['requests']
    assert len(stats['worker_s']) == 2 and min(stats['worker_s']) > 0 and stats['batches_ready'] >= 1
    assert stats['rss_bytes'] > 60 << 20 and stats['buffer_bytes'] >= sum(b['image'].nbytes for b in kept)
    lost = used.draws.datasets['train'].lost_log.items
    assert {reason: sorted(items) for reason, items in lost.items()} == {'broken': ['toy:5', 'toy:6']}


def test_too_many_bad_examples_in_all_processes_together_stop_the_run():
    with pytest.raises(TooManyBad, match=r'3 of 20 .*max_bad=0.1.*toy:'):
        made(ToyDraws({(0, 3): 'bad', (1, 7): 'bad', (2, 2): 'bad'}, max_bad=.1, total=20), 3)


def test_errors_travel_to_their_batch():
    used = stream(ToyDraws({(1, 6): 'explode', (1, 2): 'stubborn'}))
    next(used)
    with pytest.raises(RuntimeError, match='Stubborn: this and that') as caught:
        next(used)
    assert 'toy[102]' in str(caught.value) and next(used, None) is None
    with pytest.raises(ZeroDivisionError) as caught:
        made(ToyDraws({(1, 6): 'explode'}), 2)
    notes = ' '.join(caught.value.__notes__)
    assert 'toy[106] (toy:1/6)' in notes and 'in data worker' in notes and 'toy_draws.py' in notes


@pytest.mark.parametrize('what', ['ragged', 'other'])
def test_examples_must_look_alike_across_processes(what):
    with pytest.raises(ValueError, match="'image' is|different keys"):
        made(ToyDraws({(0, row): what for row in range(4)}), 1)


def test_a_dead_worker_is_named_and_its_work_done_again(tmp_path, caplog):
    wanted = batches(ToyDraws(), 6)
    found, used = made(ToyDraws({(1, 6): 'kill', (3, 2): 'leave', (4, 5): 'crash'}, once=str(tmp_path)), 6, prefetch=1)
    assert same(wanted, found) and all(map(gone, used._makers.pids))
    said = [record.getMessage() for record in caplog.records]  # two workers may die in either order
    for worker, how, example in ((1, 'killed by signal 9', 'toy[106] (toy:1/6)'), (0, 'exit status 3', 'toy[302] (toy:3/2)'),
                                 (1, 'killed by signal 6', 'toy[405] (toy:4/5)')):
        assert sum(line.startswith(f'data worker {worker} (pid ') and f'died: {how}; it was at ' in line and example in line
                   for line in said) == 1
    assert len(said) == 3


def test_workers_killed_from_outside_at_any_time():
    wanted = batches(ToyDraws(), 20, batch=16)
    used = stream(ToyDraws(), batch=16, workers=1, prefetch=3)
    found, killed = [], set()
    for number in range(20):
        found.append(next(used))
        if number % 7 == 3:
            pid = used._makers.pids[number % 2]
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
    assert same(wanted, found) and len(killed) == 3
    pids = used._makers.pids
    used.close()
    assert all(map(gone, (*killed, *pids)))


def test_workers_leave_it_to_the_trainer_when_to_end(caplog):
    used = stream(ToyDraws())
    next(used)
    for number in (signal.SIGTERM, signal.SIGINT):  # which schedulers and terminals send to the whole group
        for pid in used._makers.pids:
            os.kill(pid, number)
    assert [next(used)['id'][0, 0] for _ in range(8)] == list(range(1, 9)) and not caplog.records
    used.close()


def test_an_example_that_kills_every_worker_stops_the_run_and_is_named():
    used = stream(ToyDraws({(1, 6): 'kill'}), workers=1)
    next(used)
    with pytest.raises(WorkersDie, match=r'data worker 1 \(pid \d+\) died: killed by signal 9.*toy\[106\] \(toy:1/6\); 3 times in a row'):
        next(used)
    assert all(map(gone, used._makers.pids))


@pytest.mark.parametrize('opener, error, message', [
    ('open_nothing', FileNotFoundError, 'the data are gone'),
    ('open_and_die', WorkersDie, 'exit status 7; it was at opening its data; 3 times')])
def test_data_that_cannot_be_opened(opener, error, message, caplog):
    with pytest.raises(error, match=message):
        made(ToyDraws(), 1, opener=opener)
    assert bool(caplog.records) == (error is WorkersDie)  # what is said clearly is not tried again


def test_a_slow_worker_is_named(caplog):
    found, _ = made(ToyDraws({(0, 5): 'sleep'}), 2, slow_s=.3)
    assert same(found, batches(ToyDraws(), 2))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith('data worker 1 (pid ') and 'has been at toy[5] (toy:0/5) for ' in said[0]


@pytest.mark.parametrize('what', ['hang', 'stop'])
def test_a_hung_worker_is_replaced(what, tmp_path, caplog):
    found, used = made(ToyDraws({(1, 5): what}, once=str(tmp_path)), 3, workers=1, slow_s=.2, hang_s=.5)
    assert same(found, batches(ToyDraws(), 3))
    said = [record.getMessage() for record in caplog.records]
    assert any('hung for' in text and 'at toy[105] (toy:1/5) and was stopped' in text and 'started again' in text for text in said)
    assert all(map(gone, used._makers.pids))


PARENT = '''
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs the tests in the background has had ignored
from tests.data.test_workers import ToyDraws, stream
used = stream(ToyDraws({(4, 1): 'hang'}))
for _ in range(4):
    next(used)
print(*used._makers.pids, flush=True)
next(used)
'''


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_behind_when_the_trainer_is_killed(number):
    root = Path(__file__).parents[2]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join((str(root), *filter(None, sys.path)))}
    with subprocess.Popen([sys.executable, '-c', PARENT], env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True, text=True) as parent:
        pids = list(map(int, parent.stdout.readline().split()))
        os.killpg(parent.pid, number) if number != signal.SIGKILL else parent.kill()  # as a terminal or a scheduler does
        try:
            _, said = parent.communicate(timeout=30)
        finally:
            parent.kill()
    assert len(pids) == 2
    until = time.monotonic() + 10
    while not all(map(gone, pids)) and time.monotonic() < until:
        time.sleep(.02)
    assert all(map(gone, pids)) and parent.returncode == (-number if number != signal.SIGINT else parent.returncode)
    assert ('KeyboardInterrupt' in said) == (number == signal.SIGINT) and 'leaked' not in said


def test_what_cannot_be_sent_is_said():
    draws = ToyDraws()
    draws.spec['function'] = lambda: None
    with pytest.raises(RecipeError, match='loader.processes: .*cannot be sent'):
        stream(draws)
