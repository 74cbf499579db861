"""The source that joins side fields: what it gives, what it refuses, and how its folders are written and gone on with."""
import json

import numpy as np
import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.dataset import Dataset
from bigvlm.data.prepare.annotate import Annotator, annotate, unusable
from bigvlm.data.sources.annotated import MANIFEST, Annotated

OF = dict(name='tests.data.toy_data.memory', count=25, bad={7: 'broken'})


def build(of=OF):
    return parts.build('bigvlm.data.sources', of, 'of')


def squares(**changes):
    """Fields made in threads: a number, an array and texts."""
    def one(index, example):
        if index == 9:
            raise BadExample('no nine')
        return dict(square=np.int32(index ** 2), row=np.float16([index, example['value'][1]]), nouns=('a', f'n{index}'))
    return Annotator(**{**dict(fields=('square', 'row', 'nouns'), settings=dict(what='squares'), one=one), **changes})


def written(tmp_path, annotator=None, of=OF, name='side', shard=10):
    return str(tmp_path / name), annotate(build(of), tmp_path / name, annotator or squares(), shard, 2)


def test_joined_by_index(tmp_path):
    file, said = written(tmp_path)
    source = Annotated(OF, file)
    assert len(source) == 25 and source.describe(3) == 'memory:3' and source.captions(3) == build().captions(3)
    example = source[13]
    assert example['square'] == 169 and example['nouns'] == ('a', 'n13') and example['captions'][0] == 'caption 0 of 13'
    np.testing.assert_array_equal(example['row'], np.float16([13, -13]))
    with pytest.raises(BadExample, match='broken'):
        source[7]
    with pytest.raises(BadExample, match='^no square$'):  # it could not be annotated
        source[9]
    together = source.read(5, 23)
    assert [str(e) if isinstance(e, BadExample) else e['square'] for e in together[:6]] == [25, 36, 'broken', 64, 'no square', 100]
    assert unusable(said) == {'broken': 1, 'no nine': 1}
    assert [entry['examples'] for entry in said['shards'].values()] == [10, 10, 5]


def test_chosen_fields_in_a_recipe_by_blocks(tmp_path):
    file, _ = written(tmp_path)
    spec = dict(source=dict(name='annotated', source=OF, file=file, fields=('square',)), order='blocks', block=4, max_bad=.5)
    dataset = Dataset(spec, 'data.train')
    assert set(dataset.example(4)) == {'captions', 'caption', 'value', 'square', 'id'} and dataset.example(4)['square'] == 16


def test_several_folders_and_fields_that_replace(tmp_path):
    file, _ = written(tmp_path)
    better = Annotator(('captions', 'square'), {}, lambda index, example: dict(captions=(f'better {index}',), square=-1))
    other, _ = written(tmp_path, better, name='other', shard=7)
    with pytest.raises(RecipeError, match="file: found 'square' in two folders"):
        Annotated(OF, (file, other))
    source = Annotated(OF, (file, other), ('captions', 'nouns'))
    assert source[3]['captions'] == ('better 3',) == source.captions(3) and source[3]['nouns'] == ('a', 'n3') and 'square' not in source[3]
    assert source.read(3, 4)[0]['captions'] == ('better 3',)
    prints = {source.fingerprint, Annotated(OF, file).fingerprint, Annotated(OF, file, ('nouns',)).fingerprint, build().fingerprint}
    assert len(prints) == 4 and Annotated(OF, file).fingerprint in prints


def test_a_changed_source_is_named_with_the_one_it_was(tmp_path):
    file, _ = written(tmp_path)
    with pytest.raises(RecipeError) as error:
        parts.build('bigvlm.data.sources', dict(name='annotated', source={**OF, 'count': 26}, file=file), 'data.train.source')
    said = str(error.value)
    assert said.startswith('data.train.source: file: ') and 'memory 25' in said and 'memory 26' in said and '\n' not in said
    manifest = tmp_path / 'side' / MANIFEST  # as many examples, but others
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {'fingerprint': 'memory of old'}))
    with pytest.raises(RecipeError, match='fingerprint memory of old.*memory 25'):
        Annotated(OF, file)


