"""ViT of transformers (ViTModel and what is built on it), as an image tower, pooled by the class token after the last norm.

Heads, of classes or of masked patches, are ignored, and so is ViTModel's pooler, which many of its files have untrained.
"""

from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.hf import _common, _images
from bigvlm.nn.sizes import dims
from bigvlm.towers import _vit_names
from bigvlm.towers.vit import ViT

IMAGES = _images.VIT
DEFAULTS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3, image_size=224,
                patch_size=16, hidden_act='gelu', layer_norm_eps=1e-12, qkv_bias=True)
IGNORED = (r'(vit\.)?embeddings\.mask_token', r'pooler\..*', r'classifier\..*', r'decoder\..*')


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """A tower 'image'."""
    tower = image_tower(config)
    ops, normal = _images.prepare(processor, tower['image'], IMAGES)
    more = (config.get('architectures') or ['ViTModel'])[0] != 'ViTModel'  # then the tower's names have a prefix
    piece = Piece('image/', _common.under('vit.' * more, _vit_names.HF_VIT), sizes=dict(p=tower['patch'], q=tower['patch']))
    return Description(dict(towers=dict(image=tower | normal)), (piece,), IGNORED, ops)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """A tower 'image' alone, as ViTModel's without its pooler."""
    towers = groups.get('towers', {})
    if [*towers] != ['image']:
        raise WeightsError(f'towers: ViTModel is one tower, image; found {", ".join(towers) or "none"}')
    tower = _common.build(towers['image'], ViT, 'image')
    _common.refuse_fields(tower, 'towers.image', out_dim=(0,))
    return dict(architectures=['ViTModel'], **image_config(tower))


def image_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tower of their settings, complete but for mean and std; without a projection."""
    config = DEFAULTS | dict(config)
    _common.refuse(config, num_channels=(3,), qkv_bias=(True, False))
    image, patch = _common.side(config, 'image_size'), _common.side(config, 'patch_size')
    return dict(name='vit', image=image, patch=patch, trim=image % patch != 0, pool='cls', qkv_bias=config['qkv_bias'],
                **_common.blocks(config))


def image_config(tower: ViT) -> dict[str, Any]:
    """Their settings of a tower, whatever its projection."""
    _common.refuse_fields(tower, 'towers.image', pool=('cls',), pre_norm=(False,), patch_bias=(True,), position=('learned',),
                          class_position=(True,), last_norm=('tokens',), mask_token=(False,))
    return dict(model_type='vit', image_size=tower.image, patch_size=tower.patch, num_channels=3, qkv_bias=tower.qkv_bias,
                hidden_dropout_prob=tower.dropout, attention_probs_dropout_prob=0., **_common.blocks_there(tower, dims(tower)))
