"""A trained model for use: embeddings, classification, search."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import bigvlm
from bigvlm import evaluate, loaded, prepared
from bigvlm.core import foreign, paths
from bigvlm.core.parts import RecipeError
from bigvlm.data.tokenizers.clip_bpe import ClipBpe
from bigvlm.interop.hf import flava
from bigvlm.interop.source import Source, of_foreign, open_source
from tests.interop.fakes import Memory

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, size, np.uint8) for size in ((32, 32, 3), (50, 40, 3), (33, 70, 3))]
TEXTS = ['a red dog', 'blue cat', 'x']


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_embeddings_are_the_towers(run, model):
    """Against the towers applied by hand to what was prepared by hand."""
    ids = ClipBpe(str(run / 'merges.txt'))(TEXTS, 12)
    towers = {name: make() for name, make in model.module.towers.items()}
    image = np.stack([model.prepare(x) for x in IMAGES])
    expected = unit(np.asarray(towers['image'].apply({'params': model.params['image']}, image).pooled_BD))
    found = model.encode_images(IMAGES)
    assert found.shape == (3, 16) and found.dtype == np.float32 and abs(found - expected).max() < 1e-6
    expected = unit(np.asarray(towers['text'].apply({'params': model.params['text']}, ids).pooled_BD))
    assert abs(model.encode_texts(TEXTS) - expected).max() < 1e-6
    assert np.array_equal(model.encode_texts(ids), model.encode_texts(TEXTS))


def test_images_in_every_form(tmp_path, model):
    expected = model.encode_images(IMAGES[1:2])
    picture = Image.fromarray(IMAGES[1])
    picture.save(tmp_path / 'a.png')
    for image in (picture, tmp_path / 'a.png', str(tmp_path / 'a.png'), (tmp_path / 'a.png').read_bytes()):
        assert np.array_equal(model.encode_images([image]), expected)


@pytest.mark.parametrize('image, message', [('nowhere.png', 'images: cannot read nowhere.png'), (b'no image', 'images: bytes: '),
                                            (np.zeros((4, 4), np.uint8), r'found an array uint8\[4, 4\]; valid: uint8 \[H, W, 3\]'),
                                            (np.zeros((4, 4, 3)), r'found an array float64')])
def test_what_is_no_image(model, image, message):
    with pytest.raises(RecipeError, match=message):
        model.encode_images([image])


@pytest.mark.parametrize('call, message', [
    (lambda m: m.encode_texts('a dog'), "^texts: found one text, 'a dog'; valid: a list"),
    (lambda m: m.encode_images('a.png'), '^images: found one'),
    (lambda m: m.classify(IMAGES, 'dog'), '^names: found one text'), (lambda m: m.search('a dog', IMAGES), '^texts: found one'),
    (lambda m: m.encode_images(IMAGES[0]), '^images: found one')])
def test_one_where_there_should_be_several(model, call, message):
    with pytest.raises(RecipeError, match=message):
        call(model)


def test_classification_and_search(model):
    image, names, templates = model.encode_images(IMAGES), ('dog', 'cat'), ('a {}', 'the red {}')
    prompts = model.encode_texts([t.replace('{}', n) for n in names for t in templates]).reshape(2, 2, -1)
    logits = np.exp(float(model.params['contrast']['t'])) * image @ unit(unit(prompts).mean(axis=1)).T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = model.classify(IMAGES, names, templates)
    assert abs(found.probability_NC - expected).max() < 1e-5 and found.best() == [names[c] for c in expected.argmax(axis=1)]
    assert np.allclose(model.classify(image, names, templates).probability_NC, found.probability_NC, atol=1e-6)
    result = model.search(TEXTS, IMAGES, k=2)
    scores = model.encode_texts(TEXTS) @ image.T
    assert np.array_equal(result.index_MK, np.argsort(-scores, axis=1)[:, :2])
    assert np.allclose(result.score_MK, np.sort(scores)[:, ::-1][:, :2], atol=1e-6)


def test_sharded(run, model):
    sharded = bigvlm.load(f'{run}@7', mesh={'data': 2, 'fsdp': 4})
    kernel = sharded.params['image']['encoder']['blocks']['mlp']['fc1']['kernel']
    assert len(kernel.sharding.device_set) == 8 and kernel.addressable_shards[0].data.size * 4 == kernel.size
    assert abs(sharded.encode_images(IMAGES) - model.encode_images(IMAGES)).max() < 1e-5
    assert jax.tree.structure(sharded.params) == jax.tree.structure(model.params)


def of_run(**config):
    return Source('a run', {'tokenizers': {}, 'data': {}, 'evals': {}, **config}, {}, lambda wanted: {})


def test_images_are_prepared_as_zero_shot_and_retrieval_do_not_as_training():
    towers = {name: dict(name=name, length=8, image=32) for name in ('image', 'text')}
    objectives = dict(contrast=dict(name='contrastive'))
    resize = dict(name='resize', size=24)
    cut = (dict(name='decode'), dict(name='random_resized_crop', size=32), dict(name='mask_tokens'))
    evals = dict(a_held_out=dict(name='held_out', data='held_out'), captions=dict(name='captions', data='val', tokenizer='words'))
    source = of_run(towers=towers, objectives=objectives, evals=evals, data=dict(held_out=dict(ops=cut), val=dict(ops=cut)))
    assert prepared.image_ops(source) == (dict(name='resize', size=32),) and prepared.tokenizer_of(source.config) == 'words'
    evals |= dict(retrieval=dict(name='retrieval', data='pairs'))
    source = of_run(towers=towers, objectives=objectives, evals=evals, data=dict(held_out=dict(ops=cut), pairs=dict(ops=(cut[0], resize))))
    assert prepared.image_ops(source) == (resize,)


def test_objectives_with_other_batch_keys():
    views = dict(name='all_pairs', images=('one', 'two'), texts=('text', 'other'), image_tower='sight', text_tower='words')
    drawn = dict(name='contrastive', text='text_image', text_tower='sight')
    drawn['image_tower'] = 'sight'
    source = of_run(towers=dict(sight=dict(image=32), words=dict(length=8)), objectives=dict(drawn=drawn, views=views))
    assert [prepared.tower_of(source.config, side, 'views') for side in ('image', 'text')] == ['sight', 'words']
    assert prepared.tower_of(source.config, 'text', 'drawn') == 'sight'
    with pytest.raises(RecipeError, match='^towers.sight: takes no token ids'):
        prepared.text_length(source, 'drawn')


def test_probabilities_of_all_pairs(model, monkeypatch):
    """With the temperature of images and texts, and no sigmoid."""
    t = np.log(np.float32([1., 20., 300.]))
    monkeypatch.setattr(model, 'params', model.params | dict(contrast=dict(t=t, b=np.zeros(3, np.float32))))
    image, text = model.encode_images(IMAGES), model.encode_texts([f'a {name}' for name in ('dog', 'cat', 'x')])
    expected = np.exp(20. * image @ text.T)
    found = model.classify(image, ('dog', 'cat', 'x'), ('a {}',)).probability_NC
    assert abs(found - expected / expected.sum(axis=1, keepdims=True)).max() < 1e-5


def test_parts_that_see_other_kinds_of_batches_are_loaded(one_device):
    """FLAVA's masked images and masked texts."""
    blocks = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1)
    described = flava.describe(dict(
        image_config=blocks | dict(vocab_size=12, image_size=16, patch_size=8), multimodal_config=blocks, hidden_size=16,
        text_config=blocks | dict(vocab_size=20, max_position_embeddings=8), projection_dim=8), {})
    shapes = foreign.expected(described.table, {path: x.shape for path, x in described.abstract.items()})
    found = loaded.Model(of_foreign(described, Memory({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}), 'hf:x'))
    assert paths.flatten(found.params).keys() == described.abstract.keys() >= {'patches/head/bias', 'words/head/bias'}