def test_what_is_no_folder_or_not_finished(tmp_path):
    file, _ = written(tmp_path)
    for wrong, said in ((dict(file=str(tmp_path / 'none')), 'is no folder of tools/annotate.py'), (dict(file=()), 'file: found none'),
                        (dict(file=file, fields=('size',)), "fields: found 'size'; valid: nouns, row, square"),
                        (dict(source='webdataset', file=file), "source: found 'webdataset'")):
        with pytest.raises(RecipeError, match=said):
            Annotated(**{'source': OF, **wrong})
    manifest = tmp_path / 'side' / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {'finished': False}))
    with pytest.raises(RecipeError, match='was stopped; the same command goes on'):
        Annotated(OF, file)


def test_a_damaged_side_file(tmp_path):
    file, _ = written(tmp_path)
    path = tmp_path / 'side' / '00001.array_record'
    path.write_bytes(b'\0' * path.stat().st_size)
    source = Annotated(OF, file)
    with pytest.raises(BadExample, match='damaged side record'):
        source[13]
    assert source[3]['square'] == 9 and any('00001' in item for items in source.damage.values() for item in items)
    assert [isinstance(e, BadExample) for e in source.read(8, 12)] == [False, True, True, True]


def test_a_stopped_run_goes_on(tmp_path):
    asked = []

    def one(index, example):
        asked.append(index)
        if len(asked) == 24 and stop:
            raise OSError('killed')
        return dict(square=index)
    stop = True
    annotator = Annotator(('square',), dict(what='s'), one)
    with pytest.raises(OSError, match='killed'):
        written(tmp_path, annotator)
    held = json.loads((tmp_path / 'side' / MANIFEST).read_text())
    assert list(held['shards']) == ['00000.array_record', '00001.array_record'] and not held['finished']
    stop, before = False, {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'side').glob('*.array_record')}
    asked.clear()
    file, said = written(tmp_path, annotator)
    assert sorted(asked) == [20, 21, 22, 23, 24] and said['finished'] and not list((tmp_path / 'side').glob('.*'))
    assert all((tmp_path / 'side' / name).stat().st_mtime_ns == time for name, time in before.items())
    (tmp_path / 'side' / '00000.array_record').unlink()  # a lost file is made again
    asked.clear()
    written(tmp_path, annotator)
    assert sorted(asked) == [i for i in range(10) if i != 7] and Annotated(OF, file)[24]['square'] == 24


def test_other_settings_or_another_source_are_refused(tmp_path):
    file, _ = written(tmp_path)
    for changes, said in ((dict(annotator=squares(settings=dict(what='cubes'))), 'settings'), (dict(shard=5), 'shard'),
                          (dict(of={**OF, 'count': 26}), 'fingerprint')):
        with pytest.raises(RecipeError, match=f'was begun for memory with {said} .*choose another folder'):
            written(tmp_path, **changes)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'diary.txt').write_text('x')
    with pytest.raises(RecipeError, match='holds files but no manifest'):
        written(tmp_path, name='full')


def test_groups_for_models(tmp_path):
    groups = []

    def many(made):
        groups.append(made)
        return [dict(twice=2 * value) for value in made]
    annotator = Annotator(('twice',), {}, lambda index, example: index, many, together=4)
    file, _ = written(tmp_path, annotator)
    assert groups == [[0, 1, 2, 3], [4, 5, 6], [8, 9], [10, 11, 12, 13], [14, 15, 16, 17], [18, 19], [20, 21, 22, 23], [24]]
    assert Annotated(OF, file)[21]['twice'] == 42
    for wrong, said in ((lambda made: [{}], 'found 1 results for 4'),
                        (lambda made: [dict(a=1)] * len(made), 'fields: found a; valid: twice')):
        with pytest.raises(RecipeError, match=said):
            written(tmp_path, Annotator(('twice',), {}, lambda index, example: index, wrong, together=4), name=said[:9].replace(' ', ''))
