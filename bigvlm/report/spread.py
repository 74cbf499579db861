"""Several seeds of one thing: mean ± sd, which differences are more than the spread, and ranks that say so.

Two methods are a tie unless Welch's two-sided t-test over their seeds (unequal variances) gives p ≤ ALPHA. The tests are
not corrected for how many there are: of twenty differences between equal methods, one is expected to be called one. Of a
share of n examples the test takes no sd for less than half an example, 1 / (2 n): three seeds may well agree to the last one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from bigvlm.report.svg import number

ALPHA = .05


@dataclasses.dataclass(frozen=True)
class Spread:
    """One number of every seed. ``least``: the sd that is assumed at least, where the number is coarse."""
    values: tuple[float, ...]
    least: float = 0.

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Of the sample (n - 1); NaN for fewer than two seeds."""
        return float(np.std(self.values, ddof=1)) if self.n > 1 else math.nan

    def text(self, form: Callable[[float], str]) -> str:
        """``61.2 % ± 1.0 %``; without a spread where there is one seed; '' without any."""
        if not self.values:
            return ''
        sd = float(f'{self.sd:.2g}') if form is number and math.isfinite(self.sd) else self.sd  # more digits say nothing
        return form(self.mean) if self.n < 2 else f'{form(self.mean)} ± {form(sd)}'


@dataclasses.dataclass(frozen=True)
class Ranked:
    """``rank``: 1 + how many are better by more than the spread; ``ties``: those that cannot be told from this one."""
    name: str
    spread: Spread
    rank: int
    ties: tuple[str, ...]


def p_value(a: Spread, b: Spread) -> float:
    """Of Welch's t-test; NaN where one of them has fewer than two seeds, and so no spread."""
    if min(a.n, b.n) < 2 or not np.isfinite([*a.values, *b.values]).all():
        return math.nan
    sd_a, sd_b = max(a.sd, a.least), max(b.sd, b.least)
    if sd_a == sd_b == 0:  # the statistic is 0/0 or infinite
        return 1. if a.mean == b.mean else 0.
    return float(stats.ttest_ind_from_stats(a.mean, sd_a, a.n, b.mean, sd_b, b.n, equal_var=False).pvalue)


def differ(a: Spread, b: Spread) -> bool:
    """Whether their means differ by more than their spread explains."""
    return p_value(a, b) <= ALPHA  # NaN is not


def ranks(spreads: Mapping[str, Spread], less_is_better: bool = False) -> list[Ranked]:
    """Best mean first; those without a finite value are last, and rank below all that have one."""
    sign = 1 if less_is_better else -1
    order = sorted(spreads, key=lambda name: (not math.isfinite(spreads[name].mean), sign * spreads[name].mean))
    found = []
    for name in order:
        own, others = spreads[name], [o for o in order if o != name]
        if not math.isfinite(own.mean):
            found.append(Ranked(name, own, 1 + sum(math.isfinite(spreads[o].mean) for o in others), ()))
            continue
        better = [o for o in others if differ(own, spreads[o]) and sign * (spreads[o].mean - own.mean) < 0]
        ties = [o for o in others if math.isfinite(spreads[o].mean) and not differ(own, spreads[o])]
        found.append(Ranked(name, own, 1 + len(better), tuple(ties)))
    return found
