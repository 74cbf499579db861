"""timm's VisionTransformer as an image tower: by a state_dict, with or without the config.json beside it, or by a model's name.

A classifier's head is ignored. Heads of attention, the activation and the norms' epsilon are in no array: they are the named
architecture's or, without a known name, heads 64 wide, 'gelu' by erf and 1e-6 (1e-5 with a norm before the blocks, as in CLIP);
arguments override them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigvlm.core.foreign import Theirs, Weights, WeightsError
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.weights import open_weights
from bigvlm.towers import _vit_names

HEAD = 64
# (width, depth, MLP hidden width, heads) by timm's word in the name.
SIZES = {'tiny': (192, 12, 768, 3), 'small': (384, 12, 1536, 6), 'medium': (512, 12, 2048, 8), 'base': (768, 12, 3072, 12),
         'large': (1024, 24, 4096, 16), 'huge': (1280, 32, 5120, 16), 'so400m': (1152, 27, 4304, 16), 'giantopt': (1536, 40, 6144, 16)}
DEFAULTS = dict(name='vit', size='', last_norm='tokens', class_position=True, class_token=False, pre_norm=False, patch_bias=True,
                qkv_bias=True, out_dim=0, remat='none', dtype='float32')
_PLAIN = dict(pool='cls', activation='gelu', norm_eps=1e-6)
_CLIP = _PLAIN | dict(pre_norm=True, patch_bias=False, norm_eps=1e-5)
_SIGLIP = dict(pool='map', activation='gelu', norm_eps=1e-6)
# (what stands between patch and image side in a name): fields of ours, and the sides that there are by size and patch. SigLIP's with
# '~' have the approximate activation.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    '': (_PLAIN, {'tiny_patch16': '224 384', 'small_patch32': '224 384', 'small_patch16': '224 384', 'small_patch8': '224',
                  'base_patch32': '224 384', 'base_patch16': '224 384', 'base_patch8': '224', 'large_patch32': '224 384',
                  'large_patch16': '224 384', 'large_patch14': '224', 'huge_patch14': '224'}),
    'clip_': (_CLIP, {'medium_patch32': '224', 'medium_patch16': '224', 'base_patch32': '224 256 384 448', 'base_patch16': '224 384',
                      'large_patch14': '224 336', 'huge_patch14': '224 336 378'}),
    'clip_quickgelu_': (_CLIP | dict(activation='quick_gelu'), {'base_patch32': '224', 'base_patch16': '224', 'large_patch14': '224 336',
                                                                'huge_patch14': '224 378'}),
    'siglip_': (_SIGLIP, {'base_patch32': '~256', 'base_patch16': '224 256 384 512', 'large_patch16': '256 384 ~512',
                          'so400m_patch14': '224 378 384', 'so400m_patch16': '~256 ~384 ~512', 'giantopt_patch16': '~256 ~384'}),
    'siglip_gap_': (_SIGLIP | dict(pool='gap'), {
        'base_patch32': '~256', 'base_patch16': '224 256 384 512', 'large_patch16': '256 384 ~512', 'so400m_patch14': '224 378 384 448 896',
        'so400m_patch16': '~256 ~384 ~512', 'giantopt_patch16': '~256 ~384'}),
}
# Arrays of what our tower lacks, by a piece of their names.
_LACKING = {'dist_token': 'a distillation token', 'reg_token': 'register tokens', r'\.ls[12]\.gamma': 'layer scale',
            r'\.(q|k)_norm\.': 'norms of queries and keys', r'attn\.norm\.': 'a norm in attention', r'mlp\.norm\.': 'a norm in the MLP',
            r'rel_pos': 'relative positions', r'mlp\.w12|mlp\.fc1_g': 'a gated MLP',
            r'patch_embed\.backbone': 'convolutions before patches'}
IGNORED = (r'head\..*', r'head_dist\..*')


def _models() -> dict[str, dict[str, Any]]:
    found = {}
    for family, (fields, sides) in FAMILIES.items():
        for which, images in sides.items():
            size, patch = which.split('_patch')
            width, depth, mlp_dim, heads = SIZES[size]
            for image in images.split():
                side = int(image.removeprefix('~'))
                about = dict(DEFAULTS, **fields, patch=int(patch), image=side, trim=bool(side % int(patch)),
                             width=width, depth=depth, mlp_dim=mlp_dim, heads=heads)
                found[f'vit_{which}_{family}{side}'] = about | ({'activation': 'gelu_tanh'} if image[0] == '~' else {})
    return found


MODELS = _models()  # {timm's name: fields of our ViT}


def open_model(place: str) -> tuple[Description, Weights]:
    """A folder with weights and, where timm wrote it, config.json; or a file of weights."""
    folder = Path(place)
    config = folder / 'config.json'
    weights = open_weights(folder)
    return describe(json.loads(config.read_text(encoding='utf-8')) if config.is_file() else {}, weights), weights


def describe(config: Mapping[str, Any], weights: Weights, *, heads: int = 0, activation: str = '', norm_eps: float = 0.) -> Description:
    """``config``: timm's config.json, {} for none. Images are prepared by its pretrained_cfg; there are no image_ops for a crop_pct
    other than 1, which our ops have not. Without one, mean and std are .5.

    Raises:
        WeightsError: it is no ViT, or one with something that our tower lacks; the message names the array.
    """
    shapes = {name: tuple(weights.shape(name)) for name in weights.names()}
    fields = _fields(shapes, config, weights.where)
    about = dict(MODELS.get(config.get('architecture', ''), {}))
    args, width = config.get('model_args') or {}, fields['width']
    if args.get('pool_include_prefix'):
        raise WeightsError('model_args.pool_include_prefix: found True; our tower leaves the class token out of the mean')
    known = about if about.get('width') == width else {}
    fields['heads'] = heads or args.get('num_heads') or known.get('heads') or max(1, width // HEAD)
    fields['activation'] = activation or _activation(args.get('act_layer')) or about.get('activation') or 'gelu'
    fields['norm_eps'] = norm_eps or about.get('norm_eps') or (1e-5 if fields['pre_norm'] else 1e-6)
    if width % fields['heads']:
        raise WeightsError(f'heads: {fields["heads"]} heads do not divide the width {width}; give the number of heads')
    prepared = config.get('pretrained_cfg') or {}
    fields |= {name: tuple(prepared.get(name) or (.5, .5, .5)) for name in ('mean', 'std')}
    ops: tuple[Mapping[str, Any], ...] = ()
    if prepared and prepared.get('crop_pct') == 1. and prepared.get('interpolation') in ('bicubic', 'bilinear'):
        crop = dict(crop='squash') if prepared.get('crop_mode') == 'squash' else dict(crop='center', rounding='nearest')
        ops = (dict(name='resize', size=fields['image'], method=prepared['interpolation'], **crop),)
    tower = dict(DEFAULTS, **fields)
    return Description(dict(towers=dict(image=tower)), (piece(tower),), IGNORED, ops)


def piece(tower: Mapping[str, Any], theirs: str = '') -> Piece:
    """The tower's arrays under names that begin with ``theirs``."""
    there = (tower['pool'] == 'cls' or tower['class_token']) and tower['class_position']
    templates: dict[str, str | Theirs] = _vit_names.TIMM | ({} if there else _vit_names.TIMM_PATCHES)
    return Piece('image/', templates, theirs, dict(p=tower['patch'], q=tower['patch']))


