"""Swin of transformers: the same numbers here, the same files back, and what is refused."""

import fast
import numpy as np
import pytest
import torch_models

from bigvlm.core import parts
from bigvlm.core.foreign import WeightsError
from bigvlm.interop.hf import swin
from tests.interop import folders

SMALL = dict(image_size=48, patch_size=2, embed_dim=8, depths=[2, 4], num_heads=[2, 4], window_size=4, mlp_ratio=2.)
MODELS = {  # settings, side of images: 44 pixels are padded in both stages
    'swin': ('SwinModel', SMALL, 48),
    'padded': ('SwinModel', SMALL, 44),
    'classes, patch 3, odd grids': ('SwinForImageClassification', SMALL | dict(patch_size=3, image_size=45, depths=[4, 2],
                                                                             window_size=3), 45),
    'masked, tanh': ('SwinForMaskedImageModeling', SMALL | dict(image_size=32, embed_dim=12, num_heads=[3, 6], depths=[2, 2],
                                                              encoder_stride=4, hidden_act='gelu_new'), 32),
}


@pytest.mark.parity
@pytest.mark.parametrize('case', MODELS)
def test_equals_transformers(case, tmp_path):
    architecture, settings, side = MODELS[case]
    transformers = torch_models.transformers()
    import torch
    whole = folders.randomise(getattr(transformers, architecture)(transformers.SwinConfig(**settings)))
    config, arrays = folders.save(whole, tmp_path / 'theirs')
    description = swin.describe(config, {})
    flat = folders.ours(description, arrays)
    tower = parts.build('bigvlm.towers', description.config['towers']['image'], 'towers.image')
    image_BHWC = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    pixels_BCHW = np.einsum('bhwc->bchw', (image_BHWC / 255 - np.array(tower.mean)) / np.array(tower.std)).astype(np.float32)
    out = fast.jit(lambda variables, image: tower.apply(variables, image, layers=tuple(range(len(tower.depths)))))(
        folders.variables({path.removeprefix('image/'): x for path, x in flat.items()}), image_BHWC)

    def compare(model):
        with torch.no_grad():
            theirs = model(torch.tensor(pixels_BCHW))
            before = model.encoder(*model.embeddings(torch.tensor(pixels_BCHW)), output_hidden_states=True,
                                   output_hidden_states_before_downsampling=True).reshaped_hidden_states[1:]
        for stage, layer_BCHW in enumerate(before):
            assert folders.relative(out.layers[stage], layer_BCHW.flatten(2).mT.numpy()) < 1e-5
        assert folders.relative(out.tokens_BLD, theirs.last_hidden_state.numpy()) < 1e-5
        assert folders.relative(out.pooled_BD, theirs.pooler_output.numpy()) < 1e-5
    compare(transformers.SwinModel.from_pretrained(tmp_path / 'theirs').eval())
    folders.same_bits(description, flat, arrays)
    folders.export(swin, description.config, flat, tmp_path / 'ours', description)
    compare(folders.reopen(transformers.SwinModel, tmp_path / 'ours'))


def test_images_as_published_files_prepare_them():
    described = swin.describe({}, dict(image_processor_type='ViTImageProcessor', size=dict(height=224, width=224), resample=3,
                                       image_mean=[.485, .456, .406], image_std=[.229, .224, .225]))
    assert described == swin.describe({}, {})
    assert described.image_ops == (dict(name='resize', size=224, crop='squash', method='bicubic'),)
    assert described.config['towers']['image']['mean'] == (.485, .456, .406)


@pytest.mark.parametrize('config, message', [
    (dict(qkv_bias=False), '^qkv_bias: found False; valid: True$'), (dict(use_absolute_embeddings=True), '^use_absolute_embeddings: found'),
    (dict(layer_norm_eps=1e-6), '^layer_norm_eps: found 1e-06; valid: 1e-05$'), (dict(image_size=[224, 192]), '^image_size: found')])
def test_settings_that_no_tower_has(config, message):
    with pytest.raises(WeightsError, match=message):
        swin.describe(config, {})


@pytest.mark.parametrize('fields, message', [(dict(norm_eps=1e-6), '^towers.image.norm_eps: found 1e-06'),
                                             (dict(out_dim=8), '^towers.image.out_dim: found 8; valid: 0$')])
def test_fields_that_their_files_cannot_hold(fields, message):
    with pytest.raises(WeightsError, match=message):
        swin.theirs(dict(towers=dict(image=dict(name='swin', **fields))))
