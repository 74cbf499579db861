"""timm's VisionTransformer against our ViT with the same random weights, both ways; names, config.json, what ours lacks."""

import functools
import json

import jax
import numpy as np
import pytest
import torch_models

from bigvlm.core.foreign import WeightsError
from bigvlm.interop import timm as ours
from tests.interop import their_modules
from tests.interop.fakes import Memory
from tests.interop.their_modules import MEAN, STD

pytestmark = pytest.mark.parity

CONFIG = dict(pretrained_cfg=dict(mean=list(MEAN), std=list(STD), input_size=[3, 16, 16], crop_pct=1., interpolation='bilinear'))
SMALL = dict(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=5)
CASES = {
    'class token': dict(global_pool='token'),
    'clip': dict(img_size=56, patch_size=14, global_pool='token', pre_norm=True, act_layer='quick_gelu', mlp_ratio=3., num_classes=0),
    'mean, then norm': dict(global_pool='avg', qkv_bias=False, act_layer='gelu_tanh'),
    'class token without a position, not in the mean': dict(global_pool='avg', fc_norm=False, no_embed_class=True),
    'no class token': dict(global_pool='avg', fc_norm=False, class_token=False, img_size=18),
    'map': dict(global_pool='map', class_token=False, depth=2, num_heads=4),
    'map with a class token': dict(global_pool='map', qkv_bias=True, patch_size=8),
}


def made(**fields):
    vision_transformer = torch_models.load('timm.models.vision_transformer')
    fields = SMALL | fields
    eps = 1e-5 if fields.get('pre_norm') else 1e-6
    return vision_transformer.VisionTransformer(**fields, norm_layer=functools.partial(vision_transformer.LayerNorm, eps=eps))


@pytest.mark.parametrize('case', CASES)
def test_same_numbers_and_arrays_both_ways(case):
    torch = pytest.importorskip('torch')
    fields = CASES[case]
    model = made(**fields)
    weights = their_modules.randomise(model)
    side = (SMALL | fields)['img_size']
    config = CONFIG | dict(global_pool=fields['global_pool'], model_args=dict(act_layer=fields.get('act_layer'), img_size=side))
    config['pretrained_cfg'] = CONFIG['pretrained_cfg'] | dict(input_size=[3, side, side])
    description = ours.describe(config, Memory(weights), heads=(SMALL | fields)['num_heads'])
    found = their_modules.arrays(description, weights)
    their_modules.assert_round_trip(description, {name: x for name, x in weights.items() if not name.startswith('head.')}, found)
    image_BHWC, images = their_modules.pixels(side)
    layers = their_modules.watch(model.blocks)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
        tokens = model.forward_features(images).numpy()
    out = their_modules.tower(description, 'image', found, image_BHWC, tuple(range(len(model.blocks))))
    their_modules.assert_near(out.pooled_BD, pooled)
    their_modules.assert_near(out.tokens_BLD, tokens, 1e-4)
    for i in range(len(model.blocks)):
        their_modules.assert_near(out.layers[i], layers[i], 1e-4)
    assert description.image_ops == (dict(name='resize', size=side, method='bilinear', crop='center', rounding='nearest'),)


def test_a_folder_that_timm_wrote(tmp_path):
    """Heads come with the name in config.json: 192 is no multiple of 64 by chance, three heads are timm's; a classifier is left out."""
    timm = torch_models.load('timm')
    hub = torch_models.load('timm.models._hub')
    model = timm.create_model('vit_tiny_patch16_224', depth=2, img_size=32, num_classes=7, num_heads=6)
    weights = their_modules.randomise(model)
    hub.save_for_hf(model, tmp_path, model_args=dict(depth=2, img_size=32, num_heads=6), safe_serialization=True)
    config = json.loads((tmp_path / 'config.json').read_text())
    description, opened = ours.open_model(str(tmp_path))
    tower = description.config['towers']['image']
    assert (tower['heads'], tower['depth'], tower['image'], tower['mean']) == (6, 2, 32, tuple(config['pretrained_cfg']['mean']))
    found = their_modules.arrays(description, {name: opened.read(name) for name in opened.names()})
    assert np.array_equal(found['image/class_token'], weights['cls_token'][0, 0])
    assert np.array_equal(found['image/position'], weights['pos_embed'][0, 1:])
    assert description.image_ops == ()  # its crop_pct is .9


