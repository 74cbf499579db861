"""Several data sets as one: which of them, and where in it, each position looks; exact at every position, in O(1).

Shares are spread as evenly as whole examples allow: a binary tree halves the members, and of the first q examples that
pass a node with weights l and r, floor(q l / (l + r)) went left. Counting is therefore a formula, and after the sum of
the weights every member had exactly its weight. Positions are first shuffled within short cells, so that no row of the
batch is tied to a member; short, because members that are read in blocks want their positions nearly in order.
"""
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from bigvlm.core.parts import RecipeError
from bigvlm.data.order import mix, order

CELL = 16


class Mixture:
    """`weights`: {member: a positive number}. `end`: no position from there on is asked for, and counts are exact there.

    `cell`: so many positions are shuffled among themselves; 1: none, and positions in members are in order.
    """

    def __init__(self, weights: Mapping[str, Any], seed: int, end: int | None = None, cell: int = CELL):
        self.names = tuple(weights)
        self._weights = tuple(share(f'mix.{name}', weight) for name, weight in weights.items())
        scale = math.lcm(*(weight.denominator for weight in self._weights))
        self._sums = [0, *itertools.accumulate(int(weight * scale) for weight in self._weights)]
        self._seed, self._end, self._cell = mix(seed) ^ 0x6d6978, end, cell

    def at(self, position: int) -> tuple[str, int]:
        """(member, position in it)."""
        cell = position - position % self._cell
        size = self._cell if self._end is None else min(self._cell, self._end - cell)
        q = cell + order(self._seed, size, cell, position - cell)
        low, high, sums = 0, len(self.names), self._sums
        while high - low > 1:
            middle = (low + high) // 2
            left, total = sums[middle] - sums[low], sums[high] - sums[low]
            before = q * left // total
            if (q + 1) * left // total > before:
                high, q = middle, before
            else:
                low, q = middle, q - before
        return self.names[low], q

    def counts(self, positions: int) -> dict[str, int]:
        """How many of the first `positions`, a whole number of cells or the end, fall to each member."""
        found, todo = {}, [(0, len(self.names), positions)]
        while todo:
            low, high, q = todo.pop()
            if high - low == 1:
                found[self.names[low]] = q
                continue
            middle = (low + high) // 2
            before = q * (self._sums[middle] - self._sums[low]) // (self._sums[high] - self._sums[low])
            todo += [(low, middle, before), (middle, high, q - before)]
        return {name: found[name] for name in self.names}


def share(where: str, weight: Any) -> Fraction:
    """A weight as an exact number (.1 is a tenth). Raises RecipeError unless it is positive."""
    try:
        found = Fraction(str(weight))
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if isinstance(weight, bool) or found <= 0:
        raise RecipeError(f'{where}: the weight of a member is a positive number, found {weight!r}')
    return found
