"""The regex language of parameter paths."""

import jax
import numpy as np
import pytest

from bigvlm.core import paths
from bigvlm.core.parts import RecipeError

TREE = {'image': {'out': {'kernel': np.ones((2, 3)), 'bias': np.ones(3)}}, 't': np.ones(())}
NAMES = ('image/out/kernel', 'image/out/bias', 't')


def test_flatten_and_back():
    flat = paths.flatten(TREE)
    assert tuple(flat) == NAMES and flat['t'] is TREE['t']
    assert paths.unflatten(flat) == TREE
    assert [paths.from_key_path(key) for key, _ in jax.tree_util.tree_flatten_with_path(TREE)[0]] == sorted(NAMES)


def test_the_first_rule_that_matches_the_whole_path_wins():
    assert paths.match((('.*/bias', 0.), ('image/.*', 1.), ('.*', 2.)), NAMES, what='x') == \
        {'image/out/kernel': 1., 'image/out/bias': 0., 't': 2.}
    found = paths.match((('t', 1, 2), ('.*', 3, 4)), NAMES, what='x')
    assert found['t'] == (1, 2) and found['image/out/bias'] == (3, 4)
    # A rule behind a broader one is no typing mistake.
    assert paths.match((('.*', 1), ('t', 2)), NAMES, what='x')['t'] == 1


def test_a_rule_must_match_the_whole_path():
    assert paths.match((('t', 1), ('.*', 2)), ('t', 't2', 'at'), what='x') == {'t': 1, 't2': 2, 'at': 2}
    with pytest.raises(RecipeError, match="^optim.decay: the rule 'kernel' matches no parameter; .*image/out/kernel"):
        paths.match((('kernel', 1), ('.*', 0)), NAMES, what='optim.decay')


def test_a_path_that_nothing_covers_is_an_error_unless_allowed():
    with pytest.raises(RecipeError, match="^layout: no rule covers the parameter 't'"):
        paths.match((('image/.*', 1),), NAMES, what='layout')
    assert paths.match((('t', 1),), NAMES, what='clamp', cover=False) == {'t': 1}
    assert paths.select(('image/.*', 't'), NAMES, what='optim.freeze') == set(NAMES)
    assert paths.select((), NAMES, what='optim.freeze') == set()
    with pytest.raises(RecipeError, match="^optim.freeze: the rule 'text/.*' matches no parameter"):
        paths.select(('text/.*',), NAMES, what='optim.freeze')


@pytest.mark.parametrize('rule', [('(', 1), (3, 1), ('*', 1)])
def test_what_is_no_rule_is_shown(rule):
    with pytest.raises(RecipeError, match=r'^layout: .*is not a \(regex, value\) rule') as error:
        paths.match((rule,), NAMES, what='layout')
    assert repr(rule) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('rule', ['.*', ('.*',), ()])
def test_a_rule_needs_a_value(rule):
    with pytest.raises(RecipeError, match=r'^layout: .*is not a \(regex, value\) rule'):
        paths.match((rule,), NAMES, what='layout')
