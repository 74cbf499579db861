import pytest

from bigvlm.core import stages
from bigvlm.core.parts import RecipeError

CONFIG = dict(batch=10, micro=1, towers=dict(image=dict(name='vit', patch_dropout=0.)),
              data=dict(train=dict(ops=(dict(name='decode'), dict(name='resize', size=64)))))
UNITS = dict(batch=10, examples_per_epoch=100, total_steps=40)


def test_a_run_without_stages_has_one():
    assert stages.configs(CONFIG) == (CONFIG,) and stages.starts(CONFIG, **UNITS) == (0,)


def test_a_stage_changes_what_it_sets_and_nothing_else():
    config = CONFIG | dict(stages=(
        dict(until='2 epochs', set={'data.train.ops.1.size': 32, 'towers.image.patch_dropout': .5}),
        dict(until='75%', set={'data.train.ops.1.size': 48, 'micro': 2}), dict()))
    first, second, last = stages.configs(config)
    assert first['data']['train']['ops'] == (dict(name='decode'), dict(name='resize', size=32))
    assert first['towers']['image'] == dict(name='vit', patch_dropout=.5) and first['micro'] == 1
    assert second['data']['train']['ops'][1]['size'] == 48 and second['towers'] == CONFIG['towers'] and second['micro'] == 2
    assert last == config and CONFIG['data']['train']['ops'][1]['size'] == 64
    starts = stages.starts(config, **UNITS)
    assert starts == (0, 20, 30)
    assert [stages.at(starts, step) for step in (0, 19, 20, 29, 30, 39)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize('found, message', [
    ((dict(set={}), dict()), r"stages.0: every stage but the last ends at its until.*found no until"),
    ((dict(until=3),), r"stages.0: .* found until=3"),
    ((dict(until=3, ste={}), dict()), r'stages.0: a stage is dict\(until=…'),
    ((dict(until=3, set={'batch': 4}), dict()), r"stages.0.set: 'batch' cannot change within a run \(what can: augment, data, decoders, fusion, micro"),
    ((dict(until=3, set={'data.val.ops': ()}), dict()), r"the recipe has no 'val' \(there are: train\)"),
    ((dict(until=3, set={'data.train.ops.2.size': 4}), dict()), r"'2' is no place in a tuple of 2"),
    ((dict(until=3, set={'micro.size': 4}), dict()), r'there is nothing below 1'),
])
def test_impossible_stages_are_refused(found, message):
    with pytest.raises(RecipeError, match=message):
        stages.configs(CONFIG | dict(stages=found))


@pytest.mark.parametrize('untils', [(50,), (40,), (20, 20), ('0 steps',)])
def test_stages_follow_each_other_within_the_run(untils):
    with pytest.raises(RecipeError, match=r'stages.\d.until: .* must lie after step'):
        stages.starts(CONFIG | dict(stages=(*(dict(until=until) for until in untils), dict())), **UNITS)
