"""Webdataset tars as img2dataset writes them (KEY.jpg, KEY.txt, KEY.json), read at random through an index."""
import glob
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._tar_index import PARTS, indices

_IMAGE, _TXT, _JSON = range(len(PARTS))
_OPEN_TARS = 256  # kept open; the others are opened for each read


class Webdataset:
    """All samples of the tars that `files` (a glob or several) matches, in the order of their names.

    The image is KEY.jpg, .jpeg, .png, .webp or .gif; the captions are the `captions` or `caption` of KEY.json, else
    KEY.txt; `label` is KEY.json's, if all have one. `require` says what a sample must have to be usable.
    """

    label_names: tuple[str, ...] = ()

    def __init__(self, files: str | Sequence[str], require: Sequence[str] = ('image', 'captions')):
        patterns = (files,) if isinstance(files, str) else tuple(files)
        self._tars: list[Path] = []
        for pattern in patterns:
            found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
            if not found:
                raise RecipeError(f'files: nothing matches {pattern!r}')
            self._tars += [Path(f) for f in found]
        if unknown := set(require) - {'image', 'captions', 'label'}:
            raise RecipeError(f'require: {", ".join(sorted(unknown))} is none of image, captions, label')
        self.name, self._require = ','.join(patterns), tuple(require)
        self._index = indices(self._tars)
        self._ends = np.cumsum([len(index.keys) for index in self._index])
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()
        self.damage: dict[str, list[str]] = {}
        for index in self._index:
            reason, item = index.damage
            if reason:
                self.damage.setdefault(reason, []).append(item)
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        tar, row = self._locate(index)
        example: dict[str, Any] = {}
        if (image := self._read(tar, row, _IMAGE)) is not None:
            example['image'] = image
        example |= self._words(tar, row)
        for key in self._require:
            if not example.get(key) and example.get(key) != 0:
                raise BadExample({'image': 'no image', 'captions': 'no caption', 'label': 'no label'}[key])
        return example

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one sample, () if it has none; the image is not read."""
        return self._words(*self._locate(index)).get('captions', ())

    def describe(self, index: int) -> str:
        """'train-0003.tar:000123'."""
        tar, row = self._locate(index)
        return f'{self._tars[tar].name}:{self._index[tar].keys[row]}'

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f'sample {index} of {len(self)}')
        tar = int(np.searchsorted(self._ends, index, side='right'))
        return tar, int(index - self._ends[tar] + len(self._index[tar].keys))

    def _words(self, tar: int, row: int) -> dict[str, Any]:
        """`captions` and `label`, as far as the sample has them."""
        found: dict[str, Any] = {}
        if (raw := self._read(tar, row, _JSON)) is not None:
            try:
                record = json.loads(raw)
            except ValueError:
                raise BadExample('json cannot be read') from None
            record = record if isinstance(record, dict) else {}
            said = record.get('captions') or record.get('caption') or ()
            found['captions'] = _clean([said] if isinstance(said, str) else said)
            if isinstance(record.get('label'), int):
                found['label'] = record['label']
        if not found.get('captions') and (raw := self._read(tar, row, _TXT)) is not None:
            found['captions'] = _clean([raw.decode('utf-8', 'replace')])
        return found

    def _read(self, tar: int, row: int, part: int) -> bytes | None:
        offset, size = map(int, self._index[tar].places[row, part])
        if offset < 0:
            return None
        file = self._files.get(tar)
        if file is not None:
            data = os.pread(file, size, offset)
        else:
            data = self._open_and_read(tar, offset, size)
        if len(data) < size:
            raise OSError(f'{self._tars[tar]} became shorter while in use')
        return data

    def _open_and_read(self, tar: int, offset: int, size: int) -> bytes:
        file = os.open(self._tars[tar], os.O_RDONLY)
        try:
            data = os.pread(file, size, offset)
            with self._lock:
                if len(self._files) < _OPEN_TARS and tar not in self._files:
                    self._files[tar], file = file, -1  # stays open as long as the source lives
            return data
        finally:
            if file >= 0:
                os.close(file)

    def __del__(self):
        for file in getattr(self, '_files', {}).values():
            os.close(file)

    def _fingerprint(self) -> str:
        """Of names, keys and sizes: the same for a copy of the tars elsewhere."""
        digest = hashlib.sha256()
        for tar, index in zip(self._tars, self._index):
            digest.update(f'{tar.name} {len(index.keys)} '.encode())
            digest.update('\n'.join(index.keys.tolist()).encode())
            digest.update(np.ascontiguousarray(index.places).tobytes())
        return digest.hexdigest()[:16]


def _clean(texts: Any) -> tuple[str, ...]:
    return tuple(t for text in texts if isinstance(text, str) and (t := ' '.join(text.split())))
