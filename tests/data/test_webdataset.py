import io
import json
import tarfile
from pathlib import Path

import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import Dataset
from bigvlm.data.sources import webdataset
from bigvlm.data.sources.webdataset import Webdataset
from tests.data.fakes import encoded, sample, write_tar
from tests.data.servers import as_gcs, as_s3, serving

FLICKR = Path(__file__).parents[3] / 'shared' / 'data' / 'flickr8k_mini'


def samples(first, last):
    return {f'{i:06}': sample(i) for i in range(first, last)}


def test_reads_samples_in_the_order_of_the_tars(tmp_path):
    write_tar(tmp_path / 'b.tar', samples(3, 5))
    write_tar(tmp_path / 'a.tar', samples(0, 3))
    source = Webdataset(str(tmp_path / '*.tar'))
    assert [source.describe(i) for i in range(5)] == [
        'a.tar:000000', 'a.tar:000001', 'a.tar:000002', 'b.tar:000003', 'b.tar:000004']
    for i in (4, 0, 2):
        assert source[i] == {'image': sample(i)['jpg'], 'captions': (f'picture {i}', f'photo number {i}')}
        assert source.captions(i) == (f'picture {i}', f'photo number {i}')
    with pytest.raises(IndexError):
        source[5]
    assert Webdataset((str(tmp_path / 'b.tar'), str(tmp_path / 'a.tar'))).describe(0) == 'b.tar:000003'
    assert Webdataset(f'{tmp_path}/{{b,a}}.tar').describe(2) == 'a.tar:000000'


def test_where_captions_and_labels_come_from(tmp_path):
    def record(**values):
        return json.dumps(values).encode()
    write_tar(tmp_path / 'a.tar', {
        'a': sample(0, json=None, txt=b' from the\ntext '), 'b': sample(1, json=record(caption='one', label=7)),
        'c': sample(2, json=record(width=3), txt=b'text again'), 'd': sample(3, json=record(captions=['', 'x', None]))})
    source = Webdataset(str(tmp_path / 'a.tar'))
    assert [source[i]['captions'] for i in range(4)] == [('from the text',), ('one',), ('text again',), ('x',)]
    assert source[1]['label'] == 7 and 'label' not in source[0]


def test_labels_as_webdataset_writes_them(tmp_path):
    write_tar(tmp_path / 'a.tar', {'a': sample(0, cls=b'3'), 'b': sample(1, cls=b' 12\n'), 'c': sample(2, cls=b'cat'),
                                   'd': sample(3, cls=b'3', json=b'{"label": 5}'), 'e': sample(4, json=b'{"label": 1%s}' % (b'0' * 10))})
    source = Webdataset(str(tmp_path / 'a.tar'), require=('image', 'label'))
    assert [source[i]['label'] for i in (0, 1, 3)] == [3, 12, 5]
    for i, reason in ((2, 'label is no number'), (4, 'label is too large')):
        with pytest.raises(BadExample, match=reason):
            source[i]


def test_more_keys_and_members(tmp_path):
    record = json.dumps({'caption': 'a', 'captions_de': [' ein  Bild ', 3], 'width': 40, 'key': '0', 'none': None}).encode()
    write_tar(tmp_path / 'a.tar', {'a': sample(0, json=record, npy=b'123', seg=b''), 'b': sample(1)})
    fields = dict(files=str(tmp_path / 'a.tar'), extra=('captions_de', 'width', 'none'), members=('npy', 'txt'))
    source = Webdataset(**fields)
    assert source[0] == {'image': sample(0)['jpg'], 'captions': ('a',), 'captions_de': ('ein Bild',), 'width': 40,
                         'npy': b'123', 'txt': b'picture 0'}
    assert source[1].keys() == {'image', 'captions', 'txt'}
    with pytest.raises(BadExample, match='no captions_de'):
        Webdataset(**fields, require=('captions_de',))[1]
    for wrong in (dict(require=('npz',)), dict(extra=('image',)), dict(extra=('npy',), members=('npy',))):
        with pytest.raises(RecipeError, match='require|extra'):
            Webdataset(str(tmp_path / 'a.tar'), **wrong)


def test_hostile_records(tmp_path):
    write_tar(tmp_path / 'a.tar', {
        'deep': sample(0, json=b'[' * 100_000), 'number': sample(1, json=b'1' * 5000), 'list': sample(2, json=b'[]'),
        'half': sample(3, json=b'{"caption": "x \\ud800"}'), 'odd': sample(4, json=b'{"captions": {"a": 1}, "caption": 7}')})
    source = Webdataset(str(tmp_path / 'a.tar'))
    for i in (0, 1):
        with pytest.raises(BadExample, match='json cannot be read'):
            source[i]
    assert [source[i]['captions'] for i in (2, 3, 4)] == [('picture 2',), ('x ?',), ('picture 4',)]


def test_neighbours_are_read_together(tmp_path, monkeypatch):
    write_tar(tmp_path / 'a.tar', {**samples(0, 3), 'none': sample(0, jpg=None)})
    write_tar(tmp_path / 'b.tar', samples(4, 9))
    source = Webdataset(str(tmp_path / '*.tar'))
    wanted = [source[i] if i != 3 else None for i in range(9)]
    for together, requests in ((64 << 20, 2), (8000, 5)):  # a sample takes less than 4,000 bytes
        monkeypatch.setattr(webdataset, '_TOGETHER', together)
        before = source.io.requests
        found = source.read(1, 9)
        assert found[:2] + found[3:] == wanted[1:3] + wanted[4:] and str(found[2]) == 'no image'
        assert isinstance(found[2], BadExample) and source.io.requests - before == requests
    assert source.read(4, 4) == []
    before = source.io.requests, source.io.bytes
    source[0]
    assert (source.io.requests, source.io.bytes) == (before[0] + 1, before[1] + source._index.locate(0)[3])


