"""Where the members of a tar lie, by its headers; what is damaged is reported and passed over."""
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bigvlm.data import storage

BLOCK = 512
_ABOUT_OTHERS = b'LKxg'  # long names of files and links, PAX records of the next file and of the whole archive
_OWN_SIZE = _ABOUT_OTHERS + b'123456'  # links, devices and folders have no content
_LONGEST_HEADER = 1 << 20  # bytes of a long name or PAX record; more is damage
_LONGEST_END = 1 << 20  # bytes of closing zeros; more are the end of a download that was broken off
_PIECE = 1 << 20  # bytes looked at together where much is looked at
_AHEAD = 8 << 20  # bytes of one request of a Stream
_BLANK, _ADLER = b' ' * 8, 65_521

Read = Callable[[int, int], bytes]  # (offset, size) -> so many bytes, fewer at the end


class Member(NamedTuple):
    """A regular file in a tar. In bytes: `start` of its headers, `offset` and `size` of its content. `crc`: CRC-32 of it."""
    name: str
    start: int
    offset: int
    size: int
    crc: int | None


class Damage(NamedTuple):
    """Bytes `start` to `stop` of the tar make no sense; `name` is the file that was lost there, '' if not known."""
    reason: str
    start: int
    stop: int
    name: str


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int


def members(read: Read, end: int, crc: bool = False, start: int = 0) -> Iterator[Member | Damage]:
    """The regular files of a tar of `end` bytes: ustar, GNU long names and sizes, PAX paths and sizes; holes where damaged.

    A header counts if its sum is right, and a member once something sensible follows it (a header, zeros or the end):
    where that is not so, either may be wrong, and the next header is looked for from the member's content on. So a
    damaged size costs that member only. Memory is bounded whatever the headers say. `start`: where to begin.
    """
    def settled(member: Member) -> Member:
        return member._replace(crc=_crc(read, member.offset, member.size)) if crc else member
    at = seen = start  # what lies before `seen` is settled
    pending: Member | None = None  # the last member, until what follows it is seen to make sense
    first, long_name, pax = None, '', {}  # of the headers that belong to the next member: where, and what they say
    while at < end:
        block = read(at, BLOCK)
        header = _header(block) if len(block) == BLOCK else None
        if header is None:
            zeros = block == bytes(BLOCK)
            after = _skip_zeros(read, at, end) if zeros else at
            done = zeros and after >= end
            if not done:
                after = _next_header(read, after if zeros else seen, end)
            if pending and (zeros or after >= at):
                yield settled(pending)
                pending = None
            if not done:
                yield _hole(at, after, end, pending, zeros, len(block) < BLOCK, seen)
            if done and end - at > _LONGEST_END:
                yield Damage('zeros at the end of the tar', at, end, '')
            if after >= end:
                return
            at, seen, pending = after, after, None
            first, long_name, pax = None, '', {}
            continue
        if pending:
            yield settled(pending)
            pending = None
        first = at if first is None else first
        size = header.size if header.kind in _OWN_SIZE else pax.get('size', header.size)
        name = '' if header.kind in _ABOUT_OTHERS else pax.get('path') or long_name or header.name
        content = seen = at + BLOCK
        at = content + -(-size // BLOCK) * BLOCK
        if content + size > end or header.kind in _ABOUT_OTHERS and size > _LONGEST_HEADER:
            after = _next_header(read, content, end)
            cut = after >= end and content + size > end
            yield Damage('truncated tar' if cut else 'damaged tar header', first, after, name)
            if after >= end:
                return
            at = seen = after
            first, long_name, pax = None, '', {}
        elif header.kind == b'L':
            long_name = read(content, size).rstrip(b'\0').decode('utf-8', 'replace')
        elif header.kind == b'x':
            pax = _pax(read(content, size))
        elif header.kind not in _ABOUT_OTHERS:
            if pax.get('damaged'):  # the next member's name and size are not known
                yield Damage('damaged tar header', first, min(at, end), name)
            elif header.kind in b'0\x007' and not name.endswith('/'):
                pending = Member(name, first, content, size, None)
            first, long_name, pax = None, '', {}
    if pending:
        yield settled(pending)
    # No closing zeros: the tar may have lost whole members, and which cannot be told.
    yield Damage('tar without its end', end, end, '')


def _hole(at: int, after: int, end: int, lost: Member | None, zeros: bool, cut: bool, seen: int) -> Damage:
    """What to say of a block at `at` that is no header, where sense begins again at `after`."""
    if zeros:
        return Damage('bytes after the end of the tar' if after >= end else 'zeros inside the tar', at, after, '')
    if after < at:  # the header before said too much
        return Damage('damaged tar header', lost.start if lost else seen - BLOCK, after, lost.name if lost else '')
    return Damage('truncated tar' if cut and after >= end else 'damaged tar header', at, after, '')


class Stream:
    """Reads a file or object about in order, in large pieces, of which it keeps the last."""

    def __init__(self, url: str, size: int):
        self._url, self._size = url, size
        self._start, self._kept = 0, b''

    def __call__(self, at: int, size: int) -> bytes:
        stop = min(at + size, self._size)
        if stop <= at:
            return b''
        end = self._start + len(self._kept)
        if not self._start <= at <= end + _AHEAD:
            self._start, self._kept, end = at, b'', at
        if stop > end:
            more = storage.read(self._url, end, min(max(_AHEAD, stop - end), self._size - end))
            self._start, self._kept = max(self._start, end - _AHEAD), self._kept[-_AHEAD:] + more
        if at < self._start:  # a member longer than what is kept: its content is read anew
            self._start, self._kept = at, storage.read(self._url, at, stop - at)
        return self._kept[at - self._start:stop - self._start]


def _header(block: bytes) -> _Header | None:
    """What a header block says, or None if its sum is wrong or a number none."""
    said = _number(block[148:156])
    # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521: ten times as fast as sum().
    if said is None or (said + 1 - (zlib.adler32(block[:148] + _BLANK + block[156:]) & 0xffff)) % _ADLER:
        return None
    kind = block[156:157]
    size = 0 if kind in b'123456' else _number(block[124:136])
    return None if size is None else _Header(_name(block), kind, size)


def _name(header: bytes) -> str:
    name = header[:100].split(b'\0', 1)[0]
    if header[257:263] == b'ustar\0':  # GNU keeps other things in the prefix
        prefix = header[345:500].split(b'\0', 1)[0]
        name = prefix + b'/' + name if prefix else name
    return name.decode('utf-8', 'replace')


def _number(field: bytes) -> int | None:
    if field[0] == 0x80:  # GNU: large numbers in base 256
        return int.from_bytes(field[1:], 'big')
    digits = field.rstrip(b'\0 ').lstrip(b' ')
    try:
        return int(digits or b'0', 8) if digits.isdigit() or not digits else None
    except ValueError:
        return None


def _pax(records: bytes) -> dict[str, str | int | bool]:
    """'path' and 'size' of records 'LENGTH key=value\\n', where LENGTH counts the whole record; 'damaged' if they are not such."""
    found, at = {}, 0
    while at < len(records):
        space = records.find(b' ', at, at + 20)
        digits = records[at:max(space, at)]
        stop = at + int(digits) if digits.isdigit() else -1
        key, _, value = records[space + 1:stop].rstrip(b'\n').partition(b'=')
        if not space < stop <= len(records) or key == b'size' and not (value.isdigit() and len(value) < 20):
            return {'damaged': True}
        if key == b'path':
            found['path'] = value.decode('utf-8', 'replace')
        elif key == b'size':
            found['size'] = int(value)
        at = stop
    return found


def _crc(read: Read, at: int, size: int) -> int:
    crc, stop = 0, at + size
    for piece in range(at, stop, _PIECE):
        crc = zlib.crc32(read(piece, min(_PIECE, stop - piece)), crc)
    return crc


def _skip_zeros(read: Read, at: int, end: int) -> int:
    """The first block at or after `at` that is not all zeros, or `end`."""
    while at < end:
        piece = read(at, _PIECE)
        if not piece:
            return end
        rest = piece.lstrip(b'\0')
        if rest:
            return at + (len(piece) - len(rest)) // BLOCK * BLOCK
        at += len(piece)
    return end


def _next_header(read: Read, at: int, end: int) -> int:
    """The first block at or after `at` that is a header with the magic of one, or `end`."""
    while at < end:
        piece = read(at, _PIECE)
        found = piece.find(b'ustar')
        while found >= 0:
            block = found - 257
            if block >= 0 and block % BLOCK == 0 and block + BLOCK <= len(piece) and _header(piece[block:block + BLOCK]):
                return at + block
            found = piece.find(b'ustar', found + 1)
        if len(piece) < _PIECE:
            return end
        at += len(piece)
    return end
