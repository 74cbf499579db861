"""Draws for tests of the stream: examples that are functions of (batch number, row), and trouble at some of them."""
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bigvlm.data.bad import Lost


class ToyDraws:
    """`trouble`: {(number, row): what}, what being a key of TROUBLE; `once`: a folder, each trouble happens once then."""

    def __init__(self, trouble=None, once='', pixels=4, max_bad=1., total=1000):
        self.spec = dict(trouble=trouble or {}, once=once, pixels=pixels, max_bad=max_bad, total=total)
        self._trouble, self._once, self._pixels, self.made = trouble or {}, once, pixels, []
        self.datasets = {'train': SimpleNamespace(lost_log=Lost(total, max_bad, 'toy'))}

    def example(self, number, row):
        what = self._trouble.get((number, row))
        extra = {}
        if what and self._is_time(number, row):
            extra = TROUBLE[what](self, number, row) or {}
        self.made.append((number, row))
        rng = np.random.default_rng((number, row))
        return dict(id=np.array((number, row), np.uint32), image=rng.integers(0, 256, (self._pixels, self._pixels, 3), np.uint8),
                    flag=bool(row % 2), real=rng.random(), count=row, said=f'{number} {row}', pid=os.getpid()) | extra

    def describe(self, number, row):
        return f'toy[{number * 100 + row}] (toy:{number}/{row})'

    def counts(self):
        return {'requests': len(self.made), 'bytes': 10 * len(self.made)}

    def _is_time(self, number, row):
        if not self._once:
            return True
        mark = Path(self._once, f'{number}-{row}')
        if mark.exists():
            return False
        mark.touch()
        return True


def explode(draws, number, row):
    raise ZeroDivisionError('a bug')


class Stubborn(Exception):
    """Cannot be unpickled: its constructor wants two."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def stubborn(draws, number, row):
    raise Stubborn('this', 'that')


def late(draws, number, row):
    time.sleep(.2)
    explode(draws, number, row)


def stop(draws, number, row):
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1)  # other threads may stop first


TROUBLE = dict(
    explode=explode,
    late=late,
    stubborn=stubborn,
    kill=lambda draws, number, row: os.kill(os.getpid(), signal.SIGKILL),
    crash=lambda draws, number, row: os.abort(),
    leave=lambda draws, number, row: os._exit(3),
    stop=stop,
    sleep=lambda draws, number, row: time.sleep(1.2),
    hang=lambda draws, number, row: time.sleep(3600),
    bad=lambda draws, number, row: draws.datasets['train'].lost_log.add(row, f'toy:{row}', 'broken'),
    ragged=lambda draws, number, row: {'image': np.zeros((2, 2, 3), np.uint8)},
    larger=lambda draws, number, row: {'image': np.full((64, 64, 3), row, np.uint8)},
    other=lambda draws, number, row: {'more': 1},
    modules=lambda draws, number, row: {'jax': 'jax' in sys.modules, 'main': 'pytest' in sys.modules})


def open_toy(spec):
    return ToyDraws(**spec)


def open_nothing(spec):
    raise FileNotFoundError('the data are gone')


def open_and_die(spec):
    os._exit(7)
