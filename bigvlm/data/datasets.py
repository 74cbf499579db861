"""The recipe's data sets by name, and mixtures of them."""
from collections.abc import Iterable, Mapping
from typing import Any

from bigvlm.core.parts import RecipeError
from bigvlm.data.dataset import Dataset
from bigvlm.data.mixture import share

MIX_FIELDS = ('mix', 'homogeneous')  # the fields of a mixture, which has these and no others


def mixed_names(config: Mapping[str, Any]) -> set[str]:
    """The data sets that are members of a mixture."""
    mixes = [spec['mix'] for spec in config['data'].values() if isinstance(spec.get('mix'), (Mapping, tuple))]
    return {name for mix in mixes for name in mix}


class Datasets:
    """Opened when first asked for and then shared. `like`: those of another stage, whose open sources are used again.

    `mixed`: the names of all data sets that are mixed in any stage, if there are more than this recipe says.
    """

    def __init__(self, config: Mapping[str, Any], tokenizers: Mapping[str, Any], like: 'Datasets | None' = None,
                 mixed: Iterable[str] = ()):
        self.specs, self.tokenizers, self.seed = config['data'], tokenizers, config['seed']
        self.open: dict[str, Dataset] = {}
        self._sources: dict[str, Dataset] = like._sources if like else {}
        self._numbers = {name: place for place, name in enumerate(sorted({*mixed, *mixed_names(config)}))}

    def __call__(self, name: str) -> Dataset:
        """One data set. Raises RecipeError for an unknown name and for a mixture."""
        if name not in self.specs:
            raise RecipeError(f'data: there is no dataset {name!r} (there are: {", ".join(self.specs) or "none"})')
        spec = self.specs[name]
        if 'mix' in spec:
            raise RecipeError(f'data.{name}: a mixture is for training; name one of its members: {", ".join(spec["mix"])}')
        if name not in self.open:
            number = self._numbers.get(name) if not spec.get('number') else None
            key = f'{name} {spec.get("source")!r}'
            self.open[name] = Dataset(spec, f'data.{name}', self.tokenizers, self.seed, number, self._sources.get(key))
            self._sources.setdefault(key, self.open[name])
        return self.open[name]

    def mix(self, name: str) -> tuple[dict[str, Any], bool]:
        """({member: weight}, whether each batch is of one member) of a mixture; a data set is one of itself alone."""
        spec, where = self.specs.get(name, {}), f'data.{name}'
        if 'mix' not in spec:
            return {name: 1}, False
        if unknown := set(spec) - set(MIX_FIELDS):
            raise RecipeError(f'{where}.{min(unknown)}: unknown field of a mixture (valid: {", ".join(MIX_FIELDS)}; ops, order and '
                              'the like are its members\')')
        wanted = spec['mix']
        if not isinstance(wanted, (Mapping, tuple)) or not wanted or len(set(wanted)) < len(wanted):
            raise RecipeError(f'{where}.mix: name data sets, each once, as dict(NAME=weight, …) or, for their union, (NAME, …); '
                              f'found {wanted!r}')
        for member in wanted:
            if member not in self.specs or 'mix' in self.specs[member]:
                plain = [other for other, found in self.specs.items() if 'mix' not in found]
                raise RecipeError(f'{where}.mix: {member!r} is no data set with a source (there are: {", ".join(plain) or "none"})')
        if isinstance(wanted, Mapping):
            return {m: share(f'{where}.mix.{m}', weight) for m, weight in sorted(wanted.items())}, bool(spec.get('homogeneous', False))
        return {member: len(self(member)) for member in wanted}, bool(spec.get('homogeneous', False))

    def members(self, name: str) -> dict[str, Dataset]:
        """The data sets of a mixture, or the one data set."""
        found = {member: self(member) for member in self.mix(name)[0]}
        numbers = {member: dataset.number for member, dataset in found.items()}
        if len(set(numbers.values())) < len(numbers):
            raise RecipeError(f'data.{name}.mix: its members need different numbers, found {numbers}; set data.NAME.number')
        return found

    def size(self, name: str) -> int:
        """How many examples an epoch has: of a mixture, all of its members'."""
        return sum(map(len, self.members(name).values()))

    def fingerprint(self, name: str) -> str:
        """Changes when the data do."""
        return '+'.join(dataset.fingerprint for dataset in self.members(name).values())
