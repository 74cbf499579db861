"""Samples of webdataset tars and where they lie, from the cache if the tar is the one seen before."""
import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigvlm.data.cache import cache_dir, fresh
from bigvlm.data.sources._tar import BadTar, members

IMAGES = ('jpg', 'jpeg', 'png', 'webp', 'gif')
PARTS = ('image', 'txt', 'json')
_VERSION = 1  # of the index file
_MANY = 32  # tars to index, from which on progress is shown


@dataclass(frozen=True)
class TarIndex:
    """Samples of one tar, in its order: `keys` [S]; `places` int64 [S, 3 parts, 2]: offset and size, -1 if absent.

    `damage`: reason and name of what the tar has lost, or ('', '').
    """
    keys: np.ndarray
    places: np.ndarray
    damage: tuple[str, str]


def indices(tars: Sequence[Path]) -> list[TarIndex]:
    """One index per tar. Those not in the cache are made by threads, with a progress bar if they are many."""
    with ThreadPoolExecutor(8) as pool:
        return list(tqdm(pool.map(_index, tars), desc='tar index', total=len(tars), unit=' tars',
                         disable=len(tars) < _MANY, mininterval=.1 if sys.stderr.isatty() else 10.))


def _index(tar: Path) -> TarIndex:
    stat = tar.stat()
    known = f'{_VERSION} {tar.absolute()} {stat.st_size} {stat.st_mtime_ns}'
    path = cache_dir('tar_index') / f'{hashlib.sha256(known.encode()).hexdigest()[:24]}.npz'
    if path.exists():
        with np.load(path) as saved:
            return TarIndex(saved['keys'], saved['places'], tuple(map(str, saved['damage'])))
    found = _scan(tar)
    with fresh(path) as part, open(part, 'wb') as file:
        np.savez(file, keys=found.keys, places=found.places, damage=np.array(found.damage))
    return found


def _scan(tar: Path) -> TarIndex:
    """Groups members by key: the path up to the first dot of the file name, as webdataset does."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    damage = ('', '')
    file = os.open(tar, os.O_RDONLY)
    try:
        for name, offset, size in members(file):
            key, kind = _split(name)
            if kind in PARTS:
                samples.setdefault(key, {}).setdefault(kind, (offset, size))
    except BadTar as bad:
        cut = _split(bad.member)[0] or _incomplete_end(samples)
        samples.pop(cut, None)  # only whole samples
        damage = (str(bad), f'{tar.name}:{cut}' if cut else tar.name)
    finally:
        os.close(file)
    places = [[sample.get(part, (-1, -1)) for part in PARTS] for sample in samples.values()]
    return TarIndex(np.array(list(samples), np.str_), np.array(places, np.int64).reshape(-1, len(PARTS), 2), damage)


def _incomplete_end(samples: dict[str, dict]) -> str:
    """The key of the last sample, if it lacks a part that the one before it has; else ''."""
    last = list(samples)[-2:]
    return last[1] if len(last) == 2 and samples[last[0]].keys() - samples[last[1]].keys() else ''


def _split(name: str) -> tuple[str, str]:
    """'a/b.c.JPG' -> ('a/b', 'image' if the rest is an image's ending, else the rest)."""
    folder, slash, file = name.rpartition('/')
    stem, _, ending = file.partition('.')
    ending = ending.lower()
    return folder + slash + stem, 'image' if ending in IMAGES else ending
