"""open_clip's config from the arrays of a file alone."""

import math
from typing import Any

from bigvlm.core.foreign import Weights, WeightsError
from bigvlm.interop.open_clip._common import ratio

HEAD = 64


def infer(weights: Weights, *, quick_gelu: bool = True, heads: int = 0, text_heads: int = 0) -> dict[str, Any]:
    """The model config of OpenAI's state dict (ViT or ResNet) or of an open_clip file of the same kind, as ``describe`` takes it.

    No array tells the activation and the number of heads. ``quick_gelu``: True, as in all of OpenAI's models; most of open_clip's own
    have False. ``heads``, ``text_heads``: 0 is one for each 64 of the width, as nearly all have (of open_clip's, ViT-H and larger
    have others). Pooling is by the class token, and by the largest token id.

    Raises:
        WeightsError: it is another model: CoCa, one with a tower of timm, or one with a pool of its own needs its open_clip_config.json.
    """
    shapes = {name: tuple(weights.shape(name)) for name in weights.names()}
    text = 'text.' if 'text.token_embedding.weight' in shapes else ''
    if missing := {f'{text}{name}' for name in ('token_embedding.weight', 'positional_embedding', 'text_projection',
                                                'transformer.resblocks.0.mlp.c_fc.weight')} - shapes.keys():
        raise WeightsError(f'{weights.where} is no CLIP that can be told from its arrays: it has no {min(missing)}')
    for start in ('text_decoder.', 'visual.trunk.', 'visual.attn_pool.', f'{text}cls_emb'):
        if any(name.startswith(start) for name in shapes):
            raise WeightsError(f'{weights.where} has {start}…: such a model needs its open_clip_config.json, in one folder with the file')
    vocab, width = shapes[f'{text}token_embedding.weight']
    resnet = 'visual.attnpool.positional_embedding' in shapes
    found = dict(
        embed_dim=shapes[f'{text}text_projection'][1], quick_gelu=quick_gelu,
        vision_cfg=_resnet(shapes, weights.where) if resnet else _vit(shapes, weights.where, heads),
        text_cfg=dict(context_length=shapes[f'{text}positional_embedding'][0], vocab_size=vocab, width=width,
                      heads=text_heads or max(1, width // HEAD), layers=_layers(shapes, f'{text}transformer.'),
                      mlp_ratio=ratio(width, shapes[f'{text}transformer.resblocks.0.mlp.c_fc.weight'][0])))
    if text:
        found['custom_text'] = True
    if shapes.get('logit_scale') == (1,):
        found['nonscalar_logit_scale'] = True
    return found | (dict(init_logit_bias=0.) if 'logit_bias' in shapes else {})


def _layers(shapes, prefix: str) -> int:
    return sum(name.startswith(f'{prefix}resblocks.') and name.endswith('.ln_1.weight') for name in shapes)


def _side(positions: int, where: str) -> int:
    """Of a grid of cells; one more position is the class token's or the mean's."""
    side = math.isqrt(positions - 1)
    if side ** 2 != positions - 1:
        raise WeightsError(f'{where}: {positions - 1} positions are no square')
    return side


def _vit(shapes, where: str, heads: int) -> dict[str, Any]:
    if missing := {'visual.conv1.weight', 'visual.positional_embedding', 'visual.proj'} - shapes.keys():
        raise WeightsError(f'{where} has no image tower of CLIP: there is no {min(missing)}')
    width, _, patch, _ = shapes['visual.conv1.weight']
    side = _side(shapes['visual.positional_embedding'][0], where)
    found = dict(image_size=side * patch, patch_size=patch, width=width, layers=_layers(shapes, 'visual.transformer.'),
                 head_width=width // heads if heads else min(HEAD, width),
                 mlp_ratio=ratio(width, shapes['visual.transformer.resblocks.0.mlp.c_fc.weight'][0]))
    return found if 'visual.ln_pre.weight' in shapes else found | dict(no_ln_pre=True)


def _resnet(shapes, where: str) -> dict[str, Any]:
    layers = [len({name.split('.')[2] for name in shapes if name.startswith(f'visual.layer{stage}.')}) for stage in (1, 2, 3, 4)]
    side = _side(shapes['visual.attnpool.positional_embedding'][0], where)
    return dict(image_size=32 * side, layers=layers, width=shapes['visual.layer1.0.conv1.weight'][0], patch_size=None)
