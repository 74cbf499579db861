import io
import json
import tarfile
from pathlib import Path

import pytest

from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import Dataset
from bigvlm.data.sources import _tar_index
from bigvlm.data.sources.webdataset import Webdataset
from tests.data.fakes import encoded, sample, write_tar

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
    assert len(Webdataset((str(tmp_path / 'b.tar'), str(tmp_path / 'a.tar')))) == 5


def test_where_captions_and_labels_come_from(tmp_path):
    def record(**values):
        return json.dumps(values).encode()
    write_tar(tmp_path / 'a.tar', {
        'a': sample(0, json=None, txt=b' from the\ntext '), 'b': sample(1, json=record(caption='one', label=7)),
        'c': sample(2, json=record(width=3), txt=b'text again'), 'd': sample(3, json=record(captions=['', 'x', None]))})
    source = Webdataset(str(tmp_path / 'a.tar'))
    assert [source[i]['captions'] for i in range(4)] == [('from the text',), ('one',), ('text again',), ('x',)]
    assert source[1]['label'] == 7 and 'label' not in source[0]


@pytest.mark.parametrize('format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_folders(tmp_path, format):
    deep = 'folder/' + 'd' * 60 + '/' + 'ü' * 20 + 'k' * 30
    longest = deep if format == tarfile.USTAR_FORMAT else deep + 'x' * 300
    write_tar(tmp_path / 'a.tar', {deep: sample(0), longest + '1': sample(1)}, format=format)
    with tarfile.open(tmp_path / 'a.tar') as tar:  # the independent reader agrees on every member
        wanted = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    index = _tar_index._scan(tmp_path / 'a.tar')
    assert index.keys.tolist() == [deep, longest + '1']
    assert [tuple(p) for p in index.places.reshape(-1, 2)] == [
        wanted[f'{key}.{ending}'] for key in index.keys for ending in ('jpg', 'txt', 'json')]


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


@pytest.mark.parametrize('cut, whole, lost', [
    (3584 * 3, 3, 'cut.tar'), (3584 * 3 + 8, 3, 'cut.tar'), (3584 * 3 + 600, 3, 'cut.tar:000003'),
    (3584 * 3 - 500, 2, 'cut.tar:000002'), (3584 * 3 - 1000, 2, 'cut.tar:000002'),
    (600, 0, 'cut.tar:000000'), (100, 0, 'cut.tar')])
def test_a_truncated_tar_keeps_its_whole_samples(tmp_path, cut, whole, lost):
    """Each sample takes 3,584 bytes, of which its json the last 1,024: images are padded to one length."""
    padded = {key: parts | {'jpg': parts['jpg'].ljust(1024, b'\0')} for key, parts in samples(0, 4).items()}
    path = write_tar(tmp_path / 'cut.tar', padded)
    path.write_bytes(path.read_bytes()[:cut])
    index = _tar_index._scan(path)
    assert index.keys.tolist() == [f'{i:06}' for i in range(whole)]
    assert index.damage[1] == lost and index.damage[0] in ('truncated tar', 'tar without its end')


def test_damage_is_reported_with_the_lost_examples(tmp_path):
    good = write_tar(tmp_path / 'a.tar', samples(0, 3)).read_bytes()
    whole = len(good.rstrip(b'\0'))
    (tmp_path / 'a.tar').write_bytes(good[:whole - 30])  # inside the last json
    spoilt = bytearray(write_tar(tmp_path / 'b.tar', samples(3, 6)).read_bytes())
    with tarfile.open(tmp_path / 'b.tar') as tar:
        spoilt[tar.getmember('000004.jpg').offset] ^= 1
    (tmp_path / 'b.tar').write_bytes(spoilt)
    data = Dataset(dict(source=dict(name='webdataset', files=str(tmp_path / '*.tar'))))
    assert len(data) == 3
    assert data.lost == {'truncated tar': ['a.tar:000002'], 'damaged tar header': ['b.tar']}


def test_the_index_is_cached_until_the_tar_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / 'a.tar', samples(0, 3))
    first = Webdataset(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(_tar_index, '_scan', lambda tar: pytest.fail('scanned again'))
        again = Webdataset(str(path))
    assert again.fingerprint == first.fingerprint and again[1] == first[1]
    write_tar(path, samples(0, 4))
    changed = Webdataset(str(path))
    assert len(changed) == 4 and changed.fingerprint != first.fingerprint


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
        data.captions(data.source._index[0].keys.tolist().index('silent'))


@pytest.mark.skipif(not FLICKR.is_dir(), reason=f'no {FLICKR}')
def test_real_photos():
    source = Webdataset(str(FLICKR / 'train-*.tar'))
    assert len(source) == 1000 and not source.damage
    assert all(len(source.captions(i)) == 5 for i in range(0, 1000, 100))
    assert source[999]['image'][:3] == b'\xff\xd8\xff'
