import csv
import io
import json
import os
import sys
import threading

import hypothesis.strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import Dataset
from bigvlm.data.sources import _text_rows
from bigvlm.data.sources._row_starts import row_starts
from bigvlm.data.sources.table import Table
from tests.data.fakes import encoded, picture


def image(i):
    return encoded(pixels=picture(seed=i))


@pytest.fixture
def photos(tmp_path):
    """Ten image files in a folder beside the tables."""
    (tmp_path / 'images').mkdir()
    for i in range(10):
        (tmp_path / 'images' / f'{i}.jpg').write_bytes(image(i))
    return tmp_path


def write_csv(path, rows, **options):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


ROWS = [dict(image=f'images/{i}.jpg', caption=f'number {i}, "quoted",\nand more', title=f'title {i}', kind='cat' if i % 3 else 'dog',
             number=i * 2) for i in range(10)]


@pytest.mark.parametrize('ending, options', [
    ('csv', {}), ('csv', dict(lineterminator='\n')), ('csv', dict(lineterminator='\r', quoting=csv.QUOTE_ALL)),
    ('tsv', dict(delimiter='\t')), ('CSV', {})])
def test_csv_with_paths(photos, ending, options):
    file = write_csv(photos / f'a.{ending}', ROWS, **options)
    source = Table(file, captions=('caption', 'title'), label='kind', extra=('number',))
    with open(file, newline='') as text:  # the independent reader
        wanted = list(csv.DictReader(text, delimiter=options.get('delimiter', ',')))
    assert len(source) == len(wanted) == 10 and source.label_names == ('cat', 'dog')
    for i in (9, 0, 4):
        row = wanted[i]
        assert source[i] == {'image': image(i), 'captions': (' '.join(row['caption'].split()), row['title']),
                             'label': int(row['kind'] == 'dog'), 'number': row['number']}
        assert source.captions(i) == source[i]['captions']
    assert source.read(2, 7) == [source[i] for i in range(2, 7)]
    assert source.describe(9) == f'a.{ending}[9]'
    for index in (10, -1):
        with pytest.raises(IndexError):
            source[index]


def test_several_files_each_with_its_own_header(photos):
    write_csv(photos / 'b.csv', ROWS[6:])
    write_csv(photos / 'a.csv', [dict(reversed(row.items())) for row in ROWS[:6]])
    source = Table(str(photos / '*.csv'))
    assert [source.describe(i) for i in (0, 5, 6, 9)] == ['a.csv[0]', 'a.csv[5]', 'b.csv[0]', 'b.csv[3]']
    assert [row['image'] for row in source.read(0, 10)] == [image(i) for i in range(10)]
    write_csv(photos / 'c.csv', [{'image': 'images/0.jpg', 'text': 'x'}])
    with pytest.raises(BadExample, match="no column 'caption'"):
        Table(str(photos / '*.csv'))[10]


def starts(data, separator, size):
    pieces = (data[at:at + size] for at in range(0, len(data), size))
    return np.concatenate([[0][:0], *row_starts(pieces, separator)]).astype(int).tolist()


@settings(max_examples=1500, deadline=None)
@given(st.text(alphabet='a",\n\r\té', max_size=40), st.integers(1, 9), st.sampled_from(',\t'))
def test_rows_begin_where_the_csv_module_says(text, size, separator):
    wanted = [row for row in csv.reader(io.StringIO(text, newline=''), delimiter=separator) if row]
    data = text.encode()
    bounds = [*starts(data, separator, size), len(data)]
    assert [next(csv.reader([data[a:b].decode()], delimiter=separator)) for a, b in zip(bounds, bounds[1:])] == wanted


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text(alphabet='ab ",\n\r[é\'', max_size=6), max_size=4), max_size=8), st.sampled_from('mwn'), st.booleans())
def test_each_row_alone_is_as_in_the_whole_file(tmp_path, rows, way, bom):
    """Written by the csv module, or by hand without any quoting or with all marks stray."""
    text = io.StringIO(newline='')
    text.write('\ufeff' * bom + 'image,caption,x\r\n')
    if way == 'm':
        csv.writer(text).writerows(rows)
    else:
        text.write('\n'.join((',' if way == 'n' else ',"').join(row) for row in rows))
    path = tmp_path / 'a.csv'
    path.write_bytes(text.getvalue().encode())
    with open(path, newline='', encoding='utf-8-sig') as file:
        wanted = [{k: v for k, v in row.items() if k is not None and v is not None} for row in csv.DictReader(file)]
    found = _text_rows.TextRows([str(path)], 'csv')
    assert found.read(0, len(found)) == wanted == [found.read(i, i + 1)[0] for i in range(len(found))]


