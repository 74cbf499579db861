"""The door to the data: datasets by (index, epoch), their shuffled order, batches by position, tokenizers by name."""
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, TooManyBad
from bigvlm.data.dataset import Dataset
from bigvlm.data.order import order
from bigvlm.data.stream import Stream

__all__ = ['BadExample', 'Corpus', 'Dataset', 'Stream', 'TooManyBad', 'build_tokenizers', 'order']


class Corpus:
    """The captions of a recipe's data set, for tokenizers that are trained on them; read when iterated."""

    def __init__(self, data: Mapping[str, Any], name: str):
        if name not in data:
            raise RecipeError(f'train_on: no data set {name!r} in the recipe (there are: {", ".join(data)})')
        self._source = parts.build('bigvlm.data.sources', data[name]['source'], f'data.{name}.source')

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self._source)):
            try:
                yield from self._source.captions(index)
            except BadExample:
                continue  # the data set itself counts and reports it


def build_tokenizers(specs: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Callable]:
    """The recipe's `tokenizers`, by name; `data` is the recipe's `data`, for those trained on a data set of it."""
    def corpus(name: str) -> Corpus:
        return Corpus(data or {}, name)
    return {key: parts.build('bigvlm.data.tokenizers', spec, f'tokenizers.{key}', corpus=corpus)
            for key, spec in specs.items()}
