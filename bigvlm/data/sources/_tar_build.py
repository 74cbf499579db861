"""Indices of many tars: from the cache or a file that hosts share, made in parallel, resumed where a build was killed."""
import hashlib
import itertools
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.cache import cache_dir, locked
from bigvlm.data.sources import _tar_index
from bigvlm.data.sources._tar_index import BadIndex, TarIndex
from bigvlm.data.sources._tar_samples import key_at, scan
from bigvlm.data.storage import Stat

log = logging.getLogger(__name__)

_SHOWN = 32  # tars to index, from which on progress is shown
_PROCESSES = 256  # tars to index, from which on processes are worth their start
_THREADS = 8
_FILE = 'tars.index'  # what an index is called in a folder


def open_index(tars: Mapping[str, Stat | None], index: str = '') -> TarIndex:
    """The index of tars (their stats, where known already): the file or folder `index`, else the cache, made if need be.

    Raises RecipeError if `index` is none of these tars, OSError where storage fails.
    """
    if index:
        return _shared(tars, _in_folder(Path(index).expanduser()))
    known = _known(tars)
    state = _state(known)
    for crc in (True, False):  # one with checksums is as good, if there is one
        if (found := _opened(_cached(state, crc))) is not None:
            return found
    return TarIndex(_build(known, _cached(state, False), False, True))


def build_index(tars: Sequence[str], out: str | Path | None = None, crc: bool = False, progress: bool = True) -> Path:
    """Makes the index of `tars` and returns its path: `out` (a file, or a folder to put it in), or in the cache.

    `crc`: read all of each tar and keep a CRC-32 of every member; remote tars, which are read whole anyway, always have them.
    What a killed build had finished is not done again. Raises OSError where storage fails.
    """
    known = _known(dict.fromkeys(tars))
    if out is None:
        path = _cached(_state(known), crc)
        if _opened(path) is not None:
            return path
    else:
        path = _in_folder(Path(out).expanduser())
        path.parent.mkdir(parents=True, exist_ok=True)
    return _build(known, path, crc, progress)


def verify(tars: Sequence[str], index: str = '', progress: bool = True) -> Iterator[tuple[str, str]]:
    """(item, reason) of all that is wrong with `tars`: what the index found, and samples that are not what they were then.

    Reads everything. Raises RecipeError where the index has no checksums.
    """
    known = _known(dict.fromkeys(tars))
    found = open_index(known, index)
    if not found.checked.all():
        without = os.path.basename(tars[int(found.checked.argmin())])
        raise RecipeError(f'files: the index knows no checksums of {without}; make one that does (tools/data.py index)')
    yield from ((item, reason) for reason, items in found.damage.items() for item in items)
    tasks = [(url, known[url].size, found.path, tar) for tar, url in enumerate(known)]
    with _pool(len(tasks)) as pool:
        for items in _shown(pool.map(_verify_tar, *zip(*tasks)), len(tasks), 'checksums', progress):
            yield from items


def fingerprint(tars: Sequence[str], index: TarIndex) -> str:
    """Of the tars' base names and of their members' names, places and sizes: the same for a copy elsewhere."""
    said = '\0'.join(map(os.path.basename, tars)).encode() + b'\0' + index.digests
    return hashlib.sha256(said).hexdigest()[:16]


def _known(tars: Mapping[str, Stat | None]) -> dict[str, Stat]:
    unknown = [url for url, known in tars.items() if known is None]
    return {**tars, **dict(zip(unknown, storage.stats(unknown)))}


def _in_folder(path: Path) -> Path:
    return path if path.suffix == '.index' else path / _FILE


def _shared(tars: Mapping[str, Stat | None], path: Path) -> TarIndex:
    """The index at `path`, if it is of tars with these names and, where that takes no request for each, these sizes."""
    try:
        found = TarIndex(path)
    except (BadIndex, OSError) as error:
        raise RecipeError(f'index: {error} (make one with tools/data.py index)') from None
    sizes = found.sizes.tolist()
    for url, known, name, size in itertools.zip_longest(tars, tars.values(), found.names, sizes):
        if url is None or name != os.path.basename(url):
            raise RecipeError(f'index: {path} is of {len(sizes)} tars, files names {len(tars)}; the first that differs: '
                              f'{name} in the index, {url} in files')
        known = storage.stat(url) if known is None and not storage.is_remote(url) else known
        if known is not None and known.size != size:
            raise RecipeError(f'index: {path} says that {name} has {size} bytes, but it has {known.size}; build it anew')
    return found


