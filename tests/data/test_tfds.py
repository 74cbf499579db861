import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import Dataset
from bigvlm.data.sources import _tfrecord
from bigvlm.data.sources.tfds import Tfds
from tests.data.fakes import encoded, picture

FEATURES = tfds.features.FeaturesDict({
    'image': tfds.features.Image(), 'captions': tfds.features.Sequence({'text': tfds.features.Text(), 'id': np.int64}),
    'captions_de': tfds.features.Sequence(tfds.features.Text()), 'title': tfds.features.Text(),
    'boxes': tfds.features.Sequence(tfds.features.BBoxFeature()), 'label': tfds.features.ClassLabel(names=['cat', 'dog'])})
SHARDS = dict(train=(4, 0, 5, 3), val=(3,))
SPLITS = ['train', 'val', 'train[:90%]', 'train[5:7]', 'train[50%:]', 'train[-1:]', 'val+train[2:6]', 'train[:2]+train[3:]', 'all']


def image(i):
    return encoded('PNG', pixels=picture(seed=i))


def serialized(i):
    """An example as TFDS itself would store it."""
    example = {'image': image(i), 'captions': [{'text': f'a {i}', 'id': i}, {'text': f'b {i} ', 'id': 1}], 'captions_de': [f'ä {i}', ''],
               'title': f'№ {i}', 'boxes': [tfds.features.BBox(0., .25, .5, 1.)] * (i % 3), 'label': i % 2}
    return FEATURES.serialize_example(FEATURES.encode_example(example))


def masked_crc32c(data):
    """Bit by bit, from the polynomial; masked as TFRecord does."""
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    crc ^= 0xffffffff
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


def frame(data):
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked_crc32c(length)) + data + struct.pack('<I', masked_crc32c(data))


RECORDS = [serialized(i) for i in range(15)]
FRAMES = [frame(record) for record in RECORDS]


def write_array_record(path, rows):
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for i in rows:
        writer.write(RECORDS[i])
    writer.close()


def write_tfrecord(path, rows):
    path.write_bytes(b''.join(FRAMES[i] for i in rows))


WRITERS = dict(array_record=write_array_record, tfrecord=write_tfrecord)


def prepared(folder, kind):
    """A data set 'toy' on disk, its metadata written by TFDS; the folder of its files."""
    version, first, infos = folder / 'toy' / '1.0.0', 0, []
    version.mkdir(parents=True)
    for split, shards in SHARDS.items():
        for number, count in enumerate(shards):
            WRITERS[kind](version / f'toy-{split}.{kind}-{number:05}-of-{len(shards):05}', range(first, first + count))
            first += count
        template = tfds.core.ShardedFileTemplate(data_dir=version, dataset_name='toy', split=split, filetype_suffix=kind)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=list(shards), num_bytes=0, filename_template=template))
    tfds.folder_dataset.write_metadata(data_dir=version, features=FEATURES, split_infos=infos, check_data=False,
                                       filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}')
    return version


@pytest.fixture(scope='module', params=list(WRITERS))
def both(request, tmp_path_factory):
    """data_dir in each of the two formats."""
    folder = tmp_path_factory.mktemp(request.param)
    prepared(folder, request.param)
    return folder


@pytest.fixture
def tfrecord(tmp_path):
    """The files of a data set of TFRecord that a test may damage, and the source that reads it."""
    version = prepared(tmp_path, 'tfrecord')
    return version, lambda split='train', **fields: toy(tmp_path, split, **fields)


def toy(folder, split='train', **fields):
    return Tfds('toy', split, data_dir=str(folder), **{'captions': 'captions.text'} | fields)


@pytest.mark.parametrize('split', SPLITS)
def test_splits_are_those_of_tfds(both, split, tmp_path_factory):
    reference = tmp_path_factory.getbasetemp() / 'reference'
    if not reference.exists():
        prepared(reference, 'array_record')
    rows = tfds.builder('toy', data_dir=reference).as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    source = toy(both, split)
    assert len(source) == len(rows)
    found = source.read(0, len(source))
    for i, row in enumerate(rows):
        assert source[i] == found[i] == {'image': row['image'], 'captions': tuple(t.decode().strip() for t in row['captions']['text'])}
    for a in range(len(source)):
        assert source.read(a, len(source)) == found[a:]
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]


def test_images_stay_encoded_and_texts_are_text(both):
    source = toy(both, label='label', extra=('captions_de', 'title', 'boxes'))
    example = source[7]
    assert example.pop('image') == image(7)
    np.testing.assert_array_equal(example.pop('boxes'), [[0., .25, .5, 1.]])
    assert example == {'captions': ('a 7', 'b 7'), 'captions_de': ('ä 7', ''), 'title': '№ 7', 'label': 1}
    assert source.label_names == ('cat', 'dog') and source.captions(7) == ('a 7', 'b 7') and source.describe(7) == 'toy/train[7]'


