"""big_vision's and AugReg's files: the same numbers as their models written in NumPy, in every layout, and back to the same arrays."""

import math

import fast
import numpy as np
import pytest

from bigvlm import model as model_lib
from bigvlm import recipe
from bigvlm.core import foreign, parts, paths
from bigvlm.core.foreign import WeightsError
from bigvlm.interop import big_vision
from tests.interop import big_vision_reference as theirs
from tests.interop.fakes import Memory

VIT = dict(width=32, depth=2, heads=2, hidden=48, patch=4, side=3)
WIDE = dict(width=48, depth=3, heads=3, hidden=96, patch=14, side=5)  # odd: 14 pixels; images of 75 are cut to 70
TEXT = dict(width=32, depth=2, heads=4, hidden=64, vocab=40, length=6)
LONG = dict(width=48, depth=3, heads=3, hidden=80, vocab=23, length=19)


def as_is(file):
    return file


def vit(pool, out=0, learned=True, **sizes):
    shapes = theirs.vit_shapes(**sizes, pool=pool, out=out, learned=learned)
    return shapes | ({'cls_position': (1, 1, sizes['width'])} if pool == 'tok' and learned else {})


# {name: (shapes, layout, prefix, side of images)}; LiT's and AugReg's files are of the old layout.
SIGLIP = theirs.two_towers(vit('map', **VIT), theirs.text_shapes(**TEXT, out=32), bias=True)
SIGLIP_WIDE = theirs.two_towers(vit('map', out=32, **WIDE), theirs.text_shapes(**LONG, out=32), bias=True)
LIT = theirs.two_towers(vit('tok', **VIT), theirs.bert_shapes(64, 2, 96, 50, out=32), bias=False)
LIT_HEAD = theirs.two_towers(vit('tok', out=24, **WIDE), theirs.bert_shapes(128, 3, 128, 31, out=24, rows=16), bias=False)
TWO = {
    'siglip': (SIGLIP, as_is, 'params/', 12), 'siglip, scanned': (SIGLIP_WIDE, theirs.stacked, 'params/', 75),
    'lit': (LIT, theirs.augreg, '', 12), 'lit, image head': (LIT_HEAD, theirs.augreg, '', 70),
}
ALONE = {
    'augreg': (vit('tok', out=11, **VIT), theirs.augreg, 'opt/target/', 12),
    'cls, scanned': (vit('tok', **WIDE), lambda file: theirs.stacked(theirs.augreg(file)), '', 70),
    'gap': (vit('gap', out=7, **WIDE), as_is, 'params/', 75),
    'gap, sincos2d': (vit('gap', learned=False, **VIT), theirs.stacked, 'params/', 12),
    'map, inlined': (vit('map', **VIT), lambda file: {name.removeprefix('MAPHead_0/'): x for name, x in file.items()}, '', 12),
}


def written(tmp_path, file, layout, prefix):
    """An .npz as theirs: with an optimizer's state where a prefix sets the parameters apart."""
    arrays = {prefix + name: x for name, x in layout(file).items()} | ({'opt/step' if prefix == 'params/' else 'extra': np.zeros(())}
                                                                       if prefix else {})
    path = tmp_path / f'{len(list(tmp_path.iterdir()))}.npz'  # never over one that is mapped
    np.savez(path, **arrays)
    return str(path)


def read(description, weights):
    arrays = foreign.Arrays(weights, description.table, {path: x.shape for path, x in description.abstract.items()}, description.ignored)
    return {path: arrays.read(path) for path in description.table}


def opened(path, res):
    """As open_model, but for images of another side than any model that was published."""
    weights = big_vision.view(big_vision.open_weights(path))
    description = big_vision.describe(big_vision.infer(weights, res=res))
    return description, read(description, weights)


def tokens_of(description, params, name, x):
    """(embeddings, [tokens after each block]) of one tower."""
    tower = parts.build('bigvlm.towers', description.config['towers'][name], name)
    own = {path.removeprefix(f'{name}/'): x for path, x in params.items() if path.startswith(f'{name}/')}

    def encoded(variables, x):
        found = tower.apply({'params': variables}, x, layers=tuple(range(tower.depth)))
        return found.pooled_BD, [found.layers[i] for i in range(tower.depth)]
    return fast.jit(encoded)(paths.unflatten(own), x)


