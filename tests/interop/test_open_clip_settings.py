"""Settings of open_clip's models: how images are prepared, and what one side cannot hold of the other, refused by its name."""

import copy

import numpy as np
import pytest
import torch_models

from bigvlm.core.foreign import WeightsError
from bigvlm.data.ops.resize import resize
from bigvlm.interop import open_clip as ours
from tests.interop import their_modules
from tests.interop.fakes import Memory
from tests.interop.open_clip_cases import CASES, TEXT, TIMM, VIT, made
from tests.interop.open_clip_cases import small_timm as small_timm  # a fixture of every test
from tests.interop.their_modules import MEAN, STD

pytestmark = pytest.mark.parity


@pytest.mark.parametrize('mode, op', [('shortest', dict(crop='center', rounding='nearest')), ('squash', dict(crop='squash')),
                                      ('longest', dict(crop='pad', fill=3))])
def test_images_are_prepared_as_theirs(mode, op):
    prepared = dict(resize_mode=mode, interpolation='bicubic', fill_color=3, mean=[.1, .2, .3], std=[.5, .5, .6])
    description = ours.describe(dict(model_cfg=CASES['openai'], preprocess_cfg=prepared))
    assert description.image_ops == (dict(name='resize', size=16, method='bicubic', **op),)
    image = description.config['towers']['image']
    assert (image['mean'], image['std']) == ((.1, .2, .3), (.5, .5, .6))
    found = ours.theirs(description.config, image_ops=description.image_ops)['preprocess_cfg']
    assert found.items() >= {key: value for key, value in prepared.items() if key != 'fill_color' or mode == 'longest'}.items()
    assert ours.describe(CASES['openai']).config['towers']['image']['mean'] == (.48145466, .4578275, .40821073)


@pytest.mark.parametrize('mode', ['shortest', 'squash', 'longest'])
@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
def test_pixels_are_theirs(mode, method):
    """Of images that are wider, taller, tiny; to one grey level, which rounding may cost."""
    from PIL import Image
    open_clip = torch_models.load('open_clip')
    prepared = dict(resize_mode=mode, interpolation=method, mean=list(MEAN), std=list(STD), fill_color=7)
    description = ours.describe(dict(model_cfg=CASES['openai'], preprocess_cfg=prepared))
    spec = dict(description.image_ops[0])
    op = resize(**{key: value for key, value in spec.items() if key != 'name'})
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=16, **prepared), is_train=False)
    for shape in ((23, 37), (61, 30), (40, 40), (9, 5)):
        image_HWC = np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3)).astype(np.uint8)
        theirs_HWC = np.einsum('chw->hwc', transform(Image.fromarray(image_HWC)).numpy()) * np.array(STD) + np.array(MEAN)
        found_HWC = op({'image': image_HWC}, np.random.default_rng(0))['image']
        assert np.abs(found_HWC - 255 * theirs_HWC).max() < 1.01, shape


