"""ArrayRecord files of bigvlm's own: each record is one example, packed by msgpack; `tools/data.py convert` writes them.

A record is a map with the example's keys: image (encoded bytes, or pixels), captions (texts), label (a number), key and
whatever else. Arrays are msgpack extension 1: dtype, shape and bytes. The names of the labels are a JSON list in
label_names.json in the folder of the files.
"""
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample, usable
from bigvlm.data.sources._file_index import Joined
from bigvlm.data.sources._records import ArrayRecords

LABEL_NAMES = 'label_names.json'
WRITER_OPTIONS = 'group_size:1'  # each record compressed alone: random access decodes one
_ARRAY = 1  # msgpack's number for our arrays


class ArrayRecord:
    """The records of all `files` (patterns), in the order of the files' names. Lists come back as tuples."""

    def __init__(self, files: str | Sequence[str]):
        self._urls = storage.expand(files, 'files')
        self.name = files if isinstance(files, str) else ','.join(files)
        self._records = ArrayRecords(self._urls)
        self.io, self.damage = self._records.io, self._records.damage
        self._joined = Joined(self._records.counts)
        self.label_names = _label_names(Path(self._urls[0]).parent / LABEL_NAMES)
        names = [url.rpartition('/')[2] for url in self._urls]
        known = [*zip(names, self._records.digests, self._records.counts), self.label_names]
        self.fingerprint = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return usable(self.read(index, index + 1)[0])

    def read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples first..stop-1, by one request for each file."""
        return [_unpacked(record) for piece in self._joined.pieces(first, stop) for record in self._records.read(*piece)]

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one example, () if it has none."""
        return self[index].get('captions', ())

    def describe(self, index: int) -> str:
        """'train-0003.array_record[17]'."""
        file, row = self._joined.locate(index)
        return f'{self._urls[file].rpartition("/")[2]}[{row}]'


def pack(example: Mapping[str, Any]) -> bytes:
    """An example as a record: texts, bytes, numbers, None, arrays, and lists and maps of them. Raises TypeError for others."""
    return msgpack.packb(dict(example), default=_packed)


def unpack(record: bytes) -> dict[str, Any]:
    """What `pack` was given, lists as tuples. Raises ValueError for what is no such record."""
    try:
        example = msgpack.unpackb(record, ext_hook=_array, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f'no packed example: {error}') from error
    if not isinstance(example, dict):
        raise ValueError(f'a packed example is a map, found {type(example).__name__}')
    return example


def _unpacked(record: bytes | BadExample) -> dict[str, Any] | BadExample:
    if isinstance(record, BadExample):
        return record
    try:
        return unpack(record)
    except ValueError:
        return BadExample('record cannot be unpacked')


def _packed(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        head = (value.dtype.str, value.shape)
        return msgpack.ExtType(_ARRAY, msgpack.packb((*head, np.ascontiguousarray(value).tobytes())))
    raise TypeError(f'an example cannot be packed with {type(value).__name__} in it')


def _array(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise ValueError(f'unknown extension {code}')
    dtype, shape, content = msgpack.unpackb(data, use_list=False)
    return np.frombuffer(content, np.dtype(dtype)).reshape(shape)


def _label_names(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    try:
        names = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise RecipeError(f'files: {path} is no JSON: {error}') from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(f'files: {path} must be a list of texts')
    return tuple(names)
