"""Indices of tars: what the file says, when it is made anew, what is refused, and checksums."""
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.sources import _tar_build, _tar_index
from bigvlm.data.sources._tar_build import build_index, open_index, verify
from bigvlm.data.sources._tar_index import BadIndex, TarIndex, crc_path_of
from bigvlm.data.sources.webdataset import Webdataset
from tests.data.fakes import sample, write_tar


def samples(first, last):
    return {f'{i:06}': sample(i) for i in range(first, last)}


@pytest.fixture
def tars(tmp_path):
    """Three tars of 3, 1 and 2 samples."""
    return [str(write_tar(tmp_path / f'{i}.tar', samples(*span))) for i, span in enumerate([(0, 3), (3, 4), (4, 6)])]


@pytest.fixture
def scanned(monkeypatch):
    """The tars that were looked through."""
    seen = []
    scan = _tar_build.scan
    monkeypatch.setattr(_tar_build, 'scan', lambda url, size, crc: seen.append(os.path.basename(url)) or scan(url, size, crc))
    return seen


def spoil(path, member, shift=5):
    with tarfile.open(path) as tar:
        at = tar.getmember(member).offset_data + shift
    data = bytearray(open(path, 'rb').read())
    data[at] ^= 4
    open(path, 'wb').write(data)


def test_an_example_is_a_stretch_of_its_tar(tars):
    index = TarIndex(build_index(tars, crc=True))
    assert (len(index), index.names, index.ends.tolist()) == (6, ['0.tar', '1.tar', '2.tar'], [3, 4, 6])
    assert index.records.itemsize == 16
    for i in range(6):
        tar, offset, size, whole = index.locate(i)
        with tarfile.open(tars[tar]) as file:
            own = [m for m in file if m.name.startswith(f'{i:06}')]
            crcs = [_tar_index.zlib.crc32(file.extractfile(m).read()) for m in own]
        assert (offset, offset + size) == (own[0].offset, own[-1].offset_data + 512)  # the last is one block
        assert index.crcs(i) == crcs and whole == size + 512
    for wrong in (-1, 6):
        with pytest.raises(IndexError):
            index.locate(wrong)


def test_checksums_only_where_they_were_asked_for(tars):
    plain = open_index(dict.fromkeys(tars))
    assert not plain.checked.any() and plain.crcs(2) is None and not crc_path_of(plain.path).exists()
    with_crcs = build_index(tars, crc=True)
    assert open_index(dict.fromkeys(tars)).path == with_crcs  # the better one of the cache
    assert Webdataset(tars).fingerprint == _tar_build.fingerprint(tars, plain)
    assert crc_path_of(with_crcs).stat().st_size == 16 + 4 * 18
    assert with_crcs.stat().st_size < 128 + 6 * 16 + 3 * (33 + 6) + 10


def test_the_index_is_cached_until_a_tar_changes(tars, scanned):
    first = Webdataset(tars)
    assert sorted(scanned) == ['0.tar', '1.tar', '2.tar']
    scanned.clear()
    again = Webdataset(tars)
    assert not scanned and again.fingerprint == first.fingerprint and again[1] == first[1]
    write_tar(tmp := os.path.join(os.path.dirname(tars[1]), '1.tar'), samples(3, 5))
    changed = Webdataset(tars)
    assert scanned == ['1.tar'] and len(changed) == 7 and changed.fingerprint != first.fingerprint
    assert changed[6] == again[5] and tmp == tars[1]
    scanned.clear()
    Webdataset(tars[1:])  # another list of the same tars
    assert not scanned


