"""The samples of one webdataset tar: which stretch of it holds each, and what is damaged or out of place."""
import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.sources._tar import BLOCK, Damage, Member, Read, Stream, members

IMAGES = ('jpg', 'jpeg', 'png', 'webp', 'gif')
RECORD = np.dtype([('start', '<u4'), ('span', '<u4'), ('member', '<u8')])  # in blocks, in blocks, number of the first member
LONGEST = 1 << 30  # bytes from the first header of a sample to its end; what is read at once
_MOST_ITEMS = 1000  # of a tar's damage are named, per reason
_LARGEST_TAR = BLOCK << 32


@dataclass(frozen=True)
class Samples:
    """`records` [S] of RECORD; `crcs` uint32 [M], one per member, or None; `digest`: 16 bytes of names, places and sizes.

    `damage`: reason -> items, such as 'a.tar bytes 512-2048', 'a.tar:000003' or 'and 12 more'.
    """
    records: np.ndarray
    crcs: np.ndarray | None
    digest: bytes
    damage: dict[str, list[str]]


def split(name: str) -> tuple[str, str]:
    """'a/b.c.JPG' -> ('a/b', 'c.jpg'): up to the first dot of the file name, as webdataset does; the ending in lower case."""
    folder, slash, file = name.rpartition('/')
    stem, _, ending = file.partition('.')
    return (folder + slash + stem, ending.lower()) if stem and ending else ('', '')


def kind_of(ending: str) -> str:
    """'image' for an image's ending, else the ending."""
    return 'image' if ending in IMAGES else ending


def scan(url: str, size: int, crc: bool) -> Samples:
    """Reads the headers of a tar of `size` bytes, and with `crc` everything else too. Raises OSError where storage fails."""
    if size > _LARGEST_TAR:
        raise RecipeError(f'{url}: a tar of {size} bytes; the largest that can be indexed has {_LARGEST_TAR}')
    with _reader(url, size, crc) as read:
        return _Scan(os.path.basename(url), read, size, crc).run()


def key_at(read: Read, start: int, stop: int) -> str:
    """The key of the sample between these bytes, or where it begins if its headers cannot be read any more."""
    for item in members(read, stop, start=start):
        key, _ = split(item.name)
        if isinstance(item, Member) and key:
            return key
    return f'byte {start}'


@contextmanager
def _reader(url: str, size: int, everything: bool) -> Iterator[Read]:
    if everything or storage.is_remote(url):
        yield Stream(url, size)
        return
    file = os.open(url, os.O_RDONLY)
    try:
        yield lambda at, count: os.pread(file, count, at)
    finally:
        os.close(file)


class _Scan:
    """The samples found so far: consecutive members of one key are one."""

    def __init__(self, tar: str, read: Read, size: int, crc: bool):
        self._tar, self._read, self._size, self._crc = tar, read, size, crc
        self._starts, self._spans, self._firsts = array('Q'), array('Q'), array('Q')
        self._hashes = array('q')  # of keys, to find those that come twice
        self._crcs, self._count = array('I'), 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._damage: dict[str, list[str]] = {}
        self._more: Counter = Counter()
        self._key, self._start, self._stop, self._first = '', 0, 0, 0  # of the sample at hand
        self._kinds: set[str] = set()
        self._kinds_before: set[str] = set()

    def run(self) -> Samples:
        for item in members(self._read, self._size, self._crc):
            if isinstance(item, Damage):
                self._lose(item)
            else:
                self._add(item)
        self._close()
        self._find_repeated()
        for reason, count in self._more.items():
            self._damage[reason].append(f'and {count} more in {self._tar}')
        records = np.empty(len(self._starts), RECORD)
        records['start'], records['span'] = np.array(self._starts) // BLOCK, np.array(self._spans) // BLOCK
        records['member'] = np.array(self._firsts)
        crcs = np.array(self._crcs, np.uint32) if self._crc else None
        return Samples(records, crcs, self._digest.digest(), self._damage)

    def _add(self, member: Member) -> None:
        key, ending = split(member.name)
        if not key:
            return
        stop = member.offset + -(-member.size // BLOCK) * BLOCK
        if stop - member.start > LONGEST:
            return self._note('file too large to be read at once', f'{self._tar}:{member.name[:200]}')
        if key != self._key or stop - self._start > LONGEST:
            self._close()
            self._key, self._start, self._first = key, member.start, self._count
        self._stop = stop
        self._kinds.add(kind_of(ending))
        self._count += 1
        if self._crc:
            self._crcs.append(member.crc)
        self._digest.update(f'{member.name}\n{member.offset} {member.size}\n'.encode())

    def _close(self) -> None:
        """The sample at hand is complete."""
        if self._key:
            self._starts.append(self._start)
            self._spans.append(self._stop - self._start)
            self._firsts.append(self._first)
            self._hashes.append(hash(self._key))
            self._kinds_before = self._kinds
        self._key, self._kinds = '', set()

    def _lose(self, damage: Damage) -> None:
        cut = split(damage.name)[0]
        if damage.reason in ('truncated tar', 'tar without its end'):
            # Only whole samples: not the one that is cut, nor a last one that lacks what the one before has.
            if not cut and self._key and self._kinds_before - self._kinds:
                cut = self._key
            if cut and cut == self._key:
                self._drop()
            return self._note(damage.reason, f'{self._tar}:{cut[:200]}' if cut else self._tar)
        self._note(damage.reason, f'{self._tar} bytes {damage.start}-{damage.stop}'
                                  + (f' ({damage.name[:200]})' if damage.name else ''))

    def _drop(self) -> None:
        self._count = self._first
        del self._crcs[self._first:]
        self._key, self._kinds = '', set()

    def _find_repeated(self) -> None:
        """Keys that come again after other samples: their members are not adjacent, as webdataset demands."""
        hashes = np.array(self._hashes, np.int64)
        order = np.argsort(hashes, kind='stable')
        again = np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]])
        for index in map(int, again[:_MOST_ITEMS + 1]):
            start = self._starts[index]
            self._note('members of one sample apart', f'{self._tar}:{key_at(self._read, start, start + self._spans[index])[:200]}')
        if len(again) > _MOST_ITEMS + 1:
            self._more['members of one sample apart'] += len(again) - _MOST_ITEMS - 1

    def _note(self, reason: str, item: str) -> None:
        items = self._damage.setdefault(reason, [])
        if len(items) < _MOST_ITEMS:
            items.append(item)
        else:
            self._more[reason] += 1
