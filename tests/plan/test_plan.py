"""Whole plans, compiled for small TPU slices: they fit, and they move what their layouts ask for and no more."""

import json
import os

import pytest

from bigvlm import recipe
from bigvlm.core import layout as layout_lib, mesh as mesh_lib
from bigvlm.plan import plan as plan_lib, text, topology as topology_lib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def small(name, **overrides):
    """A recipe as it is, but for narrow towers of two layers, a small vocabulary and a small batch."""
    tower = dict(size='', width=256, depth=2, heads=4)
    changes = {f'towers.{t}.{k}': v for t in ('image', 'text') for k, v in tower.items()} | {
        'towers.text.vocab': 1024, 'batch': 512, 'mesh.data': 4, 'mesh.fsdp': 4, 'towers.image.remat': 'full', 'towers.text.remat': 'full'}
    changes |= {'towers.text.eot_id': 1} if name == 'clip_b32' else {'towers.text.out_dim': 256}
    changes |= overrides
    path = os.path.join(ROOT, 'configs', f'{name}.py')
    return recipe.resolve(recipe.from_command_line(path, [(key, str(value)) for key, value in changes.items()]))


def moved(plan):
    """MiB by kind of collective."""
    found = {}
    for row in plan.traffic.table():
        found[row['kind']] = found.get(row['kind'], 0.) + row['bytes'] / text.MIB
    return found


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize('name, overrides', [
    ('clip_b32', {}), ('siglip_b16', {'micro': 2}), ('siglip_l16_256', {})])
def test_recipes_move_what_their_layouts_ask_for(name, overrides):
    plan = plan_lib.plan(small(name, **overrides), topology_lib.get('v5e:4x4'), examples_per_epoch=10 ** 6)
    assert plan.memory.fits and plan.memory.arguments >= sum(plan.memory.state.values())
    assert not plan.traffic.unknown
    kinds = moved(plan)
    assert set(kinds) <= {'all-gather', 'reduce-scatter', 'all-reduce', 'collective-permute'}, 'an all-to-all moves activations'
    assert plan.traffic.bytes <= 1.1 * plan.minimum_bytes and plan.traffic.wire <= 1.1 * plan.minimum_wire, text.transfers(plan)
    assert plan.traffic.bytes >= .6 * plan.minimum_bytes, 'most of what must be moved has been found in the program'
    assert 1. <= plan.compiled_flops / plan.model_flops < 1.8
    json.dumps(plan.as_dict())


@pytest.mark.aot
@pytest.mark.slow
def test_without_constraints_the_compiler_moves_activations(monkeypatch):
    """What the test above is there to see. Either of the two is enough to keep activations where they are."""
    monkeypatch.setattr(mesh_lib, 'constrain_batch', lambda tree, leading=0: tree)
    monkeypatch.setattr(layout_lib, '_use', lambda x, stored, dtype: x.astype(dtype))
    plan = plan_lib.plan(small('siglip_b16'), topology_lib.get('v5e:4x4'))
    assert plan.traffic.bytes > 2 * plan.minimum_bytes and 'all-to-all' in moved(plan)
