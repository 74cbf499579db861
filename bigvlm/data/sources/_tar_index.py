"""The file that says where each example of many tars lies: 16 bytes an example, mapped into memory and never read whole.

Little endian. A header of 128 bytes (`_HEADER`, then its CRC-32), then
    records   N x (start uint32, span uint32: in blocks of 512 bytes; number of the first member uint64)
    ends      T x uint64: of each tar, the examples up to its end
    sizes     T x uint64: bytes of each tar
    digests   T x 16 bytes: of the names, places and sizes of its members
    checked   T x uint8: whether the CRCs of its members are known
    names     the tars' base names, with NUL between; damage: JSON, reason -> items
and beside it, in a file whose name ends in .crc, if any tar's are known: 16 bytes and M x uint32, CRC-32s of members.
"""
import bisect
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bigvlm.data.cache import fresh
from bigvlm.data.sources._tar import BLOCK
from bigvlm.data.sources._tar_samples import RECORD, Samples

VERSION = 2
_MAGIC, _CRC_MAGIC = b'bigvlm tar index', b'bigvcrcs'
_HEADER = struct.Struct('<16sIIQQQQQ8s')  # magic, version, whether CRCs, tars, examples, members, bytes of names, of damage, id
_HEADER_BYTES = 128
_DIGEST = 16


class BadIndex(Exception):
    """The file is no index, one of another version, or not whole; the message says which and names it."""


class TarIndex:
    """An index opened for reading: what is not asked for is not read. `damage`: what the tars have lost, reason -> items."""

    def __init__(self, path: Path):
        self.path = path
        self._map, self._crcs = _mapped(path), None
        counts = _checked_header(path, self._map)
        known, tars, examples, members, name_bytes, damage_bytes, self.id = counts
        at = _HEADER_BYTES
        self._sections = {}
        for key, dtype, count in (('records', RECORD, examples), ('ends', '<u8', tars), ('sizes', '<u8', tars),
                                  ('digests', f'V{_DIGEST}', tars), ('checked', '?', tars)):
            self._sections[key] = np.ndarray(count, dtype, self._map, at)
            at += self._sections[key].nbytes
        self.records, self.ends, self.sizes = (self._sections[k] for k in ('records', 'ends', 'sizes'))
        self._names = slice(at, at + name_bytes)
        self.damage: dict[str, list[str]] = json.loads(self._map[self._names.stop:self._names.stop + damage_bytes])
        self.members = members
        if known:
            self._crcs = _crcs(path, self.id, members)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def digests(self) -> bytes:
        """Those of all tars, one after the other."""
        return self._sections['digests'].tobytes()

    @property
    def names(self) -> list[str]:
        """Base names of the tars."""
        return self._map[self._names].decode().split('\0')

    @property
    def checked(self) -> np.ndarray:
        """bool [T]: whether the CRCs of each tar's members are known."""
        return self._sections['checked']

    def locate(self, index: int) -> tuple[int, int, int, int]:
        """Tar number, offset and size in bytes of an example, and its size with the block that follows. Raises IndexError.

        By the block that follows one knows whether the last member ends where it says.
        """
        if not 0 <= index < len(self.records):
            raise IndexError(f'sample {index} of {len(self.records)}')
        tar = bisect.bisect_right(self.ends, index)
        start, span, _ = self.records[index].item()
        left = int(self.sizes[tar]) - start * BLOCK
        return tar, start * BLOCK, min(span * BLOCK, left), min(span * BLOCK + BLOCK, left)

    def crcs(self, index: int) -> list[int] | None:
        """The CRC-32s of the contents of an example's members, in order, or None if they are not known."""
        tar = bisect.bisect_right(self.ends, index)
        if self._crcs is None or not self.checked[tar]:
            return None
        stop = self.records['member'][index + 1] if index + 1 < len(self.records) else self.members
        return self._crcs[int(self.records['member'][index]):int(stop)].tolist()

    def examples_of(self, tar: int) -> range:
        """The examples that lie in a tar."""
        return range(int(self.ends[tar - 1]) if tar else 0, int(self.ends[tar]))

    def piece(self) -> tuple[Samples, int, str]:
        """The samples, size and name of the only tar of this index."""
        return Samples(self.records, self._crcs, self.digests, self.damage), int(self.sizes[0]), self.names[0]


