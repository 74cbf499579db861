"""Small models of open_clip, by their configs."""

import copy

import pytest
import torch_models

from bigvlm.interop import timm as our_timm
from tests.interop.their_modules import MEAN, STD

PREPROCESS = dict(mean=list(MEAN), std=list(STD), interpolation='bilinear', resize_mode='squash')
VIT = dict(image_size=16, patch_size=4, width=32, layers=3, head_width=16)
TEXT = dict(context_length=9, vocab_size=40, width=24, heads=2, layers=2)
TIMM = 'vit_base_patch16_siglip_224'
SIGLIP_TEXT = dict(TEXT, no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs=dict(eps=1e-6))
CASES = {
    'openai': dict(embed_dim=20, quick_gelu=True, vision_cfg=VIT, text_cfg=TEXT),
    'patch 14 at 56': dict(embed_dim=16, vision_cfg=dict(VIT, patch_size=14, image_size=56, width=64, head_width=32, mlp_ratio=4.9231),
                           text_cfg=dict(TEXT, context_length=20, mlp_ratio=2., act_kwargs=dict(approximate='tanh')),
                           nonscalar_logit_scale=True),
    'clipa': dict(embed_dim=20, custom_text=True,
                  vision_cfg=dict(VIT, no_ln_pre=True, pool_type='avg', final_ln_after_pool=True, pos_embed_type='sin_cos_2d'),
                  text_cfg=dict(TEXT, pool_type='last', no_causal_mask=True, norm_kwargs=dict(eps=1e-4))),
    'mean, first': dict(embed_dim=20, vision_cfg=dict(VIT, pool_type='avg', norm_kwargs=dict(eps=1e-3)),
                        text_cfg=dict(TEXT, pool_type='first', width=32, proj_bias=True)),
    'eos, no projection': dict(embed_dim=24, init_logit_bias=-3, vision_cfg=dict(VIT, final_ln_after_pool=True),
                               text_cfg=dict(TEXT, pool_type='eos', eos_id=7, proj_type='none')),
    'resnet': dict(embed_dim=20, quick_gelu=True, vision_cfg=dict(image_size=64, layers=[1, 2, 1, 1], width=8, patch_size=None),
                   text_cfg=TEXT),
    'resnet, larger': dict(embed_dim=12, vision_cfg=dict(image_size=96, layers=[2, 1, 1, 2], width=16, patch_size=None), text_cfg=TEXT),
    'siglip': dict(embed_dim=32, custom_text=True, init_logit_bias=-10,
                   vision_cfg=dict(image_size=16, timm_model_name=TIMM, timm_pool='map', timm_proj='none'),
                   text_cfg=dict(SIGLIP_TEXT, width=32)),
    'siglip, projected': dict(embed_dim=20, custom_text=True, init_logit_bias=-10,
                              vision_cfg=dict(image_size=16, timm_model_name=TIMM, timm_pool='avg', timm_proj='linear',
                                              timm_proj_bias=True),
                              text_cfg=dict(SIGLIP_TEXT, mlp_ratio=3.7362)),
}


@pytest.fixture(autouse=True)
def small_timm(monkeypatch):
    """A small model under timm's name of a large one, there and here."""
    timm = torch_models.load('timm')
    create = timm.create_model
    small = dict(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4)
    monkeypatch.setattr(timm, 'create_model', lambda name, **given: create(name, **given, **(small if name == TIMM else {})))
    monkeypatch.setitem(our_timm.MODELS, TIMM, our_timm.MODELS[TIMM] | dict(image=16, patch=4, width=32, depth=3, heads=4, mlp_dim=128))


def made(config):
    """Their model, as their factory makes it of a model config."""
    open_clip = torch_models.load('open_clip')
    config = copy.deepcopy(config)
    custom = config.pop('custom_text', False)
    return (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**config)