@pytest.mark.parametrize('change, message', [
    (dict(vision_cfg=dict(VIT, ls_init_value=1e-4)), 'vision_cfg.ls_init_value: found 0.0001'),
    (dict(text_cfg=dict(TEXT, qk_norm=True)), 'text_cfg.qk_norm: found True'),
    (dict(text_cfg=dict(hf_model_name='roberta-base')), 'text_cfg.hf_model_name'),
    (dict(vision_cfg=dict(VIT, colour=3)), 'vision_cfg.colour: not known'), (dict(size=3), 'size: not known'),
    (dict(vision_cfg=dict(VIT, pool_type='none')), 'vision_cfg.pool_type: found .none.; valid: tok, avg'),
    (dict(vision_cfg=dict(VIT, attentional_pool='cascade')), 'vision_cfg.attentional_pool: found .cascade.'),
    (dict(vision_cfg=dict(VIT, image_size=[16, 32])), 'vision_cfg.image_size'),
    (dict(vision_cfg=dict(timm_model_name='convnext_base')), 'vision_cfg.timm_model_name: found .convnext_base.'),
    (dict(vision_cfg=dict(timm_model_name=TIMM, timm_pool='map', image_size=320)), 'vision_cfg.image_size: found 320'),
    (dict(vision_cfg=dict(timm_model_name=TIMM, timm_pool='token', image_size=16)), 'vision_cfg.timm_pool: found .token.'),
    (dict(text_cfg=dict(TEXT, norm_kwargs=dict(bias=False))), 'text_cfg.norm_kwargs'), (dict(text_cfg=None), 'text_cfg: found None'),
    (dict(vision_cfg=dict(VIT, width='32')), 'vision_cfg.width: found .32.; valid: a whole number'), (dict(embed_dim=None), 'embed_dim'),
    (dict(text_cfg=dict(TEXT, layers=0)), 'text_cfg.layers: found 0'), (dict(text_cfg=dict(TEXT, mlp_ratio=None)), 'text_cfg.mlp_ratio'),
    (dict(text_cfg=dict(TEXT, embed_cls=True)), 'text_cfg.embed_cls: found True; valid: False without custom_text'),
    (dict(text_cfg=dict(TEXT, act_kwargs=dict(approximate='tanh'))), 'text_cfg.act_kwargs')])
def test_what_ours_cannot_hold_is_refused_by_name(change, message):
    with pytest.raises(WeightsError, match=f'^{message}'):
        ours.describe(CASES['openai'] | change)


@pytest.mark.parametrize('tower, change, message', [
    ('image', dict(position='sincos2d'), 'towers.image.position: found .sincos2d.'), ('image', dict(mask_token=True), 'towers.image.mask'),
    ('image', dict(qkv_bias=False), 'towers.image.qkv_bias'), ('image', dict(out_bias=True), 'towers.image.out_bias'),
    ('image', dict(activation='gelu'), 'towers.image.activation: found .gelu.; valid: quick_gelu'),
    ('image', dict(pool='map'), 'towers.image.heads: found 2; open_clip takes'), ('image', dict(name='swin'), 'towers.image.name'),
    ('image', dict(out_dim=21), 'towers.text.out_dim: found 20; valid: 21'), ('text', dict(pool='mean'), 'towers.text.pool: found .mean.'),
    ('text', dict(mask_padding=True), 'towers.text.mask_padding'),
    ('text', dict(pool='last', class_token=True, mask_padding=True), 'towers.text.late_mask: found False; valid: True')])
def test_what_theirs_cannot_hold_is_refused_by_name(tower, change, message):
    config = copy.deepcopy(dict(ours.describe(CASES['openai']).config))
    config['towers'][tower] |= change
    with pytest.raises(WeightsError, match=f'^{message}'):
        ours.theirs(config)


def test_a_siglip_with_another_activation_needs_consent():
    config = copy.deepcopy(dict(ours.describe(CASES['siglip']).config))
    config['towers']['image']['activation'] = 'gelu_tanh'
    with pytest.raises(WeightsError, match=f'^towers.image.activation: found .gelu_tanh.; .* closest there is {TIMM}, with .gelu.'):
        ours.theirs(config)
    assert ours.theirs(config, approximate=True)['model_cfg']['vision_cfg']['timm_model_name'] == TIMM


@pytest.mark.parametrize('names, message', [
    ({'text_projection': (4, 4)}, 'is no CLIP that can be told'),
    ({'visual.trunk.norm.weight': (4,)}, 'has visual.trunk.…: such a model needs'),
    ({'text_decoder.ln_final.weight': (4,)}, 'has text_decoder.…')])
def test_files_that_need_a_config_say_so(names, message):
    whole = their_modules.state(made(CASES['openai'])) if 'text_projection' not in names else {}
    with pytest.raises(WeightsError, match=message):
        ours.infer(Memory({**whole, **{name: np.zeros(shape) for name, shape in names.items()}}))
