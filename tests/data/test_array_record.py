import json
import threading

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from array_record.python import array_record_data_source
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import Dataset
from bigvlm.data.sources import _records, array_record
from bigvlm.data.sources.array_record import ArrayRecord, pack, unpack
from tests.data.fakes import encoded, picture


def example(i):
    return {'image': np.random.default_rng(i).bytes(2000), 'captions': (f'number {i}', f'№ {i}'), 'label': i % 3, 'key': f'{i:06}'}


def write(path, records, options=array_record.WRITER_OPTIONS):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


@pytest.fixture
def files(tmp_path):
    write(tmp_path / 'train-0001.array_record', [pack(example(i)) for i in range(7, 12)])
    write(tmp_path / 'train-0000.array_record', [pack(example(i)) for i in range(7)])
    return str(tmp_path / 'train-*.array_record')


def test_reads_what_was_packed(files):
    source = ArrayRecord(files)
    assert len(source) == 12 and [source[i] for i in (11, 0, 6, 7)] == [example(i) for i in (11, 0, 6, 7)]
    assert source.read(3, 10) == [example(i) for i in range(3, 10)] and source.captions(8) == example(8)['captions']
    assert source.describe(7) == 'train-0001.array_record[0]' and source.label_names == ()
    for index in (-1, 12):
        with pytest.raises(IndexError):
            source[index]


def test_reads_the_same_records_as_array_record_itself(files, tmp_path):
    paths = sorted(map(str, tmp_path.glob('*.array_record')))
    theirs = array_record_data_source.ArrayRecordDataSource(paths)
    wanted = [msgpack.unpackb(theirs[i]) for i in range(len(theirs))]
    ours = ArrayRecord(files).read(0, 12)
    assert [dict(row, captions=list(row['captions'])) for row in ours] == wanted


def test_neighbours_take_one_request_for_each_file(files):
    source = ArrayRecord(files)
    source.read(0, 7)
    assert source.io.requests == 1 and source.io.bytes == sum(len(pack(example(i))) for i in range(7))
    source.read(5, 9)
    assert source.io.requests == 3


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2 ** 63, 2 ** 64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), values, max_size=5))
def test_whatever_an_example_holds_survives(holds):
    assert unpack(pack(holds)) == holds


def test_arrays_and_numbers_of_numpy_survive():
    arrays = {'image': picture(), 'boxes': np.random.default_rng(0).random((3, 4), np.float32), 'none': np.zeros((0, 4), '>i2'),
              'strided': np.arange(24).reshape(4, 6)[::2, ::3], 'flag': np.array(True)}
    found = unpack(pack(arrays | {'n': np.int32(7), 'x': np.float32(.5), 'list': [1, [2]]}))
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype and np.array_equal(found[key], array)
    assert (found['n'], found['x'], found['list']) == (7, .5, (1, (2,)))
    for thing in (object(), np.array([None])):
        with pytest.raises(TypeError):
            pack({'x': thing})


@pytest.mark.parametrize('record', [b'', b'\xc1', pack({'a': 'b'})[:-1], msgpack.packb([1]), msgpack.packb({'a': msgpack.ExtType(9, b'')}),
                                    msgpack.packb({'a': msgpack.ExtType(1, b'\x01')})])
def test_records_of_something_else(tmp_path, record):
    with pytest.raises(ValueError):
        unpack(record)
    source = ArrayRecord(write(tmp_path / 'a.array_record', [pack(example(0)), record or b'\xc1']))
    assert source[0] == example(0)
    with pytest.raises(BadExample, match='cannot be unpacked'):
        source[1]


def test_damage(tmp_path, files):
    path = tmp_path / 'train-0000.array_record'
    good = path.read_bytes()
    spoilt = bytearray(good)
    at = good.index(example(3)['image'][500:550])
    spoilt[at:at + 50] = bytes(50)
    path.write_bytes(spoilt)
    source = ArrayRecord(files)
    found = source.read(0, 12)
    assert [str(row) for row in found if isinstance(row, BadExample)] == ['damaged record'] and isinstance(found[3], BadExample)
    assert [row for row in found if row is not found[3]] == [example(i) for i in range(12) if i != 3]
    path.write_bytes(good[:len(good) // 2])
    cut = ArrayRecord(files)
    assert len(cut) == 5 and cut.damage == {'no readable ArrayRecord file': ['train-0000.array_record']} and cut[0] == example(7)
    assert cut.fingerprint != source.fingerprint
    with pytest.raises(RecipeError, match='has no examples'):
        Dataset(dict(source=dict(name='array_record', files=str(path))))
    reader = ArrayRecord(files)
    (tmp_path / 'train-0001.array_record').unlink()
    with pytest.raises(FileNotFoundError):
        reader[0]


def test_label_names_and_fingerprint(tmp_path, files):
    first = ArrayRecord(files)
    (tmp_path / array_record.LABEL_NAMES).write_text(json.dumps(['cat', 'dog', 'Kühe']))
    named = ArrayRecord(files)
    assert named.label_names == ('cat', 'dog', 'Kühe') and named.fingerprint != first.fingerprint
    other = [pack(dict(example(i), image=bytes(2000))) for i in range(7)]  # as many, and as long
    write(tmp_path / 'train-0000.array_record', other, 'group_size:1,uncompressed')
    assert ArrayRecord(files).fingerprint != named.fingerprint
    for text, message in (('{}', 'must be a list'), ('[', 'no JSON')):
        (tmp_path / array_record.LABEL_NAMES).write_text(text)
        with pytest.raises(RecipeError, match=message):
            ArrayRecord(files)


def test_the_number_of_records_is_cached(files, monkeypatch):
    first = ArrayRecord(files)
    monkeypatch.setattr(_records, '_scan', lambda *_: pytest.fail('opened again'))
    assert ArrayRecord(files).fingerprint == first.fingerprint


def test_many_threads_and_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_records, '_OPEN', 2)
    for i in range(6):
        write(tmp_path / f'{i}.array_record', [pack(example(10 * i + j)) for j in range(10)])
    source, wrong = ArrayRecord(str(tmp_path / '*.array_record')), []

    def read(seed):
        for i in np.random.default_rng(seed).integers(60, size=200):
            if source[int(i)] != example(int(i)):
                wrong.append(i)
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(source._records._readers) <= 2


def test_in_a_data_set(tmp_path):
    file = write(tmp_path / 'a.array_record', [pack({'image': encoded('PNG', pixels=picture(seed=i)), 'label': i}) for i in range(3)])
    data = Dataset(dict(source=dict(name='array_record', files=file), ops=(dict(name='decode'),)))
    assert (data.example(2)['image'] == picture(seed=2)).all() and data.example(2)['label'] == 2


def test_what_is_wrong_is_said(tmp_path):
    for files, message in (('gs://bucket/a.array_record', 'mount the bucket'), (str(tmp_path / 'none'), 'nothing matches')):
        with pytest.raises(RecipeError, match=message):
            ArrayRecord(files)
