"""open_clip's config as ours."""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import Theirs
from bigvlm.interop import timm
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.hf._common import under
from bigvlm.interop.open_clip import _common
from bigvlm.interop.open_clip._common import IN_ALL, activation, eps, refuse, side
from bigvlm.towers import _text_names, _vit_names, modified_resnet

# Masks in older files, numbers of batches, and three numbers of OpenAI's.
IGNORED = (r'(.*\.)?attn_mask', r'.*\.num_batches_tracked', 'input_resolution', 'context_length', 'vocab_size')
_POOLS = {'argmax': 'argmax', 'eos': 'eot', 'last': 'last', 'first': 'first'}


def describe(config: Mapping[str, Any]) -> Description:
    """The model of open_clip_config.json ({model_cfg, preprocess_cfg}) or of a model config alone ({embed_dim, vision_cfg, …}), which
    open_clip has in model_configs; images of the latter are prepared as OpenAI's. The tokenizer is left to who has its files.

    Raises:
        WeightsError: our towers cannot hold it; the message names the setting.
    """
    cfg = _common.model_section(config.get('model_cfg', config))
    prepared = config.get('preprocess_cfg') or {}
    pixels = dict(mean=_triple(prepared.get('mean') or _common.MEAN), std=_triple(prepared.get('std') or _common.STD))
    text_cfg = _common.section(cfg, 'text_cfg', _common.TEXT)
    custom = bool(cfg['custom_text'])
    if text_cfg['embed_cls'] and not custom:
        refuse('text_cfg.embed_cls', True, 'False without custom_text, where open_clip does not use it')
    image, image_piece = _image(cfg, pixels)
    text, text_piece = _text(cfg, text_cfg, 'text.' if custom else '')
    groups = dict(towers=dict(image=image, text=text), objectives=dict(match=_match(cfg)))
    shape = '1 ->' if cfg['nonscalar_logit_scale'] else ''
    pieces = (image_piece, text_piece, Piece('match/', {'t': Theirs('logit_scale', shape), 'b': Theirs('logit_bias', shape)}))
    if custom and cfg['multimodal_cfg'] is not None:  # as open_clip chooses its class
        decoder, decoder_piece = _decoder(cfg, image, text)
        groups['decoders'] = dict(captioner=decoder)
        groups['objectives']['caption'] = dict(name='caption', decoder='captioner', eot_id=text['vocab'] - 1, weight=2.)
        pieces += (decoder_piece,)
    return Description(groups, pieces, IGNORED, _ops(prepared, image), length=text['length'])


