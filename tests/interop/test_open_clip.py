"""CLIP, CLIPA and SigLIP of open_clip against ours with the same random weights, both ways; their folders, files and published configs."""

import functools
import json
import pathlib

import numpy as np
import pytest
import torch_models

from bigvlm.core.foreign import WeightsError
from bigvlm.interop import open_clip as ours
from tests.interop import their_modules
from tests.interop.fakes import Memory
from tests.interop.open_clip_cases import CASES, PREPROCESS, TEXT, made
from tests.interop.open_clip_cases import small_timm as small_timm  # a fixture of every test

pytestmark = pytest.mark.parity


@functools.cache
def texts(vocab=40, length=9, eos=7):
    """Each with an end (the largest id), and, elsewhere, a 7; one is full, one empty but for the end."""
    rng = np.random.default_rng(1)
    ids_BL = np.zeros((3, length), np.int32)
    for row, size in zip(ids_BL, (length - 1, 4, 1)):
        row[:size] = rng.integers(8, vocab - 1, size)
        row[size] = vocab - 1
        row[size // 2] = eos
    ids_BL[2, :2] = eos, vocab - 1
    return ids_BL


def outputs(model, side, ids_BL):
    """(image embeddings, text embeddings, logits) of theirs, without normalisation, and the tokens after each block."""
    torch = pytest.importorskip('torch')
    _, images = their_modules.pixels(side)
    visual = model.visual
    blocks = visual.trunk.blocks if hasattr(visual, 'trunk') else getattr(getattr(visual, 'transformer', None), 'resblocks', ())
    image_layers = their_modules.watch(blocks)
    text_layers = their_modules.watch((model.text if hasattr(model, 'text') else model).transformer.resblocks)
    with torch.no_grad():
        ids = torch.tensor(ids_BL).long()
        image_BD, text_BD = model.encode_image(images).numpy(), model.encode_text(ids).numpy()
        return image_BD, text_BD, model.get_logits(images, ids)[0].numpy(), image_layers[:len(blocks)], text_layers[:TEXT['layers']]


@pytest.mark.parametrize('case', CASES)
def test_same_numbers_and_arrays_both_ways(case):
    config = CASES[case]
    model = made(config)
    weights = their_modules.randomise(model)
    description = ours.describe(dict(model_cfg=config, preprocess_cfg=PREPROCESS))
    found = their_modules.arrays(description, weights)
    their_modules.assert_round_trip(description, weights, found)

    side, length = description.config['towers']['image']['image'], config['text_cfg']['context_length']
    ids_BL, (image_BHWC, _) = texts(length=length), their_modules.pixels(side)
    theirs_image, theirs_text, theirs_logits, image_layers, text_layers = outputs(model, side, ids_BL)
    image = their_modules.tower(description, 'image', found, image_BHWC, tuple(range(len(image_layers))))
    text = their_modules.tower(description, 'text', found, ids_BL, (0, 1))
    their_modules.assert_near(image.pooled_BD, theirs_image)
    their_modules.assert_near(text.pooled_BD, theirs_text)
    their_modules.assert_near(their_modules.logits(description, found, image.pooled_BD, text.pooled_BD), theirs_logits)
    for mine, tokens in ((image, image_layers), (text, text_layers)):
        for i, tokens_BLW in enumerate(tokens):
            their_modules.assert_near(mine.layers[i], tokens_BLW, 1e-4)

    back = ours.theirs(description.config)
    again = ours.describe(back)
    for group in ('towers', 'objectives'):
        for name, spec in description.config[group].items():
            kept = {key: value for key, value in again.config[group][name].items() if key in spec}
            assert kept == spec | ({'temperature': kept['temperature']} if 'temperature' in spec else {})
    other = made(back['model_cfg'])
    torch = pytest.importorskip('torch')
    other.load_state_dict({name: torch.tensor(x) for name, x in their_modules.exported(again, found).items()}
                          | {name: x for name, x in other.state_dict().items() if 'num_batches' in name}, strict=True)
    other.eval()
    for mine, theirs in zip(outputs(other, side, ids_BL)[:3], (theirs_image, theirs_text, theirs_logits)):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize('case', ['openai', 'siglip'])
def test_their_factory_opens_the_folder_as_it_is(case, tmp_path):
    """And so do we."""
    torch = pytest.importorskip('torch')
    from safetensors.numpy import save_file
    open_clip = torch_models.load('open_clip')
    description = ours.describe(dict(model_cfg=CASES[case], preprocess_cfg=PREPROCESS))
    found = their_modules.arrays(description, their_modules.randomise(made(CASES[case])))
    config = ours.theirs(description.config, image_ops=description.image_ops)
    (tmp_path / ours.CONFIG).write_text(json.dumps(config))
    save_file({name: np.asarray(x, order='C') for name, x in their_modules.exported(ours.describe(config), found).items()},
              tmp_path / 'open_clip_model.safetensors', metadata={'format': 'pt'})
    model, preprocess = open_clip.create_model_from_pretrained(f'local-dir:{tmp_path}')
    assert model.visual.preprocess_cfg | PREPROCESS == model.visual.preprocess_cfg
    side = description.config['towers']['image']['image']
    image_BHWC, images = their_modules.pixels(side)
    with torch.no_grad():
        theirs = model.eval().encode_image(images).numpy()
    again, weights = ours.open_model(str(tmp_path))
    assert again.image_ops == description.image_ops and again.length == TEXT['context_length']
    read = their_modules.arrays(again, {name: weights.read(name) for name in weights.names()})
    assert read.keys() == found.keys() and all(np.array_equal(read[path], found[path]) for path in found)
    their_modules.assert_near(their_modules.tower(again, 'image', read, image_BHWC).pooled_BD, theirs)


@pytest.mark.parametrize('case', ['openai', 'patch 14 at 56', 'resnet', 'resnet, larger'])
def test_the_config_is_in_the_shapes(case):
    """But for the activation, and for heads that are not 64 wide."""
    config = CASES[case]
    model = made(config)
    weights = {**their_modules.state(model), 'input_resolution': np.array(16), 'context_length': np.array(9), 'vocab_size': np.array(40)}
    heads = 0 if 'resnet' in case else config['vision_cfg']['width'] // config['vision_cfg']['head_width']
    quick = config.get('quick_gelu', False)
    inferred = ours.infer(Memory(weights), quick_gelu=quick, heads=heads, text_heads=2)
    wanted, found = ours.describe(config), ours.describe(inferred)
    their_modules.arrays(found, weights)
    if 'act_kwargs' in config['text_cfg']:
        found.config['towers']['text']['activation'] = 'gelu_tanh'
    assert found.config == wanted.config
    assert ours.infer(Memory(weights))['quick_gelu'] is True


def test_published_openai_models_are_inferred_whole():
    """ViT-L/14 at 336 and RN50x4 by their shapes alone; no array is made."""
    torch, open_clip = pytest.importorskip('torch'), torch_models.load('open_clip')
    for name in ('ViT-L-14-336-quickgelu', 'RN50x4-quickgelu'):
        config = open_clip.get_model_config(name)
        with torch.device('meta'):
            model = made(config)
        shapes = {key: np.broadcast_to(np.float32(0), tuple(x.shape)) for key, x in model.state_dict().items()}
        assert ours.describe(ours.infer(Memory(shapes))).config == ours.describe(config).config


REAL = ['ViT-B-16-SigLIP', 'ViT-SO400M-14-SigLIP-384', 'ViT-L-14-CLIPA', 'ViT-H-14-quickgelu']


@pytest.mark.parametrize('name', REAL)
def test_configs_of_published_models(name, monkeypatch):
    """Every name and shape, in their real sizes."""
    monkeypatch.undo()
    torch, open_clip = pytest.importorskip('torch'), torch_models.load('open_clip')
    config = open_clip.get_model_config(name)
    with torch.device('meta'):
        model = made(config)
    description = ours.describe(config)
    their_modules.abstract_equals(description, model)
    back = ours.describe(ours.theirs(description.config))
    their_modules.abstract_equals(back, model)


def test_every_config_of_theirs_is_described_or_refused_by_name(monkeypatch):
    monkeypatch.undo()
    open_clip = torch_models.load('open_clip')
    folder = pathlib.Path(open_clip.__file__).parent / 'model_configs'
    described = set()
    for file in sorted(folder.glob('*.json')):
        try:
            ours.describe(json.loads(file.read_text()))
            described.add(file.stem)
        except WeightsError as error:
            assert str(error).startswith(('vision_cfg.', 'text_cfg.', 'multimodal_cfg.')), error
    assert {*REAL, 'ViT-B-32', 'coca_ViT-B-32', 'ViT-B-16-SigLIP2-512', 'ViT-bigG-14', 'RN50x64', 'ViT-H-14-worldwide'} <= described
    assert not {'EVA01-g-14', 'convnext_base', 'MobileCLIP-B', 'ViT-M-16-alt', 'roberta-ViT-B-32', 'PE-Core-B-16'} & described
