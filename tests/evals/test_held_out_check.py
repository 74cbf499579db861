"""What an objective could not measure is said before the run, not at its first evaluation."""

import numpy as np
import pytest

import tiny
from bigvlm.core.parts import RecipeError
from bigvlm.evaluate import Evaluators


class Sets:
    """Data sets that all are one tiny batch."""
    specs, tokenizers = {'val': {}}, {}

    def __call__(self, name):
        return self

    def __len__(self):
        return 64

    def example(self, index):
        return {key: value[index % 16] for key, value in tiny.batch().items()} | {'captions': ('a',)}


@pytest.mark.parametrize('batch, valid', [(16, True), (8, False)])
def test_a_queue_is_of_batches_as_large_as_the_evaluator_s(batch, valid):
    s = tiny.Setting(tiny.config(objectives=dict(near=dict(name='nearest_neighbour', size=32, batch=16, tile=4))))
    spec = dict(name='held_out', objective='near', data='val', batch=batch)
    evaluators = Evaluators(dict(evals=dict(held=spec)), s.plan.model, Sets(), {})
    if valid:
        evaluators.check(s.plan.abstract.params, s.plan.abstract.collections, s.plan.units)
        return
    with pytest.raises(RecipeError, match='evals.held, in batches of 8: objectives.near.batch: found 16; the batch has 8'):
        evaluators.check(s.plan.abstract.params, s.plan.abstract.collections, s.plan.units)


def test_a_key_that_the_objective_reads_and_the_data_lack_is_named():
    s = tiny.Setting(tiny.config())
    sets = Sets()
    sets.example = lambda index: {'image': np.zeros((32, 32, 3), np.uint8), 'id': np.zeros(2, np.uint32)}
    evaluators = Evaluators(dict(evals=dict(here=dict(name='held_out', objective='contrast', data='val'))), s.plan.model, sets, {})
    with pytest.raises(RecipeError, match="evals.here.*'text'"):
        evaluators.check(s.plan.abstract.params, s.plan.abstract.collections, s.plan.units)


def test_an_evaluator_is_not_named_like_an_objective():
    with pytest.raises(RecipeError, match='^evals.contrast: an objective has this name'):
        tiny.config(evals=dict(contrast=dict(name='held_out', data='val')))
