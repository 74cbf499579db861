"""VisionTextDualEncoder of transformers: any two of the towers below, each with a projection of what its own model pools.

Image towers: ViT (its pooler pools), Swin, the vision models of CLIP and SigLIP. Text towers: BERT, RoBERTa and XLM-RoBERTa (their
poolers pool), CLIP's.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigvlm.core.foreign import Theirs, WeightsError
from bigvlm.interop.description import Description
from bigvlm.interop.hf import _clip_vision, _common, _images, bert, clip, roberta, siglip, swin, vit, xlm_roberta
from bigvlm.nn.sizes import dims
from bigvlm.towers import _text_names, _vit_names
from bigvlm.towers.bert import FOREIGN as BERT
from bigvlm.towers.bert import Bert
from bigvlm.towers.swin import FOREIGN as SWIN
from bigvlm.towers.swin import Swin
from bigvlm.towers.text import Text
from bigvlm.towers.vit import ViT

IMAGES = _images.VIT
WIDTH = 512  # of embeddings, where config.json says nothing
# Buffers, and what no embedding uses.
IGNORED = (r'(vision|text)_model\.embeddings\.(position_ids|token_type_ids|mask_token)', r'vision_model\..*\.relative_position_index')
# Before transformers 5, CLIP's and SigLIP's models were within one of the same name.
RENAMED = ((r'^(vision|text)_model\.\1_model\.', r'\1_model.'),)


class Half(NamedTuple):
    """A model_type of one tower. tower: their settings as ours, without a projection, mean and std; settings: the inverse."""
    tower: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    settings: Callable[[Any], Mapping[str, Any]]
    names: Mapping[str, str | Theirs]
    images: _images.Images = IMAGES


def _siglip_tower(vision: Mapping[str, Any]) -> dict[str, Any]:
    vision = siglip.VISION | dict(vision)
    return siglip.vision_tower(vision, _common.side(vision, 'image_size'))


def _siglip_settings(image: ViT) -> dict[str, Any]:
    _common.refuse_fields(image, 'towers.image', pre_norm=(False,), patch_bias=(True,), qkv_bias=(True,), position=('learned',),
                          class_token=(False,), last_norm=('tokens',), mask_token=(False,))
    return dict(image_size=image.image, patch_size=image.patch, num_channels=3, vision_use_head=True,
                **_common.blocks_there(image, dims(image)))


POOLER = {path: name for path, name in BERT.items() if path.startswith('pooler')}
VISION = {
    'vit': Half(lambda vision: vit.image_tower(vision) | dict(pool='pooler'), lambda tower: vit.image_config(tower.clone(pool='cls')),
                _vit_names.HF_VIT | POOLER, vit.IMAGES),
    'swin': Half(swin.image_tower, swin.image_config, SWIN, swin.IMAGES),
    'clip_vision_model': Half(lambda vision: _clip_vision.tower(vision, 0), _clip_vision.config, _vit_names.HF_CLIP, clip.IMAGES),
    'siglip_vision_model': Half(_siglip_tower, _siglip_settings, _vit_names.HF_SIGLIP, siglip.IMAGES),
}
TEXT = {
    'bert': Half(bert.text_tower, bert.text_config, BERT),
    'roberta': Half(roberta.text_tower, roberta.text_config, BERT),
    'xlm-roberta': Half(xlm_roberta.text_tower, xlm_roberta.text_config, BERT),
    'clip_text_model': Half(lambda text: clip.describe(dict(text_config=text), {}).config['towers']['text'], clip.text_config,
                            _text_names.HF_CLIP),
}


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """Two towers; without a processor's file, images are prepared as those of the image tower's own model are."""
    vision, text = (_common.settings(config, key, {}) for key in ('vision_config', 'text_config'))
    _common.refuse(dict(model_type='') | vision, 'vision_config', model_type=tuple(VISION))
    _common.refuse(dict(model_type='') | text, 'text_config', model_type=tuple(TEXT))
    out_dim = _common.count({'projection_dim': config.get('projection_dim', WIDTH)}, 'projection_dim')
    image_half, text_half = VISION[vision['model_type']], TEXT[text['model_type']]
    projection = dict(out_dim=out_dim, out_bias=False)
    towers = dict(image=image_half.tower(vision) | projection, text=text_half.tower(text) | projection)
    ops, normal = _images.prepare(processor, towers['image']['image'], image_half.images)
    towers['image'] |= normal
    pieces = _common.pieces(_common.under('vision_model.', image_half.names) | {'out/kernel': 'visual_projection.weight'},
                            _common.under('text_model.', text_half.names) | {'out/kernel': 'text_projection.weight'},
                            {'t': 'logit_scale'}, towers['image']['patch'])
    objectives = dict(match=dict(name='contrastive', temperature=_common.temperature(config)))
    return Description(dict(towers=towers, objectives=objectives), pieces, IGNORED, ops, length=towers['text']['length'])


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {}
    for name, valid in (('image', (ViT, Swin)), ('text', (Bert, Text))):
        names = {kind.__name__.lower(): kind for kind in valid}
        found = groups.get('towers', {}).get(name, {})
        _common.refuse(dict(name='') | dict(found), f'towers.{name}', name=tuple(names))
        kinds[name] = names[found['name']]
    image, text, match = _common.two_towers(groups, kinds['image'], kinds['text'], 'contrastive')
    _common.refuse_fields(match, 'objectives', learned=(True,))
    for name, tower in (('image', image), ('text', text)):
        _common.refuse_fields(tower, f'towers.{name}', out_bias=(False,))
    vision_type, text_type = _vision_type(image), _text_type(text)
    return dict(architectures=['VisionTextDualEncoderModel'], model_type='vision-text-dual-encoder',
                projection_dim=_common.projection(image, text), logit_scale_init_value=-math.log(match.temperature),
                vision_config=dict(VISION[vision_type].settings(image), model_type=vision_type),
                text_config=dict(TEXT[text_type].settings(text), model_type=text_type))


def _vision_type(image: ViT | Swin) -> str:
    if isinstance(image, Swin):
        return 'swin'
    kinds = {'pooler': 'vit', 'cls': 'clip_vision_model', 'map': 'siglip_vision_model'}
    if image.pool not in kinds:
        raise WeightsError(f'towers.image.pool: found {image.pool!r}; valid: {", ".join(kinds)}')
    return kinds[image.pool]


def _text_type(text: Bert | Text) -> str:
    if isinstance(text, Text):
        return 'clip_text_model'
    _common.refuse_fields(text, 'towers.text', pool=('pooler',))
    return 'roberta' if text.first_position else 'bert'