def close(ours, expected, relative):
    assert ours.shape == expected.shape
    assert np.abs(np.asarray(ours) - expected).max() <= relative * np.abs(expected).max()


def compare(ours, expected, real_BL=None):
    close(ours[0], expected[0], 1e-5)
    assert len(ours[1]) == len(expected[1])
    for mine, other in zip(ours[1], expected[1]):
        close(mine if real_BL is None else np.asarray(mine)[real_BL], other if real_BL is None else other[real_BL], 1e-4)


def wide(file):
    return {name: x.astype(np.float64) for name, x in file.items()}


def images(side, n=3):
    return np.random.default_rng(1).integers(0, 256, (n, side, side, 3), np.uint8)


def texts(config, n=3):
    ids_BL = np.random.default_rng(2).integers(1, config['text']['vocab_size'], (n, config['text']['length']), np.int32)
    if config['text_model'] == 'bert':
        for row, length in zip(ids_BL, (16, 5, 1)):
            row[length:] = 0
    return ids_BL


@pytest.mark.parametrize('case', TWO)
def test_two_towers(case, tmp_path):
    shapes, layout, prefix, res = TWO[case]
    file = theirs.draw(shapes)
    description, params = opened(written(tmp_path, file, layout, prefix), res)
    config = big_vision.theirs(description.config)
    pixels_BHWC, ids_BL = images(res), texts(config)
    is_bert = config['text_model'] == 'bert'

    image = theirs.vit(pixels_BHWC / 127.5 - 1, wide(theirs.below(file, 'img/')))
    text = (theirs.bert if is_bert else theirs.text)(ids_BL, wide(theirs.below(file, 'txt/')))
    compare(tokens_of(description, params, 'image', pixels_BHWC), image)
    compare(tokens_of(description, params, 'text', ids_BL), text, ids_BL != 0 if is_bert else None)

    model = model_lib.from_config(description.config)
    batch = {'image': pixels_BHWC, 'text': ids_BL, 'id': np.zeros((3, 2), np.uint32)}

    @fast.jit
    def measured(variables):
        found = model.apply({'params': variables}, batch, 'match', method='embed')
        return model.apply({'params': variables}, batch, 'match', method='measure')['loss'], found['image_BD'] @ found['text_BD'].T
    loss, cosines = measured(paths.unflatten(params))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image[0], text[0]))
    close(cosines, a @ b.T, 1e-5)
    close(loss, theirs.loss(image[0], text[0], wide(file)), 1e-5)


@pytest.mark.parametrize('case', ALONE)
def test_vit_alone(case, tmp_path):
    shapes, layout, prefix, res = ALONE[case]
    file = theirs.draw(shapes)
    description, params = opened(written(tmp_path, file, layout, prefix), res)
    assert not description.config.get('objectives') and description.config['towers'].keys() == {'image'}
    pixels_BHWC = images(res)
    compare(tokens_of(description, params, 'image', pixels_BHWC), theirs.vit(pixels_BHWC / 127.5 - 1, wide(file), head=False))


def test_text_alone(tmp_path):
    file = theirs.draw(theirs.text_shapes(**TEXT))
    description, params = opened(written(tmp_path, file, theirs.stacked, 'params/'), 0)
    ids_BL = texts(big_vision.theirs(description.config))
    compare(tokens_of(description, params, 'text', ids_BL), theirs.text(ids_BL, wide(file)))


def test_one_of_two_towers(tmp_path):
    path = written(tmp_path, theirs.draw(LIT_HEAD), theirs.augreg, '')
    _, whole = opened(path, 70)
    for part, name in (('img', 'image'), ('txt', 'text')):
        description, weights = big_vision.open_model(f'{path}:{part}')
        assert weights.where == f'{path}:{part}'
        found = read(description, weights)
        assert found.keys() == {path for path in whole if path.startswith(f'{name}/')}
        assert all(np.array_equal(x, whole[path]) for path, x in found.items())


