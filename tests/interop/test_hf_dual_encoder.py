"""VisionTextDualEncoder of transformers: pairs of towers with the same numbers here, the same files back, and what is refused."""

import fast
import jax.numpy as jnp
import numpy as np
import pytest
import torch_models

from bigvlm import model as model_lib
from bigvlm.core import foreign
from bigvlm.core.foreign import WeightsError
from bigvlm.interop import hf
from bigvlm.interop.hf import _files
from bigvlm.interop.hf import vision_text_dual_encoder as dual
from tests.interop import folders, pairs
from tests.interop.fakes import Memory

BLOCKS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
NARROW = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40)
VISION = {
    'vit': ('ViTConfig', BLOCKS | dict(image_size=32, patch_size=8)),
    'vit 14, no bias': ('ViTConfig', NARROW | dict(image_size=42, patch_size=14, qkv_bias=False, hidden_act='gelu_new')),
    'swin': ('SwinConfig', dict(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)),
    'clip': ('CLIPVisionConfig', BLOCKS | dict(image_size=30, patch_size=14)),
    'siglip': ('SiglipVisionConfig', NARROW | dict(image_size=32, patch_size=16)),
}
TEXT = {
    'bert': ('BertConfig', BLOCKS | dict(vocab_size=40, max_position_embeddings=16)),
    'roberta': ('RobertaConfig', NARROW | dict(vocab_size=50, max_position_embeddings=14, type_vocab_size=1, layer_norm_eps=1e-5)),
    'xlm': ('XLMRobertaConfig', BLOCKS | dict(vocab_size=40, max_position_embeddings=26, type_vocab_size=1)),
    'clip': ('CLIPTextConfig', NARROW | dict(vocab_size=40, max_position_embeddings=12, bos_token_id=None, eos_token_id=39)),
}
CASES = {'vit': 'bert', 'vit 14, no bias': 'roberta', 'swin': 'xlm', 'clip': 'clip', 'siglip': 'bert'}


def halves(transformers, vision, text):
    return (getattr(transformers, kind)(**fields) for kind, fields in (VISION[vision], TEXT[text]))


def numbers(description, flat, image_BHWC, ids_TL):
    """Embeddings as they leave the towers, and logits [B, T]."""
    model = model_lib.from_config(description.config)

    def run(variables, image_BHWC, ids_TL):
        batch = {'image': image_BHWC, 'text': ids_TL}
        found = {name: model.towers[name]().apply({'params': variables['params'][name]}, x).pooled_BD for name, x in batch.items()}
        unit = model.apply(variables, batch, 'match', method='embed')
        logits_BT = model.apply(variables, unit['image_BD'], unit['text_BD'], 'match', method='score')
        return found | {'logits': jnp.exp(variables['params']['match']['t']) * logits_BT}
    return fast.jit(run)(folders.variables(flat), image_BHWC, ids_TL)


@pytest.mark.parity
@pytest.mark.parametrize('vision, text', CASES.items())
def test_equals_transformers(vision, text, tmp_path):
    transformers = torch_models.transformers()
    import torch
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        *halves(transformers, vision, text), projection_dim=20, logit_scale_init_value=2.)
    whole = folders.randomise(transformers.VisionTextDualEncoderModel(config))
    their_config, arrays = folders.save(whole, tmp_path / 'theirs')
    description = dual.describe(their_config, {})
    flat = folders.ours(description, arrays)
    assert {name for name in arrays if name not in foreign.expected(
        description.table, {path: x.shape for path, x in flat.items()})} == set()
    pad = getattr(config.text_config, 'pad_token_id', 1)
    ids_TL = pairs.texts(config.text_config.vocab_size, description.length - 2, 39 if text == 'clip' else None, pad)
    image_BHWC = pairs.images(description.config['towers']['image']['image'])
    out = numbers(description, flat, image_BHWC, ids_TL)
    inputs = pairs.plain(description, image_BHWC) | dict(input_ids=torch.tensor(ids_TL).long())
    if text != 'clip':
        inputs['attention_mask'] = torch.tensor(ids_TL != pad).long()

    def compare(model):
        with torch.no_grad():
            theirs = model(**inputs)
            words = model.get_text_features(**{name: x for name, x in inputs.items() if name != 'pixel_values'})
            image = model.get_image_features(inputs['pixel_values'])
        for name, x in (('image', image.pooler_output), ('text', words.pooler_output), ('logits', theirs.logits_per_image)):
            assert folders.relative(out[name], x.numpy()) < 1e-5, name
    compare(whole)
    folders.same_bits(description, flat, arrays)
    exported = folders.export(dual, description.config, flat, tmp_path / 'ours', description)
    assert exported.keys() == arrays.keys()
    compare(folders.reopen(transformers.VisionTextDualEncoderModel, tmp_path / 'ours'))


SMALL = dict(vision_config=dict(VISION['clip'][1], model_type='clip_vision_model'), text_config=dict(TEXT['bert'][1], model_type='bert'))


def test_names_of_files_from_before_transformers_5():
    description = dual.describe(SMALL, {})
    shapes = {path: x.shape for path, x in description.abstract.items()}
    today = foreign.expected(description.table, shapes)
    older = {name.replace('vision_model.', 'vision_model.vision_model.'): np.zeros(shape) for name, shape in today.items()}
    foreign.Arrays(_files.Renamed(Memory(older), dual.RENAMED), description.table, shapes, description.ignored)


def test_images_as_the_image_tower_s_own_model_has_them():
    ops = {name: dual.describe(dict(vision_config=dict(model_type=name), text_config=dict(model_type='bert')), {}).image_ops
           for name in dual.VISION}
    assert ops['vit'] == (dict(name='resize', size=224, crop='squash', method='bilinear'),)
    assert ops['clip_vision_model'][0]['crop'] == 'center' and ops['swin'][0]['method'] == 'bicubic'


@pytest.mark.parametrize('config, message', [
    (dict(vision_config=dict(model_type='dinov2')), "^vision_config.model_type: found 'dinov2'; valid: 'vit', 'swin', 'clip_vision_model'"),
    (dict(text_config=dict(model_type='t5')), "^text_config.model_type: found 't5'; valid: 'bert', 'roberta', "),
    (dict(text_config={}), "^text_config.model_type: found ''"), (dict(projection_dim=0), '^projection_dim: found 0')])
def test_settings_that_nothing_of_ours_has(config, message):
    with pytest.raises(WeightsError, match=message):
        dual.describe(SMALL | config, {})


@pytest.mark.parametrize('tower, fields, message', [
    ('image', dict(pool='gap'), "^towers.image.pool: found 'gap'; valid: pooler, cls, map$"),
    ('image', dict(name='resnet'), "^towers.image.name: found 'resnet'; valid: 'vit', 'swin'$"),
    ('image', dict(out_bias=True), '^towers.image.out_bias: found True'), ('text', dict(pool='cls'), "^towers.text.pool: found 'cls'"),
    ('text', dict(out_dim=3), '^towers.text.out_dim: found 3, and 512')])
def test_fields_that_their_files_cannot_hold(tower, fields, message):
    groups = dual.describe(SMALL, {}).config
    groups['towers'][tower] = groups['towers'][tower] | fields if 'name' not in fields else fields
    with pytest.raises(WeightsError, match=message):
        hf.theirs(groups, 'vision-text-dual-encoder')
