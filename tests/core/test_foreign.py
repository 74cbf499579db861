"""Tables of other libraries' names, forwards and backwards."""

import numpy as np
import pytest

from bigvlm.core import foreign
from bigvlm.core.foreign import Arrays, Theirs, WeightsError

FOREIGN = {
    'norm/scale': 'norm.weight',
    'blocks/fc/kernel': 'layers.{}.fc.weight',
    **{f'blocks/{name}/kernel': Theirs('layers.{}.qkv.weight', part=(i, 3)) for i, name in enumerate(('query', 'key', 'value'))},
    'stage{stage}/conv/kernel': 'stage.{stage}.weight',
    'patch/kernel': Theirs('patch.weight', 'w c p q -> (p q c) w'),
    'class': Theirs('position', '1 w -> w', row=0),
    'position': Theirs('position', row=1),
    'first': Theirs('rows', '1 1 w -> w', row=0),
    'rest': Theirs('rows', '1 l w -> l w', row=1),
    'scale': Theirs('scale', '1 ->'),
    'bias': 'bias',
}
SHAPES = {'norm/scale': (6,), 'blocks/fc/kernel': (2, 6, 8), **{f'blocks/{n}/kernel': (2, 6, 5) for n in ('query', 'key', 'value')},
          'stage3/conv/kernel': (3, 3, 4, 6), 'patch/kernel': (12, 6), 'class': (6,), 'position': (9, 6),
          'first': (6,), 'rest': (4, 6), 'scale': (), 'bias': ()}
THEIRS = {'norm.weight': (6,), 'layers.0.fc.weight': (8, 6), 'layers.1.fc.weight': (8, 6), 'layers.0.qkv.weight': (15, 6),
          'layers.1.qkv.weight': (15, 6), 'stage.3.weight': (6, 4, 3, 3), 'patch.weight': (6, 3, 2, 2), 'position': (10, 6),
          'rows': (1, 5, 6), 'scale': (1,), 'bias': ()}


class Memory:
    where = 'memory'

    def __init__(self, arrays):
        self.arrays, self.taken = arrays, 0

    def names(self):
        return list(self.arrays)

    def shape(self, name):
        return self.arrays[name].shape

    def read(self, name, index):
        found = self.arrays[name][index]
        self.taken += found.nbytes
        return found


def table():
    return foreign.table(FOREIGN, {f'image/{path}': shape for path, shape in SHAPES.items()}, ours='image/', theirs='visual.', p=2, q=2)


def shapes():
    return {f'image/{path}': shape for path, shape in SHAPES.items()}


def theirs(seed=0):
    rng = np.random.default_rng(seed)
    return {f'visual.{name}': np.asarray(rng.normal(size=shape)) for name, shape in THEIRS.items()}


def test_names_and_shapes():
    assert foreign.expected(table(), shapes()) == {f'visual.{name}': shape for name, shape in THEIRS.items()}


def test_what_is_read():
    x = theirs()
    arrays = Arrays(Memory(x), table(), shapes())
    assert np.array_equal(arrays.read('image/blocks/key/kernel')[1], x['visual.layers.1.qkv.weight'][5:10].T)
    assert np.array_equal(arrays.read('image/stage3/conv/kernel'), np.transpose(x['visual.stage.3.weight'], (2, 3, 1, 0)))
    patch = arrays.read('image/patch/kernel')
    assert patch[(1 * 2 + 0) * 3 + 2, 4] == x['visual.patch.weight'][4, 2, 1, 0]
    assert np.array_equal(arrays.read('image/class'), x['visual.position'][0])
    assert np.array_equal(arrays.read('image/position'), x['visual.position'][1:])
    assert arrays.read('image/scale') == x['visual.scale'][0]
    assert np.array_equal(arrays.read('image/first'), x['visual.rows'][0, 0])
    assert np.array_equal(arrays.read('image/rest', (slice(1, 3),)), x['visual.rows'][0, 2:4])


def test_there_and_back():
    x = theirs(1)
    arrays = Arrays(Memory(x), table(), shapes())
    back = dict(foreign.export(table(), {path: arrays.read(path) for path in table()}))
    assert back.keys() == x.keys() and all(np.array_equal(back[name], x[name]) and back[name].shape == x[name].shape for name in x)


@pytest.mark.parametrize('path', SHAPES)
def test_a_piece_is_the_piece_of_the_whole(path):
    memory = Memory(theirs(2))
    arrays = Arrays(memory, table(), shapes())
    whole, rng = arrays.read(f'image/{path}'), np.random.default_rng(3)
    for _ in range(8):
        index = tuple(slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in whole.shape)
        memory.taken = 0
        piece = arrays.read(f'image/{path}', index)
        assert np.array_equal(piece, whole[index])
        if 'blocks' in path or 'stage' in path or path in ('position', 'rest'):
            assert memory.taken == piece.nbytes  # and no more of the file is touched


def test_layers_of_two_kinds_in_turn():
    rules = {f'{kind}/kernel': Theirs('block.{}.weight', layers=(first, 2)) for first, kind in enumerate(('even', 'odd'))}
    turns = foreign.table(rules, {'even/kernel': (3, 2, 4), 'odd/kernel': (3, 2, 4)})
    x = {f'block.{i}.weight': np.full((4, 2), i) for i in range(6)}
    arrays = Arrays(Memory(x), turns, {path: (3, 2, 4) for path in turns})
    assert arrays.read('even/kernel')[:, 0, 0].tolist() == [0, 2, 4] and arrays.read('odd/kernel')[:, 1, 3].tolist() == [1, 3, 5]


def test_what_does_not_fit_is_listed():
    x = theirs()
    x['visual.extra'] = np.zeros(3)
    x['visual.step'] = np.zeros(())
    x['visual.norm.weight'] = np.zeros(7)
    del x['visual.layers.1.fc.weight']
    with pytest.raises(WeightsError) as error:
        Arrays(Memory(x), table(), shapes(), ignored=(r'visual\.step',))
    assert str(error.value).splitlines()[1:] == ['- visual.layers.1.fc.weight [8, 6]', '+ visual.extra [3]',
                                                 '~ visual.norm.weight [7], expected [6]']


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_numbers_that_are_none(bad):
    x = theirs()
    x['visual.layers.1.fc.weight'][3, 2] = bad
    arrays = Arrays(Memory(x), table(), shapes())
    with pytest.raises(WeightsError, match='memory: visual.layers.0.fc.weight holds numbers'):
        arrays.read('image/blocks/fc/kernel')


def test_an_array_that_the_other_model_has_no_place_for():
    with pytest.raises(WeightsError, match='^image/mask_token: the other'):
        foreign.table(FOREIGN, {**shapes(), 'image/mask_token': (6,)}, ours='image/')


def test_parts_that_do_not_fill_their_array():
    entries = {path: entry for path, entry in table().items() if path != 'image/blocks/key/kernel'}
    arrays = Arrays(Memory(theirs()), table(), shapes())
    with pytest.raises(WeightsError, match='do not fill'):
        dict(foreign.export(entries, {path: arrays.read(path) for path in entries}))