@pytest.mark.parametrize('case', TWO | ALONE)
def test_there_and_back(case, tmp_path):
    shapes, layout, prefix, res = (TWO | ALONE)[case]
    file = theirs.draw(shapes, seed=3)
    description, params = opened(written(tmp_path, file, layout, prefix), res)
    config = big_vision.theirs(description.config)
    assert big_vision.describe(config) == description
    exported = dict(big_vision.export(description.table, params, prefix=''))

    # The old place of positions is what holds a class token's; everything else is where today's big_vision has it.
    wanted = {name: x for name, x in file.items() if case in TWO or not name.startswith('head/')}
    for tower in ('', 'img/'):
        if f'{tower}cls_position' in wanted:
            joined = np.concatenate([wanted.pop(f'{tower}cls_position'), wanted.pop(f'{tower}pos_embedding')], 1)
            wanted[f'{tower}Transformer/posembed_input/pos_embedding'] = joined
    assert exported.keys() == wanted.keys()
    assert all(x.dtype == np.float32 and np.array_equal(x, wanted[name]) for name, x in exported.items())
    again = opened(written(tmp_path, exported, as_is, 'params/'), res)
    assert again[0] == description and all(np.array_equal(x, params[path]) for path, x in again[1].items())


def test_a_class_token_without_a_position(tmp_path):
    file = {name: x for name, x in theirs.draw(vit('tok', **VIT)).items() if name != 'cls_position'}
    description, params = opened(written(tmp_path, file, as_is, 'params/'), 12)
    assert 'image/class_token' in params and 'image/class_position' not in params
    pixels_BHWC = images(12)
    compare(tokens_of(description, params, 'image', pixels_BHWC), theirs.vit(pixels_BHWC / 127.5 - 1, wide(file)))
    exported = dict(big_vision.export(description.table, params))
    assert exported.keys() == {f'params/{name}' for name in file}
    assert np.array_equal(exported['params/pos_embedding'], file['pos_embedding'])


def test_a_piece_is_the_piece_of_the_whole():
    file, rng = theirs.draw(vit('tok', **VIT)), np.random.default_rng(4)
    for arrays in (theirs.augreg(file), theirs.stacked(theirs.augreg(file))):
        weights = big_vision.view(Memory(arrays))
        assert set(weights.names()) == file.keys()
        for name, whole in file.items():
            assert whole.shape == weights.shape(name) and np.array_equal(weights.read(name), whole)
            index = tuple(slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in whole.shape)
            assert np.array_equal(weights.read(name, index), whole[index]), name


# The published sizes, by shapes alone.

class Shapes:
    """An open file whose arrays nobody reads."""
    where = 'file'

    def __init__(self, shapes):
        self.shapes = shapes

    def names(self):
        return list(self.shapes)

    def shape(self, name):
        return self.shapes[name]


@pytest.mark.parametrize('patch,side,res', [(16, 14, 224), (16, 16, 256), (16, 32, 512), (14, 16, 224), (14, 27, 384), (32, 7, 224),
                                            (14, 24, 336)])
def test_the_side_of_images(patch, side, res):
    config = big_vision.infer(Shapes(theirs.vit_shapes(32, 1, 2, 48, patch, side, 'map')))
    assert config['image']['res'] == res
    (op,) = big_vision.describe(config).image_ops
    assert op['size'] == res and op['crop'] == 'squash' and not op['antialias']


def test_siglip_b16_is_that_of_our_recipe():
    c = recipe.resolve(recipe.from_command_line('configs/siglip_b16.py', []))
    shapes = theirs.two_towers(theirs.vit_shapes(768, 12, 12, 3072, 16, 14, 'map'), theirs.text_shapes(768, 12, 12, 3072, 32_000, 64, 768),
                               bias=True)
    assert big_vision.theirs(c) == big_vision.infer(Shapes(shapes))
    table = big_vision.describe(big_vision.theirs(c))
    expected = foreign.expected(table.table, {path: x.shape for path, x in table.abstract.items()})
    assert expected == shapes
    assert sum(math.prod(shape) for shape in expected.values()) == 203_155_970  # as big_vision's own model counts (docs/benchmarks.md)


def test_lit_b16_is_that_of_our_recipe():
    c = recipe.resolve(recipe.from_command_line('configs/lit_b16.py', []))
    towers = {**c['towers'], 'text': {**c['towers']['text'], 'activation': 'gelu_tanh', 'length': 512}}
    config = big_vision.theirs({'towers': towers, 'objectives': {'match': c['objectives']['contrast']}})
    image = vit('tok', width=768, depth=12, heads=12, hidden=3072, patch=16, side=14)
    shapes = theirs.two_towers(image, theirs.bert_shapes(768, 12, 3072, 30_522, 768, 512), bias=False)
    assert config == big_vision.infer(Shapes(shapes)) and config['text']['length'] == 16


