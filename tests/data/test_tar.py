"""Tars as they are and as they should not be: what is found in them, and that damage costs what it touches and no more."""
import itertools
import tarfile
import time
import zlib
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigvlm.data.bad import BadExample
from bigvlm.data.sources import _tar
from bigvlm.data.sources._tar import Damage, Member, members
from bigvlm.data.sources._tar_build import build_index
from bigvlm.data.sources._tar_samples import scan
from bigvlm.data.sources.webdataset import Webdataset
from tests.data.fakes import sample, write_tar

FORMATS = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]


def samples(first, last):
    return {f'{i:06}': sample(i) for i in range(first, last)}


def found(data, crc=False):
    return list(members(lambda at, size: data[at:at + size], len(data), crc))


def keys(path, **fields):
    source = Webdataset(str(path), require=(), **fields)
    return [source.describe(i).partition(':')[2] for i in range(len(source))]


@pytest.mark.parametrize('format', FORMATS)
def test_long_names_and_folders(tmp_path, format):
    deep = 'folder/' + 'd' * 60 + '/' + 'ü' * 20 + 'k' * 30
    longest = deep if format == tarfile.USTAR_FORMAT else deep + 'x' * 300
    path = write_tar(tmp_path / 'a.tar', {deep: sample(0), longest + '1': sample(1)}, format=format)
    data = path.read_bytes()
    with tarfile.open(path) as tar:  # the independent reader agrees on every member
        wanted = [(m.name, m.offset_data, m.size, zlib.crc32(tar.extractfile(m).read())) for m in tar if m.isfile()]
    assert [(m.name, m.offset, m.size, m.crc) for m in found(data, crc=True)] == wanted
    assert [m.crc for m in found(data)] == [None] * 6
    assert keys(path) == [deep, longest + '1']


