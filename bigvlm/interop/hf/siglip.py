"""SigLIP of transformers (SiglipModel), and SigLIP 2's models of a fixed resolution, which have the same files.

Texts must be padded to ``length``: the last of all tokens pools, and padding is attended to.
"""

from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import Theirs, WeightsError
from bigvlm.interop.description import Description
from bigvlm.interop.hf import _common, _images
from bigvlm.nn.sizes import dims
from bigvlm.towers import _text_names, _vit_names
from bigvlm.towers.text import Text
from bigvlm.towers.vit import ViT

IMAGES = _images.SIGLIP
_BLOCKS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act='gelu_pytorch_tanh',
               layer_norm_eps=1e-6)
VISION = dict(_BLOCKS, num_channels=3, image_size=224, patch_size=16, vision_use_head=True)
TEXT = dict(_BLOCKS, vocab_size=32_000, max_position_embeddings=64, pad_token_id=1)
IGNORED = (r'(text|vision)_model\.embeddings\.position_ids',)  # buffers


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    vision = _common.settings(config, 'vision_config', VISION)
    image = vision_tower(vision, _common.side(vision, 'image_size'))
    ops, normal = _images.prepare(processor, image['image'], IMAGES)
    return pair(image | normal, _common.settings(config, 'text_config', TEXT), _vit_names.HF_SIGLIP, ops)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    image, vision, text = parts_there(groups)
    return dict(architectures=['SiglipModel'], model_type='siglip',
                vision_config=dict(model_type='siglip_vision_model', image_size=image.image, **vision),
                text_config=dict(model_type='siglip_text_model', **text))


# What SigLIP 2's file shares.

def vision_tower(vision: Mapping[str, Any], image: int) -> dict[str, Any]:
    """The tower of a vision_config, for square images of that side, but for mean and std."""
    _common.refuse(vision, num_channels=(3,), vision_use_head=(True,))
    patch = _common.side(vision, 'patch_size')
    return dict(name='vit', image=image, patch=patch, trim=image % patch != 0, pool='map', init_scheme='xavier', **_common.blocks(vision))


def pair(image: Mapping[str, Any], text: Mapping[str, Any], names: Mapping[str, str | Theirs], ops) -> Description:
    """The model of an image tower and a text_config."""
    length, out_dim = _common.count(text, 'max_position_embeddings'), text.get('projection_size') or text['hidden_size']
    if out_dim != image['width']:
        raise WeightsError(f'text_config.projection_size: found {out_dim}; valid: the width of the image tower, {image["width"]}')
    towers = dict(image=dict(image), text=dict(
        name='text', vocab=_common.count(text, 'vocab_size'), length=length, causal=False, pool='last', pad_id=text['pad_token_id'],
        out_dim=out_dim, out_bias=True, init_scheme='xavier', **_common.blocks(text)))
    pieces = _common.pieces(_common.under('vision_model.', names), _common.under('text_model.', _text_names.HF_SIGLIP),
                            {'t': Theirs('logit_scale', '1 ->'), 'b': Theirs('logit_bias', '1 ->')}, image['patch'])
    return Description(dict(towers=towers, objectives=dict(match=dict(name='sigmoid'))), pieces, IGNORED, ops, length=length)


def parts_there(groups: Mapping[str, Any]) -> tuple[ViT, dict[str, Any], dict[str, Any]]:
    """(image tower, its vision_config but for the images' size, text_config); WeightsError for a field that they cannot hold."""
    image, text, _ = _common.two_towers(groups, ViT, Text, 'sigmoid')
    _common.refuse_fields(image, 'towers.image', pool=('map',), out_dim=(0,), pre_norm=(False,), patch_bias=(True,), qkv_bias=(True,),
                          position=('learned',), class_token=(False,), last_norm=('tokens',), mask_token=(False,))
    _common.refuse_fields(text, 'towers.text', causal=(False,), pool=('last',), class_token=(False,), mask_padding=(False,),
                          out_bias=(True,), out_dim=(dims(image)[0],))
    vision = dict(patch_size=image.patch, num_channels=3, vision_use_head=True, **_common.blocks_there(image, dims(image)))
    return image, vision, dict(
        vocab_size=text.vocab, max_position_embeddings=text.length, pad_token_id=text.pad_id, bos_token_id=None, eos_token_id=None,
        projection_size=text.out_dim, **_common.blocks_there(text, dims(text)))