def test_neighbours_take_one_request_for_each_file(both):
    source = toy(both)
    source.read(0, 12)
    assert source.io.requests == 3 and source.io.bytes >= sum(map(len, RECORDS[:12]))
    alone = toy(both, 'train[1:3]')
    alone.read(0, 2)
    assert alone.io.requests == 1


def test_both_formats_are_one_data_set(tmp_path):
    prints = set()
    for kind in WRITERS:
        prepared(tmp_path / kind, kind)
        prints |= {toy(tmp_path / kind).fingerprint}
    assert len(prints) == 1


def shard(version, number=2):
    """The shard with examples 4..8 of train, unless another is said."""
    return version / f'toy-train.tfrecord-{number:05}-of-00004'


def test_the_index_has_one_entry_a_record(tfrecord, monkeypatch):
    version, source = tfrecord
    entries = source()._records._entries[1]  # of the second file with records
    assert entries.tolist() == [*np.cumsum([0, *(len(FRAMES[i]) for i in range(4, 9))]), 0]
    monkeypatch.setattr(_tfrecord, '_scan', lambda *_: pytest.fail('scanned again'))
    assert source()[8]['image'] == image(8)


def expect(source, lost, reason='damaged TFRecord frame', shards=(4, 0, 5, 3)):
    """All examples but the lost are as they were, read alone and together."""
    found = source.read(0, sum(shards))
    for i, row in enumerate(found):
        if i in lost:
            assert isinstance(row, BadExample) and str(row) == reason, i
            with pytest.raises(BadExample, match=reason):
                source[i]
        else:
            assert row['image'] == source[i]['image'] == image(i), i


@pytest.mark.parametrize('at', [0, 3, 7, 8, 11])
@pytest.mark.parametrize('row', [4, 6, 8])
def test_a_damaged_header_loses_one_record(tfrecord, row, at):
    version, source = tfrecord
    data = bytearray(shard(version).read_bytes())
    data[sum(len(FRAMES[i]) for i in range(4, row)) + at] ^= 0x10
    shard(version).write_bytes(data)
    damaged = source()
    expect(damaged, {row})
    expect(source('train[:7]'), {row} & set(range(7)), shards=(7,))
    assert damaged.fingerprint == toy(prepared(version.parents[1] / 'other', 'tfrecord').parents[1]).fingerprint


@pytest.mark.parametrize('at', [12, 300, -5, -4, -1])
def test_damaged_data_are_found_when_read(tfrecord, at):
    version, source = tfrecord
    data = bytearray(shard(version).read_bytes())
    data[len(FRAMES[4]) + at % len(FRAMES[5])] ^= 1
    shard(version).write_bytes(data)
    expect(source(), {5}, 'record with a wrong checksum')


def test_any_stretch_of_damage_loses_only_what_it_touches(tfrecord):
    version, source = tfrecord
    good = shard(version).read_bytes()
    ends = np.cumsum([len(FRAMES[i]) for i in range(4, 9)])
    rng = np.random.default_rng(0)
    for trial in range(60):
        first, last = sorted(rng.integers(len(good), size=2))
        noise = rng.bytes(last - first) if trial % 2 else bytes(last - first)
        shard(version).write_bytes(good[:first] + noise + good[last:])
        touched = {4 + int(np.searchsorted(ends, at, side='right')) for at in (first, max(first, last - 1))}
        touched = set(range(min(touched), max(touched) + 1))
        found = source().read(0, 12)
        lost = {i for i, row in enumerate(found) if isinstance(row, BadExample)}
        assert lost <= touched, (trial, first, last)
        assert all(found[i]['image'] == image(i) for i in set(range(12)) - lost), 'those behind keep their numbers'


@pytest.mark.parametrize('cut', [1, 5, 20, 150, -1])
def test_a_truncated_file_keeps_its_whole_records(tfrecord, cut):
    version, source = tfrecord
    good = shard(version).read_bytes()
    shard(version).write_bytes(good[:-cut] if cut > 0 else b'')
    if cut < 0:
        with pytest.raises(RecipeError, match='has 0 records, its data set says 5'):
            source()
        return
    expect(source(), {8})


def test_a_lost_part_of_several_records(tfrecord):
    version, source = tfrecord
    head, gone = sum(map(len, FRAMES[4:5])), sum(map(len, FRAMES[5:8]))
    data = shard(version).read_bytes()
    shard(version).write_bytes(data[:head] + b'\xff' * (300 << 10) + data[head + gone:])  # more than is searched at once
    expect(source(), {5, 6, 7})


