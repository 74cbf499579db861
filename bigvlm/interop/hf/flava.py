"""FLAVA of transformers: FlavaForPreTraining, and FlavaModel as a pair of towers.

The multimodal encoder is a ``merged`` fusion, and the heads are those of objectives: matching, masked patches and masked words, each
alone and with the help of the other. The codebook is ignored (here codes of patches are data), and so are poolers of which no output of
theirs makes use; an export has neither. FlavaModel has no head that reads the multimodal encoder, which in its files is ignored, too.
"""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.core import parts
from bigvlm.core.foreign import Theirs, WeightsError
from bigvlm.fusion.merged import Merged
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.hf import _common, _images, bert, vit
from bigvlm.towers import _vit_names
from bigvlm.towers.bert import FOREIGN as BERT
from bigvlm.towers.bert import Bert
from bigvlm.towers.vit import ViT

IMAGES = _images.Images('FlavaImageProcessor', 'squash', 'bicubic', _images.CLIP.mean, _images.CLIP.std)
LENGTH = 77  # of texts in the paper and in their examples; there are more positions
_BLOCKS = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act='gelu',
               layer_norm_eps=1e-12, qkv_bias=True)
IMAGE = dict(_BLOCKS, image_size=224, patch_size=16, num_channels=3, mask_token=True, vocab_size=8192)
TEXT = dict(_BLOCKS, vocab_size=30_522, type_vocab_size=2, max_position_embeddings=512, pad_token_id=0)
JOINT = dict(_BLOCKS, num_hidden_layers=6, use_cls_token=True)

# Names; those of FlavaModel are under 'flava.' in FlavaForPreTraining.
_linear, _norm, _under = _vit_names.hf_linear, _vit_names.hf_norm, _common.under
_ENCODER = {path: name for path, name in _vit_names.HF_VIT.items() if path.startswith('encoder/')}
_EMBED = {path: name for path, name in BERT.items() if path.split('/')[0] in ('embed', 'position', 'type', 'embed_norm')}
_MASK_TOKEN = {'mask_token': Theirs('embeddings.mask_token', '1 1 w -> w')}
IMAGE_NAMES = _under('image_model.', _vit_names.HF_VIT | _MASK_TOKEN) | _linear('out', 'image_projection')
TEXT_NAMES = _under('text_model.', _EMBED | _ENCODER) | _linear('out', 'text_projection')
JOINT_NAMES = _under('multimodal_model.', _ENCODER | {'class_token': Theirs('cls_token', '1 1 w -> w')}) \
    | _linear('image', 'image_to_mm_projection') | _linear('text', 'text_to_mm_projection')


def _patches(ours: str, theirs: str) -> dict[str, str]:
    return _linear(f'{ours}transform', f'{theirs}.transform.dense') | _norm(f'{ours}norm', f'{theirs}.transform.LayerNorm') \
        | _linear(f'{ours}head', f'{theirs}.decoder')


def _words(ours: str, theirs: str) -> dict[str, str]:
    return _linear(f'{ours}head/dense', f'{theirs}.transform.dense') | _norm(f'{ours}head/norm', f'{theirs}.transform.LayerNorm') \
        | {f'{ours}head/vocabulary/kernel': f'{theirs}.decoder.weight', f'{ours}head/bias': f'{theirs}.decoder.bias'}


HEADS = (Piece('itm/', _linear('judge', 'itm_head.seq_relationship')), Piece('patches/', _patches('', 'mim_head')),
         Piece('words/', _words('', 'mlm_head')),
         Piece('pair/', _patches('patches/', 'mmm_image_head') | _words('words/', 'mmm_text_head')))
# Buffers and poolers; the multimodal encoder, of FlavaModel; of the other, the codebook, and a second name of biases.
IGNORED = (r'(image|text|multimodal)_model\.pooler\..*', r'text_model\.embeddings\.(position|token_type)_ids')
JOINT_IGNORED = (r'multimodal_model\..*', r'(image|text)_to_mm_projection\..*', r'image_model\.embeddings\.mask_token')
HEADS_IGNORED = (r'image_codebook\..*', r'(mim|mlm|mmm_image|mmm_text)_head\.bias')
WHOLE = 'FlavaForPreTraining'


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """Of FlavaForPreTraining, towers, the fusion 'joint' and the objectives 'match' (the contrast), 'itm', 'patches', 'words' and
    'pair'; of FlavaModel, towers and 'match'."""
    image, text, joint = (_common.settings(config, f'{name}_config', usual) for name, usual in (
        ('image', IMAGE), ('text', TEXT), ('multimodal', JOINT)))
    whole = (config.get('architectures') or [WHOLE])[0] == WHOLE
    out = dict(out_dim=_common.count({'projection_dim': config.get('projection_dim', 768)}, 'projection_dim'), out_bias=True)
    towers = dict(image=vit.image_tower(image) | dict(mask_token=whole) | out,
                  text=bert.text_tower(text) | dict(pre_norm=True, pool='cls', qkv_bias=text['qkv_bias']) | out)
    ops, normal = _images.prepare(processor, towers['image']['image'], IMAGES)
    towers['image'] |= normal
    groups = dict(towers=towers, objectives=dict(match=dict(name='contrastive', temperature=_common.temperature(config))))
    pieces, ignored = _pair('flava.' * whole, towers['image']['patch']), IGNORED + JOINT_IGNORED
    if whole:
        groups['fusion'] = dict(joint=_joint(joint, config.get('hidden_size', 768)))
        groups['objectives'] |= _heads(image, text, towers['image'])
        joint_names = _under('flava.', JOINT_NAMES) | _linear('pooler', 'itm_head.pooler.dense')
        pieces += (Piece('joint/', joint_names), *HEADS)
        ignored = (*(rf'flava\.{name}' for name in IGNORED), *HEADS_IGNORED)
    return Description(groups, pieces, ignored, ops, length=min(LENGTH, towers['text']['length']))


