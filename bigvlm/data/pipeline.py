"""The door to the data: what a recipe's data, kinds and stages amount to, which examples each step sees, tokenizers by name."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bigvlm.core import durations, parts, stages
from bigvlm.core.kinds import Kinds
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, TooManyBad
from bigvlm.data.dataset import Dataset
from bigvlm.data.datasets import Datasets, mixed_names
from bigvlm.data.draws import Draws
from bigvlm.data.order import order
from bigvlm.data.stream import Stream

__all__ = ['BadExample', 'Corpus', 'Data', 'Dataset', 'Datasets', 'Draws', 'Stream', 'TooManyBad', 'build_tokenizers', 'open_draws',
           'order', 'step_draws']


class Data:
    """The data of a run: `datasets` of each stage, over sources that are opened once, and `tokenizers`."""

    def __init__(self, config: Mapping[str, Any]):
        self.config, self.configs = config, stages.configs(config)
        self.kinds = Kinds({kind: spec['weight'] for kind, spec in config['kinds'].items()}, config['seed'])
        self.tokenizers = build_tokenizers(config['tokenizers'], config['data'])
        self.stages: list[Datasets] = []
        mixed = set().union(*map(mixed_names, self.configs))
        for staged in self.configs:
            self.stages.append(Datasets(staged, self.tokenizers, self.stages[-1] if self.stages else None, mixed))
        self.datasets = self.stages[-1]  # what evaluations see

    def _by_source(self) -> dict[str, Dataset]:
        """Each data set by its name, and by its stage too where that stage has another source."""
        found: dict[str, Dataset] = {}
        for number, datasets in enumerate(self.stages):
            for name, dataset in datasets.open.items():
                if dataset.lost_log is not found.setdefault(name, dataset).lost_log:
                    found[f'{name} (stage {number})'] = dataset
        return found

    def examples_per_epoch(self) -> int:
        """Of the first kind's data, as durations in epochs count them."""
        first = next(iter(self.config['kinds'].values()))['data']
        return self.stages[-1].size(first)

    def draws(self, kind: str, stage: int, first_steps: Sequence[int], total_steps: int | None = None) -> Draws:
        """The batches of a kind in a stage. `first_steps`: the first step of each stage; `total_steps`: the run's, if known."""
        firsts = tuple(self.kinds.count(kind, step) for step in first_steps)
        end = None if total_steps is None else self.kinds.count(kind, total_steps)
        spec = _DrawsSpec(dict(self.config), kind, stage, tuple(first_steps), total_steps)
        with stages.naming(stage, self.config):
            return Draws(self.stages, self.config['kinds'][kind]['data'], self.config['batch'], firsts, stage, spec, end)

    def lost(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What could not be used so far: {dataset: {reason: {count, items: names of the first}}}."""
        return {name: found for name, dataset in self._by_source().items() if (found := dataset.lost_log.record())}

    def record(self) -> dict[str, dict[str, Any]]:
        """What a run notes of its data: {dataset: source, examples, unusable and surviving ones, content hash}."""
        return {name: dict(source=dataset.source.name, examples=len(dataset), unusable=dataset.lost_log.count,
                           surviving=len(dataset) - dataset.lost_log.count, fingerprint=dataset.fingerprint)
                for name, dataset in self._by_source().items()}


class _DrawsSpec(NamedTuple):
    config: dict[str, Any]
    kind: str
    stage: int
    first_steps: tuple[int, ...]
    total_steps: int | None


def open_draws(spec: _DrawsSpec) -> Draws:
    """The same draws in another process."""
    return Data(spec.config).draws(spec.kind, spec.stage, spec.first_steps, spec.total_steps)


def step_draws(config: Mapping[str, Any], step: int) -> tuple[str, int, Draws]:
    """(kind, batch number, draws) of a training step, counted from 0, of a resolved recipe."""
    data = Data(config)
    units = dict(batch=config['batch'], examples_per_epoch=data.examples_per_epoch())
    units['total_steps'] = durations.steps(config['steps'], what='steps', **units)
    if not 0 <= step < units['total_steps']:
        raise RecipeError(f'step {step}: the run has steps 0 to {units["total_steps"] - 1}')
    first_steps = stages.starts(config, **units)
    kind = data.kinds.at(step)
    return kind, data.kinds.count(kind, step), data.draws(kind, stages.at(first_steps, step), first_steps, units['total_steps'])


class Corpus:
    """The captions of a recipe's data set, for tokenizers that are trained on them; read when iterated."""

    def __init__(self, data: Mapping[str, Any], name: str):
        if name not in data:
            raise RecipeError(f'train_on: no data set {name!r} in the recipe (there are: {", ".join(data)})')
        members = tuple(data[name].get('mix', (name,)))
        if unknown := [member for member in members if 'source' not in data.get(member, {})]:
            raise RecipeError(f'data.{name}.mix: {unknown[0]!r} is no data set with a source')
        self._sources = [parts.build('bigvlm.data.sources', data[member]['source'], f'data.{member}.source') for member in members]

    @property
    def fingerprint(self) -> str:
        return '+'.join(source.fingerprint for source in self._sources)

    def __iter__(self) -> Iterator[str]:
        for source in self._sources:
            for index in range(len(source)):
                try:
                    yield from source.captions(index)
                except BadExample:
                    continue  # the data set itself counts and reports it


def build_tokenizers(specs: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Callable]:
    """The recipe's `tokenizers`, by name; `data` is the recipe's `data`, for those trained on a data set of it."""
    def corpus(name: str) -> Corpus:
        return Corpus(data or {}, name)
    return {key: parts.build('bigvlm.data.tokenizers', spec, f'tokenizers.{key}', corpus=corpus)
            for key, spec in specs.items()}