def _triple(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


def _ops(prepared: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    mode, method = prepared.get('resize_mode') or 'shortest', prepared.get('interpolation') or 'bicubic'
    if mode not in _common.CROPS:
        refuse('preprocess_cfg.resize_mode', mode, ', '.join(_common.CROPS))
    if method not in ('bicubic', 'bilinear', 'random'):
        refuse('preprocess_cfg.interpolation', method, 'bicubic, bilinear, random (which is of training)')
    more = {'shortest': dict(rounding='nearest'), 'squash': {}, 'longest': dict(fill=prepared.get('fill_color', 0))}[mode]
    method = 'bicubic' if method == 'random' else method
    return (dict(name='resize', size=image['image'], crop=_common.CROPS[mode], method=method, **more),)


def _match(cfg: Mapping[str, Any]) -> dict[str, Any]:
    scale, bias = cfg['init_logit_scale'], cfg['init_logit_bias']
    if bias is None:
        return dict(name='contrastive', temperature=.07 if scale is None else math.exp(-scale))
    return dict(name='sigmoid', temperature=1 / .07 if scale is None else math.exp(scale), bias=float(bias))


def _image(cfg: Mapping[str, Any], pixels: Mapping[str, Any]) -> tuple[dict[str, Any], Piece]:
    vision = _common.section(cfg, 'vision_cfg', _common.VISION)
    image = side(vision['image_size'], 'vision_cfg.image_size')
    if vision['timm_model_name']:
        return _timm(cfg, vision, image, pixels)
    if isinstance(vision['layers'], (list, tuple)):
        if vision['head_width'] != modified_resnet.HEAD:
            refuse('vision_cfg.head_width', vision['head_width'], f'{modified_resnet.HEAD} of a ResNet')
        tower = dict(name='modified_resnet', size='', width=vision['width'], depths=tuple(vision['layers']), image=image,
                     out_dim=cfg['embed_dim'], **pixels, **IN_ALL)
        return tower, Piece('image/', modified_resnet.FOREIGN, 'visual.')
    patch, width = side(vision['patch_size'], 'vision_cfg.patch_size'), vision['width']
    tower = dict(
        name='vit', size='', patch=patch, image=image, trim=bool(image % patch), width=width, depth=vision['layers'],
        heads=width // vision['head_width'], mlp_dim=int(width * vision['mlp_ratio']), pre_norm=not vision['no_ln_pre'], patch_bias=False,
        activation=activation(cfg['quick_gelu'], vision, 'vision_cfg'), norm_eps=eps(vision, 'vision_cfg'), init_scheme='clip',
        patch_dropout=vision['patch_dropout'], out_dim=cfg['embed_dim'], out_bias=False, **_pool(vision, cfg['embed_dim']), **pixels,
        **IN_ALL)
    apart = _vit_names.OPEN_CLIP_APART if cfg['embed_dim'] != width else {}
    return tower, Piece('image/', _vit_names.OPEN_CLIP | apart, 'visual.', dict(p=patch, q=patch))


def _pool(vision: Mapping[str, Any], embed_dim: int) -> dict[str, Any]:
    pool, attentional = vision['pool_type'], vision['attentional_pool']
    if attentional:
        if attentional is not True:
            refuse('vision_cfg.attentional_pool', attentional, 'true, false: ours has norms elsewhere')
        if pool != 'tok' or vision['attn_pooler_queries'] < 2:
            refuse('vision_cfg.pool_type', pool, 'tok, and two queries or more, with attentional_pool')
        return dict(pool='queries', queries=vision['attn_pooler_queries'] - 1, query_heads=vision['attn_pooler_heads'],
                    query_width=embed_dim, class_token=True, last_norm='none')
    if pool not in ('tok', 'avg'):
        refuse('vision_cfg.pool_type', pool, 'tok, avg')
    last = 'pooled' if vision['final_ln_after_pool'] else 'tokens'
    return dict(pool='cls' if pool == 'tok' else 'gap', class_token=pool == 'avg', last_norm=last)


def _timm(cfg, vision, image: int, pixels) -> tuple[dict[str, Any], Piece]:
    name, pool, proj = vision['timm_model_name'], vision['timm_pool'], vision['timm_proj']
    if name not in timm.MODELS:
        kinds = ', '.join(f'vit_*_patch*_{family}*' for family in timm.FAMILIES)
        refuse('vision_cfg.timm_model_name', name, f'of {kinds} those that interop/timm.py lists, as {next(iter(timm.MODELS))}')
    tower = dict(timm.MODELS[name])
    if image != tower['image']:
        refuse('vision_cfg.image_size', image, f'{tower["image"]} of {name}: open_clip makes no other of it')
    pools = {'token': 'cls', 'avg': 'gap', 'map': 'map'} | ({'': tower['pool']} if proj else {})
    wanted = pools.get(pool or '')
    if wanted is None or wanted != 'gap' and wanted != tower['pool']:
        refuse('vision_cfg.timm_pool', pool, f'what {name} can, of {", ".join(filter(None, pools))}')
    if proj not in ('linear', 'none', '', None):
        refuse('vision_cfg.timm_proj', proj, "'linear', 'none', or null, which is timm's classifier")
    if proj == 'none' and tower['width'] != cfg['embed_dim']:
        refuse('embed_dim', cfg['embed_dim'], f'{tower["width"]}, the width of {name}, with timm_proj none')
    # Where there is no other head, timm builds the model with this pool, and a mean then comes before the norm.
    norm = 'pooled' if proj in ('none', '', None) and wanted == 'gap' and '_gap_' not in name else 'tokens'
    tower |= dict(class_token=tower['pool'] == 'cls' and wanted != 'cls', pool=wanted, last_norm=norm, **pixels)
    if proj != 'none':
        tower |= dict(out_dim=cfg['embed_dim'], out_bias=not proj or bool(vision['timm_proj_bias']))
    trunk = timm.piece(tower)
    names = under('trunk.', trunk.templates) | _vit_names.hf_linear('out', 'head.proj' if proj else 'trunk.head')
    return tower, Piece('image/', names, 'visual.', trunk.sizes)


def _text(cfg: Mapping[str, Any], text: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], Piece]:
    pool, width, token = text['pool_type'], text['width'], bool(text['embed_cls'])
    if pool not in _POOLS and not token:
        refuse('text_cfg.pool_type', pool, ', '.join(_POOLS))
    projected = text['proj_type'] != 'none'
    if not projected and width != cfg['embed_dim']:
        refuse('text_cfg.proj_type', text['proj_type'], f'linear, as width {width} is not embed_dim {cfg["embed_dim"]}')
    tower = dict(
        name='text', size='', vocab=text['vocab_size'], length=text['context_length'], width=width, depth=text['layers'],
        heads=text['heads'], mlp_dim=int(width * text['mlp_ratio']), causal=not text['no_causal_mask'], pad_id=text['pad_id'],
        pool='last' if token else _POOLS[pool], class_token=token, mask_padding=token, late_mask=token,
        eot_id=text['eos_id'] if pool == 'eos' and not token else text['vocab_size'] - 1, init_scheme='clip',
        activation=activation(cfg['quick_gelu'], text, 'text_cfg'), norm_eps=eps(text, 'text_cfg'),
        out_dim=cfg['embed_dim'] if projected else 0, out_bias=projected and bool(text['proj_bias']), **IN_ALL)
    templates = _text_names.OPEN_CLIP | (_text_names.OPEN_CLIP_BIAS if text['proj_bias'] else {})
    return tower, Piece('text/', templates, prefix)


def _decoder(cfg: Mapping[str, Any], image: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[dict[str, Any], Piece]:
    given = _common.decoder_section(cfg)
    width = given['width']
    if image['name'] != 'vit' or image['pool'] != 'queries':
        refuse('vision_cfg.attentional_pool', False, 'true in a CoCa')
    if {cfg['embed_dim'], text['width']} != {width} or not text['class_token']:
        refuse('multimodal_cfg.width', width, f'embed_dim, {cfg["embed_dim"]}, and text_cfg.width, {text["width"]}, with embed_cls')
    if given['context_length'] < text['length'] - 1:
        refuse('multimodal_cfg.context_length', given['context_length'], f'text_cfg.context_length, {text["length"]}')
    decoder = dict(name='text', size='', vocab=text['vocab'], width=width, depth=given['layers'], heads=given['heads'], mlp_dim=4 * width,
                   cross_mlp=True, activation='quick_gelu' if cfg['quick_gelu'] else 'gelu', init_scheme='clip', norm_eps=_common.EPS,
                   **IN_ALL)
    return decoder, Piece('captioner/', _text_names.OPEN_CLIP_DECODER, 'text_decoder.')
