"""BERT of transformers, as a text tower. RoBERTa's and XLM-RoBERTa's files use what is here.

What their models have for training's sake alone (heads of the masked language model, of classes) is ignored.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.hf import _common
from bigvlm.towers.bert import FOREIGN, Bert

# What transformers takes where config.json says nothing.
DEFAULTS = dict(vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
                hidden_act='gelu', max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0)
# As the first BERTs' files have them.
RENAMED = ((r'LayerNorm\.gamma$', 'LayerNorm.weight'), (r'LayerNorm\.beta$', 'LayerNorm.bias'))
_UNPOOLED = ('ForMaskedLM', 'ForTokenClassification', 'ForQuestionAnswering')  # architectures without a pooler
_HEADS = (r'cls\..*', r'lm_head\..*', r'classifier\..*', r'qa_outputs\..*')


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """A tower 'text': pooled by its pooler where the architecture in the file has one, else by the first token."""
    return alone(config, 'BertModel', 'bert.', text_tower)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """A tower 'text' alone, as BertModel's; pooled by the first token it is one without a pooler."""
    return alone_there(groups, 'BertModel', text_config)


def text_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tower of their settings: with a pooler, without a projection."""
    config = DEFAULTS | dict(config)
    _common.refuse(config, is_decoder=(False,), add_cross_attention=(False,), position_embedding_type=('absolute',))
    return dict(name='bert', vocab=_common.count(config, 'vocab_size'), length=_common.count(config, 'max_position_embeddings'),
                types=_common.count(config, 'type_vocab_size'), pad_id=config['pad_token_id'] or 0, pool='pooler', **_common.blocks(config))


def text_config(tower: Bert, first: int = 0) -> dict[str, Any]:
    """Their settings of a tower, whatever its pool and projection; ``first``: the first position that their code would take."""
    _common.refuse_fields(tower, 'towers.text', pre_norm=(False,), qkv_bias=(True,), neck=(0,), first_position=(first,))
    if not tower.types:
        raise WeightsError('towers.text.types: found 0; valid: 1 or more')
    return dict(model_type='bert', vocab_size=tower.vocab, max_position_embeddings=tower.length + first, type_vocab_size=tower.types,
                pad_token_id=tower.pad_id, hidden_dropout_prob=tower.dropout, attention_probs_dropout_prob=0.,
                **_common.blocks_there(tower, tower.dims()))


# A model that is a text tower and no more.

def alone(config: Mapping[str, Any], architecture: str, prefix: str, tower: Callable[[Mapping], dict]) -> Description:
    """``prefix``: of the encoder's names in files of other architectures, which have more than it. ``add_pooling_layer`` is a word
    of ours in config.json, as an architecture's name does not say that there is no pooler."""
    spec = tower(config)
    found = (config.get('architectures') or [architecture])[0]
    more = found != architecture
    if found.endswith(_UNPOOLED) or not config.get('add_pooling_layer', True):
        spec['pool'] = 'cls'
    ignored = r'embeddings\.(position|token_type)_ids', *((r'pooler\..*',) if spec['pool'] == 'cls' else ())
    return Description(dict(towers=dict(text=spec)), (Piece('text/', _common.under(prefix * more, FOREIGN)),),
                       tuple(re.escape(prefix * more) + name for name in ignored) + _HEADS * more, length=spec['length'])


def alone_there(groups: Mapping[str, Any], architecture: str, settings: Callable[[Bert], dict]) -> dict[str, Any]:
    """config.json of a tower 'text' without a projection; ``settings``: those of the tower."""
    towers = groups.get('towers', {})
    if [*towers] != ['text']:
        raise WeightsError(f'towers: {architecture} is one tower, text; found {", ".join(towers) or "none"}')
    tower = _common.build(towers['text'], Bert, 'text')
    _common.refuse_fields(tower, 'towers.text', pool=('pooler', 'cls'), out_dim=(0,))
    return dict(architectures=[architecture], **settings(tower), **({} if tower.pool == 'pooler' else dict(add_pooling_layer=False)))
