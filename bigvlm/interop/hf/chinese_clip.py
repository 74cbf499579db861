"""ChineseCLIP of transformers (ChineseCLIPModel): CLIP's image tower and BERT, of which the first token pools."""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.interop.description import Description
from bigvlm.interop.hf import _clip_vision, _common, _images, bert
from bigvlm.towers.bert import FOREIGN, Bert
from bigvlm.towers.vit import ViT

IMAGES = _images.CHINESE_CLIP
WIDTH = 512  # of embeddings, where config.json says nothing
ENCODER = {path: name for path, name in FOREIGN.items() if not path.startswith('pooler')}
# Buffers, and a pooler that no embedding uses.
IGNORED = (r'vision_model\.embeddings\.position_ids', r'text_model\.embeddings\.(position|token_type)_ids', r'text_model\.pooler\..*')


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    text = bert.text_tower(_common.settings(config, 'text_config', bert.DEFAULTS)) | dict(pool='cls')
    return pair(config, processor, WIDTH, text, _common.under('text_model.', ENCODER), IGNORED)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    found, text = pair_there(groups, 'chinese_clip')
    return found | dict(architectures=['ChineseCLIPModel'], text_config=bert.text_config(text) | dict(model_type='chinese_clip_text_model'))


# What AltCLIP's file shares.

def pair(config: Mapping[str, Any], processor: Mapping[str, Any], width: int, text: Mapping[str, Any], names: Mapping[str, Any],
         ignored: tuple[str, ...]) -> Description:
    """CLIP with another text tower, ``text``, whose arrays have ``names``; ``width``: of embeddings, unless the file says it."""
    out_dim = _common.count({'projection_dim': config.get('projection_dim', width)}, 'projection_dim')
    image = _clip_vision.tower(_common.settings(config, 'vision_config', _clip_vision.DEFAULTS), out_dim)
    ops, normal = _images.prepare(processor, image['image'], IMAGES)
    towers = dict(image=image | normal, text=dict(text, out_dim=out_dim, out_bias=False))
    objectives = dict(match=dict(name='contrastive', temperature=_common.temperature(config)))
    pieces = _common.pieces(_clip_vision.templates('vision_model.', 'visual_projection'),
                            dict(names) | {'out/kernel': 'text_projection.weight'}, {'t': 'logit_scale'}, image['patch'])
    return Description(dict(towers=towers, objectives=objectives), pieces, ignored, ops, length=text['length'])


def pair_there(groups: Mapping[str, Any], model_type: str) -> tuple[dict[str, Any], Bert]:
    """(config.json but for the text tower, that tower); WeightsError for a field that it cannot hold."""
    image, text, match = _common.two_towers(groups, ViT, Bert, 'contrastive')
    _common.refuse_fields(match, 'objectives', learned=(True,))
    _common.refuse_fields(text, 'towers.text', pool=('cls',), out_bias=(False,))
    return dict(model_type=model_type, projection_dim=_common.projection(image, text), logit_scale_init_value=-math.log(match.temperature),
                vision_config=_clip_vision.config(image) | dict(model_type=f'{model_type}_vision_model')), text