def write(path: Path, pieces: Iterable[tuple[Samples, int, str]]) -> None:
    """An index of many tars out of (samples, size, base name) of each. Holds one piece at a time and tables of the tars."""
    crc_path = crc_path_of(path)
    ends, sizes, digests, checked, names, damage = [], [], [], [], [], {}
    with fresh(path) as part, fresh(crc_path) as crc_part, open(part, 'wb') as file, open(crc_part, 'wb') as crc_file:
        file.write(bytes(_HEADER_BYTES))
        crc_file.write(bytes(16))
        examples = members = 0
        for samples, size, name in pieces:
            records = samples.records.copy()
            count = 0 if samples.crcs is None else len(samples.crcs)
            records['member'] += members
            file.write(records)
            if samples.crcs is not None:
                crc_file.write(samples.crcs.astype('<u4'))
            examples, members = examples + len(records), members + count
            ends.append(examples)
            sizes.append(size)
            digests.append(samples.digest)
            checked.append(samples.crcs is not None)
            names.append(name)
            for reason, items in samples.damage.items():
                damage.setdefault(reason, []).extend(items)
        for table in (ends, sizes):
            file.write(np.array(table, '<u8'))
        said = '\0'.join(names).encode(), json.dumps(damage).encode()
        file.writelines((b''.join(digests), np.array(checked, bool).tobytes(), *said))
        id = _id(digests, checked)
        header = _HEADER.pack(_MAGIC, VERSION, any(checked), len(ends), examples, members, *map(len, said), id)
        file.seek(0)
        file.write(header + struct.pack('<I', zlib.crc32(header)))
        crc_file.seek(0)
        crc_file.write(_CRC_MAGIC + id)
    if not any(checked):
        crc_path.unlink()


def crc_path_of(path: Path) -> Path:
    """Where the CRCs of an index lie."""
    return path.with_name(path.name + '.crc')


def pieces(indices: Sequence[Path]) -> Iterator[tuple[Samples, int, str]]:
    """The pieces of many indices of one tar each."""
    for path in indices:
        yield TarIndex(path).piece()


def _id(digests: Sequence[bytes], checked: Sequence[bool]) -> bytes:
    """Tells which CRC file belongs to which index."""
    return struct.pack('<II', zlib.crc32(b''.join(digests)), zlib.crc32(bytes(checked)))


def _mapped(path: Path) -> mmap.mmap:
    with open(path, 'rb') as file:
        if not os.fstat(file.fileno()).st_size:
            raise BadIndex(f'{path} is empty')
        found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found.madvise(mmap.MADV_RANDOM)  # no reading ahead: neighbours are seldom wanted next
    return found


def _checked_header(path: Path, found: mmap.mmap) -> tuple:
    header = found[:_HEADER.size]
    if header[:16] != _MAGIC:
        raise BadIndex(f'{path} is no index of tars')
    if header[16:20] != struct.pack('<I', VERSION):
        raise BadIndex(f'{path} is an index of version {int.from_bytes(header[16:20], "little")}, not {VERSION}; build it anew')
    if found[_HEADER.size:_HEADER.size + 4] != struct.pack('<I', zlib.crc32(header)):
        raise BadIndex(f'{path} has a damaged header; build it anew')
    known, tars, examples, _, names, damage, _ = counts = _HEADER.unpack(header)[2:]
    expected = _HEADER_BYTES + examples * RECORD.itemsize + tars * (2 * 8 + _DIGEST + 1) + names + damage
    if len(found) != expected:
        raise BadIndex(f'{path} has {len(found)} bytes instead of {expected}: it is not whole; build it anew')
    return counts


def _crcs(path: Path, id: bytes, members: int) -> np.ndarray:
    path = crc_path_of(path)
    if not path.exists():
        raise BadIndex(f'{path}, the checksums of the index, is missing')
    found = _mapped(path)
    if found[:16] != _CRC_MAGIC + id or len(found) != 16 + 4 * members:
        raise BadIndex(f'{path} does not belong to its index, or is not whole; build it anew')
    return np.ndarray(members, '<u4', found, 16)
