"""Which kind of batch a step takes: a function of (seed, step), so that nothing about it needs to be saved.

Weights are whole numbers of batches. Steps come in cycles of as many as the weights' sum; each cycle holds every kind
exactly as often as its weight says, in an order shuffled anew, so that no kind is ever far behind its share.
"""

from collections.abc import Mapping

import numpy as np

from bigvlm.core.parts import RecipeError


class Kinds:
    """``weights``: {kind: batches in a cycle}."""

    def __init__(self, weights: Mapping[str, int], seed: int):
        for kind, weight in weights.items():
            if not isinstance(weight, int) or isinstance(weight, bool) or weight < 1:
                raise RecipeError(f'kinds.{kind}.weight: must be a positive whole number of batches, not {weight!r}')
        self.weights, self.seed = dict(weights), seed
        self._slots = [kind for kind, weight in weights.items() for _ in range(weight)]

    def _cycle(self, number: int) -> list[str]:
        if len(self.weights) == 1:
            return self._slots
        order = np.random.default_rng((self.seed, 0x6b696e64, number)).permutation(len(self._slots))
        return [self._slots[i] for i in order]

    def at(self, step: int) -> str:
        """The kind of this step's batch."""
        cycle, place = divmod(step, len(self._slots))
        return self._cycle(cycle)[place]

    def count(self, kind: str, step: int) -> int:
        """How many of the first ``step`` batches are of this kind: the number of the kind's next batch."""
        cycle, place = divmod(step, len(self._slots))
        return cycle * self.weights[kind] + self._cycle(cycle)[:place].count(kind)
