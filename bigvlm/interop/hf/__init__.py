"""Models of Hugging Face's transformers: their config.json as a recipe of ours, and ours as theirs.

A file here is a ``model_type`` of transformers, with ``-`` written ``_``. It has

    describe(config, processor)   the Description, by config.json and preprocessor_config.json as they were read ({}: there is none)
    theirs(groups)                config.json, by the recipe's groups that make a model; the inverse of ``describe(config).config``
    IMAGES                        how images are prepared if no file says it, of models that have any (see _images.py)
    RENAMED                       (regex, replacement) of names that some files have otherwise, if there are any
"""

import dataclasses
import importlib
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from bigvlm.core.foreign import Weights, WeightsError
from bigvlm.interop import tokenizers
from bigvlm.interop.description import Description
from bigvlm.interop.files.entry import json_mapping
from bigvlm.interop.hf import _files, _images
from bigvlm.interop.weights import open_weights


def model_types() -> list[str]:
    """Those that there are files for."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith('_'))


def open_model(place: str | pathlib.Path) -> tuple[Description, Weights]:
    """A folder, or ORG/NAME on the Hugging Face hub (its cache, or a download): what it is, and its weights.

    Raises:
        WeightsError: there is no such thing, or as ``describe``.
    """
    folder = _files.folder(place)
    description = dataclasses.replace(describe(folder), tokenizer=tokenizers.describe(folder))
    weights = open_weights(folder)
    rules = getattr(_module(_config(folder).get('model_type', '')), 'RENAMED', ())
    return description, _files.Renamed(weights, rules) if rules else weights


def describe(folder: str | pathlib.Path) -> Description:
    """The model of a folder as ``save_pretrained`` leaves it, without its tokenizer. Images are prepared as its processor's file
    says, and without one as transformers does for this kind of model.

    Raises:
        WeightsError: no config.json, a model_type that is not known here, or settings that nothing of ours has.
    """
    folder = pathlib.Path(folder)
    config, images = _config(folder), _processor(folder)
    try:
        return _module(config.get('model_type', '')).describe(config, images)
    except WeightsError as e:
        raise WeightsError(f'{folder}: {e}') from None


def describe_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Description:
    """As ``describe``, by the contents of config.json and preprocessor_config.json ({}: there is none)."""
    return _module(config.get('model_type', '')).describe(config, processor)


def theirs(groups: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """config.json of a model of ours, by the recipe's groups that make it.

    Raises:
        WeightsError: a field of ours that no model of this type has.
    """
    return _module(model_type).theirs(groups)


def image_processor(groups: Mapping[str, Any], model_type: str, ops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """preprocessor_config.json of the same model, whose images are prepared by ``ops`` (after 'decode') and its tower.

    Raises:
        WeightsError: transformers' image processors cannot do that.
    """
    tower = groups['towers']['image']
    usual = _module(model_type).IMAGES
    return _images.there(tuple(ops), tower.get('mean', _images.SIGLIP.mean), tower.get('std', _images.SIGLIP.std), usual)


def _module(model_type: str) -> ModuleType:
    name = model_type.replace('-', '_')
    if name not in model_types():
        raise WeightsError(f'model_type: found {model_type!r}; valid: {", ".join(model_types())}')
    return importlib.import_module(f'{__name__}.{name}')


def _config(folder: pathlib.Path) -> dict[str, Any]:
    found = json_mapping(folder / 'config.json')
    if not found:
        raise WeightsError(f'{folder}: there is no config.json, so this is no folder of transformers')
    return found


def _processor(folder: pathlib.Path) -> dict[str, Any]:
    """preprocessor_config.json, or the part of it in processor_config.json, or {}."""
    return json_mapping(folder / 'preprocessor_config.json') or json_mapping(folder / 'processor_config.json').get('image_processor', {})