def test_remote_tars(tmp_path, monkeypatch):
    (tmp_path / 'bucket').mkdir()
    for i in range(3):
        write_tar(tmp_path / 'bucket' / f'{i}.tar', samples(4 * i, 4 * i + 4))
    local = Webdataset(str(tmp_path / 'bucket' / '*.tar'))
    with serving(tmp_path) as server:
        as_s3(server, monkeypatch)
        as_gcs(server, monkeypatch)
        storage._store.cache_clear()
        for files in ('s3://bucket/*.tar', 'gs://bucket/{0..2}.tar', f'{server.url}/bucket/{{0,1,2}}.tar'):
            source = Webdataset(files)
            assert [source[i] for i in range(12)] == [local[i] for i in range(12)]
            assert source.fingerprint == local.fingerprint
            assert [source.describe(i) for i in (0, 11)] == ['0.tar:000000', '2.tar:000011']
            assert source._index.checked.all()
            server.requests.clear()
            assert Webdataset(files)[5] == local[5]  # the index is cached: no content is read but the sample's
            assert [r[0] for r in server.requests if r[2]] == ['GET']
            server.faults[:] = [404]
            with pytest.raises(FileNotFoundError, match='0.tar'):
                source[1]
        storage._store.cache_clear()


def test_other_members_and_endings(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        folder = tarfile.TarInfo('x')
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ('x/1.JPEG', 'x/1.npy', 'x/1.txt', 'x/2.seg.png', 'x/2.webp', 'x/2.txt', 'x/README'):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b'abc'))
    source = Webdataset(str(tmp_path / 'a.tar'), require=('image',))
    assert [source.describe(i) for i in range(len(source))] == ['a.tar:x/1', 'a.tar:x/2']
    assert source[1] == {'image': b'abc', 'captions': ('abc',)}


def test_damage_is_reported_with_the_lost_examples(tmp_path):
    good = write_tar(tmp_path / 'a.tar', samples(0, 3)).read_bytes()
    whole = len(good.rstrip(b'\0'))
    (tmp_path / 'a.tar').write_bytes(good[:whole - 30])  # inside the last json
    spoilt = bytearray(write_tar(tmp_path / 'b.tar', samples(3, 6)).read_bytes())
    with tarfile.open(tmp_path / 'b.tar') as tar:
        lost = tar.getmember('000004.jpg')
    spoilt[lost.offset] ^= 1
    (tmp_path / 'b.tar').write_bytes(spoilt)
    data = Dataset(dict(source=dict(name='webdataset', files=str(tmp_path / '*.tar')), max_bad=.5))
    assert len(data) == 5
    stop = lost.offset_data + -(-lost.size // 512) * 512
    damage = {'truncated tar': ['a.tar:000002'], 'damaged tar header': [f'b.tar bytes {lost.offset}-{stop}']}
    assert data.lost == damage
    assert data.source.captions(3) == ('picture 4', 'photo number 4')
    assert [data.example(i)['id'][1] for i in range(5)] == [0, 1, 2, 4, 4]
    assert data.lost == {**damage, 'no image': ['b.tar:000004']}


def test_a_copy_has_the_same_fingerprint(tmp_path):
    (tmp_path / 'other').mkdir()
    copies = [write_tar(folder / 'a.tar', samples(0, 2)) for folder in (tmp_path, tmp_path / 'other')]
    assert len({Webdataset(str(copy)).fingerprint for copy in copies}) == 1


def test_each_bad_sample_is_named_once(tmp_path):
    write_tar(tmp_path / 'a.tar', {
        **samples(0, 8), 'gif': sample(0, jpg=encoded('GIF', 'P')), 'png': sample(0, jpg=encoded('PNG', 'RGBA')),
        'grey': sample(0, jpg=encoded('JPEG', 'L')), 'cut': sample(0, jpg=encoded()[:300]), 'empty': sample(0, jpg=b''),
        'silent': sample(0, json=None, txt=None), 'blank': sample(0, json=b'{}', txt=b' '),
        'garbled': sample(0, json=b'{"'), 'blind': sample(0, jpg=None)})
    data = Dataset(dict(source=dict(name='webdataset', files=str(tmp_path / 'a.tar')), max_bad=.5,
                        ops=(dict(name='decode'), dict(name='resize', size=16))))
    for epoch in range(2):
        assert all(data.example(i, epoch)['image'].shape == (16, 16, 3) for i in range(len(data)))
    assert data.lost == {'truncated image': ['a.tar:cut'], 'no image': ['a.tar:empty', 'a.tar:blind'],
                         'no caption': ['a.tar:silent', 'a.tar:blank'], 'json cannot be read': ['a.tar:garbled']}
    with pytest.raises(BadExample, match='no caption'):
        data.captions([data.source.describe(i) for i in range(len(data))].index('a.tar:silent'))


@pytest.mark.skipif(not FLICKR.is_dir(), reason=f'no {FLICKR}')
def test_real_photos():
    source = Webdataset(str(FLICKR / 'train-*.tar'))
    assert len(source) == 1000 and not source.damage
    assert all(len(source.captions(i)) == 5 for i in range(0, 1000, 100))
    assert source[999]['image'][:3] == b'\xff\xd8\xff'