def _pair(prefix: str, patch: int) -> tuple[Piece, ...]:
    return _common.pieces(_under(prefix, IMAGE_NAMES), _under(prefix, TEXT_NAMES), {'t': f'{prefix}logit_scale'}, patch)


def _joint(joint: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    _common.refuse(joint, 'multimodal_config', use_cls_token=(True,), hidden_size=(hidden,))
    fields = {key: value for key, value in _common.blocks(joint).items() if key != 'size'}
    return dict(name='merged', qkv_bias=joint['qkv_bias'], pool='pooler', before_norm=True, **fields)


def _heads(image: Mapping[str, Any], text: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    _common.refuse(image, 'image_config', hidden_act=('gelu',), mask_token=(True,))  # as the heads are
    _common.refuse(text, 'text_config', hidden_act=('gelu',))
    codes, grid = _common.count(image, 'vocab_size'), (tower['image'] // tower['patch'],) * 2
    patches, words = dict(grid=grid), dict(vocab=_common.count(text, 'vocab_size'), norm_eps=float(text['layer_norm_eps']))
    eps = float(image['layer_norm_eps'])
    return dict(
        itm=dict(name='matching', fusion='joint', negatives='random'),
        pair=dict(name='masked_pair', fusion='joint', image_vocab=codes, image_norm_eps=eps, **patches, **words),
        patches=dict(name='masked_image', target='codes', transform=True, vocab=codes, norm_eps=eps, **patches),
        words=dict(name='masked_text', kinds=('text',), **words))


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """FlavaForPreTraining's without its codebook, of a recipe that has all of its parts, under the names that ``describe`` gives."""
    image, text, match = _common.two_towers(groups, ViT, Bert, 'contrastive')
    specs = groups.get('fusion', {}), groups['objectives']
    for found, wanted in zip(specs, (dict(joint='merged'), dict(itm='matching', pair='masked_pair', patches='masked_image',
                                                               words='masked_text'))):
        for name, part in wanted.items():
            if found.get(name, {}).get('name') != part:
                raise WeightsError(f'FLAVA has a {part} {name!r}, which this recipe has not')
    joint = parts.build('bigvlm.fusion', specs[0]['joint'], 'fusion.joint')
    pair, patches, words = (parts.build('bigvlm.objectives', specs[1][name], f'objectives.{name}') for name in ('pair', 'patches', 'words'))
    _check(image, text, joint, match, pair, patches, words)
    image_config = vit.image_config(image.clone(mask_token=False)) | dict(
        model_type='flava_image_model', vocab_size=patches.vocab, mask_token=image.mask_token)
    text_config = bert.text_config(text.clone(pre_norm=False, qkv_bias=True)) | dict(model_type='flava_text_model', qkv_bias=text.qkv_bias)
    dims = (joint.width, joint.depth, joint.mlp_dim or 4 * joint.width, joint.heads)
    return dict(architectures=[WHOLE], model_type='flava', projection_dim=_common.projection(image, text), hidden_size=joint.width,
                layer_norm_eps=joint.norm_eps, logit_scale_init_value=-math.log(match.temperature), init_codebook=False,
                image_config=image_config, text_config=text_config,
                multimodal_config=dict(model_type='flava_multimodal_model', use_cls_token=True, qkv_bias=joint.qkv_bias,
                                       **_common.blocks_there(joint, dims)))


def _check(image: ViT, text: Bert, joint: Merged, match: Any, pair: Any, patches: Any, words: Any) -> None:
    """Raises WeightsError for a field that their config.json cannot hold."""
    refuse = _common.refuse_fields
    refuse(image, 'towers.image', out_bias=(True,), mask_token=(True,), activation=('gelu',))
    refuse(text, 'towers.text', out_bias=(True,), pre_norm=(True,), pool=('cls',), activation=('gelu',))
    refuse(joint, 'fusion.joint', pool=('pooler',), before_norm=(True,))
    refuse(match, 'objectives.match', learned=(True,))
    refuse(patches, 'objectives.patches', target=('codes',), transform=(True,), norm_eps=(image.norm_eps,))
    refuse(words, 'objectives.words', tied=(False,), vocab=(text.vocab,), norm_eps=(text.norm_eps,))
    refuse(pair, 'objectives.pair', image_vocab=(patches.vocab,), image_norm_eps=(image.norm_eps,), vocab=(text.vocab,),
           norm_eps=(text.norm_eps,))
