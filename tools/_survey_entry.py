"""One recipe on one data set in a survey: its runs, in the two rounds that they have."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigvlm.report import survey
from bigvlm.report.compare import Group
from bigvlm.report.read import Run, read
from bigvlm.report.survey import Method
from tools._points import Point, check_metric, grid

OWN = "the recipe's"


@dataclasses.dataclass(frozen=True)
class Entry:
    """``place``, ``name``: of the data and of the recipe, and its folders. ``rates``: the grid; none: the recipe's own, one: that."""
    place: str
    name: str
    spec: str
    metric: str
    budget: tuple[tuple[str, str], ...]   # overrides of all of its runs
    rates: tuple[str, ...]
    seeds: int

    @property
    def folder(self) -> str:
        return f'{self.place}/{self.name}/'

    def check(self) -> None:
        """Raises RecipeError if the recipe cannot be had, or is not evaluated by what it is to be ranked by."""
        check_metric(Point('', '', self.spec, self.budget).config(), self.metric, f'{self.name}: ')

    def tuning(self) -> list[Point]:
        """The first round: every rate with seed 0, where there is a choice."""
        return grid(self.spec, self.budget, {'optim.lr': self.rates}, (0,), f'{self.folder}tune_') if len(self.rates) > 1 else []

    def tuned(self, root: Path) -> dict[str, Run]:
        """{rate: run} of the first round, as far as it is finished."""
        return {dict(point.overrides)['optim.lr']: run for point in self.tuning() if (run := finished(root, point)) is not None}

    def rate(self, root: Path) -> str | None:
        """The best rate, once all have been tried; None before that, and if no run has a finite metric."""
        if len(self.rates) < 2:
            return self.rates[0] if self.rates else OWN
        tuned = self.tuned(root)
        return survey.choose(tuned, self.metric) if len(tuned) == len(self.rates) else None

    def final(self, root: Path) -> list[Point]:
        """The second round: the seeds that count, at the best rate; empty while that is not known."""
        rate, seeds = self.rate(root), range(1, self.seeds + 1)
        if rate == OWN:
            return grid(self.spec, self.budget, {}, seeds, self.folder)
        return grid(self.spec, (*self.budget, ('optim.lr', rate)), {}, seeds, f'{self.folder}lr={rate}_') if rate else []

    def method(self, root: Path, failures: Mapping[str, str]) -> Method:
        """What its finished runs say; ``failures``: {run: why} of those that failed."""
        points = self.final(root)
        runs = tuple(run for point in points if (run := finished(root, point)) is not None)
        missing = '' if points else 'no learning rate could be chosen'
        if len(runs) < len(points):
            missing = f'{len(runs)} of {len(points)} seeds'
        told = [f'{point.name}: {failures[point.name]}' for point in (*self.tuning(), *points) if point.name in failures]
        return Method(self.name, self.rate(root) or '', Group(self.name, runs), self.tuned(root),
                      missing + (f' ({"; ".join(told)})' if missing and told else ''))


def finished(root: Path, point: Point) -> Run | None:
    return read(root / point.name) if point.state(root) == 'finished' else None


def points(entries: Sequence[Entry], root: Path | None = None) -> list[Point]:
    """The first round of all entries; with ``root`` the second."""
    return [point for entry in entries for point in (entry.tuning() if root is None else entry.final(root))]
