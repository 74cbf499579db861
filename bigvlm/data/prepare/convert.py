"""Any source as webdataset tars or ArrayRecords: shard after shard, to be taken up again where it was stopped."""
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.cache import fresh, locked
from bigvlm.data.ops.decode import pixels
from bigvlm.data.prepare import images
from bigvlm.data.prepare.shards import FORMATS
from bigvlm.data.prepare.walk import walk
from bigvlm.data.sources.array_record import LABEL_NAMES

_VERSION = 1  # of what is written for an example
_KEYS = ('image', 'captions', 'label')  # that a source of tars can be told to require


@dataclass(frozen=True)
class Settings:
    """`to`: webdataset or array_record; `shard`: examples of the source per file; `prefix`: the files' name.

    `size`: images whose shorter side is longer are scaled to it and become JPEGs of `quality`; 0: none. `reencode`: all
    do. `decode`: images that cannot be decoded are left out; otherwise they are copied unseen.
    """
    to: str = 'array_record'
    shard: int = 10_000
    prefix: str = 'train'
    size: int = 0
    quality: int = 90
    reencode: bool = False
    decode: bool = False

    def __post_init__(self):
        if self.to not in FORMATS:
            raise RecipeError(f'--to: {self.to!r} is none of {", ".join(FORMATS)}')
        if self.shard < 1 or self.size < 0 or not 1 <= self.quality <= 100:
            raise RecipeError(f'--shard at least 1, --size at least 0, --quality 1 to 100; found {self.shard}, {self.size}, {self.quality}')


def convert(source: Any, out: Path, settings: Settings, workers: int = 0, what: str = '') -> dict[str, Any]:
    """Writes `source` into the folder `out` and returns its manifest, which is also there as PREFIX.manifest.json.

    Shard k holds the usable ones of examples k · shard to (k + 1) · shard - 1, so that files do not depend on each other
    nor on threads. A file gets its name when it is whole; files that the manifest lists are kept. Of several processes of a
    host, one converts and the others wait. Raises RecipeError if the folder holds another source's files or other settings'.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(f'convert-{hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]}'):
        for left in out.glob(f'.{settings.prefix}*'):  # what a killed conversion has begun
            left.unlink()
        return _converted(source, out, settings, workers, what)


def _converted(source: Any, out: Path, settings: Settings, workers: int, what: str) -> dict[str, Any]:
    manifest = _begun(out, source, settings)
    count = -(-len(source) // settings.shard)
    kind = FORMATS[settings.to]
    names = [f'{settings.prefix}-{k:05d}{kind.ending}' for k in range(count)]
    missing = [k for k in range(count) if not _done(out, manifest, names[k])]
    todo = _Ranges(missing, settings.shard, len(source))

    def work(index: int, example: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        return _worked({'key': source.describe(index), **example}, settings)

    with contextlib.closing(walk(source, work, todo, workers, what)) as made:
        for k in missing:
            manifest['shards'][names[k]] = _shard(out / names[k], kind, source, made, todo.length(k))
            _save(out, manifest)
    if source.label_names and settings.to == 'array_record':  # where the source `array_record` looks for them
        with fresh(out / LABEL_NAMES) as part:
            part.write_text(json.dumps(source.label_names), encoding='utf-8')
            os.chmod(part, 0o644)
    manifest['finished'] = True
    manifest['written'] = sum(entry['examples'] for entry in manifest['shards'].values())
    _save(out, manifest)
    return manifest


def unusable(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was left out: reason -> items, of all shards."""
    found: dict[str, list[str]] = {}
    for entry in manifest['shards'].values():
        for reason, items in entry['unusable'].items():
            found.setdefault(reason, []).extend(items)
    return found


def keys(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of image, captions and label all written examples have."""
    return tuple(key for key in _KEYS if all(key in entry['keys'] for entry in manifest['shards'].values()))


def _worked(example: Mapping[str, Any], settings: Settings) -> tuple[dict[str, Any], str]:
    image = example.get('image')
    if image is None:
        return dict(example), ''
    if settings.decode and not isinstance(image, np.ndarray):
        pixels(image)
    ending, data = images.smaller(image, settings.size, settings.quality, settings.reencode)
    return {**example, 'image': data}, ending


def _shard(path: Path, kind: type, source: Any, made, length: int) -> dict[str, Any]:
    """Writes the next `length` examples of `made`; what the manifest says of the file."""
    written, unusable, common = 0, {}, set(_KEYS)
    with fresh(path) as part:
        shard = kind(part)
        try:
            for _ in range(length):
                index, done = next(made)
                if isinstance(done, BadExample):
                    unusable.setdefault(str(done), []).append(source.describe(index))
                else:
                    shard.add(index, *done)
                    written += 1
                    common &= done[0].keys()
        finally:
            shard.close()
        with open(part, 'rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
        os.chmod(part, 0o644)  # temporary files are their owner's alone
        entry = dict(examples=written, bytes=part.stat().st_size, sha256=digest, keys=sorted(common), unusable=unusable)
    return entry


class _Ranges:
    """The indices of some shards as one sequence."""

    def __init__(self, shards: list[int], size: int, examples: int):
        self._shards, self._size, self._examples = shards, size, examples

    def length(self, shard: int) -> int:
        return min(self._size, self._examples - shard * self._size)

    def __len__(self) -> int:
        return sum(map(self.length, self._shards))

    def __getitem__(self, wanted: slice) -> list[int]:
        """Only the last shard of a source can be short, and it is the last here too."""
        places = range(*wanted.indices(len(self)))
        return [self._shards[place // self._size] * self._size + place % self._size for place in places]


def _begun(out: Path, source: Any, settings: Settings) -> dict[str, Any]:
    said = dict(version=_VERSION, source=source.name, fingerprint=source.fingerprint, examples=len(source), settings=asdict(settings))
    path = _manifest(out, settings.prefix)
    if not path.exists():
        if any(out.glob(f'{settings.prefix}-*')):
            raise RecipeError(f'--out: {out} holds {settings.prefix}-* files but no {path.name}; choose another folder or --prefix')
        return {**said, 'finished': False, 'shards': {}}
    manifest = json.loads(path.read_text(encoding='utf-8'))
    for key in ('version', 'fingerprint', 'settings'):
        if manifest[key] != said[key]:
            raise RecipeError(f'--out: {out} holds files of {key} {manifest[key]}, not {said[key]}; choose another folder or --prefix')
    return {**manifest, 'finished': False}


def _manifest(out: Path, prefix: str) -> Path:
    return out / f'{prefix}.manifest.json'


def _done(out: Path, manifest: Mapping[str, Any], name: str) -> bool:
    entry, path = manifest['shards'].get(name), out / name
    return entry is not None and path.exists() and path.stat().st_size == entry['bytes']


def _save(out: Path, manifest: dict[str, Any]) -> None:
    manifest['shards'] = dict(sorted(manifest['shards'].items()))
    with fresh(_manifest(out, manifest['settings']['prefix'])) as part:
        part.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        os.chmod(part, 0o644)
