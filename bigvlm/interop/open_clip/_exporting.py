"""Our recipe as open_clip's config."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.core import parts
from bigvlm.core.foreign import WeightsError
from bigvlm.interop import timm
from bigvlm.interop.open_clip import _common
from bigvlm.interop.open_clip._common import EPS, TANH, ratio, refuse
from bigvlm.nn.sizes import dims

_OBJECTIVES = ('contrastive', 'sigmoid')
_POOLS = {'argmax': dict(), 'eot': dict(pool_type='eos'), 'last': dict(pool_type='last'), 'first': dict(pool_type='first')}


def theirs(config: Mapping[str, Any], *, image_ops: Sequence[Mapping[str, Any]] = (), approximate: bool = False) -> dict[str, Any]:
    """Our recipe's groups as the contents of open_clip_config.json: {'model_cfg': …, 'preprocess_cfg': …}.

    ``image_ops``: the data ops after 'decode' of an evaluation; without a 'resize' among them, the middle of the image, bicubic.
    ``approximate``: an image tower with activation 'gelu_tanh' may become a model of timm that has 'gelu', as open_clip's own
    SigLIP B/16 and L/16: numbers then differ in the third digit.

    Raises:
        WeightsError: open_clip cannot hold it; the message names the field.
    """
    image, text = _part(config, 'towers', 'image', ('vit', 'modified_resnet')), _part(config, 'towers', 'text', ('text',))
    match = _match(config)
    embed_dim = _out(image)
    if _out(text) != embed_dim:
        refuse('towers.text.out_dim', _out(text), f'{embed_dim}, as the image tower')
    quick = text.activation == 'quick_gelu'
    vision_cfg, custom = _vision(config, image, quick, approximate)
    model: dict[str, Any] = dict(embed_dim=embed_dim, vision_cfg=vision_cfg, text_cfg=_text(text, quick), quick_gelu=quick)
    if hasattr(match, 'bias'):
        model['init_logit_bias'] = match.bias
    if config.get('decoders'):
        model['multimodal_cfg'] = _decoder(config, image, text, quick)
        vision_cfg['output_tokens'] = model['text_cfg']['output_tokens'] = True
    model['custom_text'] = custom or text.class_token or hasattr(match, 'bias') or 'multimodal_cfg' in model
    return dict(model_cfg=model, preprocess_cfg=_preprocess(image, image_ops))


def _part(config: Mapping[str, Any], group: str, name: str, kinds: Sequence[str]) -> Any:
    spec = config.get(group, {}).get(name)
    if spec is None or spec.get('name') not in kinds:
        refuse(f'{group}.{name}.name', (spec or {}).get('name'), ', '.join(kinds))
    part = parts.build(f'bigvlm.{group}', spec, f'{group}.{name}')
    if hasattr(part, 'check'):
        part.check()
    return part


def _match(config: Mapping[str, Any]) -> Any:
    found = [name for name, spec in config.get('objectives', {}).items() if spec.get('name') in _OBJECTIVES]
    if len(found) != 1:
        refuse('objectives', ', '.join(found) or 'none', f'one of {", ".join(_OBJECTIVES)}')
    match = _part(config, 'objectives', found[0], _OBJECTIVES)
    if not getattr(match, 'learned', True):
        refuse(f'objectives.{found[0]}.learned', False, 'True')
    return match


def _out(tower: Any) -> int:
    if hasattr(tower, 'depths'):
        return tower.dims().out_dim
    return tower.out_dim or dims(tower)[0]


def _only(tower: Any, where: str, **valid: Any) -> None:
    """Raises WeightsError for a field of another value."""
    for field, value in valid.items():
        if getattr(tower, field) != value:
            refuse(f'{where}.{field}', getattr(tower, field), repr(value))


def _numerics(tower: Any, where: str, quick: bool) -> dict[str, Any]:
    """act_kwargs and norm_kwargs; the flag quick_gelu is of both towers."""
    valid = ('quick_gelu',) if quick else ('gelu', 'gelu_tanh')
    if tower.activation not in valid:
        refuse(f'{where}.activation', tower.activation, f'{", ".join(valid)}: quick_gelu is of both towers or of none')
    found: dict[str, Any] = {} if tower.activation != 'gelu_tanh' else dict(act_kwargs=TANH)
    return found if tower.norm_eps == EPS else found | dict(norm_kwargs=dict(eps=tower.norm_eps))


def _vision(config: Mapping[str, Any], image: Any, quick: bool, approximate: bool) -> tuple[dict[str, Any], bool]:
    """(vision_cfg, whether open_clip's own configs of this kind have custom_text)."""
    where = 'towers.image'
    if hasattr(image, 'depths'):
        if len(image.dims().depths) != 4:
            refuse(f'{where}.depths', image.dims().depths, 'four stages')
        if image.bn_epsilon != 1e-5:
            refuse(f'{where}.bn_epsilon', image.bn_epsilon, '1e-05')
        size = image.dims()
        return dict(image_size=size.image, layers=list(size.depths), width=size.width, patch_size=None), False
    _only(image, where, position='learned', mask_token=False)
    if image.patch_bias or not (image.pool == 'cls' or image.class_token):
        return _timm(image, approximate), True
    _only(image, where, out_bias=False, qkv_bias=True, class_position=True)
    if not image.out_dim:
        refuse(f'{where}.out_dim', 0, 'a width: open_clip\'s own ViT has a projection')
    width, depth, mlp_dim, heads = dims(image)
    found = dict(image_size=image.image, layers=depth, width=width, head_width=width // heads, mlp_ratio=ratio(width, mlp_dim),
                 patch_size=image.patch, **_numerics(image, where, quick))
    if not image.pre_norm:
        found['no_ln_pre'] = True
    if image.patch_dropout:
        found['patch_dropout'] = image.patch_dropout
    if image.pool == 'queries':
        _only(image, where, class_token=True, last_norm='none')
        if (image.query_width or width) != image.out_dim:
            refuse(f'{where}.query_width', image.query_width, f'out_dim, {image.out_dim}')
        return found | dict(attentional_pool=True, attn_pooler_queries=image.queries + 1,
                            attn_pooler_heads=image.query_heads or heads), False
    if image.pool not in ('cls', 'gap') or image.last_norm == 'none':
        refuse(f'{where}.pool', image.pool, 'cls, gap or queries (with a last norm, except for queries)')
    if image.pool == 'gap':
        found['pool_type'] = 'avg'
    return found | (dict(final_ln_after_pool=True) if image.last_norm == 'pooled' else {}), False


def _timm(image: Any, approximate: bool) -> dict[str, Any]:
    """The one of timm's models that this tower is, all of whose fields must be equal."""
    width, depth, mlp_dim, heads = dims(image)
    pools = {'cls': 'token', 'gap': 'avg', 'map': 'map'}
    own = dict(patch=image.patch, image=image.image, width=width, depth=depth, mlp_dim=mlp_dim, heads=heads, pool=image.pool,
               class_token=image.class_token and image.pool != 'cls', class_position=image.class_position, last_norm=image.last_norm,
               pre_norm=image.pre_norm, patch_bias=image.patch_bias, qkv_bias=image.qkv_bias, norm_eps=image.norm_eps,
               activation=image.activation)
    closest, wrong = '', dict(own)
    for name, fields in timm.MODELS.items():
        if image.pool == 'gap' and '_gap_' not in name:  # as open_clip makes it with this pool, see _describing.py
            fields = fields | dict(pool='gap', class_token=fields['pool'] == 'cls', last_norm='tokens' if image.out_dim else 'pooled')
        differs = {field: value for field, value in own.items() if fields[field] != value}
        if approximate and differs.get('activation') == 'gelu_tanh' and fields['activation'] == 'gelu':
            differs.pop('activation')
        if len(differs) < len(wrong):
            closest, wrong = name, differs
    if wrong:
        field = next(iter(wrong))
        raise WeightsError(f'towers.image.{field}: found {wrong[field]!r}; open_clip takes a ViT of this kind from timm, and the closest '
                           f'there is {closest}, with {timm.MODELS[closest][field]!r}')
    proj = dict(timm_proj='linear', timm_proj_bias=image.out_bias) if image.out_dim else dict(timm_proj='none')
    return dict(image_size=image.image, timm_model_name=closest, timm_model_pretrained=False, timm_pool=pools[image.pool], **proj)


def _text(text: Any, quick: bool) -> dict[str, Any]:
    where = 'towers.text'
    width, depth, mlp_dim, heads = dims(text)
    found = dict(context_length=text.length, vocab_size=text.vocab, width=width, heads=heads, layers=depth,
                 mlp_ratio=ratio(width, mlp_dim), pad_id=text.pad_id, no_causal_mask=not text.causal, **_numerics(text, where, quick))
    if text.class_token:
        _only(text, where, mask_padding=True, late_mask=True)
        found['embed_cls'] = True
    else:
        _only(text, where, mask_padding=False)
        if text.pool not in _POOLS:
            refuse(f'{where}.pool', text.pool, ', '.join(_POOLS))
        found |= _POOLS[text.pool]
        if text.pool == 'eot':
            found['eos_id'] = text.eot_id
    if not text.out_dim:
        return found | dict(proj_type='none')
    return found | dict(proj_bias=text.out_bias)


def _decoder(config: Mapping[str, Any], image: Any, text: Any, quick: bool) -> dict[str, Any]:
    if len(config['decoders']) != 1:
        refuse('decoders', ', '.join(config['decoders']), 'one, CoCa\'s')
    (name,) = config['decoders']
    decoder, where = _part(config, 'decoders', name, ('text',)), f'decoders.{name}'
    width, depth, mlp_dim, heads = dims(decoder)
    if getattr(image, 'pool', '') != 'queries':
        refuse('towers.image.pool', getattr(image, 'pool', ''), 'queries, whose tokens a CoCa\'s decoder reads')
    _only(text, 'towers.text', class_token=True)
    if {image.out_dim, dims(text)[0]} != {width}:
        refuse(f'{where}.width', width, f'that of the text tower, {dims(text)[0]}, and out_dim, {image.out_dim}')
    _only(decoder, where, cross_mlp=True, vocab=text.vocab, norm_eps=EPS, activation='quick_gelu' if quick else 'gelu')
    if mlp_dim != 4 * width:
        refuse(f'{where}.mlp_dim', mlp_dim, f'{4 * width}')
    return dict(context_length=text.length, vocab_size=text.vocab, width=width, heads=heads, layers=depth)


def _preprocess(image: Any, image_ops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    side = image.dims().image if hasattr(image, 'depths') else image.image
    resize = next((op for op in image_ops if op['name'] == 'resize'), {})
    modes = {crop: mode for mode, crop in _common.CROPS.items()}
    mode = modes[resize.get('crop', 'center')]
    found = dict(size=side, mode='RGB', mean=list(image.mean), std=list(image.std), interpolation=resize.get('method', 'bicubic'),
                 resize_mode=mode)
    return found | (dict(fill_color=_grey(resize.get('fill', 128))) if mode == 'longest' else {})


def _grey(fill: Any) -> int:
    levels = {*fill} if isinstance(fill, (list, tuple)) else {fill}
    if len(levels) != 1:
        refuse('image_ops.resize.fill', fill, 'a grey level')
    return levels.pop()
