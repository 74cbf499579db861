"""AltCLIP of transformers (AltCLIPModel): CLIP's image tower and XLM-RoBERTa with a neck, a norm and a linear layer of its first token."""

from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.description import Description
from bigvlm.interop.hf import _common, chinese_clip, roberta
from bigvlm.towers import _vit_names

WIDTH = 768
TEXT = dict(vocab_size=250_002, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, hidden_act='gelu',
            max_position_embeddings=514, layer_norm_eps=1e-5, pad_token_id=1, type_vocab_size=1, project_dim=768)
NAMES = {**_common.under('roberta.', chinese_clip.ENCODER), **_vit_names.hf_norm('neck_norm', 'pre_LN'),
         **_vit_names.hf_linear('neck', 'transformation')}
# Buffers, and a pooler that no embedding uses.
IGNORED = (r'vision_model\.embeddings\.position_ids', r'text_model\.roberta\.embeddings\.(position|token_type)_ids',
           r'text_model\.roberta\.pooler\..*')
# transformers 5 writes the image tower's layers so; the files of the hub have it as CLIP's.
RENAMED = ((r'vision_model\.encoder\.layer\.', 'vision_model.encoder.layers.'),)


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    text = _common.settings(config, 'text_config', TEXT)
    tower = roberta.text_tower(text) | dict(pool='cls', neck=_common.count(text, 'project_dim'))
    return chinese_clip.pair(config, processor, WIDTH, tower, _common.under('text_model.', NAMES), IGNORED)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    found, text = chinese_clip.pair_there(groups, 'altclip')
    if not text.neck:
        raise WeightsError('towers.text.neck: found 0; valid: 1 or more')
    return found | dict(architectures=['AltCLIPModel'], text_config=roberta.text_config(text.clone(neck=0)) | dict(
        model_type='altclip_text_model', project_dim=text.neck))
