"""Folders of transformers: here or on the Hugging Face hub, and names that its versions write otherwise."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np

from bigvlm.core.foreign import Index, Weights, WeightsError
from bigvlm.interop.files.entry import reason

_NAME = r'[\w.-]+(/[\w.-]+)?'
_WEIGHTS, _OLD_WEIGHTS = '*.safetensors', '*.bin'
_OTHERS = ('*.json', '*.txt', '*.model')  # config.json, processors, tokenizers, the index of several files of weights
_BELOW = '*/*'  # exports for other runtimes


def folder(place: str | Path) -> Path:
    """A folder as it is, or a model of the hub, by its name: from the hub's cache, or downloaded into it.

    Raises:
        WeightsError: there is neither.
    """
    path = Path(place)
    if path.is_dir():
        return path
    if not re.fullmatch(_NAME, str(place)):
        raise WeightsError(f'{place}: there is no such folder, and no model of the Hugging Face hub has such a name (ORG/NAME)')

    def download(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(str(place), allow_patterns=list(patterns), ignore_patterns=[_BELOW]))
    try:
        found = download(_WEIGHTS, *_OTHERS)
        return found if list(found.glob(_WEIGHTS)) else download(_OLD_WEIGHTS, *_OTHERS)
    except (OSError, ValueError) as e:  # of the library: no such model, no access, no network
        raise WeightsError(f'{place}: there is no such folder, and the Hugging Face hub does not have it: {reason(e)}') from e


class Renamed:
    """Weights whose names are changed by rules, (regex, replacement), before anything else sees them."""

    def __init__(self, weights: Weights, rules: Sequence[tuple[str, str]]):
        self.weights, self.where, self._theirs = weights, weights.where, {}
        for name in weights.names():
            ours = name
            for rule, replacement in rules:
                ours = re.sub(rule, replacement, ours)
            if ours in self._theirs:
                raise WeightsError(f'{self.where}: {self._theirs[ours]} and {name} are two names of one array')
            self._theirs[ours] = name

    def names(self) -> list[str]:
        return list(self._theirs)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(self._theirs[name])

    def read(self, name: str, index: Index) -> np.ndarray:
        return self.weights.read(self._theirs[name], index)