def test_a_stray_mark_in_a_long_chunk_costs_nothing_but_its_field():
    rng = np.random.default_rng(0)
    fields = ['plain', 'a 5" pipe', '"quoted, with ""marks"" and\nlines"', '']
    text = ''.join(','.join(rng.choice(fields, 3)) + '\n' for _ in range(5000))
    bounds = [*starts(text.encode(), ',', 100_003), len(text)]
    assert [next(csv.reader([text[a:b]])) for a, b in zip(bounds, bounds[1:])] == list(csv.reader(io.StringIO(text, newline='')))


def test_jsonl(photos):
    rows = [dict(image='images/0.jpg', caption=['one', ' two\nlines ', '', None]), dict(image='images/1.jpg', caption='["a", "b"]', n=3),
            dict(image=str(photos / 'images/2.jpg'), caption='[not json'), dict(caption='["x", 1]', image='images/3.jpg', n=None)]
    lines = [json.dumps(row) for row in rows]
    (photos / 'a.jsonl').write_text('\r\n\n'.join(lines) + '\n\n')
    source = Table(str(photos / 'a.jsonl'), extra=('n',))
    assert [source[i]['image'] for i in range(len(source))] == [image(i) for i in range(4)]
    assert [source.captions(i) for i in range(4)] == [('one', 'two lines'), ('a', 'b'), ('[not json',), ('["x", 1]',)]
    assert [row['n'] for row in source.read(0, 4)] == [None, 3, None, None]


def test_what_cannot_be_used_is_named(photos, monkeypatch):
    monkeypatch.setattr(_text_rows, '_LONGEST', 400)
    good = [json.dumps(dict(image=f'images/{i}.jpg', caption='x')) for i in range(2)]
    bad = ['{"image": "images/0.jpg"', '[1, 2]', '{"caption": "x"}', '{"image": "images/1.jpg", "caption": " "}',
           '{"image": "images/none.jpg", "caption": "x"}', '{"image": "images", "caption": "x"}', '{"image": 7, "caption": "x"}',
           json.dumps(dict(image='images/0.jpg', caption='x' * 9000)), '[' * 390]
    (photos / 'a.jsonl').write_text('\n'.join([good[0], *bad, good[1]]))
    source = Table(str(photos / 'a.jsonl'))
    reasons = [row if isinstance(row, BadExample) else None for row in source.read(0, len(source))]
    assert [str(row) for row in source.read(7, 10) if isinstance(row, BadExample)] == list(map(str, reasons[7:10]))
    assert list(map(str, reasons)) == [
        'None', 'json row cannot be parsed', 'json row is not an object', 'no image', 'no caption', 'no image file', 'no image file',
        'no image', 'row of more than 16 MiB', 'json row cannot be parsed', 'None']
    for index, reason in enumerate(reasons):
        if reason:
            with pytest.raises(BadExample, match=str(reason)):
                source[index]
    with pytest.raises(BadExample, match='no caption'):
        Dataset(dict(source=dict(name='table', files=source.name))).captions(4)


def test_trouble_with_the_storage_is_no_bad_example(photos, monkeypatch):
    source = Table(write_csv(photos / 'a.csv', ROWS))

    def denied(*_, **__):
        raise PermissionError('denied')
    monkeypatch.setattr(storage, 'read', denied)
    with pytest.raises(PermissionError):
        source[0]
    assert source.captions(0)


