"""CoCa of open_clip against ours with the same random weights, both ways: embeddings, and the decoder's logits of each next token."""

import copy
import json

import numpy as np
import pytest
import torch_models

from bigvlm.core.foreign import WeightsError
from bigvlm.interop import open_clip as ours
from tests.interop import their_modules
from tests.interop.their_modules import MEAN, STD

pytestmark = pytest.mark.parity

PREPROCESS = dict(mean=list(MEAN), std=list(STD))
VIT = dict(image_size=16, patch_size=4, width=48, layers=2, head_width=16, attentional_pool=True, attn_pooler_queries=6,
           attn_pooler_heads=4, output_tokens=True)
TEXT = dict(context_length=8, vocab_size=40, width=32, heads=2, layers=2, embed_cls=True, output_tokens=True)
DECODER = dict(context_length=8, vocab_size=40, width=32, heads=2, layers=2)
CASES = {
    'queries of another width': dict(embed_dim=32, vision_cfg=VIT, text_cfg=TEXT, multimodal_cfg=DECODER),
    'of the same, no mask': dict(embed_dim=32, quick_gelu=True, vision_cfg=dict(VIT, width=32, patch_size=8, no_ln_pre=True),
                                 text_cfg=dict(TEXT, no_causal_mask=True, pad_id=3, proj_bias=True), multimodal_cfg=dict(DECODER, heads=4)),
}
REAL = dict(  # coca_ViT-B-32
    embed_dim=512, custom_text=True,
    vision_cfg=dict(image_size=224, layers=12, width=768, patch_size=32, attentional_pool=True, attn_pooler_heads=8, output_tokens=True),
    text_cfg=dict(context_length=76, vocab_size=49408, layers=12, heads=8, width=512, embed_cls=True, output_tokens=True),
    multimodal_cfg=dict(context_length=76, vocab_size=49408, width=512, heads=8, layers=12, attn_pooler_heads=8))


def made(config):
    open_clip = torch_models.load('open_clip')
    config = copy.deepcopy(config)
    config.pop('custom_text', None)
    return open_clip.CoCa(**config)


def texts(pad):
    """One without padding, so that its class token sees itself; the others end earlier."""
    ids_BL = np.random.default_rng(1).integers(4, 39, (3, 8)).astype(np.int32)
    for row, size in zip(ids_BL, (8, 5, 2)):
        row[size - 1], row[size:] = 39, pad
    return ids_BL


def outputs(model, ids_BL):
    torch = pytest.importorskip('torch')
    _, images = their_modules.pixels(16)
    layers = their_modules.watch(model.visual.transformer.resblocks), their_modules.watch(model.text.transformer.resblocks)
    with torch.no_grad():
        ids = torch.tensor(ids_BL).long()
        whole = model(images, ids)
        (image_BD, tokens_BSW), (text_BD, _) = model.visual(images), model.text(ids)
    return (image_BD.numpy(), tokens_BSW.numpy(), text_BD.numpy(), whole['logits'].numpy()), [found[:2] for found in layers]


@pytest.mark.parametrize('case', CASES)
def test_same_numbers_and_arrays_both_ways(case):
    torch = pytest.importorskip('torch')
    config = dict(CASES[case], custom_text=True)
    model = made(config)
    weights = their_modules.randomise(model)
    description = ours.describe(dict(model_cfg=config, preprocess_cfg=PREPROCESS))
    found = their_modules.arrays(description, weights)
    their_modules.assert_round_trip(description, weights, found)

    ids_BL, (image_BHWC, _) = texts(config['text_cfg'].get('pad_id', 0)), their_modules.pixels(16)
    (image_BD, tokens_BSW, text_BD, logits_BLV), (image_layers, text_layers) = outputs(model, ids_BL)
    image = their_modules.tower(description, 'image', found, image_BHWC, (0, 1))
    text = their_modules.tower(description, 'text', found, ids_BL, (0, 1))
    their_modules.assert_near(image.pooled_BD, image_BD)
    their_modules.assert_near(image.tokens_BLD, tokens_BSW)
    their_modules.assert_near(text.pooled_BD, text_BD)
    for i in (0, 1):
        their_modules.assert_near(image.layers[i], image_layers[i], 1e-4)
        their_modules.assert_near(text.layers[i], text_layers[i], 1e-4)
    logits = their_modules.part_of(description, 'decoders', 'captioner', found, text.layers[-1][:, :7], image.tokens_BLD)
    their_modules.assert_near(logits, logits_BLV)

    back = ours.theirs(description.config)
    again = ours.describe(back)
    for group in ('towers', 'decoders'):
        for name, spec in description.config[group].items():
            assert {key: again.config[group][name][key] for key in spec if key not in ('mean', 'std')} == {
                key: value for key, value in spec.items() if key not in ('mean', 'std')}
    other = made(back['model_cfg'])
    other.load_state_dict({name: torch.tensor(x) for name, x in their_modules.exported(again, found).items()}, strict=True)
    for mine, theirs in zip(outputs(other.eval(), ids_BL)[0], (image_BD, tokens_BSW, text_BD, logits_BLV)):
        assert np.array_equal(mine, theirs)


