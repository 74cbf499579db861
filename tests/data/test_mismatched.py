import numpy as np
import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.dataset import Dataset
from bigvlm.data.sources.mismatched import Mismatched

OF = dict(name='tests.data.toy_data.memory', count=1000, bad={7: 'broken'})


def test_a_share_has_the_captions_of_others():
    source = Mismatched(OF, .3)
    whose = np.array([source.whose(i) for i in range(1000)])
    moved = whose != np.arange(1000)
    assert .26 < moved.mean() < .34 and (whose >= 0).all() and (whose < 1000).all()
    assert len(set(whose[moved])) > .8 * moved.sum()  # of many others
    i = int(np.flatnonzero(moved & (whose != 7))[0])
    assert source[i]['value'][0] == i and source[i]['captions'] == source.captions(i) == source._of.captions(whose[i])
    assert source.describe(i) == f'memory:{i} with the captions of memory:{whose[i]}'
    still = int(np.flatnonzero(~moved)[0])
    assert source[still]['captions'] == source._of.captions(still) and source.describe(still) == f'memory:{still}'


def test_none_and_all():
    assert all(Mismatched(OF, 0.).whose(i) == i for i in range(100))
    assert all(Mismatched(OF, 1.).whose(i) != i for i in range(1000))


def test_read_together_is_read_one_by_one():
    source = Mismatched(OF, .5, seed=3)
    for i, found in enumerate(source.read(0, 12)):
        if i == 7:
            assert isinstance(found, BadExample)
        else:
            assert found['captions'] == source[i]['captions'] and found['value'][0] == i


def test_an_exchanged_caption_that_cannot_be_read(monkeypatch):
    source = Mismatched(OF, 1.)

    def captions(index):
        raise BadExample('broken caption')
    monkeypatch.setattr(source._of, 'captions', captions)
    assert all(isinstance(found, BadExample) for found in source.read(0, 3))
    with pytest.raises(BadExample, match='broken caption'):
        source[0]


def test_the_fingerprint_and_the_recipe():
    prints = {Mismatched(of, share, seed).fingerprint for of, share, seed in
              ((OF, .3, 0), (OF, .3, 1), (OF, .4, 0), ({**OF, 'count': 1001}, .3, 0))}
    assert len(prints) == 4
    dataset = Dataset(dict(source=dict(name='mismatched', of=OF, share=.5), order='blocks', block=8), 'data.train')
    assert len(dataset) == 1000 and dataset.example(50)['value'][0] == 50


@pytest.mark.parametrize('fields, message', [(dict(of=OF, share=1.5), 'share: found 1.5'), (dict(of='x', share=.1), 'of: the source'),
                                             (dict(of={**OF, 'count': 1, 'bad': {}}, share=.1), 'two or more')])
def test_refusals(fields, message):
    with pytest.raises(RecipeError, match=message):
        parts.build('bigvlm.data.sources', dict(name='mismatched', **fields), 'source')
