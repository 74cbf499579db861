"""The least traffic, against sums worked out by hand from the parameters' shapes."""

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

import tiny
from bigvlm import blueprint
from bigvlm.core import mesh as mesh_lib, paths
from bigvlm.plan import minimum


def needed(mesh, **changes):
    """({(what, kind, axes): bytes}, {path: number of elements that are split over fsdp}, all elements by path)."""
    placed = blueprint.make(tiny.config(**changes), examples_per_epoch=1000).on(mesh_lib.make_mesh(mesh))
    with jax.set_mesh(placed.mesh), mesh_lib.activate(placed.mesh):
        jaxpr = placed.step('pairs').trace(placed.state(), placed.batch('pairs')).jaxpr
    rows = minimum.of(placed, 'pairs', jaxpr)
    elements = {path: int(np.prod(x.shape)) for path, x in paths.flatten(placed.plan.abstract.params).items()}
    split = {path: n for path, n in elements.items() if any(axes is not None for axes in placed.stored.specs[path])}
    found = {}
    for row in rows:
        key = row.what, row.kind, row.axes
        assert key not in found, 'one row each'
        found[key] = row.bytes
    return found, split, elements


def in_blocks(elements):
    return sum(n for path, n in elements.items() if 'blocks' in path.split('/'))


BATCH = ('data', 'fsdp')


def test_fsdp():
    found, split, elements = needed(dict(data=2, fsdp=4))
    total, blocks = sum(split.values()), in_blocks(split)
    assert 0 < blocks < total < sum(elements.values())
    # float32: each is gathered for the forward pass, blocks once more for the rematerialised backward pass.
    assert found['parameters', 'all-gather', ('fsdp',)] == 4 * (total + blocks)
    assert found['gradients', 'reduce-scatter', ('fsdp',)] == 4 * total
    assert found['gradients', 'all-reduce', ('data',)] == 4 * total / 4, 'a quarter of it is left on each device'
    assert found['gradients', 'all-reduce', BATCH] == 4 * (sum(elements.values()) - total), 'vectors are on every device'


def test_without_rematerialisation_blocks_are_gathered_once():
    towers = {name: spec | {'remat': 'none'} for name, spec in tiny.TOWERS.items()}
    found, split, _ = needed(dict(fsdp=8), towers=towers)
    assert found['parameters', 'all-gather', ('fsdp',)] == 4 * sum(split.values())
    assert ('gradients', 'all-reduce', ('data',)) not in found


def test_parameters_travel_in_the_compute_dtype():
    towers = {name: spec | {'dtype': 'bfloat16'} for name, spec in tiny.TOWERS.items()}
    found, split, _ = needed(dict(data=2, fsdp=4), towers=towers)
    assert found['gradients', 'reduce-scatter', ('fsdp',)] == 2 * sum(split.values())


def test_micro_batches_gather_twice_each_scatter_once_each_and_sum_the_rest_once():
    found, split, elements = needed(dict(data=2, fsdp=4), micro=2)
    total, blocks = sum(split.values()), in_blocks(split)
    assert found['parameters', 'all-gather', ('fsdp',)] == 4 * (4 * total + 2 * blocks)
    assert found['gradients', 'reduce-scatter', ('fsdp',)] == 2 * 4 * total
    assert found['gradients', 'all-reduce', ('data',)] == 4 * total / 4
    assert found['gradients', 'all-reduce', BATCH] == 4 * (sum(elements.values()) - total)
    towers = {name: spec | {'dtype': 'bfloat16'} for name, spec in tiny.TOWERS.items()}
    for micro, itemsize in ((1, 2), (2, 4)):   # summed in the stored dtype
        found, split, _ = needed(dict(data=2, fsdp=4), micro=micro, towers=towers)
        assert found['gradients', 'all-reduce', ('data',)] == itemsize * sum(split.values()) / 4


def test_zero1_gathers_what_was_updated():
    found, split, elements = needed(dict(data=2, fsdp=4), layout=(('.*', 'zero1'),))
    assert not split and ('parameters', 'all-gather', ('fsdp',)) not in found
    scattered = found['gradients', 'reduce-scatter', BATCH]
    assert found['update', 'all-gather', BATCH] == scattered
    assert scattered + found['gradients', 'all-reduce', BATCH] == 4 * sum(elements.values())


def test_a_frozen_tower_is_gathered_once_and_has_no_gradient():
    optim = tiny.config()['optim'] | dict(freeze=('image/.*',))
    found, split, _ = needed(dict(fsdp=8), optim=optim)
    image = sum(n for path, n in split.items() if path.startswith('image/'))
    rest = {path: n for path, n in split.items() if not path.startswith('image/')}
    assert found['parameters', 'all-gather', ('fsdp',)] == 4 * (image + sum(rest.values()) + in_blocks(rest))
    assert found['gradients', 'reduce-scatter', ('fsdp',)] == 4 * sum(rest.values())


def test_what_the_step_writes_out_counts_as_often_as_it_runs():
    def local(x):   # [2, 16] on each of 8
        def hop(x, _):
            return jax.lax.ppermute(x, BATCH, [(i, (i + 1) % 8) for i in range(8)]), None
        x, _ = jax.lax.scan(hop, x, length=7)
        everything = jax.lax.all_gather(x, 'fsdp', tiled=True)
        return jax.lax.psum_scatter(everything, 'fsdp', tiled=True) + jax.lax.psum(x.sum(), BATCH) + jax.lax.pmax(x, 'replica')

    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4))
    run = jax.shard_map(local, mesh=mesh, in_specs=P(BATCH), out_specs=P(BATCH), check_vma=False)
    rows = list(minimum.written_out(jax.make_jaxpr(jax.jit(run))(np.zeros((16, 16), np.float32)), dict(mesh.shape)))
    x = 2 * 16 * 4
    found = {(row.kind, row.axes): (row.bytes, row.wire) for row in rows if row.bytes}
    assert found == {('collective-permute', BATCH): (7 * x, 7 * x), ('all-gather', ('fsdp',)): (4 * x, 3 * x),
                     ('reduce-scatter', ('fsdp',)): (4 * x, 3 * x), ('all-reduce', BATCH): (4, 7)}, 'an axis of size 1 moves nothing'


def test_the_exchange_of_the_loss_is_found():
    for way, kind in (('ring', 'collective-permute'), ('all_gather', 'all-gather')):
        objectives = dict(match=dict(name='sigmoid', tile=2, exchange=way))
        found, *_ = needed(dict(data=2, fsdp=4), objectives=objectives)
        assert found['losses', kind, BATCH] >= 16 * 16 * 4, 'at least one side: 16 examples of 16 float32'


def test_one_device_moves_nothing():
    placed = blueprint.make(tiny.config(), examples_per_epoch=1000).on(mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]))
    assert not [row for row in minimum.parameters(placed, minimum.reached(placed, 'pairs')) if row.bytes or row.wire]
