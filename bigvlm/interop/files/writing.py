"""Writing safetensors: one file's arrays at a time, by temporary names, with an index if there are several files."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.files import safetensors
from bigvlm.interop.files.entry import INDEX


def save_weights(folder: str | os.PathLike, arrays: Iterable[tuple[str, Any]], name: str = 'model.safetensors', *,
                 shard_bytes: float = 5e9, metadata: Mapping[str, str] | None = None, dtype: Any = None) -> list[Path]:
    """Writes (name, array) pairs as safetensors; more than one file of ``shard_bytes`` gets an index. Holds one file's arrays at
    a time. Files have temporary names until all are on disk; weights of the same name that were there are replaced.

    Args:
        folder: made if it is not there.
        arrays: NumPy or jax; read once, in order.
        name: of the file; of several, 'model-00001-of-00002.safetensors' and 'model.safetensors.index.json'.
        metadata: text for the header; by default that which transformers asks for, {'format': 'pt'}.
        dtype: of the arrays in the file; integers keep theirs. By default all do.

    Returns:
        The files, an index last.

    Raises:
        WeightsError: there are no arrays, two of a name, or one that the format cannot hold. Nothing is left in the folder then.
    """
    folder = Path(folder)
    if Path(name).name != name or Path(name).suffix != '.safetensors':
        raise WeightsError(f'{name!r} is no name of a safetensors file')
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[Path, list[str]]] = []
    total = 0
    try:
        for group in _groups(arrays, shard_bytes, dtype):
            shards.append((folder / f'.{name}.{os.getpid()}.{len(shards)}.tmp', list(group)))
            _write(shards[-1][0], group, {'format': 'pt'} if metadata is None else metadata)
            total += sum(x.nbytes for x in group.values())
            del group  # or it would be there beside the next
        if not shards:
            raise WeightsError(f'{folder / name}: there are no arrays to save')
        return _publish(folder, name, shards, total)
    finally:
        for path, _ in shards:
            path.unlink(missing_ok=True)


def _groups(arrays: Iterable[tuple[str, Any]], shard_bytes: float, dtype: Any) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of one file after the other. Each ends before the array that would be too much for it."""
    seen: set[str] = set()
    group: dict[str, np.ndarray] = {}
    for name, x in arrays:
        if name in seen:
            raise WeightsError(f'there are two arrays {name!r} to save')
        seen.add(name)
        x = np.asarray(x)
        x = np.asarray(x, dtype if dtype is not None and x.dtype.kind not in 'iub' else x.dtype, order='C')
        if group and sum(one.nbytes for one in group.values()) + x.nbytes > shard_bytes:
            yield group
            group = {}
        group[name] = x
    if group:
        yield group


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    safetensors.write(path, arrays, metadata)
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def _publish(folder: Path, name: str, shards: list[tuple[Path, list[str]]], total: int) -> list[Path]:
    """Gives complete files their names. Killed on the way, it leaves the old weights, the new ones, or a folder that is refused."""
    stem = name.removesuffix('.safetensors')
    index, single = folder / f'{name}{INDEX}', folder / name
    old = {file for file in folder.iterdir() if re.fullmatch(re.escape(stem) + r'-\d{5}-of-\d{5}\.safetensors', file.name)}
    if len(shards) == 1:
        shards[0][0].replace(single)  # readers prefer it to an index, so that from here on the new weights are read
        new = [single]
        index.unlink(missing_ok=True)
    else:
        names = [f'{stem}-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
        index.unlink(missing_ok=True)  # of old files that may get new contents under the same names
        for (path, _), shard in zip(shards, names):
            path.replace(folder / shard)
        weight_map = {array: shard for shard, (_, arrays) in zip(names, shards) for array in arrays}
        draft = folder / f'.{index.name}.{os.getpid()}.tmp'
        draft.write_text(json.dumps({'metadata': {'total_size': total}, 'weight_map': weight_map}, indent=2) + '\n', encoding='utf-8')
        draft.replace(index)
        single.unlink(missing_ok=True)
        new = [*(folder / shard for shard in names), index]
    for file in old - set(new):
        file.unlink()
    return new