def _state(known: Mapping[str, Stat]) -> str:
    """A digest of which tars these are and in what state."""
    said = '\n'.join(f'{_place(url)} {size} {version}' for url, (size, version) in known.items())
    return hashlib.sha256(f'{_tar_index.VERSION}\n{said}'.encode()).hexdigest()[:24]


def _place(url: str) -> str:
    return url if url[:1] == '/' or storage.is_remote(url) else os.path.abspath(url)


def _cached(state: str, crc: bool, *folder: str) -> Path:
    """Where the cache keeps the index of tars in this state."""
    return cache_dir('tar_index', *folder) / f'{state}{"-crc" if crc else ""}.index'


def _opened(path: Path) -> TarIndex | None:
    """The index at `path` of the cache, or None if it is to be made."""
    try:
        return TarIndex(path)
    except FileNotFoundError:
        return None
    except BadIndex as error:
        log.warning('%s; it is made anew', error)
        return None


def _build(known: Mapping[str, Stat], path: Path, crc: bool, progress: bool) -> Path:
    """One process of a host builds, the others wait; each tar has an index of its own in the cache first."""
    with locked(f'tar_index-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}'):
        if path.parent == cache_dir('tar_index') and _opened(path) is not None:
            return path
        tasks = [(url, stat.size, crc or storage.is_remote(url)) for url, stat in known.items()]
        pieces = [_cached(_state({url: stat}), crc, 'pieces') for (url, _, crc), stat in zip(tasks, known.values())]
        missing = [(*task, piece) for task, piece in zip(tasks, pieces) if not _is_whole(piece)]
        if missing:
            with _pool(len(missing)) as pool:
                done = sum(1 for _ in _shown(pool.map(_make_piece, *zip(*missing)), len(missing), 'tar index', progress))
            log.info('%d of %d tars indexed anew', done, len(tasks))
        _tar_index.write(path, _tar_index.pieces(pieces))
    return path


def _is_whole(piece: Path) -> bool:
    return piece.exists() and _opened(piece) is not None


def _make_piece(url: str, size: int, crc: bool, piece: Path) -> None:
    _tar_index.write(piece, [(scan(url, size, crc), size, os.path.basename(url))])


def _verify_tar(url: str, size: int, index: Path, tar: int) -> list[tuple[str, str]]:
    """Which samples of a tar are not what its index says."""
    found, name = TarIndex(index), os.path.basename(url)
    files = storage.Files([url])
    now = scan(url, size, crc=True)
    ends = [*now.records['member'][1:].tolist(), len(now.crcs)]
    crcs = {start: now.crcs[first:end].tolist() for (start, _, first), end in zip(now.records.tolist(), ends)}
    wrong = []
    for example in found.examples_of(tar):
        start = int(found.records['start'][example])
        if crcs.get(start) != found.crcs(example):
            key = describe(files, 0, *found.locate(example)[1:3])
            wrong.append((f'{name}:{key}', 'checksum differs' if start in crcs else 'damaged tar header'))
    return wrong


def describe(files: storage.Files, tar: int, offset: int, size: int) -> str:
    """The key of the sample at these bytes; where it begins if that cannot be read."""
    try:
        return key_at(lambda at, count: files.read(tar, at, max(0, min(count, offset + size - at))), offset, offset + size)
    except OSError:  # the name is for reports, which are made where the storage fails too
        return f'byte {offset}'


def _pool(tasks: int) -> Executor:
    cores = os.cpu_count() or 1
    if tasks < _PROCESSES or cores < 2:
        return ThreadPoolExecutor(_THREADS)
    return ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context('spawn'))


def _shown(results: Iterator, total: int, what: str, progress: bool) -> Iterator:
    return tqdm(results, desc=what, total=total, unit=' tars', disable=not progress or total < _SHOWN,
                mininterval=.1 if sys.stderr.isatty() else 10.)