def test_a_killed_build_goes_on_where_it_was(tars, scanned, monkeypatch):
    make = _tar_build._make_piece
    monkeypatch.setattr(_tar_build, '_THREADS', 1)

    def killed(url, *rest):
        if url.endswith('2.tar'):
            raise KeyboardInterrupt
        make(url, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(_tar_build, '_make_piece', killed)
        with pytest.raises(KeyboardInterrupt):
            Webdataset(tars)
    scanned.clear()
    assert len(Webdataset(tars)) == 6 and scanned == ['2.tar']


def test_processes_build_the_same(tars, monkeypatch, tmp_path):
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    wanted = Webdataset(tars)
    monkeypatch.setattr(_tar_build, '_PROCESSES', 2)
    monkeypatch.setenv('BIGVLM_CACHE', str(tmp_path / 'other'))
    found = Webdataset(tars)
    assert found.fingerprint == wanted.fingerprint and found[4] == wanted[4]
    assert open(found._index.path, 'rb').read() == open(wanted._index.path, 'rb').read()


def test_threads_that_open_at_once_build_once(tars, scanned):
    threads = [threading.Thread(target=Webdataset, args=(tars,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scanned) == ['0.tar', '1.tar', '2.tar']


@pytest.mark.parametrize('change, message', [
    (lambda d: d[:-1], 'not whole'), (lambda d: b'', 'empty'), (lambda d: d[:100], 'damaged|not whole'), (lambda d: b'x' * 500, 'no index'),
    (lambda d: d[:16] + b'\x09' + d[17:], 'version 9'), (lambda d: d[:26] + b'\x01' + d[27:], 'damaged header')])
def test_what_is_no_index_is_refused_and_in_the_cache_made_anew(tars, change, message, caplog):
    path = open_index(dict.fromkeys(tars)).path
    good = path.read_bytes()
    path.write_bytes(change(good))
    with pytest.raises(BadIndex, match=message):
        TarIndex(path)
    with pytest.raises(RecipeError, match=f'index: .*({message})'):
        Webdataset(tars, index=str(path))
    assert len(Webdataset(tars)) == 6 and path.read_bytes() == good
    assert 'made anew' in caplog.text


def test_checksums_that_are_missing_or_anothers(tars, tmp_path):
    path = build_index(tars, tmp_path / 'a.index', crc=True)
    build_index(tars[:2], tmp_path / 'b.index', crc=True)
    shutil.copy(crc_path_of(tmp_path / 'b.index'), crc_path_of(path))
    with pytest.raises(BadIndex, match='does not belong'):
        TarIndex(path)
    crc_path_of(path).unlink()
    with pytest.raises(BadIndex, match='missing'):
        TarIndex(path)


def test_hosts_share_an_index(tars, tmp_path, scanned):
    path = build_index(tars, tmp_path / 'shared', crc=True)
    assert path == tmp_path / 'shared' / 'tars.index'
    scanned.clear()
    (tmp_path / 'copy').mkdir()
    copies = [shutil.copy(tar, tmp_path / 'copy') for tar in tars]  # other places and times
    source = Webdataset(copies, index=str(tmp_path / 'shared'))
    assert len(source) == 6 and not scanned and source.fingerprint == Webdataset(tars).fingerprint
    with pytest.raises(RecipeError, match='index: .*3 tars, files names 2.*2.tar'):
        Webdataset(copies[:2], index=str(path))
    with pytest.raises(RecipeError, match='first that differs: 0.tar in the index'):
        Webdataset(copies[::-1], index=str(path))
    with open(copies[1], 'ab') as file:
        file.write(bytes(512))
    with pytest.raises(RecipeError, match='index: .*1.tar has 10240 bytes, but it has 10752'):
        Webdataset(copies, index=str(path))
    with pytest.raises(RecipeError, match='index: .*none.*tools/data.py index'):
        Webdataset(tars, index=str(tmp_path / 'none'))


def test_silent_damage_is_found_by_checksums(tars, tmp_path):
    path = build_index(tars, tmp_path / 'x.index', crc=True)
    spoil(tars[0], '000001.jpg')
    spoil(tars[0], '000002.txt')  # not in use, where there is a json
    spoil(tars[2], '000004.json')
    source = Webdataset(tars, index=str(path))
    for i in (1, 4):
        with pytest.raises(BadExample, match='checksum differs'):
            source[i]
    assert source.captions(1) == ('picture 1', 'photo number 1')
    assert [source[i]['captions'][0] for i in (0, 2, 3, 5)] == ['picture 0', 'picture 2', 'picture 3', 'picture 5']
    spoil(tars[1], '000003.jpg', -512)  # its header
    assert sorted(verify(tars, str(path), progress=False)) == [
        ('0.tar:000001', 'checksum differs'), ('0.tar:000002', 'checksum differs'), ('1.tar:000003', 'damaged tar header'),
        ('2.tar:000004', 'checksum differs')]


def test_a_member_that_became_anothers_is_not_used(tmp_path):
    path = write_tar(tmp_path / 'a.tar', {'000001': sample(1, json=None), '000002': sample(2, json=None)})
    index = build_index([str(path)], tmp_path / 'x.index')
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmember('000001.txt').offset
    header = tarfile.TarInfo('000002.txt')
    header.size = len('picture 1')
    data[at:at + 512] = header.tobuf()
    path.write_bytes(data)
    source = Webdataset(str(path), require=(), index=str(index))
    assert [sorted(source[i]) for i in range(2)] == [['image'], ['captions', 'image']]


def test_verifying_says_all_is_well_or_that_it_cannot_know(tars, tmp_path):
    data = open(tars[1], 'rb').read()
    open(tars[1], 'wb').write(data[:len(data.rstrip(b'\0'))])
    build_index(tars, crc=True)
    assert list(verify(tars)) == [('1.tar', 'tar without its end')]
    plain = build_index(tars[:1], tmp_path / 'plain.index')
    with pytest.raises(RecipeError, match='no checksums of 0.tar'):
        next(verify(tars[:1], str(plain)))


def test_a_storage_that_fails_stops_the_build(tars, monkeypatch):
    def fails(*_):
        raise OSError('the disk is gone')
    monkeypatch.setattr(_tar_build, 'scan', fails)
    with pytest.raises(OSError, match='gone'):
        Webdataset(tars)
    monkeypatch.setattr(storage, 'stats', fails)
    with pytest.raises(OSError, match='gone'):
        build_index(tars)


def test_an_index_of_nothing(tmp_path):
    path = str(write_tar(tmp_path / 'none.tar', {}))
    source = Webdataset(path)
    with_crcs = build_index([path], crc=True)
    assert len(source) == 0 and source.damage == {} and len(TarIndex(with_crcs)) == 0
    assert open_index({path: None}).path == with_crcs and list(verify([path])) == []
    both = open_index({path: None, str(write_tar(tmp_path / 'b.tar', samples(0, 2))): None})
    assert both.ends.tolist() == [0, 2] and both.locate(0)[0] == 1 and np.all(both.sizes == [10240, 10240])
