"""SigLIP 2 of transformers (Siglip2Model) on one square grid; its files for a fixed resolution are of model_type 'siglip'.

This model_type is NaFlex: it takes patches of images of any shape. Here every image is a square of num_patches patches, so a processor
that keeps the shapes of images, as this model's own does, is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.description import Description
from bigvlm.interop.hf import _common, _images, siglip
from bigvlm.towers import _vit_names

IMAGES = _images.SIGLIP
VISION = {key: value for key, value in siglip.VISION.items() if key != 'image_size'} | dict(num_patches=256)


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """Without a processor's file, images are brought to the square whatever their shape."""
    if processor.get('max_num_patches') is not None or 'Siglip2' in str(processor.get('image_processor_type', '')):
        raise WeightsError('preprocessor_config.json: its images keep their shapes (NaFlex), for which there is no tower; valid: a '
                           f'{IMAGES.kind} of one height and width, or no such file')
    vision = _common.settings(config, 'vision_config', VISION)
    patches = _common.count(vision, 'num_patches')
    if math.isqrt(patches) ** 2 != patches:
        raise WeightsError(f'num_patches: found {patches}; valid: squares')
    image = siglip.vision_tower(vision, math.isqrt(patches) * _common.side(vision, 'patch_size'))
    ops, normal = _images.prepare(processor, image['image'], IMAGES)
    return siglip.pair(image | normal, _common.settings(config, 'text_config', siglip.TEXT), _vit_names.HF_SIGLIP2, ops)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    image, vision, text = siglip.parts_there(groups)
    return dict(architectures=['Siglip2Model'], model_type='siglip2',
                vision_config=dict(model_type='siglip2_vision_model', num_patches=(image.image // image.patch) ** 2, **vision),
                text_config=dict(model_type='siglip2_text_model', **text))