def test_their_factory_opens_the_folder_as_it_is(tmp_path):
    torch = pytest.importorskip('torch')
    from safetensors.numpy import save_file
    open_clip = torch_models.load('open_clip')
    config = dict(CASES['queries of another width'], custom_text=True)
    weights = their_modules.randomise(made(config))
    description = ours.describe(config)
    there = ours.theirs(description.config)
    (tmp_path / ours.CONFIG).write_text(json.dumps(there))
    exported = their_modules.exported(ours.describe(there), their_modules.arrays(description, weights))
    save_file(exported, tmp_path / 'open_clip_model.safetensors')
    model, _ = open_clip.create_model_from_pretrained(f'local-dir:{tmp_path}')
    assert isinstance(model, open_clip.CoCa)
    for name, x in model.state_dict().items():
        assert np.array_equal(x.numpy(), weights[name]), name
    with torch.no_grad():
        assert model.eval().encode_image(their_modules.pixels(16)[1]).shape == (3, 32)
    again, opened = ours.open_model(str(tmp_path))
    their_modules.arrays(again, {name: opened.read(name) for name in opened.names()})


def test_the_published_shape():
    """coca_ViT-B-32 with every name and shape of theirs."""
    torch, open_clip = pytest.importorskip('torch'), torch_models.load('open_clip')
    assert open_clip.get_model_config('coca_ViT-B-32') == REAL
    with torch.device('meta'):
        model = made(REAL)
    their_modules.abstract_equals(ours.describe(REAL), model)


@pytest.mark.parametrize('change, message', [
    (dict(vision_cfg=dict(VIT, attentional_pool='parallel')), 'vision_cfg.attentional_pool: found .parallel.'),
    (dict(vision_cfg=dict(VIT, pool_type='avg')), 'vision_cfg.pool_type: found .avg.'),
    (dict(vision_cfg=dict(VIT, attentional_pool=False)), 'vision_cfg.attentional_pool: found False; valid: true in a CoCa'),
    (dict(multimodal_cfg=dict(DECODER, width=48)), 'multimodal_cfg.width: found 48'),
    (dict(multimodal_cfg=dict(DECODER, context_length=5)), 'multimodal_cfg.context_length: found 5'),
    (dict(multimodal_cfg=dict(DECODER, ls_init_value=.1)), 'multimodal_cfg.ls_init_value: found 0.1')])
def test_what_ours_cannot_hold_is_refused_by_name(change, message):
    with pytest.raises(WeightsError, match=f'^{message}'):
        ours.describe(dict(CASES['queries of another width'], custom_text=True) | change)


@pytest.mark.parametrize('group, name, change, message', [
    ('towers', 'image', dict(last_norm='tokens'), 'towers.image.last_norm: found .tokens.; valid: .none.'),
    ('towers', 'image', dict(query_width=0), 'towers.image.query_width'),
    ('towers', 'text', dict(late_mask=False), 'towers.text.late_mask'),
    ('decoders', 'captioner', dict(cross_mlp=False), 'decoders.captioner.cross_mlp'),
    ('decoders', 'captioner', dict(mlp_dim=64), 'decoders.captioner.mlp_dim: found 64; valid: 128'),
    ('decoders', 'captioner', dict(vocab=41), 'decoders.captioner.vocab: found 41; valid: 40')])
def test_what_theirs_cannot_hold_is_refused_by_name(group, name, change, message):
    config = copy.deepcopy(dict(ours.describe(dict(CASES['queries of another width'], custom_text=True)).config))
    config[group][name] |= change
    with pytest.raises(WeightsError, match=f'^{message}'):
        ours.theirs(config)