def test_where_images_lie(photos, monkeypatch):
    write_csv(photos / 'a.csv', [dict(image='3.jpg', caption='x'), dict(image='https://host/4.jpg', caption='x'),
                                 dict(image='https://host/gone.jpg', caption='x')])
    source = Table(str(photos / 'a.csv'), root=str(photos / 'images'))
    assert source[0]['image'] == image(3)
    asked = []

    def web(url, offset=0, size=None, counts=None):
        asked.append(url)
        if 'gone' in url:
            raise FileNotFoundError(url)
        return b'from the web'
    monkeypatch.setattr(storage, 'read', web)
    assert source[1]['image'] == b'from the web' and asked == ['https://host/4.jpg']
    with pytest.raises(BadExample, match='no image file'):
        source[2]
    monkeypatch.undo()
    monkeypatch.chdir(photos)
    assert Table('a.csv', root='images')[0]['image'] == image(3)
    assert Table(write_csv('b.csv', ROWS))[3]['image'] == image(3)


def test_labels(photos):
    def source(values, **fields):
        rows = [dict(image='images/0.jpg', caption='x', y=value) for value in values]
        return Table(write_csv(photos / 'a.csv', rows), label='y', **fields)
    numbers = source(['3', '-1', ' 7 ', ''])
    assert numbers.label_names == () and [numbers[i]['label'] for i in range(3)] == [3, -1, 7]
    with pytest.raises(BadExample, match='no label'):
        numbers[3]
    mixed = source(['b', '3', 'a', 'b'])
    assert mixed.label_names == ('3', 'a', 'b') and [row['label'] for row in mixed.read(0, 4)] == [2, 0, 1, 2]
    assert Table(str(photos / 'a.csv'), image='', captions='', label='y')[0] == {'label': 2}
    again = Table(str(photos / 'a.csv'), label='y')
    assert again.label_names == mixed.label_names and again.fingerprint == mixed.fingerprint


def test_the_index_is_cached_until_the_table_changes(photos, monkeypatch):
    file = write_csv(photos / 'a.csv', ROWS)
    first = Table(file)
    captions = first.captions(0)
    with monkeypatch.context() as patch:
        patch.setattr(_text_rows, '_scan', lambda *_: pytest.fail('scanned again'))
        again = Table(file)
    assert again.fingerprint == first.fingerprint and again[5] == first[5]
    write_csv(file, ROWS[:-1])
    assert len(Table(file)) == 9 and Table(file).fingerprint != first.fingerprint
    other = [dict(row, caption=row['caption'].replace('n', 'm')) for row in ROWS]
    write_csv(file, other)  # of the same size, at another time
    os.utime(file, ns=(1, 1))
    assert Table(file).captions(0) != captions and Table(file).fingerprint != first.fingerprint
    (photos / 'copy').mkdir()
    assert Table(write_csv(photos / 'copy' / 'a.csv', ROWS)).fingerprint == first.fingerprint
    assert Table(write_csv(file, ROWS), captions='title').fingerprint != first.fingerprint


def test_one_request_for_rows_that_stand_together(photos):
    source = Table(write_csv(photos / 'a.csv', ROWS), image='')
    source[0]
    before = source.io.requests
    source.read(1, 9)
    assert source.io.requests - before == 1


