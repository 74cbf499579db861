"""Tars of samples, damaged, through the indexer and the webdataset source: every example is read."""
import atexit
import functools
import io
import os
import pathlib
import shutil
import tarfile
import tempfile
import zlib

from bigvlm.data.bad import BadExample
from bigvlm.data.sources._tar_build import build_index, verify
from bigvlm.data.sources.webdataset import Webdataset
from tools.fuzzing import mutations

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
_FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 6), (263, 2), (345, 155))
_SIZES = (b'77777777777\0', b'\x80' + b'\xff' * 11, b'\xff' * 12, b'-0000000001\0', b'00000000000\0', b'00000001000\0', b'99999999999\0',
          b'\x80' + bytes(10) + b'\x01', b'00000100000\0')
_CLEANED = 400  # files after which the scratch folder is emptied


def make(rng) -> bytes:
    """A damaged tar."""
    kinds = (*mutations.ANY, _lie, _lie, _long_name, _pax)
    return mutations.mutated(_good(rng.choice(_FORMATS), rng.randrange(4)), rng, kinds)


def check(data: bytes) -> str:
    """Indexes, names and reads all examples, one by one and together; says how many of the 8 samples came through.

    Half of the tars are indexed with checksums, which must then agree with what they were made from.
    """
    folder = _scratch()
    path = folder / f'{len(os.listdir(folder))}.tar'
    path.write_bytes(data)
    if zlib.crc32(data) % 2:
        build_index([str(path)], crc=True)
        differs = [item for item, reason in verify([str(path)]) if reason == 'checksum differs']
        assert not differs, f'{differs}: the checksums are not those of the members'
    source = Webdataset(str(path), members=('npy',), extra=('url',))
    single = []
    for i in range(len(source)):
        source.describe(i)
        try:
            single.append(source[i])
        except BadExample as bad:
            single.append(str(bad))
    together = [str(e) if isinstance(e, BadExample) else e for e in source.read(0, len(source))]
    assert 'checksum differs' not in single and single == together, 'read() gives other examples than single reads'
    return 'all read' if sum(isinstance(e, dict) for e in single) >= 8 else 'some lost' if single else 'nothing left'


@functools.cache
def _root() -> pathlib.Path:
    memory = '/dev/shm'
    root = tempfile.mkdtemp(prefix='bigvlm-fuzz-', dir=memory if os.path.isdir(memory) else None)
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    os.environ['BIGVLM_CACHE'] = os.path.join(root, 'cache')
    return pathlib.Path(root)


def _scratch() -> pathlib.Path:
    folder = _root() / 'tars'
    if folder.exists() and len(os.listdir(folder)) >= _CLEANED:
        for old in (folder, _root() / 'cache'):
            shutil.rmtree(old)
    folder.mkdir(exist_ok=True)
    return folder


@functools.cache
def _good(format: int, variant: int) -> bytes:
    """Eight samples; variants have long names, other members, nested and empty records."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=format) as tar:
        for i in range(8):
            stem = f'{"d" * 60}/{"ü" * 15}{i:06}' if variant == 1 else f'{i:06}'
            record = (b'{"captions": ["a", "b"], "url": "x", "label": 3}', b'[' * 9000, b'{}', b'{"caption": "c"}')[variant]
            parts = dict(jpg=b'\xff\xd8' + bytes(range(256)) * (1 + i), txt=b'a caption', json=record)
            if variant == 2:
                parts |= {'npy': b'n' * 300, 'cls': b'3', 'seg.png': b''}
            for ending, data in parts.items():
                member = tarfile.TarInfo(f'{stem}.{ending}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _header_at(data, rng) -> int:
    """Where some header stands, or would."""
    places = [i for i in range(0, len(data) - 511, 512) if data[i + 257:i + 262] == b'ustar']
    return rng.choice(places or [0])


def _put_right(data, at: int) -> None:
    block = data[at:at + 512]
    if len(block) == 512:
        block[148:156] = b' ' * 8
        data[at + 148:at + 156] = b'%06o\0 ' % sum(block)


def _lie(data, rng):
    """Something else in a field of a header, mostly with its sum put right."""
    at = _header_at(data, rng)
    if rng.random() < .5:
        data[at + 124:at + 136] = rng.choice(_SIZES)
    else:
        offset, size = rng.choice(_FIELDS)
        letter = rng.choice((b'L', b'x', b'5', b'g', b'K', b'S', b'2'))
        data[at + offset:at + offset + size] = rng.choice((rng.randbytes(size), bytes(size), b'7' * size, letter.ljust(size, b'/')))
    if rng.random() < .8:
        _put_right(data, at)


def _insert(data, rng, kind: bytes, content: bytes, claimed: int) -> None:
    header = tarfile.TarInfo('././@x')
    header.type, header.size = kind, min(claimed, 8 ** 11 - 1)
    block = header.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b'\0')
    at = _header_at(data, rng)
    data[at:at] = block


def _long_name(data, rng):
    size = rng.choice((1, 300, 5000, 200_000, 1 << 20, (1 << 20) + 1))
    name = rng.choice((b'n', b'a/', b'.', b'\xff', b'\0')) * size
    _insert(data, rng, b'L', name[:size], rng.choice((size, size, 1 << 33, 0)))


def _pax(data, rng):
    content = rng.choice((
        b'6 a=b\n' * rng.choice((1, 1000, 170_000)), b'17 size=99999999\n', b'11 size=-1\n', b'9 size=0\n', b'0 a=b\n', b'=', b'9' * 1000,
        b'99999999999999999999 path=x\n', b'14 path=../../\n', b'13 path=a.jpg\n', b'7 path=\n', b'5 a=\n\n'))
    _insert(data, rng, b'x', content, rng.choice((len(content), len(content), len(content) + 700, 1 << 40)))
