"""Which example stands at a row of a batch: a function of the recipe, its seed and the batch's number, and of nothing else.

From (batch number, row) to a position (lanes.py), from there to a member of the mixture and a position in it
(mixture.py), and from there to an epoch and an index (order.py). Every step is O(1), so that a run resumes anywhere.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigvlm.core.parts import RecipeError
from bigvlm.data.dataset import Dataset, Example
from bigvlm.data.datasets import Datasets
from bigvlm.data.lanes import Lanes, shared_pool
from bigvlm.data.mixture import CELL, Mixture
from bigvlm.data.order import Blocks, Shuffle


@dataclass(frozen=True)
class _Segment:
    """Batches `first` and following, over which mixture and lanes stay the same. `start`: examples drawn before it."""
    first: int
    mixture: Mixture | None
    homogeneous: bool
    lanes: Mapping[str, Lanes]  # by member if homogeneous, else one, under ''
    only: str
    start: Mapping[str, int]

    def at(self, number: int, row: int) -> tuple[str, int]:
        """(member, position in it)."""
        since = number - self.first
        if self.mixture is None:
            member, position = self.only, self.lanes[''].position(since, row)
        elif self.homogeneous:
            member, batch = self.mixture.at(since)
            position = self.lanes[member].position(batch, row)
        else:
            member, position = self.mixture.at(self.lanes[''].position(since, row))
        return member, self.start.get(member, 0) + position


class Draws:
    """The batches of one kind, in one stage of the run.

    `stages`: the Datasets of every stage; `firsts`: the number of each stage's first batch of this kind; `stage`: which
    one this is; `end`: how many batches the run has, if that is known. `spec`: what `pipeline.open_draws` makes the same
    from, in another process.
    """

    def __init__(self, stages: Sequence[Datasets], name: str, batch: int, firsts: Sequence[int] = (0,), stage: int = 0,
                 spec: Any = None, end: int | None = None):
        if batch < 1:
            raise RecipeError(f'batch: a positive number of examples, found {batch}')
        self.batch, self.spec = batch, spec
        self.datasets: dict[str, Dataset] = stages[stage].members(name)
        _check_orders([datasets.members(name) for datasets in stages])
        mixes = [_Mix.of(datasets, name, batch) for datasets in stages]
        self._segment = _segments(mixes, batch, firsts, end, stages[stage].seed)[stage]
        self._orders: dict[str, Blocks | Shuffle] = {member: Shuffle(d.seed, len(d)) for member, d in self.datasets.items()}
        self._ahead: dict[str, int] = {}
        for member, dataset in self.datasets.items():
            if dataset.blocks is not None:
                _, _, window = shared_pool(batch, len(dataset), dataset.pool, dataset.block)
                self._orders[member] = Blocks(dataset.seed, len(dataset), dataset.block, window)
                self._ahead[member] = window * dataset.block
                # What is mixed now, what is read ahead, and the ends of stretches that two lanes share.
                dataset.blocks.most = max(dataset.blocks.most, 3 * mixes[stage].lanes * window + 8)

    def at(self, number: int, row: int) -> tuple[str, int, int]:
        """(data set, epoch, index) of the example at a row of the batch with this number."""
        member, position = self._segment.at(number, row)
        return member, *self._order(member, position)

    def _order(self, member: str, position: int) -> tuple[int, int]:
        epoch, i = divmod(position, len(self.datasets[member]))
        return epoch, self._orders[member].at(epoch, i)

    def example(self, number: int, row: int) -> Example:
        """The example itself, after the ops. Raises what the data set raises."""
        member, position = self._segment.at(number, row)
        dataset = self.datasets[member]
        if member in self._ahead:  # the next window's blocks are read while this one's examples are used
            dataset.blocks.want(self._order(member, position + self._ahead[member])[1])
        epoch, index = self._order(member, position)
        return dataset.example(index, epoch)

    def describe(self, number: int, row: int) -> str:
        """'data.train[17] (part-0001.tar:000123)'."""
        member, _, index = self.at(number, row)
        return f'{self.datasets[member].name}[{index}] ({self.datasets[member].source.describe(index)})'

    def counts(self) -> dict[str, int]:
        """`requests` to storage and `bytes` from it so far, of the sources that count them."""
        found = [io for dataset in self.datasets.values() if (io := getattr(dataset.source, 'io', None)) is not None]
        return {'requests': sum(io.requests for io in found), 'bytes': sum(io.bytes for io in found)} if found else {}

    def close(self) -> None:
        """Let go of what was read ahead."""
        for dataset in self.datasets.values():
            if dataset.blocks is not None:
                dataset.blocks.close()


@dataclass(frozen=True)
class _Mix:
    """What decides the order in a stage: the members' weights, and the most lanes that a member read in blocks asks for."""
    weights: Mapping[str, Any]
    homogeneous: bool
    lanes: int = 1
    span: int = 1

    @classmethod
    def of(cls, datasets: Datasets, name: str, batch: int) -> '_Mix':
        asked = [shared_pool(batch, len(d), d.pool, d.block) for d in datasets.members(name).values() if d.blocks is not None]
        lanes, span, _ = max(asked, default=(1, 1, 1))
        return cls(*datasets.mix(name), lanes, span)

    def segment(self, batch: int, first: int, end: int | None, start: Mapping[str, int], seed: int) -> tuple[_Segment, dict[str, int]]:
        """Batches first to end, and how many examples of each member were drawn at its end."""
        length = None if end is None else end - first
        if len(self.weights) == 1:
            (only,) = self.weights
            lanes = Lanes(batch, self.lanes, self.span, length)
            return _Segment(first, None, False, {'': lanes}, only, start), _sum(start, {only: (length or 0) * batch})
        unit = batch if self.homogeneous else 1  # of the mixture's positions, in examples
        mixture = Mixture(self.weights, seed, None if length is None else length * batch // unit, 1 if self.homogeneous else CELL)
        drawn = mixture.counts((length or 0) * batch // unit)
        ends = {m: None if length is None else n for m, n in drawn.items()} if self.homogeneous else {'': length}
        lanes = {m: Lanes(batch, self.lanes, self.span, e) for m, e in ends.items()}
        return _Segment(first, mixture, self.homogeneous, lanes, '', start), _sum(start, {m: n * unit for m, n in drawn.items()})


def _check_orders(stages: Sequence[Mapping[str, Dataset]]) -> None:
    """Another order of the same data in mid-epoch would repeat and lose examples."""
    known: dict[int, Dataset] = {}
    for number, members in enumerate(stages):
        for dataset in members.values():
            before = known.setdefault(id(dataset.source), dataset)
            for key in ('order', 'block', 'pool'):
                here, there = getattr(dataset, key), getattr(before, key)
                if here != there:
                    raise RecipeError(f'stages.{number}: {dataset.name}.{key} is {here!r} here and {there!r} before; it cannot change '
                                      'within a run')


def _segments(mixes: Sequence[_Mix], batch: int, firsts: Sequence[int], last: int | None, seed: int) -> list[_Segment]:
    """The segment of each stage: stages in a row that mix alike share one. `last`: where the run ends, if that is known."""
    changes = [stage for stage, mix in enumerate(mixes) if not stage or mix != mixes[stage - 1]]
    found: list[_Segment] = []
    start: Mapping[str, int] = {}
    for stage, following in zip(changes, [*changes[1:], None]):
        end = last if following is None else firsts[following]
        segment, start = mixes[stage].segment(batch, firsts[stage], end, start, seed)
        found += [segment] * ((len(mixes) if following is None else following) - stage)
    return found


def _sum(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {*a, *b}}
