"""Kinds of batches by step: exact shares, no state."""

import collections

import pytest

from bigvlm.core.kinds import Kinds
from bigvlm.core.parts import RecipeError


def test_shares_are_exact_and_the_order_is_shuffled():
    kinds = Kinds({'pairs': 3, 'images': 2, 'text': 1}, seed=1)
    seen = [kinds.at(t) for t in range(600)]
    assert collections.Counter(seen) == {'pairs': 300, 'images': 200, 'text': 100}
    assert seen[:6] != seen[6:12] or seen[6:12] != seen[12:18]


def test_weights_are_whole_numbers():
    with pytest.raises(RecipeError, match='kinds.pairs.weight: must be a positive whole number'):
        Kinds({'pairs': .5}, seed=0)


def test_counts_are_those_of_the_steps():
    kinds = Kinds(dict(pairs=3, text=1, images=2), seed=5)
    for kind in kinds.weights:
        at = [kinds.at(step) == kind for step in range(40)]
        assert [kinds.count(kind, step) for step in range(41)] == [sum(at[:step]) for step in range(41)]
