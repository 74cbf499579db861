"""Files of weights, read by name and index without loading them, and written as safetensors. Nothing in a file is executed.

``open_weights`` takes a file (.safetensors, .npz, .pt, .pth, .bin), an index of several (….safetensors.index.json,
….bin.index.json), or a folder with one of ``IN_FOLDERS``.

An index names files of its own folder by plain names; one that names a path is refused. A file of a folder may be a symbolic link
to anywhere: the user's own doing, or a download cache's, which are made of links.
"""

import importlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.foreign import Index, WeightsError
from bigvlm.interop.files.entry import INDEX, Entry, Opened, reason
from bigvlm.interop.files.writing import save_weights as save_weights  # the other direction, under the same name

FORMATS = {'.safetensors': 'safetensors', '.npz': 'npz', '.pt': 'pt', '.pth': 'pt', '.bin': 'pt'}  # suffix: file in interop/files
IN_FOLDERS = ('model.safetensors', 'model.safetensors.index.json', 'open_clip_model.safetensors', 'pytorch_model.bin',
              'pytorch_model.bin.index.json', 'open_clip_pytorch_model.bin')  # the first that is there
_LARGEST = 100_000_000  # bytes


class OpenWeights:
    """Open files of weights; also a context manager. Arrays have the names, shapes and dtypes of the file.

    where: the file. bytes_read: of all ``read``; what an index covers counts, and all of a compressed array whatever is read of it.
    """

    def __init__(self, where: Path, files: Iterable[Opened]):
        self.where, self.bytes_read, self._files = str(where), 0, tuple(files)
        self._entries: dict[str, Entry] = {name: entry for file in self._files for name, entry in file.entries.items()}

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        return self._entry(name).dtype

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """What ``index`` (slices without a step, one for each of the first dimensions) covers, in the file's dtype. It may be a
        read-only view of the file: copy what is to outlive ``close``.

        Raises:
            WeightsError: there is no such array, it cannot be decoded, or the files are closed.
        """
        entry = self._entry(name)
        if len(index) > len(entry.shape) or any(piece.step not in (None, 1) for piece in index):
            raise ValueError(f'{name} {list(entry.shape)} was asked for {index}')
        bounds = [piece.indices(n)[:2] for piece, n in zip((*index, *(slice(None),) * (len(entry.shape) - len(index))), entry.shape)]
        sizes = [max(stop - start, 0) for start, stop in bounds]
        if 0 in sizes:
            return np.empty(sizes, entry.dtype)
        try:
            found = entry.take(tuple(slice(*bound) for bound in bounds))
        except Exception as error:  # of a library, on a file that is damaged inside or was changed under it
            raise WeightsError(f'{self.where}: {name!r} cannot be read: {reason(error)}') from error
        self.bytes_read += int(np.prod(entry.shape if entry.whole else sizes, dtype=np.int64)) * entry.dtype.itemsize
        return found

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files, self._entries = (), {}

    def __enter__(self) -> 'OpenWeights':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            there = f'it has {len(self._entries)} others, as {next(iter(self._entries))}' if self._entries else 'it is closed or empty'
            raise WeightsError(f'{self.where} has no array {name!r} ({there})')
        return self._entries[name]


def open_weights(path: str | os.PathLike) -> OpenWeights:
    """Opens a file, the files of an index, or those of a folder; see above.

    Raises:
        WeightsError: there is none, of another kind, damaged, or with contents that only executing them would give.
    """
    path = Path(path)
    file = _in_folder(path) if path.is_dir() else path
    if file.name.endswith(INDEX):
        return OpenWeights(file, _indexed(file))
    return OpenWeights(file, [_opened(file)])


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(file.name for file in folder.iterdir() if file.suffix in FORMATS)
    if len(others) != 1:
        has = f'; name one of: {", ".join(others[:10])}' if others else ''
        raise WeightsError(f'{folder} has none of {", ".join(IN_FOLDERS)}{has}')
    return folder / others[0]


def _opened(file: Path) -> Opened:
    if file.suffix not in FORMATS:
        raise WeightsError(f'{file} is no file of weights by its name (they end with {", ".join(FORMATS)} or {INDEX})')
    _size(file)
    return importlib.import_module(f'bigvlm.interop.files.{FORMATS[file.suffix]}').opened(file)


def _size(file: Path) -> int:
    if not file.is_file():
        raise WeightsError(f'{file}: there is no such file')
    size = file.stat().st_size
    if not size:
        raise WeightsError(f'{file} is empty')
    return size


# Several files and their index.

def _indexed(index: Path) -> list[Opened]:
    """All files of an index, if each has the arrays that the index says and no others."""
    wanted = _shards(index)
    opened: list[Opened] = []
    try:
        for shard, names in wanted.items():
            if not (index.parent / shard).is_file():
                raise WeightsError(f'{index} names {shard!r}, which is not in the folder')
            opened.append(_opened(index.parent / shard))
            there = opened[-1].entries.keys()
            if missing := sorted(names - there):
                raise WeightsError(f'{index.parent}: {shard!r} has no {missing[0]!r}, which {index.name} says is there')
            if others := sorted(there - names):
                raise WeightsError(f'{index.parent}: {shard!r} has {others[0]!r}, which {index.name} says is in another file or none')
    except BaseException:
        for file in opened:
            file.close()
        raise
    return opened


def _shards(index: Path) -> dict[str, set[str]]:
    """{file: names} of an index; every file is in its folder and of the kind that its own name says."""
    if _size(index) > _LARGEST:
        raise WeightsError(f'{index} has more than {_LARGEST:,} bytes')
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    try:
        weight_map = json.loads(index.read_text(encoding='utf-8'), object_pairs_hook=_once).get('weight_map')
    except (ValueError, RecursionError, AttributeError) as error:
        raise WeightsError(f'{index} is no index: {reason(error)}') from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f'{index} is no index: it has no weight_map {{array: file}}')
    found: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r'[^/\\:\0]+', shard) or shard in ('.', '..'):
            raise WeightsError(f'{index}: {name!r} is in {shard!r}, which is no name of a file in its folder')
        if suffix not in FORMATS or Path(shard).suffix != suffix:
            raise WeightsError(f'{index}: {name!r} is in {shard!r}, not of the kind of {index.name}')
        found.setdefault(shard, set()).add(name)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError('a name is there twice')
    return found
