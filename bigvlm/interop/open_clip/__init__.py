"""Models of open_clip and OpenAI: CLIP with ViTs and ResNets, SigLIP, CLIPA and CoCa.

``describe`` reads their config, ``theirs`` writes it, ``infer`` makes one of the arrays of a file that has none.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigvlm.core.foreign import Weights, WeightsError
from bigvlm.interop import tokenizers
from bigvlm.interop.description import Description
from bigvlm.interop.open_clip._describing import describe
from bigvlm.interop.open_clip._exporting import theirs
from bigvlm.interop.open_clip._inferring import infer
from bigvlm.interop.weights import open_weights

__all__ = ['CONFIG', 'describe', 'infer', 'open_model', 'theirs']

CONFIG = 'open_clip_config.json'

log = logging.getLogger('bigvlm.interop')

FILES = ('open_clip_model.safetensors', 'open_clip_pytorch_model.safetensors', 'open_clip_pytorch_model.bin')  # of a folder


def open_model(place: str) -> tuple[Description, Weights]:
    """A folder with open_clip_config.json and weights; or a file of weights, with that config beside it or, of OpenAI's models, none.

    Raises:
        WeightsError: there is no such file, or its model is not known here.
    """
    path = Path(place)
    folder = path if path.is_dir() else path.parent
    weights = open_weights(next((folder / name for name in FILES if (folder / name).is_file()), path) if path.is_dir() else path)
    file = folder / CONFIG
    if not file.is_file():
        if path.is_dir():
            raise WeightsError(f'{folder} has no {CONFIG}; give the file of weights for a model of OpenAI\'s, which needs none')
        return _with_tokenizer(describe(infer(weights)), folder, {}), weights
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise WeightsError(f'{file} cannot be read: {error}') from None
    if not isinstance(config, dict):
        raise WeightsError(f'{file} holds no settings')
    return _with_tokenizer(describe(config), folder, config.get('model_cfg', config).get('text_cfg', {})), weights


def _with_tokenizer(description: Description, folder: Path, text_cfg: Mapping[str, Any]) -> Description:
    """A model whose tokenizer cannot be had takes token ids; the log says why."""
    try:
        return dataclasses.replace(description, tokenizer=tokenizers.describe_open_clip(folder, text_cfg))
    except WeightsError as error:
        log.warning('%s: no tokenizer: %s', folder, error)
        return description