def test_another_number_of_records_than_said(tfrecord):
    version, source = tfrecord
    write_tfrecord(shard(version), range(4, 8))
    with pytest.raises(RecipeError, match='has 4 records, its data set says 5'):
        source()
    write_tfrecord(shard(version), range(4, 10))
    with pytest.raises(RecipeError, match='has 6 records, its data set says 5'):
        source()


def test_the_next_header_is_found_wherever_it_is(monkeypatch):
    """In pieces of 20 bytes; behind noise with a header that is right by chance, but longer than the file."""
    monkeypatch.setattr(_tfrecord, '_SEARCH', 20)
    rng = np.random.default_rng(0)
    for before in range(1, 70):
        noise = rng.bytes(before) if before < 30 else rng.bytes(before - 12) + frame(bytes(10 ** 4))[:12]
        data = noise + FRAMES[0]
        assert _tfrecord._resync(lambda at, size: data[at:at + size], 1, len(data)) == before
        assert _tfrecord._resync(lambda at, size: data[at:at + size], 1, len(data) - 1) == len(data) - 1


def test_the_checksum_is_crc32c():
    assert masked_crc32c(b'123456789') == ((0xe3069283 >> 15 | 0xe3069283 << 17) + 0xa282ead8) & 0xffffffff  # RFC 3720's check value
    rng = np.random.default_rng(0)
    for size in (0, 1, 8, 1000):
        data = rng.bytes(size)
        assert _tfrecord._masked(data) == masked_crc32c(data)
    data = rng.bytes(50) + FRAMES[0] + rng.bytes(50)
    assert _tfrecord._headers(np.frombuffer(data, np.uint8)).tolist() == [50]


def test_remote_files_are_indexed_in_long_pieces(tfrecord, monkeypatch):
    version, _ = tfrecord
    asked = []

    def read(url, offset=0, size=None, counts=None):
        asked.append(size)
        data = path.read_bytes()
        return data[offset:offset + size]
    path, size = shard(version), shard(version).stat().st_size
    local = list(_tfrecord._frames(_tfrecord._reader(str(path), size), size, lambda _: None))
    monkeypatch.setattr(storage, 'is_remote', lambda url: True)
    monkeypatch.setattr(storage, 'read', read)
    monkeypatch.setattr(_tfrecord, '_WINDOW', 1000)
    remote = list(_tfrecord._frames(_tfrecord._reader(str(path), size), size, lambda _: None))
    assert remote == local == [0, *np.cumsum([len(FRAMES[i]) for i in range(4, 9)])] and max(asked) <= 1000 and len(asked) <= 3


def test_without_the_checksum_library_it_says_what_to_install(tfrecord, monkeypatch):
    monkeypatch.setitem(sys.modules, 'google_crc32c', None)
    with pytest.raises(RecipeError, match='pip install google-crc32c'):
        tfrecord[1]()


def test_a_damaged_array_record(tmp_path):
    version = prepared(tmp_path, 'array_record')
    path = version / 'toy-train.array_record-00002-of-00004'
    path.write_bytes(path.read_bytes()[:900])
    source = toy(tmp_path)
    expect(source, {4, 5, 6, 7, 8}, 'no readable ArrayRecord file')
    write_array_record(path, range(4, 8))
    with pytest.raises(RecipeError, match='has 4 records, its data set says 5'):
        toy(tmp_path)


def test_records_of_other_features(tfrecord):
    version, source = tfrecord
    shard(version).write_bytes(FRAMES[4] + frame(b'\xff\xff') + frame(b'') + b''.join(FRAMES[7:9]))
    found = source().read(4, 9)
    assert [str(row) for row in found if isinstance(row, BadExample)] == ['record does not fit the features'] * 2


def test_in_a_data_set(both):
    data = Dataset(dict(source=dict(name='tfds', dataset='toy:1.0.0', split='val', data_dir=str(both), captions='', label='label'),
                        ops=(dict(name='decode'),)))
    assert (data.example(1)['image'] == picture(seed=13)).all() and data.example(1)['label'] == 1


@pytest.mark.parametrize('fields, message', [
    (dict(dataset='toy', split='test'), "split: toy has no split 'test' .there are: train, val"),
    (dict(dataset='toy', split='train', captions='text'), "captions: toy has no feature 'text' .there are: .*captions_de"),
    (dict(dataset='toyy', split='train'), "no 'toyy'"),
    (dict(dataset='coco_captions', split='train'), 'is not prepared at .*prepare it elsewhere'),
    (dict(dataset='imagenet2012', split='train'), 'imagenet2012 is not prepared at .*download_and_prepare')])
def test_what_is_wrong_is_said(both, fields, message):
    with pytest.raises(RecipeError, match=message):
        Tfds(data_dir=str(both), **fields)