# What is refused.

def changed(name, field, value):
    description = big_vision.describe(big_vision.infer(Shapes(TWO[name][0]), res=TWO[name][3]))
    tower, _, field = field.rpartition('.')
    return {**description.config, 'towers': {**description.config['towers'], tower: {**description.config['towers'][tower], field: value}}}


@pytest.mark.parametrize('field,value,message', [
    ('image.activation', 'gelu', "^towers.image.activation: found 'gelu'; big_vision has 'gelu_tanh'"),
    ('image.pre_norm', True, '^towers.image.pre_norm: found True'),
    ('image.last_norm', 'none', '^towers.image.last_norm: found .none.'),
    ('image.mask_token', True, '^towers.image.mask_token: found True; big_vision has False'),
    ('image.mean', (.4, .5, .5), '^towers.image.mean'),
    ('image.pool', 'queries', "^towers.image.pool: found 'queries'; big_vision has cls, gap, map"),
    ('text.causal', True, '^towers.text.causal'),
    ('text.out_bias', False, '^towers.text.out_bias')])
def test_fields_that_big_vision_has_not(field, value, message):
    with pytest.raises(WeightsError, match=message):
        big_vision.theirs(changed('siglip', field, value))


def test_towers_and_objectives_that_big_vision_has_not():
    groups = changed('lit', 'text.heads', 4)
    with pytest.raises(WeightsError, match='a BERT of width 64 with 4 heads'):
        big_vision.theirs(groups)
    for objectives in ({}, {'match': dict(name='contrastive', learned=False)}, {'match': dict(name='loob')}):
        with pytest.raises(WeightsError, match='^objectives: found'):
            big_vision.theirs({**changed('siglip', 'text.causal', False), 'objectives': objectives})
    with pytest.raises(WeightsError, match="^towers.image: found 'swin'"):
        big_vision.theirs({'towers': {'image': dict(name='swin')}})


@pytest.mark.parametrize('shapes,message', [
    ({'stem/kernel': (3,)}, 'file is no model of big_vision that is known here'),
    ({**theirs.vit_shapes(**VIT, pool='map'), 'embedding/kernel': (48, 32)}, r'embedding/kernel is \[48, 32\]; an array of 4'),  # NaFlex
    ({**theirs.vit_shapes(**VIT, pool='map'), 'pos_embedding': (1, 10, 32)}, 'has 10 positions'),
    ({**theirs.text_shapes(**TEXT), 'MAPHead_0/probe': (1, 1, 32)}, 'no text tower here pools by attention'),
    ({'embedding/kernel': (4, 4, 3, 32), 'pos_embedding': (1, 9, 32)}, 'encoderblock_0/Multi.* is not there'),
    (theirs.bert_shapes(96, 1, 64, 9, 8), 'a BERT of width 96 has no heads of 64')])
def test_files_of_no_model_here(shapes, message):
    with pytest.raises(WeightsError, match=message):
        big_vision.infer(Shapes(shapes))


def test_arrays_that_are_missing_and_that_are_not_expected():
    shapes = dict(SIGLIP) | {'img/pre_logits/kernel': (32, 32)}
    del shapes['txt/Encoder_0/encoderblock_1/LayerNorm_1/bias']
    shapes['img/MAPHead_0/MlpBlock_0/Dense_0/kernel'] = (32, 40)
    weights = big_vision.view(Shapes(shapes))
    description = big_vision.describe(big_vision.infer(weights, res=12))
    with pytest.raises(WeightsError) as error:
        foreign.Arrays(weights, description.table, {path: x.shape for path, x in description.abstract.items()}, description.ignored)
    assert str(error.value).splitlines()[1:] == [
        '- txt/Encoder_0/encoderblock_1/LayerNorm_1/bias [32]', '+ img/pre_logits/kernel [32, 32]',
        '~ img/MAPHead_0/MlpBlock_0/Dense_0/kernel [32, 40], expected [32, 48]']


def test_a_part_that_is_not_there():
    with pytest.raises(WeightsError, match="memory has nothing below 'params/img/'"):
        big_vision.view(Memory({'params/cls': np.zeros((1, 1, 3))}), 'img')
