"""Webdataset tars as img2dataset writes them (KEY.jpg, KEY.txt, KEY.json), anywhere, read at random through an index."""
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._tar import Member, members
from bigvlm.data.sources._tar_build import describe, fingerprint, open_index
from bigvlm.data.sources._tar_samples import kind_of, split

_TOGETHER = 64 << 20  # bytes of one request for neighbours
_MISSING = {'image': 'no image', 'captions': 'no caption', 'label': 'no label'}


class Webdataset:
    """All samples of the tars that `files` names (local, gs://, s3://, http://; globs, braces), in the order of their names.

    The image is KEY.jpg, .jpeg, .png, .webp or .gif; the captions are the `captions` or `caption` of KEY.json, else
    KEY.txt; `label` is KEY.json's, else KEY.cls. `extra` names more keys of KEY.json to keep, `members` more endings,
    whose bytes are kept under that name. `require` says what a sample must have to be usable, of all these. `index`: a
    file or folder that tools/data.py index made, so that hosts share it; '' is the cache. `io` counts requests and bytes.
    """

    label_names: tuple[str, ...] = ()

    def __init__(self, files: str | Sequence[str], require: Sequence[str] = ('image', 'captions'), extra: Sequence[str] = (),
                 members: Sequence[str] = (), index: str = ''):
        self._require, self._extra, self._members = tuple(require), tuple(extra), tuple(members)
        valid = (*_MISSING, *self._extra, *self._members)
        if unknown := set(require) - set(valid):
            raise RecipeError(f'require: {", ".join(sorted(unknown))} is none of {", ".join(valid)}')
        if len(set(valid)) < len(valid):
            raise RecipeError(f'extra, members: each key once, and none of {", ".join(_MISSING)}; found {", ".join(valid[3:])}')
        self.name = files if isinstance(files, str) else ','.join(files)
        found = storage.find(files, 'files')
        self._index = open_index(found, index)
        self._files = storage.Files(list(found))
        self.damage = self._index.damage
        self.fingerprint = fingerprint(self._files.urls, self._index)
        self._kinds = frozenset(('image', 'json', 'txt', 'cls', *self._members))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(self._parts(index))

    def read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples `first` to `stop` - 1, with one request for neighbours in a tar; BadExample in place of unusable ones."""
        found: list[dict[str, Any] | BadExample] = []
        for tar, start, size, count in self._together(first, stop):
            data = self._files.read(tar, start, size)
            for index in range(first + len(found), first + len(found) + count):
                try:
                    found.append(self._example(self._parts(index, data, start)))
                except BadExample as bad:
                    found.append(bad)
        return found

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one sample, () if it has none."""
        return self._words(self._parts(index)).get('captions', ())

    def describe(self, index: int) -> str:
        """'train-0003.tar:000123'."""
        tar, offset, size, _ = self._index.locate(index)
        return f'{self._files.urls[tar].rpartition("/")[2]}:{describe(self._files, tar, offset, size)}'

    @property
    def io(self) -> storage.Counts:
        """What was read so far."""
        return self._files.counts

    def _together(self, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Examples by requests: tar, offset and size of what to read, and how many examples lie there."""
        tar = start = size = count = 0
        for index in range(first, stop):
            own_tar, offset, _, whole = self._index.locate(index)
            if count and (own_tar != tar or offset + whole - start > _TOGETHER):
                yield tar, start, size, count
                count = 0
            if not count:
                tar, start = own_tar, offset
            size, count = offset + whole - start, count + 1
        if count:
            yield tar, start, size, count

    def _parts(self, index: int, data: bytes | None = None, start: int = 0) -> '_Parts':
        """The members of a sample, out of `data`, which begins at byte `start` of the tar, if it was read already."""
        tar, offset, size, whole = self._index.locate(index)
        data = self._files.read(tar, offset, whole) if data is None else data[offset - start:offset - start + whole]
        return _Parts(data, size, self._kinds, self._index.crcs(index))

    def _example(self, parts: '_Parts') -> dict[str, Any]:
        example: dict[str, Any] = {key: parts(key) for key in ('image', *self._members) if key in parts}
        example |= self._words(parts)
        for key in self._require:
            if not example.get(key) and example.get(key) != 0:
                raise BadExample(_MISSING.get(key, f'no {key}'))
        return example

    def _words(self, parts: '_Parts') -> dict[str, Any]:
        """`captions`, `label` and the `extra` keys, as far as the sample has them."""
        found: dict[str, Any] = {}
        if 'json' in parts:
            record = _record(parts('json'))
            found['captions'] = _clean(record.get('captions') or record.get('caption') or ())
            if isinstance(record.get('label'), int):
                found['label'] = _label(record['label'])
            found |= {key: _clean(value) if isinstance(value, (str, list)) else value
                      for key in self._extra if (value := record.get(key)) is not None}
        if not found.get('captions') and 'txt' in parts:
            found['captions'] = _clean(parts('txt').decode('utf-8', 'replace'))
        if 'label' not in found and 'cls' in parts:
            found['label'] = _label(parts('cls'))
        return found


class _Parts:
    """The contents of a sample's members by kind; each is checked when it is used. Of several of a kind, the first counts.

    `data`: the `size` bytes of the sample and the block that follows.
    """

    def __init__(self, data: bytes, size: int, kinds: frozenset[str], crcs: list[int] | None):
        self._data, self._crcs = data, crcs
        self._members: dict[str, Member] = {}
        own = None
        for item in members(lambda at, count: data[at:at + count], len(data)):
            key, ending = split(item.name) if isinstance(item, Member) and item.start < size else ('', '')
            own = own or key
            kind = ending if ending in kinds else kind_of(ending)
            if key and key == own and kind in kinds:
                self._members.setdefault(kind, item)

    def __contains__(self, kind: str) -> bool:
        return kind in self._members

    def __call__(self, kind: str) -> bytes:
        member = self._members[kind]
        content = self._data[member.offset:member.offset + member.size]
        # Whichever member it is: a damaged header may have cost one, so that their numbers are not known.
        if self._crcs is not None and zlib.crc32(content) not in self._crcs:
            raise BadExample('checksum differs')
        return content


def _record(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadExample('json cannot be read') from None
    return record if isinstance(record, dict) else {}


def _label(said: int | bytes) -> int:
    try:
        label = int(said)
        if -2**31 <= label < 2**31:
            return label
    except ValueError:
        raise BadExample('label is no number') from None
    raise BadExample('label is too large')


def _clean(said: Any) -> tuple[str, ...]:
    """Texts with single spaces; what is empty or no text is left out."""
    texts = [said] if isinstance(said, str) else said if isinstance(said, list) else ()
    # json can say half of a surrogate pair, which is no text.
    whole = (' '.join(text.split()).encode('utf-8', 'replace').decode() for text in texts if isinstance(text, str))
    return tuple(text for text in whole if text)
