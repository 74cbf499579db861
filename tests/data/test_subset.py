import json

import numpy as np
import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.dataset import Dataset
from bigvlm.data.prepare import keep
from bigvlm.data.sources.subset import Subset

OF = dict(name='tests.data.toy_data.memory', count=200, bad={7: 'broken'})


def listed(tmp_path, indices, name='keep.npy'):
    np.save(tmp_path / name, np.asarray(indices))
    return str(tmp_path / name)


def test_the_kept_in_their_order(tmp_path):
    source = Subset(OF, listed(tmp_path, [3, 7, 8, 150]))
    assert len(source) == 4 and source.describe(2) == 'memory:8' and source.captions(3)[0] == 'caption 0 of 150'
    assert [source[i]['value'][0] for i in (0, 2, 3)] == [3, 8, 150]
    with pytest.raises(BadExample, match='broken'):
        source[1]


def test_neighbours_are_read_together(tmp_path, monkeypatch):
    source = Subset(OF, listed(tmp_path, [3, 7, 8, 150, 151]))
    asked, read = [], source._of.read
    monkeypatch.setattr(source._of, 'read', lambda first, stop: asked.append((first, stop)) or read(first, stop))
    found = source.read(0, 5)
    assert asked == [(3, 9), (150, 152)]
    assert [e if isinstance(e, BadExample) else e['value'][0] for e in found][2:] == [8, 150, 151]
    assert isinstance(found[1], BadExample) and str(found[1]) == 'broken'
    assert [e['value'][0] for e in source.read(2, 4)] == [8, 150] and source.read(2, 2) == []


def test_in_a_recipe_and_by_blocks(tmp_path):
    spec = dict(source=dict(name='subset', of=OF, keep=listed(tmp_path, range(0, 200, 2))), order='blocks', block=8)
    dataset = Dataset(spec, 'data.train')
    assert len(dataset) == 100 and dataset.example(50)['value'][0] == 100


def test_the_fingerprint_covers_source_and_list(tmp_path):
    prints = [Subset(of, listed(tmp_path, kept)).fingerprint for of, kept in
              ((OF, [1, 2]), (OF, [1, 3]), ({**OF, 'count': 201}, [1, 2]))]
    assert len(set(prints)) == 3
    assert prints[0] == Subset(OF, listed(tmp_path, np.uint32([1, 2]), 'other.npy')).fingerprint


@pytest.mark.parametrize('indices', [[2, 1], [1, 1], [-1, 3], [1, 200], [[1]], [.5], []])
def test_lists_that_cannot_be(tmp_path, indices):
    with pytest.raises(RecipeError, match='^source: keep: '):
        parts.build('bigvlm.data.sources', dict(name='subset', of=OF, keep=listed(tmp_path, indices)), 'source')


def test_a_list_of_another_source(tmp_path):
    inner = parts.build('bigvlm.data.sources', OF, 'of')
    keep.write(tmp_path / 'k.npy', np.array([1, 2]), inner, dict(fails={}))
    assert len(Subset(OF, str(tmp_path / 'k.npy'))) == 2
    said = json.loads((tmp_path / 'k.npy.json').read_text())
    assert said['kept'] == 2 and said['examples'] == 200 and said['fingerprint'] == inner.fingerprint
    with pytest.raises(RecipeError, match='was made for memory'):
        Subset({**OF, 'count': 201}, str(tmp_path / 'k.npy'))


def test_no_source_or_no_file(tmp_path):
    with pytest.raises(RecipeError, match="of: the source"):
        Subset('webdataset', listed(tmp_path, [1]))
    with pytest.raises(RecipeError, match='keep: cannot read'):
        Subset(OF, str(tmp_path / 'none.npy'))
    with pytest.raises(RecipeError, match='npy'):
        keep.write(tmp_path / 'k.txt', np.array([1]), parts.build('bigvlm.data.sources', OF, 'of'), {})