def write_parquet(path, rows, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


PARQUET = [dict(image=dict(bytes=np.random.default_rng(i).bytes(3000), path=f'{i}.jpg'), caption=[f'a {i}', f'b {i}'],
                kind='cat' if i % 3 else 'dog', id=i) for i in range(10)]


@pytest.mark.parametrize('group', [1, 3, 100])
def test_parquet(photos, group):
    write_parquet(photos / 'a.parquet', PARQUET[:7], row_group_size=group)
    write_parquet(photos / 'b.parquet', PARQUET[7:], row_group_size=group, compression='zstd')
    files = str(photos / '*.parquet')
    wanted = pyarrow.concat_tables([pyarrow.parquet.read_table(photos / f'{name}.parquet') for name in 'ab']).to_pylist()
    source = Table(files, label='kind', extra=('id',))
    assert source.label_names == ('cat', 'dog')
    for i in (9, 0, 6, 7):
        assert source[i] == dict(image=wanted[i]['image']['bytes'], captions=tuple(wanted[i]['caption']),
                                 label=int(wanted[i]['kind'] == 'dog'), id=i)
    assert source.read(1, 9) == [source[i] for i in range(1, 9)] and source.describe(8) == 'b.parquet[1]'


def test_parquet_cells_of_every_kind(photos):
    rows = [dict(a=image(0), b=dict(bytes=None, path='images/1.jpg'), c='images/2.jpg', caption='x', n=1.5)] * 2
    rows.append(dict(a=None, b=dict(bytes=None, path=None), c='', caption='x', n=None))
    file = write_parquet(photos / 'a.parquet', rows)
    for i, column in enumerate('abc'):
        source = Table(file, image=column)
        assert source[1]['image'] == image(i)
        with pytest.raises(BadExample, match='no image'):
            source[2]
    assert Table(file, image='a', extra=('n',))[0]['n'] == 1.5


def test_row_groups_are_read_once_and_few_are_kept(photos):
    file = write_parquet(photos / 'a.parquet', PARQUET, row_group_size=2)
    source = Table(file)
    source.captions(0)
    before = source.io.bytes
    assert source.captions(2) == ('a 2', 'b 2') and source.io.bytes - before < 1000, 'captions are read without the images'
    source.read(0, 10)  # five groups, four of them kept
    before = source.io.requests
    source.read(4, 10), source[9], source[3]
    assert source.io.requests == before
    source.read(0, 2)
    assert source.io.requests > before
    fresh = Table(file)
    threads = [threading.Thread(target=fresh.read, args=(0, 2)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = Table(file)
    alone.read(0, 2)
    assert fresh.io.requests == alone.io.requests


def test_damaged_parquet(photos, monkeypatch):
    file = write_parquet(photos / 'a.parquet', PARQUET, row_group_size=2, write_page_checksum=True)
    good = (photos / 'a.parquet').read_bytes()
    spoilt = bytearray(good)
    at = good.index(PARQUET[4]['image']['bytes'][100:140])
    spoilt[at:at + 40] = bytes(40)
    (photos / 'a.parquet').write_bytes(spoilt)
    source = Table(file)
    found = source.read(0, 10)
    assert [str(row) if isinstance(row, BadExample) else '' for row in found] == [''] * 4 + ['damaged parquet row group'] * 2 + [''] * 4
    (photos / 'b.parquet').write_bytes(good[:-100])
    both = Table(str(photos / '*.parquet'))
    assert len(both) == 10 and both.damage == {'parquet footer cannot be read': ['b.parquet']}
    with pytest.raises(RecipeError, match='b.parquet is no parquet file'):
        Table(str(photos / 'b.parquet'))

    def fails(*_):
        raise OSError('the disk is away')
    fresh = Table(file)
    monkeypatch.setattr(storage.Files, 'read', fails)
    with pytest.raises(OSError, match='the disk is away'):
        fresh[0]


def test_without_pyarrow_it_says_what_to_install(photos, monkeypatch):
    file = write_parquet(photos / 'a.parquet', PARQUET)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.delitem(sys.modules, 'bigvlm.data.sources._parquet_rows', raising=False)
    with pytest.raises(RecipeError, match='pip install pyarrow'):
        Table(file)


@pytest.mark.parametrize('fields, message', [
    (dict(image='picture'), "image: .*no column 'picture' .there are: caption, image"),
    (dict(captions=('caption', 'text')), "captions: .*no column 'text'"), (dict(label='y'), "label: .*no column 'y'"),
    (dict(extra=('z',)), "extra: .*no column 'z'"), (dict(image='', captions=''), 'image: name a column')])
def test_columns_that_are_not_there(photos, fields, message):
    write_csv(photos / 'a.csv', [dict(image='images/0.jpg', caption='x')])
    (photos / 'b.jsonl').write_text('{"image": "images/0.jpg", "caption": "x"}')
    write_parquet(photos / 'c.parquet', [dict(image='images/0.jpg', caption='x')])
    for name in ('a.csv', 'b.jsonl', 'c.parquet'):
        with pytest.raises(RecipeError, match=message):
            Table(str(photos / name), **fields)


def test_files_that_are_no_tables(photos):
    (photos / 'a.csv').write_bytes(b'')
    (photos / 'b.csv').write_bytes('image,caption\n'.encode('utf-16'))
    (photos / 'c.xls').write_bytes(b'x')
    for files, message in (('a.csv', 'is empty'), ('b.csv', 'UTF-16'), ('c.xls', 'one kind of csv'), ('[ac].*', 'one kind of'),
                           ('none.csv', 'nothing matches')):
        with pytest.raises(RecipeError, match=message):
            Table(str(photos / files))