def _activation(name: Any) -> str:
    known = {'': '', 'gelu': 'gelu', 'gelu_erf': 'gelu', 'gelu_tanh': 'gelu_tanh', 'quick_gelu': 'quick_gelu', 'relu': 'relu'}
    if (name or '') not in known:
        raise WeightsError(f'model_args.act_layer: found {name!r}; valid: {", ".join(filter(None, known))}')
    return known[name or '']


def _fields(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What shapes tell of a tower."""
    for piece_, what in _LACKING.items():
        for name in shapes:
            if re.search(piece_, name):
                raise WeightsError(f'{where}: {name} is of {what}, which our ViT lacks')
    if missing := {'patch_embed.proj.weight', 'pos_embed', 'blocks.0.attn.qkv.weight', 'blocks.0.mlp.fc1.weight'} - shapes.keys():
        raise WeightsError(f'{where} is no timm VisionTransformer: it has no {min(missing)}')
    width, _, patch, across = shapes['patch_embed.proj.weight']
    token, depth = 'cls_token' in shapes, sum(name.endswith('attn.qkv.weight') for name in shapes)
    positions = shapes['pos_embed'][1]
    placed = token and math.isqrt(positions) ** 2 != positions  # timm's no_embed_class has positions of patches only
    side = math.isqrt(positions - placed)
    if patch != across or side ** 2 != positions - placed:
        raise WeightsError(f'{where}: pos_embed has {positions} positions for patches of {patch}×{across}; valid: squares')
    pool = 'map' if 'attn_pool.latent' in shapes else _pool(config.get('global_pool') or ('token' if token else 'avg'), token)
    norm = 'tokens' if 'norm.weight' in shapes else 'pooled' if 'fc_norm.weight' in shapes else 'none'
    stated = (config.get('pretrained_cfg') or {}).get('input_size') or (0, 0, 0)
    image = stated[-1] if stated[-1] // patch == side else side * patch
    if norm == 'pooled' and pool == 'cls' and 'global_pool' not in config:
        pool = 'gap'  # fc_norm is of a mean
    return dict(patch=patch, image=image, trim=bool(image % patch), width=width, depth=depth, mlp_dim=shapes['blocks.0.mlp.fc1.weight'][0],
                pool=pool, class_token=token and pool != 'cls', class_position=placed or not token, last_norm=norm,
                pre_norm='norm_pre.weight' in shapes, patch_bias='patch_embed.proj.bias' in shapes,
                qkv_bias='blocks.0.attn.qkv.bias' in shapes)


def _pool(name: str, token: bool) -> str:
    pools = {'token': 'cls', 'avg': 'gap', 'map': 'map'}
    if name not in pools or name == 'token' and not token:
        raise WeightsError(f'global_pool: found {name!r}; valid: {", ".join(pools)} (token needs a class token)')
    return pools[name]
