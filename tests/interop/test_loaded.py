"""A trained model for use: embeddings, classification, search."""

import jax
import numpy as np
import pytest
from PIL import Image

import bigvlm
from bigvlm.core.parts import RecipeError
from bigvlm.data.tokenizers.clip_bpe import ClipBpe

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


def test_what_there_is_not(run, one_device):
    with pytest.raises(RecipeError, match="objective: there is no 'match' \\(there are: contrast\\)"):
        bigvlm.load(str(run), objective='match')
    with pytest.raises(RecipeError, match='no complete checkpoint of step 6'):
        bigvlm.load(f'{run}@6')
    with pytest.raises(AttributeError, match='no attribute'):
        bigvlm.save