def test_large_and_strange_members(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for name, kind, size in (('d', tarfile.DIRTYPE, 0), ('a.txt', tarfile.REGTYPE, 9 << 30), ('l', tarfile.SYMTYPE, 700),
                                 ('b.txt', tarfile.CONTTYPE, 3), ('p', tarfile.FIFOTYPE, 0), ('empty.txt', tarfile.AREGTYPE, 0)):
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, size, 'a.txt'
            tar.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
            tar.fileobj.seek(-(-size // 512) * 512 if kind in (tarfile.REGTYPE, tarfile.CONTTYPE) else 0, 1)
            tar.offset = tar.fileobj.tell()
    assert (tmp_path / 'a.tar').stat().st_size > 9 << 30  # a hole in the file, not on the disk
    index = scan(str(tmp_path / 'a.tar'), (tmp_path / 'a.tar').stat().st_size, False)
    assert index.damage == {'file too large to be read at once': ['a.tar:a.txt']}
    assert keys(tmp_path / 'a.tar') == ['b', 'empty']


@pytest.mark.parametrize('cut, whole, lost', [
    (3584 * 3, 3, 'cut.tar'), (3584 * 3 + 8, 3, 'cut.tar'), (3584 * 3 + 600, 3, 'cut.tar:000003'),
    (3584 * 3 - 500, 2, 'cut.tar:000002'), (3584 * 3 - 1000, 2, 'cut.tar:000002'), (3584 * 3 - 1024, 2, 'cut.tar:000002'),
    (600, 0, 'cut.tar:000000'), (100, 0, 'cut.tar')])
def test_a_truncated_tar_keeps_its_whole_samples(tmp_path, cut, whole, lost):
    """Each sample takes 3,584 bytes, of which its json the last 1,024: images are padded to one length."""
    padded = {key: parts | {'jpg': parts['jpg'].ljust(1024, b'\0')} for key, parts in samples(0, 4).items()}
    path = write_tar(tmp_path / 'cut.tar', padded)
    path.write_bytes(path.read_bytes()[:cut])
    index = scan(str(path), cut, True)
    assert keys(path) == [f'{i:06}' for i in range(whole)]
    assert [*index.damage.values()] == [[lost]] and {*index.damage} <= {'truncated tar', 'tar without its end'}
    assert len(index.crcs) == 3 * whole


def test_a_tar_that_ends_in_a_long_name(tmp_path):
    path = write_tar(tmp_path / 'a.tar', {f'{i}{"n" * 120}': sample(i) for i in range(2)})
    data = path.read_bytes()
    second = [m for m in found(data) if m.name.startswith('1')][0]
    path.write_bytes(data[:second.start + 530])
    assert Webdataset(str(path)).damage == {'truncated tar': ['a.tar']} and keys(path) == ['0' + 'n' * 120]


def test_goes_on_after_damage(tmp_path):
    path = write_tar(tmp_path / 'a.tar', samples(0, 6))
    good = path.read_bytes()
    at = {m.name: m for m in found(good)}
    spoilt = bytearray(good)
    spoilt[at['000001.json'].start + 3] ^= 1  # the name of a part
    spoilt[at['000002.jpg'].start + 124:at['000002.jpg'].start + 136] = b'77777777777\0'  # a size
    hole = slice(at['000003.txt'].start, at['000004.txt'].start)
    spoilt[hole] = bytes(hole.stop - hole.start)
    path.write_bytes(spoilt)
    assert keys(path) == [f'{i:06}' for i in range(6)]
    source = Webdataset(str(path), require=())
    assert source[1] == {'image': sample(1)['jpg'], 'captions': ('picture 1',)}  # its json is gone, not its txt
    assert source[2].keys() == {'captions'} and source[3].keys() == {'image'} and source[4].keys() == {'captions'}
    assert all(source[i]['image'] == sample(i)['jpg'] and source[i]['captions'][1] == f'photo number {i}' for i in (0, 5))
    assert source.damage == {
        'damaged tar header': [f'a.tar bytes {at["000001.json"].start}-{at["000002.jpg"].start}'.replace(
            str(at['000002.jpg'].start), str(at['000002.txt'].start))],
        'zeros inside the tar': [f'a.tar bytes {hole.start}-{hole.stop}']}


def test_a_size_that_is_wrong_but_adds_up(tmp_path):
    """The sum of a header is weak: two digits exchanged keep it. What follows then makes no sense, and this is seen."""
    data = bytearray(write_tar(tmp_path / 'a.tar', {'0': dict(jpg=b'x' * 0o1000), '1': dict(jpg=b'y' * 7000), '2': dict(txt=b'z')}
                               ).read_bytes())
    size = data[124:136]
    assert size == b'00000001000\0'
    data[124:136] = b'00000010000\0'
    seen = found(bytes(data))
    assert [(type(m), m.name) for m in seen] == [(Damage, '0.jpg'), (Member, '1.jpg'), (Member, '2.txt')]
    assert seen[0].start == 0 and seen[0].stop == 1024
    data[124:136] = b'10000000000\0'  # beyond the end
    assert [(type(m), m.name) for m in found(bytes(data))] == [(type(m), m.name) for m in seen]


def test_a_wrong_size_that_ends_with_its_sample(tmp_path):
    """What the indexer passed over must not come back when the sample is read alone: the block behind it decides both."""
    path = write_tar(tmp_path / 'a.tar', {'0': dict(jpg=b'x', txt=b'y' * 64, npy=b''), '1': dict(jpg=b'x', txt=b'y')})
    data = bytearray(path.read_bytes())
    at = {m.name: m.start for m in found(bytes(data))}
    header = tarfile.TarInfo('0.txt')
    header.size = 1024  # its own block and the header of the empty npy
    data[at['0.txt']:at['0.txt'] + 512] = header.tobuf()
    data[at['1.jpg']:at['1.jpg'] + 512] = b'?' * 512
    path.write_bytes(data)
    build_index([str(path)], crc=True)
    source = Webdataset(str(path), members=('txt', 'npy'), require=('image',))
    assert source[0] == {'image': b'x', 'npy': b''}
    assert keys(path) == ['0', '1'] and source.read(0, 1) == [source[0]]


def test_a_tail_of_zeros_is_reported(tmp_path):
    """A download into a file of full length that was broken off: no header tells, the samples that are there are fine."""
    path = write_tar(tmp_path / 'a.tar', samples(0, 2))
    size = path.stat().st_size
    assert not Webdataset(str(path)).damage
    with open(path, 'ab') as file:
        file.truncate(size + (2 << 20))
    source = Webdataset(str(path))
    (item,), = source.damage.values()
    assert [*source.damage] == ['zeros at the end of the tar'] and item.endswith(f'-{size + (2 << 20)}') and len(source) == 2


def test_damaged_pax_records_cost_their_file_only(tmp_path):
    path = write_tar(tmp_path / 'a.tar', {f'ü{i}': sample(i, json=None) for i in range(3)}, format=tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    first = found(bytes(data))[2]
    assert first.name == 'ü1.jpg'
    data[first.start + 512] = ord('x')
    assert [m.name for m in found(bytes(data)) if isinstance(m, Member)] == ['ü0.jpg', 'ü0.txt', 'ü1.txt', 'ü2.jpg', 'ü2.txt']


@pytest.mark.parametrize('number', [b'-0000000001\0', b'+0000000001\0', b'0_000000001\0', b'\xff' * 12, b'00000000009\0', b'0000 000001\0'])
def test_sizes_that_are_no_numbers(number):
    member = tarfile.TarInfo('a.txt')
    block = bytearray(member.tobuf())
    block[124:136] = number
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    after = tarfile.TarInfo('b.txt').tobuf()
    assert [m.name for m in found(bytes(block) + after + bytes(1024))] == ['', 'b.txt']


def test_bombs_take_bounded_time(tmp_path):
    """Long names, PAX records and headers that all claim the rest of the file."""
    def header(name, kind, size):
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, size
        return member.tobuf(tarfile.GNU_FORMAT)[:512]
    pax = b'6 a=b\n' * ((1 << 20) // 6)
    claims = b''.join(header(f'{i}.txt', tarfile.REGTYPE, (4000 - i) * 512 + 1) for i in range(4000))
    bombs = [header('x', b'x', len(pax)) + pax.ljust(-(-len(pax) // 512) * 512, b'\0'), header('x', b'L', 1 << 33), claims,
             b''.join(header('x', b'L', 512) + b'n' * 512 for _ in range(2000)), header('x', b'x', 512) + b'9' * 512,
             header('x.txt', b'0', 1 << 40)]
    start = time.process_time()
    for bomb in bombs:
        for crc in (False, True):
            assert found(bomb + header('a.txt', b'0', 5) + b'12345'.ljust(512, b'\0') + bytes(1024), crc)
    assert time.process_time() - start < 1.5


def test_members_that_are_not_adjacent(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        for name in ('0.jpg', '1.jpg', '0.txt', '1.txt', '2.jpg', '2.txt'):
            tar.addfile(tarfile.TarInfo(name))
    assert keys(path) == ['0', '1', '0', '1', '2']
    assert Webdataset(str(path)).damage == {'members of one sample apart': ['a.tar:0', 'a.tar:1']}


def test_damage_is_listed_within_limits(tmp_path):
    path = tmp_path / 'a.tar'
    blocks = (tarfile.TarInfo(f'{i // 2}.txt').tobuf() if i % 2 else b'x' * 512 for i in range(5000))
    path.write_bytes(b''.join(blocks) + bytes(1024))
    index = scan(str(path), path.stat().st_size, False)
    assert len(index.records) == 2500
    assert len(index.damage['damaged tar header']) == 1001
    assert index.damage['damaged tar header'][-1] == 'and 1500 more in a.tar'


COUNT = 7
_number = itertools.count()


class Whole(SimpleNamespace):
    """`folder`; `made`: {format: (bytes of a tar, {key: (start, stop)})}; `images`."""

    def __repr__(self):
        return 'Whole()'  # not half a megabyte in a report


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Tars of three formats."""
    folder = tmp_path_factory.mktemp('whole')
    made = {}
    for format in FORMATS:
        name = '{}' if format == tarfile.USTAR_FORMAT else 'ü' * 60 + '{}'
        path = write_tar(folder / 'whole.tar', {name.format(i): sample(i) for i in range(COUNT)}, format=format)
        index = scan(str(path), path.stat().st_size, False)
        spans = {name.format(i): (512 * int(r['start']), 512 * int(r['start'] + r['span'])) for i, r in enumerate(index.records)}
        made[format] = path.read_bytes(), spans
    return Whole(folder=folder, made=made, images=[sample(i)['jpg'] for i in range(COUNT)])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize('when', ['before the index', 'after the index', 'after an index with checksums'])
def test_damage_costs_what_it_touches_and_no_more(whole, when, data):
    folder, made, images = whole.folder, whole.made, whole.images
    good, spans = made[data.draw(st.sampled_from(FORMATS), 'format')]
    spoilt, touched = bytearray(good), []
    for _ in range(data.draw(st.integers(1, 3), 'holes')):
        start = data.draw(st.integers(0, len(good) - 1), 'start')
        size = min(data.draw(st.sampled_from([1, 2, 30, 512, 2000, 9000]), 'size'), len(good) - start)
        fill = data.draw(st.sampled_from(['zeros', 'ones', 'random']), 'fill')
        seed = data.draw(st.integers(0, 99), 'seed')
        spoilt[start:start + size] = {'zeros': bytes(size), 'ones': b'\xff' * size}.get(fill) or Random(seed).randbytes(size)
        touched.append((start, start + size))
    path = folder / f'{next(_number)}.tar'
    path.write_bytes(good)
    if when == 'before the index':
        path.write_bytes(spoilt)
        build_index([str(path)], crc=data.draw(st.booleans(), 'checksums'))
        source = Webdataset(str(path), require=())
    else:
        index = build_index([str(path)], folder / f'{path.name}.index', crc='checksums' in when)
        path.write_bytes(spoilt)
        source = Webdataset(str(path), require=(), index=str(index))
        assert len(source) == COUNT
    read, bad = {}, 0
    for i in range(len(source)):
        try:
            read.setdefault(source.describe(i).partition(':')[2], source[i])
        except BadExample as reason:
            bad += 1
            assert when != 'before the index' or str(reason) != 'checksum differs'
    for number, (key, (start, stop)) in enumerate(spans.items()):
        if all(stop <= a or b <= start for a, b in touched):
            assert read[key] == {'image': images[number], 'captions': (f'picture {number}', f'photo number {number}')}
        elif when == 'after an index with checksums' and key in read:
            assert read[key].get('image', images[number]) == images[number]  # damaged content never gets through
    # Zeros up to the closing zeros are a shorter tar, which nothing tells apart.
    shorter = len(spoilt.rstrip(b'\0')) < len(good.rstrip(b'\0'))
    assert COUNT - len(read) <= bad or source.damage or shorter


def test_a_stream_reads_each_byte_about_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_tar, '_AHEAD', 32768)
    path = write_tar(tmp_path / 'a.tar', samples(0, 40))
    size, asked = path.stat().st_size, []
    read = _tar.storage.read
    monkeypatch.setattr(_tar.storage, 'read', lambda url, at, count: asked.append(count) or read(url, at, count))
    data = path.read_bytes()
    assert list(members(_tar.Stream(str(path), size), size, True)) == found(data, True)
    assert sum(asked) < 1.2 * size
