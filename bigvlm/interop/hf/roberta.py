"""RoBERTa of transformers, as a text tower: BERT whose positions begin after that of the padding."""

from collections.abc import Mapping
from typing import Any

from bigvlm.interop.description import Description
from bigvlm.interop.hf import _common, bert
from bigvlm.towers.bert import Bert

DEFAULTS = bert.DEFAULTS | dict(vocab_size=50_265, pad_token_id=1)


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """A tower 'text': pooled by its pooler where the architecture in the file has one, else by the first token."""
    return bert.alone(config, 'RobertaModel', 'roberta.', text_tower)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """A tower 'text' alone, as RobertaModel's; pooled by the first token it is one without a pooler."""
    return bert.alone_there(groups, 'RobertaModel', text_config)


def text_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tower of their settings: with a pooler, without a projection."""
    config = DEFAULTS | dict(config)
    spec = bert.text_tower(config)
    first = spec['pad_id'] + 1
    return spec | dict(first_position=first, length=_common.count({'max_position_embeddings': spec['length'] - first},
                                                                  'max_position_embeddings'))


def text_config(tower: Bert) -> dict[str, Any]:
    """Their settings of a tower, whatever its pool and projection."""
    return bert.text_config(tower, tower.pad_id + 1) | dict(model_type='roberta')
