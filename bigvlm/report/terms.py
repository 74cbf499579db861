"""Whether each loss term does what it is there for: its own held-out metric, against untrained models and without the term.

A term passes if the trained model's metric is at or beyond the threshold, the untrained mean + SDS sd (mean - SDS sd where
less is better), and that of a model trained with the term's weight at 0 is not. The sd is the larger of that of the
untrained seeds, which may all agree by chance, and for a share of n examples, known by the evaluator's ``n``, of the sampling
error sqrt(p (1 - p) / n), p = (hits + 1) / (n + 2).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from bigvlm.report import compare
from bigvlm.report.read import Run
from bigvlm.report.spread import Spread
from bigvlm.report.svg import percent

SDS = 3.


@dataclasses.dataclass(frozen=True)
class Term:
    """A row of the table of terms: ``evaluator/metric`` is what ``objectives.objective`` of ``recipe`` is there to improve."""
    recipe: str
    objective: str
    evaluator: str
    metric: str
    better: str   # 'higher' or 'lower'
    set: tuple[tuple[str, str], ...] = ()   # overrides of all of its runs

    @property
    def key(self) -> str:
        return f'{self.evaluator}/{self.metric}'


@dataclasses.dataclass(frozen=True)
class Found:
    """What its runs say; NaN where there is no number. ``why``: 'pass', or what is wrong."""
    term: Term
    untrained: Spread
    sd: float
    threshold: float
    trained: float
    without: float
    why: str
    form: Callable[[float], str]

    @property
    def passed(self) -> bool:
        return self.why == 'pass'

    @property
    def distance(self) -> float:
        """How many sd the trained model is beyond the untrained mean."""
        sign = 1 if self.term.better == 'higher' else -1
        gap = sign * (self.trained - self.untrained.mean)
        return gap / self.sd if self.sd else math.copysign(math.inf, gap) if gap else 0.


def judge(term: Term, untrained: Sequence[Run], trained: Run | None, without: Run | None,
          failures: Mapping[str, str] | None = None) -> Found:
    """``failures``: {'trained': why} of runs that did not finish."""
    runs = [*untrained, *(run for run in (trained, without) if run is not None)]
    column = compare.by_key(runs, term.key)
    form = column.form if column else str
    base = Spread(tuple(float(run.curves[term.key].values[0]) for run in untrained if term.key in run.curves))
    after, bare = (math.nan if run is None or term.key not in run.curves else float(run.curves[term.key].values[-1])
                   for run in (trained, without))
    sd = max(0. if math.isnan(base.sd) else base.sd, _sampling(term, base, untrained, form))
    sign = 1 if term.better == 'higher' else -1
    threshold = base.mean + sign * SDS * sd

    def beyond(value: float) -> bool:
        return sign * (value - threshold) >= 0 and value != base.mean
    if failures:
        why = 'not run: ' + '; '.join(f'{name}: {reason}' for name, reason in failures.items())
    elif base.n < 2 or not all(map(math.isfinite, (base.mean, after, bare))):
        why = f'no finite {term.key} in ' + ', '.join(name for name, ok in (
            ('two untrained runs', base.n > 1 and math.isfinite(base.mean)), ('the trained run', math.isfinite(after)),
            ('the run without the term', math.isfinite(bare))) if not ok)
    else:
        why = 'not learned' if not beyond(after) else 'learned without the term too' if beyond(bare) else 'pass'
    return Found(term, base, sd, threshold, after, bare, why, form)


def _sampling(term: Term, base: Spread, untrained: Sequence[Run], form: Callable[[float], str]) -> float:
    """The sampling error of a share; 0 for other metrics, and where it is not known of how many examples it is one."""
    counts = [run.curves[f'{term.evaluator}/n'].values[-1] for run in untrained if f'{term.evaluator}/n' in run.curves]
    if form is not percent or not counts or not 0 <= base.mean <= 1:
        return 0.
    n = float(min(counts))
    p = (base.mean * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


HEAD = ('recipe', 'objective', 'metric', 'untrained', 'sd', 'threshold', 'trained', 'sds', 'weight 0', '')


def rows(found: Sequence[Found]) -> list[list[str]]:
    """As text, a row per term, under HEAD."""
    def shown(one: Found, value: float) -> str:
        return one.form(value) if math.isfinite(value) else ''
    return [[one.term.recipe, one.term.objective, one.term.key + (' ↓' if one.term.better == 'lower' else ''),
             one.untrained.text(one.form), shown(one, one.sd) if one.untrained.n else '', shown(one, one.threshold),
             shown(one, one.trained), f'{one.distance:+.1f}' if math.isfinite(one.distance) else '', shown(one, one.without), one.why]
            for one in found]
