"""Where the members of a tar lie, by reading its headers only (a tenth of what the tarfile module takes)."""
import os
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_LONGEST_HEADER = 1 << 20  # bytes of a long name or PAX record; more is damage


class Member(NamedTuple):
    """A regular file in a tar: `offset` and `size` of its content, in bytes."""
    name: str
    offset: int
    size: int


class BadTar(Exception):
    """The tar ends or stops making sense here; what came before is fine. `member`: the name of the cut file, or ''."""

    def __init__(self, reason: str, member: str = ''):
        super().__init__(reason)
        self.member = member


def members(file: int) -> Iterator[Member]:
    """The regular files of the tar open at descriptor `file`: ustar, GNU long names, PAX paths and sizes.

    Raises BadTar, after all whole members, where the file is cut or a header damaged.
    """
    end, at = os.fstat(file).st_size, 0
    long_name, pax = None, {}
    while at < end:
        header = os.pread(file, _BLOCK, at)
        if len(header) < _BLOCK:
            raise BadTar('truncated tar')
        if header == bytes(_BLOCK):
            return
        if not _sum_is_right(header):
            raise BadTar('damaged tar header')
        kind = header[156:157]
        name = pax.get('path') or long_name or _name(header)
        size = int(pax['size']) if 'size' in pax else _number(header[124:136])
        content, at = at + _BLOCK, at + _BLOCK + -(-size // _BLOCK) * _BLOCK
        if content + size > end:
            raise BadTar('truncated tar', name)
        if kind in b'Lx' and size > _LONGEST_HEADER:
            raise BadTar('damaged tar header')
        if kind == b'L':
            long_name = os.pread(file, size, content).rstrip(b'\0').decode('utf-8', 'replace')
        elif kind == b'x':
            pax = _pax(os.pread(file, size, content))
        elif kind not in b'gK':  # settings for the whole archive, and long link names, which no file needs
            if kind in b'0\0':
                yield Member(name, content, size)
            long_name, pax = None, {}
    # No closing blocks of zeros: the tar may have lost whole members, and which cannot be told.
    raise BadTar('tar without its end')


def _name(header: bytes) -> str:
    name = header[:100].split(b'\0', 1)[0]
    if header[257:262] == b'ustar' and header[262:263] == b'\0':  # GNU keeps other things in the prefix
        prefix = header[345:500].split(b'\0', 1)[0]
        name = prefix + b'/' + name if prefix else name
    return name.decode('utf-8', 'replace')


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: large numbers in base 256
        return int.from_bytes(bytes([field[0] & 0x7f]) + field[1:], 'big')
    try:
        return int(field.rstrip(b'\0 ').strip() or b'0', 8)
    except ValueError:
        raise BadTar('damaged tar header') from None


def _sum_is_right(header: bytes) -> bool:
    try:
        return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(' ')
    except BadTar:
        return False


def _pax(records: bytes) -> dict[str, str]:
    """Records 'LENGTH key=value\\n', where LENGTH counts the whole record."""
    found = {}
    while records:
        length, _, _ = records.partition(b' ')
        if not length.isdigit() or not 0 < int(length) <= len(records):
            raise BadTar('damaged tar header')
        key, _, value = records[len(length) + 1:int(length)].rstrip(b'\n').partition(b'=')
        found[key.decode()] = value.decode('utf-8', 'replace')
        records = records[int(length):]
    return found
