"""Files of examples: webdataset tars and ArrayRecords, the same bytes for the same examples."""
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from array_record.python import array_record_module

from bigvlm.core.parts import RecipeError
from bigvlm.data.sources.array_record import WRITER_OPTIONS, pack

_LONG = 4096  # numbers in an array, beyond which JSON is no place for it


class Shard(Protocol):
    """A file in the making."""

    def add(self, index: int, example: Mapping[str, Any], ending: str) -> None:
        """Appends an example; `ending` says what its encoded image is, '' for none."""

    def close(self) -> None:
        """Makes the file whole."""


class Tar:
    """KEY.jpg (or .png, .webp, .gif), KEY.txt with the first caption, KEY.json with everything else; KEY is the index."""

    ending = '.tar'

    def __init__(self, path: Path):
        self._tar = tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT)

    def add(self, index: int, example: Mapping[str, Any], ending: str) -> None:
        key = f'{index:010d}'
        if ending:
            self._member(f'{key}.{ending}', example['image'])
        if captions := example.get('captions'):
            self._member(f'{key}.txt', captions[0].encode())
        record = {name: _plain(name, value) for name, value in example.items() if name != 'image'}
        self._member(f'{key}.json', json.dumps(record, ensure_ascii=False).encode())

    def close(self) -> None:
        self._tar.close()

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # time 0, no owner: the same bytes whoever writes them, and when
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


class Records:
    """An ArrayRecord, an example a record, as the source `array_record` reads it."""

    ending = '.array_record'

    def __init__(self, path: Path):
        self._writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)

    def add(self, index: int, example: Mapping[str, Any], ending: str) -> None:
        try:
            self._writer.write(pack(example))
        except TypeError as error:
            raise RecipeError(f'--to: {error}') from None

    def close(self) -> None:
        self._writer.close()


FORMATS: dict[str, type[Shard]] = {'webdataset': Tar, 'array_record': Records}


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it. Raises RecipeError for what it has no place for."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.size <= _LONG:
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(f'{name}.{key}', inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(name, inner) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise RecipeError(f'--to: the example key {name!r} ({type(value).__name__}) has no place in a webdataset tar; array_record holds it')
