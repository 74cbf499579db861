"""What describing and exporting share: open_clip's settings with its defaults, and what ours have no place for."""

from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError

# open_clip 3.3, model.py and coca_model.py: settings that we read, with their defaults.
VISION = dict(layers=12, width=768, head_width=64, mlp_ratio=4., patch_size=16, image_size=224, patch_dropout=0., attentional_pool=False,
              attn_pooler_queries=256, attn_pooler_heads=8, no_ln_pre=False, final_ln_after_pool=False, pool_type='tok', act_kwargs=None,
              norm_kwargs=None, timm_model_name=None, timm_pool='avg', timm_proj='linear', timm_proj_bias=False)
TEXT = dict(context_length=77, vocab_size=49_408, width=512, heads=8, layers=12, mlp_ratio=4., embed_cls=False, pad_id=0, eos_id=2,
            no_causal_mask=False, pool_type='argmax', proj_bias=False, proj_type='linear', act_kwargs=None, norm_kwargs=None)
DECODER = dict(context_length=77, width=512, heads=8, layers=12)
MODEL = dict(embed_dim=None, vision_cfg=None, text_cfg=None, multimodal_cfg=None, quick_gelu=False, init_logit_scale=None,
             init_logit_bias=None, nonscalar_logit_scale=False, custom_text=False)
# What changes the model and ours have not: only these values are read.
_LACKING = dict(ls_init_value=None, qk_norm=False, scaled_cosine_attn=False, scale_heads=False, scale_attn_inner=False, scale_attn=False,
                scale_fc=False, hf_model_name=None)
# What changes nothing of a model that is read: how it is trained or started, what a call gives, and positions, which are in the file.
_WITHOUT_EFFECT = {'block_type', 'output_tokens', 'pos_embed_type', 'timm_model_pretrained', 'timm_drop', 'timm_drop_path',
                   'hf_tokenizer_name', 'tokenizer_mode', 'tokenizer_kwargs', 'hf_model_pretrained', 'hf_proj_type', 'hf_pooler_type',
                   'hf_pretrained'}
# open_clip reads these of a decoder but does not use them.
_DECODER_WITHOUT_EFFECT = {*TEXT, 'dim_head', 'n_queries', 'attn_pooler_heads', 'attn_pooler_queries'}

MEAN, STD = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)  # OpenAI's, open_clip's default
CROPS = {'shortest': 'center', 'squash': 'squash', 'longest': 'pad'}  # resize_mode: crop of our op
TANH = {'approximate': 'tanh'}  # act_kwargs of GELU
EPS = 1e-5  # of a norm without norm_kwargs
IN_ALL = dict(remat='none', dtype='float32')


def refuse(where: str, found: Any, valid: str) -> None:
    raise WeightsError(f'{where}: found {found!r}; valid: {valid}')


def section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], without: set[str] = _WITHOUT_EFFECT) -> dict[str, Any]:
    """The settings ``name`` of a model's config, filled in.

    Raises:
        WeightsError: it is missing, or a setting is not known, or is of what our tower lacks.
    """
    given = config.get(name)
    if not isinstance(given, Mapping):
        refuse(name, given, 'a mapping of settings')
    for key, value in given.items():
        if key in _LACKING and value not in (None, _LACKING[key]):
            refuse(f'{name}.{key}', value, f'{_LACKING[key]!r}: our tower has no other')
        if key not in {*defaults, *_LACKING, *without}:
            raise WeightsError(f'{name}.{key}: not known (known: {", ".join(defaults)})')
    for key, default in defaults.items():
        _check_kind(f'{name}.{key}', given.get(key, default), default)
    return {**defaults, **{key: value for key, value in given.items() if key in defaults}}


def _check_kind(where: str, value: Any, default: Any) -> None:
    """Refuses what is of another kind than the default: a text for a number, say."""
    if isinstance(value, (list, tuple)) and where.rpartition('.')[2] in ('layers', 'image_size', 'patch_size'):
        for one in value:
            _check_kind(where, one, default)
    elif isinstance(default, (int, float)) and not isinstance(default, bool):
        whole = isinstance(default, int)
        least = 0 if whole and where.rpartition('.')[2] in ('pad_id', 'eos_id') or default == 0. and not whole else 1 if whole else 1e-9
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value >= least:
            if not (value is None and where.endswith('patch_size')):  # of a ResNet
                refuse(where, value, 'a whole number' if whole else 'a number')
    elif isinstance(default, str) and not isinstance(value, (str, type(None))):
        refuse(where, value, 'a name')


def decoder_section(config: Mapping[str, Any]) -> dict[str, Any]:
    return section(config, 'multimodal_cfg', DECODER, _WITHOUT_EFFECT | _DECODER_WITHOUT_EFFECT)


def model_section(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        refuse('model_cfg', config, 'a mapping of settings')
    if unknown := config.keys() - MODEL.keys():
        raise WeightsError(f'{min(unknown)}: not known (known: {", ".join(MODEL)})')
    _check_kind('embed_dim', config.get('embed_dim'), 512)
    return {**MODEL, **config}


def activation(quick: bool, settings: Mapping[str, Any], where: str) -> str:
    """Ours, of their flag and act_kwargs."""
    given = settings['act_kwargs']
    if not given or given == {'approximate': 'none'}:
        return 'quick_gelu' if quick else 'gelu'
    if quick or given != TANH:
        refuse(f'{where}.act_kwargs', given, f'none, or {TANH} without quick_gelu')
    return 'gelu_tanh'


def eps(settings: Mapping[str, Any], where: str) -> float:
    given = settings['norm_kwargs'] or {}
    if given.keys() - {'eps'}:
        refuse(f'{where}.norm_kwargs', given, 'eps alone')
    return float(given.get('eps', EPS))


def ratio(width: int, mlp_dim: int) -> float:
    """Of which int(width · ratio) is the hidden width: theirs rounds down."""
    found = mlp_dim / width
    return found if int(width * found) == mlp_dim else (mlp_dim + .5) / width


def side(value: Any, where: str) -> int:
    """Of a square, given as one number or two equal ones."""
    sides = {*value} if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(next(iter(sides)), int):
        refuse(where, value, 'one number of pixels, or two equal ones')
    return sides.pop()
