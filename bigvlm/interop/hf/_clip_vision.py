"""The image tower that CLIP, ChineseCLIP and AltCLIP have in transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import Theirs
from bigvlm.interop.hf import _common
from bigvlm.nn.sizes import dims
from bigvlm.towers import _vit_names
from bigvlm.towers.vit import ViT

DEFAULTS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3, image_size=224,
                patch_size=32, hidden_act='quick_gelu', layer_norm_eps=1e-5)


def tower(vision: Mapping[str, Any], out_dim: int) -> dict[str, Any]:
    """The tower of a vision_config, complete but for mean and std; ``out_dim``: of the projection, 0 for none."""
    vision = DEFAULTS | dict(vision)
    _common.refuse(vision, num_channels=(3,))
    image, patch = _common.side(vision, 'image_size'), _common.side(vision, 'patch_size')
    return dict(name='vit', image=image, patch=patch, trim=image % patch != 0, pool='cls', pre_norm=True, patch_bias=False,
                out_dim=out_dim, out_bias=False, init_scheme='clip', **_common.blocks(vision))


def templates(prefix: str, projection: str) -> dict[str, str | Theirs]:
    """Names of the tower's arrays, of its projection's with ``projection`` in front."""
    return _common.under(prefix, _vit_names.HF_CLIP) | {'out/kernel': f'{projection}.weight'}


def config(image: ViT) -> dict[str, Any]:
    """The inverse of ``tower``; WeightsError for a field that CLIP's vision model cannot be given."""
    _common.refuse_fields(image, 'towers.image', pool=('cls',), pre_norm=(True,), patch_bias=(False,), qkv_bias=(True,),
                          position=('learned',), class_position=(True,), last_norm=('tokens',), mask_token=(False,))
    if image.out_dim:
        _common.refuse_fields(image, 'towers.image', out_bias=(False,))
    return dict(image_size=image.image, patch_size=image.patch, num_channels=3, projection_dim=image.out_dim,
                **_common.blocks_there(image, dims(image)))
