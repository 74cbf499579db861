"""What a recipe cannot mean, said before anything runs: batch norm with micro-batches or averages; and what is filled in."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from bigvlm import blueprint, model as model_lib, train
from bigvlm.core.parts import RecipeError
from tests import tiny

RESNET = dict(name='modified_resnet', width=8, depths=(1, 1, 1, 1), image=32, out_dim=16, dtype='float32')


def config(**changes):
    bn = {key: changes.pop(key) for key in ('bn_group', 'bn_blocks', 'bn_frozen') if key in changes}
    return tiny.config(towers=tiny.TOWERS | dict(image=RESNET | bn), **changes)


@pytest.mark.parametrize('fields', [dict(), dict(bn_group=16), dict(bn_group=4, bn_blocks=4)])
def test_groups_that_micro_batches_would_change(fields):
    with pytest.raises(RecipeError, match=r'towers.image.bn_group: found .* with micro-batches of 8; valid: bn_group · bn_blocks a divisor of 8'):
        blueprint.check_norm_groups(config(micro=2, **fields), model_lib.from_config(config(micro=2, **fields)))


@pytest.mark.parametrize('fields', [dict(micro=1), dict(micro=2, bn_group=4), dict(micro=2, bn_group=4, bn_blocks=2), dict(micro=2, bn_frozen=True)])
def test_groups_that_stay(fields):
    blueprint.check_norm_groups(config(**fields), model_lib.from_config(config(**fields)))


def test_averaged_weights_have_no_running_statistics():
    averaged = config(ema=dict(slow=.9), eval_params='slow', bn_group=4)
    with pytest.raises(RecipeError, match="eval_params: found 'slow' with towers.image, whose running statistics are not averaged"):
        train.check_averages(averaged)
    train.check_averages(config(ema=dict(slow=.9), eval_params='slow', bn_group=4, bn_frozen=True))
    train.check_averages(config(bn_group=4))


def test_a_queue_is_a_multiple_of_the_recipe_s_batch():
    objectives = dict(contrast=dict(name='contrastive', queue=32))
    made = model_lib.from_config(tiny.config(objectives=objectives)).objectives['contrast']()
    assert made.batch == 16
    with pytest.raises(RecipeError, match='objectives.contrast: queue'):
        model_lib.from_config(tiny.config(objectives=dict(contrast=dict(name='contrastive', queue=24))))


def test_a_queue_lies_where_its_batches_lie():
    """[batches, B, …]: split as the batch is on the second axis; counters are everywhere."""
    setting = tiny.Setting(tiny.config(objectives=dict(contrast=dict(name='contrastive', queue=32))), dict(data=2, fsdp=2))
    specs = {x.shape: s.spec for x, s in zip(jax.tree.leaves(setting.plan.abstract.collections['queue']),
                                             jax.tree.leaves(setting.placed.shardings.collections['queue']))}
    assert specs[(2, 16, 16)] == P(None, ('replica', 'data', 'fsdp')) and specs[()] == P()
