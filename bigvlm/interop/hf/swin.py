"""Swin of transformers (SwinModel), as an image tower. Heads (of classes, of masked images) and the mask token are ignored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.hf import _common, _images
from bigvlm.towers.swin import FOREIGN, Swin

# What transformers takes where config.json says nothing, and what the files of all published models say of images.
DEFAULTS = dict(image_size=224, patch_size=4, num_channels=3, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7,
                mlp_ratio=4., hidden_act='gelu', layer_norm_eps=1e-5)
IMAGES = dataclasses.replace(_images.VIT, method='bicubic', mean=(.485, .456, .406), std=(.229, .224, .225))
IGNORED = r'embeddings\.mask_token', r'.*\.relative_position_index'
_HEADS = r'classifier\..*', r'decoder\..*'
_NORM_EPS = 1e-5  # of the norms of patches and of merges there, whatever config.json says of the others


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """A tower 'image', pooled by the mean of its tokens, as SwinModel's pooler_output is."""
    tower = image_tower(config)
    ops, normal = _images.prepare(processor, tower['image'], IMAGES)
    more = (config.get('architectures') or ['SwinModel'])[0] != 'SwinModel'  # then the tower's names have a prefix
    piece = Piece('image/', _common.under('swin.' * more, FOREIGN), sizes=dict(p=tower['patch'], q=tower['patch']))
    ignored = tuple(r'swin\.' * more + name for name in IGNORED) + _HEADS * more
    return Description(dict(towers=dict(image=tower | normal)), (piece,), ignored, ops)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """A tower 'image' alone, as SwinModel's."""
    towers = groups.get('towers', {})
    if [*towers] != ['image']:
        raise WeightsError(f'towers: SwinModel is one tower, image; found {", ".join(towers) or "none"}')
    tower = _common.build(towers['image'], Swin, 'image')
    _common.refuse_fields(tower, 'towers.image', out_dim=(0,))
    return dict(architectures=['SwinModel'], **image_config(tower))


def image_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tower of their settings, complete but for mean and std; without a projection."""
    config = DEFAULTS | dict(config)
    _common.refuse(config, num_channels=(3,), qkv_bias=(True,), use_absolute_embeddings=(False,), layer_norm_eps=(_NORM_EPS,))
    return dict(name='swin', size='', image=_common.side(config, 'image_size'), patch=_common.side(config, 'patch_size'),
                width=_common.count(config, 'embed_dim'), depths=tuple(config['depths']), heads=tuple(config['num_heads']),
                window=_common.count(config, 'window_size'), mlp_ratio=float(config['mlp_ratio']),
                activation=_common.activation(config['hidden_act']), norm_eps=_NORM_EPS, **_common.TOWER)


def image_config(tower: Swin) -> dict[str, Any]:
    """Their settings of a tower, whatever its projection."""
    width, depths, heads = tower.dims()
    _common.refuse_fields(tower, 'towers.image', norm_eps=(_NORM_EPS,))
    return dict(model_type='swin', image_size=tower.image, patch_size=tower.patch, num_channels=3, embed_dim=width, depths=list(depths),
                num_heads=list(heads), window_size=tower.window, mlp_ratio=tower.mlp_ratio, qkv_bias=True,
                hidden_act=_common.activation_there(tower.activation), use_absolute_embeddings=False, layer_norm_eps=tower.norm_eps,
                hidden_size=width * 2 ** (len(depths) - 1), hidden_dropout_prob=tower.dropout, attention_probs_dropout_prob=0.,
                drop_path_rate=tower.drop_path)