def test_what_there_is_not(run, one_device):
    with pytest.raises(RecipeError, match="objective: there is no 'match' \\(there are: contrast\\)"):
        bigvlm.load(str(run), objective='match')
    with pytest.raises(RecipeError, match='no complete checkpoint of step 6'):
        bigvlm.load(f'{run}@6')
    with pytest.raises(AttributeError, match='no attribute'):
        bigvlm.save


def test_a_run_that_is_evaluated_by_its_averages_is_used_by_them(run, model, one_device):
    source, path = open_source(str(run)), 'ema/slow/image/out/kernel'
    averaged = jax.ShapeDtypeStruct((32, 16), np.float32)

    def load_kept(wanted):
        return {name: jax.device_put(np.full(x.shape, .5, np.float32), x.sharding) for name, x in wanted.items()}
    source = dataclasses.replace(source, config={**source.config, 'eval_params': 'slow'}, kept={path: averaged}, load_kept=load_kept)
    found = loaded.Model(source)
    assert (np.asarray(found.params['image']['out']['kernel']) == .5).all()
    assert np.array_equal(found.params['text']['out']['kernel'], model.params['text']['out']['kernel']), 'what has no average is as it is'


def test_a_run_of_more_devices_is_evaluated_on_those_that_there_are(run, one_device):
    source = open_source(str(run))
    asked = {'data': 2, 'fsdp': 4}
    assert evaluate._mesh(dataclasses.replace(source, config={**source.config, 'mesh': asked})) == {'data': -1}
    assert evaluate._mesh(dataclasses.replace(source, config={**source.config, 'mesh': {'data': 1}})) == {'data': 1}
