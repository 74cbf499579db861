"""XLM-RoBERTa of transformers, as a text tower: RoBERTa with another vocabulary."""

from collections.abc import Mapping
from typing import Any

from bigvlm.interop.description import Description
from bigvlm.interop.hf import bert, roberta
from bigvlm.towers.bert import Bert

DEFAULTS = roberta.DEFAULTS | dict(vocab_size=30_522)


def describe(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """A tower 'text': pooled by its pooler where the architecture in the file has one, else by the first token."""
    return bert.alone(config, 'XLMRobertaModel', 'roberta.', text_tower)


def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """A tower 'text' alone, as XLMRobertaModel's; pooled by the first token it is one without a pooler."""
    return bert.alone_there(groups, 'XLMRobertaModel', text_config)


def text_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tower of their settings: with a pooler, without a projection."""
    return roberta.text_tower(DEFAULTS | dict(config))


def text_config(tower: Bert) -> dict[str, Any]:
    """Their settings of a tower, whatever its pool and projection."""
    return roberta.text_config(tower) | dict(model_type='xlm-roberta')