def test_names_of_models_say_what_timm_builds(monkeypatch):
    timm = torch_models.load('timm')
    vision_transformer = torch_models.load('timm.models.vision_transformer')
    monkeypatch.setattr(vision_transformer, '_create_vision_transformer', lambda name, pretrained=False, **given: given)
    pools = {'token': 'cls', 'avg': 'gap', 'map': 'map'}
    for name, fields in ours.MODELS.items():
        built = getattr(vision_transformer, name)()
        eps = built['norm_layer'].keywords['eps'] if 'norm_layer' in built else 1e-6
        width = built['embed_dim']
        mine = (fields['patch'], fields['width'], fields['depth'], fields['heads'], fields['mlp_dim'], fields['pool'], fields['activation'],
                fields['norm_eps'], fields['pre_norm'], fields['last_norm'], fields['image'])
        assert mine == (
            built.get('patch_size', 16), width, built['depth'], built['num_heads'], int(width * built.get('mlp_ratio', 4)),
            pools[built.get('global_pool', 'token')], built.get('act_layer', 'gelu'), eps, built.get('pre_norm', False),
            'pooled' if built.get('fc_norm') else 'tokens', timm.get_pretrained_cfg(name).input_size[-1]), name
        assert built.get('class_token', True) == (fields['pool'] == 'cls') and built.get('init_values') is None
    listed = {name for name in timm.list_models('vit_*siglip*') if 'vitamin' not in name and 'naflex' not in name}
    assert listed <= ours.MODELS.keys()


@pytest.mark.parametrize('fields, message', [
    (dict(reg_tokens=4), 'reg_token is of register tokens'), (dict(init_values=1e-5), r'blocks.0.ls1.gamma is of layer scale'),
    (dict(qk_norm=True), r'blocks.0.attn.q_norm.weight is of norms of queries and keys'),
    (dict(scale_attn_norm=True), 'is of a norm in attention'), (dict(scale_mlp_norm=True), 'is of a norm in the MLP'),
    (dict(pos_embed='none'), 'is no timm VisionTransformer: it has no pos_embed')])
def test_what_ours_lacks_is_refused_by_name(fields, message):
    with pytest.raises(WeightsError, match=message):
        ours.describe({}, Memory(their_modules.state(made(depth=1, **{key: value for key, value in fields.items()}))))


def test_a_distilled_model_is_refused_by_name():
    deit = torch_models.load('timm.models.deit')
    model = deit.VisionTransformerDistilled(**SMALL | dict(depth=1))
    with pytest.raises(WeightsError, match='dist_token is of a distillation token'):
        ours.describe({}, Memory(their_modules.state(model)))


@pytest.mark.parametrize('config, message', [
    (dict(global_pool='avgmax'), "global_pool: found 'avgmax'; valid: token, avg, map"),
    (dict(model_args=dict(act_layer='silu')), "model_args.act_layer: found 'silu'"),
    (dict(model_args=dict(num_heads=5)), 'heads: 5 heads do not divide the width 32'),
    (dict(model_args=dict(pool_include_prefix=True)), 'model_args.pool_include_prefix')])
def test_settings_that_ours_lacks_are_refused_by_name(config, message):
    weights = Memory(their_modules.state(made(depth=1)))
    with pytest.raises(WeightsError, match=f'^{message}'):
        ours.describe(config, weights)
    assert jax.tree.leaves(ours.describe({}, weights).abstract)
