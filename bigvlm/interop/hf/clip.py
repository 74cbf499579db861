"""CLIP of transformers (CLIPModel).

Its text is pooled at the first eos_token_id, or, where that is 2, at the largest token id: files from before 2023 say 2 and mean
the last token of the vocabulary, with which a text ends.
"""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.description import Description
from bigvlm.interop.hf import _clip_vision, _common, _images
from bigvlm.nn.sizes import dims
from bigvlm.towers import _text_names
from bigvlm.towers.text import Text
from bigvlm.towers.vit import ViT

IMAGES = _images.CLIP
TEXT = dict(vocab_size=49_408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
            max_position_embeddings=77, hidden_act='quick_gelu', layer_norm_eps=1e-5, pad_token_id=1, eos_token_id=49_407)
_OLD_EOS = 2
IGNORED = (r'(text|vision)_model\.embeddings\.position_ids',)  # buffers


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    vision, text = _common.settings(config, 'vision_config', _clip_vision.DEFAULTS), _common.settings(config, 'text_config', TEXT)
    out_dim = _common.count({'projection_dim': config.get('projection_dim', 512)}, 'projection_dim')
    image = _clip_vision.tower(vision, out_dim)
    ops, normal = _images.prepare(processor, image['image'], IMAGES)
    length = _common.count(text, 'max_position_embeddings')
    eos = text['eos_token_id']
    pool = dict(pool='argmax') if eos == _OLD_EOS else dict(pool='eot', eot_id=_common.count(text, 'eos_token_id', 0))
    towers = dict(
        image=image | normal,
        text=dict(name='text', vocab=_common.count(text, 'vocab_size'), length=length, causal=True, pad_id=text['pad_token_id'],
                  out_dim=out_dim, out_bias=False, init_scheme='clip', **pool, **_common.blocks(text)))
    objectives = dict(match=dict(name='contrastive', temperature=_common.temperature(config)))
    pieces = _common.pieces(
        _clip_vision.templates('vision_model.', 'visual_projection'),
        _common.under('text_model.', _text_names.HF_CLIP) | {'out/kernel': 'text_projection.weight'},
        {'t': 'logit_scale'}, image['patch'])
    return Description(dict(towers=towers, objectives=objectives), pieces, IGNORED, ops, length=length)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    image, text, match = _common.two_towers(groups, ViT, Text, 'contrastive')
    _common.refuse_fields(match, 'objectives', learned=(True,))
    return dict(architectures=['CLIPModel'], model_type='clip', projection_dim=_common.projection(image, text),
                logit_scale_init_value=-math.log(match.temperature),
                vision_config=dict(model_type='clip_vision_model', **_clip_vision.config(image)),
                text_config=dict(model_type='clip_text_model', **text_config(text)))


def text_config(text: Text) -> dict[str, Any]:
    """Their text_config; WeightsError for a field that it cannot hold."""
    _common.refuse_fields(text, 'towers.text', causal=(True,), pool=('eot', 'argmax'), class_token=(False,))
    if text.out_dim:
        _common.refuse_fields(text, 'towers.text', out_bias=(False,))
    if text.pool == 'eot' and text.eot_id == _OLD_EOS:
        raise WeightsError("towers.text.eot_id: found 2, which means the largest id there; valid: others, or pool='argmax'")
    return dict(vocab_size=text.vocab, max_position_embeddings=text.length, pad_token_id=text.pad_id, bos_token_id=None,
                eos_token_id=text.eot_id if text.pool == 'eot' else _OLD_EOS, projection_dim=text.out_dim,
                **_common.blocks_there(text, dims(text)))
