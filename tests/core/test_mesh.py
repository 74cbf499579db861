"""Meshes: sizes, slices, how batches lie on them, and rings from neighbour to neighbour."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigvlm.core import mesh as mesh_lib
from bigvlm.core.parts import RecipeError


@pytest.mark.parametrize('spec, devices, sizes', [
    ({}, 1, (1, 1, 1, 1)), (dict(data=-1), 8, (1, 8, 1, 1)), (dict(replica=2, data=-1, fsdp=2), 8, (2, 2, 2, 1)),
    (dict(data=2, fsdp=-1, tensor=2), 4, (1, 2, 1, 2)), (dict(data=256), 256, (1, 256, 1, 1))])
def test_sizes(spec, devices, sizes):
    found = mesh_lib.axis_sizes(spec, devices)
    assert tuple(found) == ('replica', 'data', 'fsdp', 'tensor') and tuple(found.values()) == sizes


@pytest.mark.parametrize('spec, devices, message', [
    (dict(model=2), 8, '.model: unknown axis .valid: replica, data, fsdp, tensor'),
    (dict(data=-1, fsdp=-1), 8, '-1 for at most one axis'), (dict(data=0), 8, 'sizes must be positive'),
    (dict(data=-2), 8, 'sizes must be positive'), (dict(data=-1, fsdp=3), 8, 'does not fill 8 devices exactly'),
    (dict(data=4), 8, 'does not fill 8 devices exactly'),
    (dict(data=-1, fsdp=16), 8, 'does not fill 8 devices exactly')])
def test_impossible_sizes(spec, devices, message):
    with pytest.raises(RecipeError, match=f'^mesh.*{message}') as error:
        mesh_lib.axis_sizes(spec, devices)
    assert '\n' not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device: one of a TPU slice, or a GPU (coordinates there are no links)."""
    id: int
    coords: tuple[int, ...]
    slice_index: int | None = None
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = 'tpu'
    device_kind: str = 'TPU v5'


def chips(sides, slices=1, cores=1, **kwargs):
    places = itertools.product(range(slices), *map(range, sides), range(cores))
    return [Chip(i, tuple(place), None if slices == 1 else s, core_on_chip=core, **kwargs)
            for i, (s, *place, core) in enumerate(places)]


def hops(sides, spec, slices=1, cores=1, kind='TPU v5'):
    """(links of every hop within a slice, number of hops between slices) of the ring, at every tensor index."""
    mesh = mesh_lib.make_mesh(spec, chips(sides, slices, cores, device_kind=kind))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), mesh_lib.activate(mesh):
        order = mesh_lib.ring_order(tuple(a for a in mesh_lib.BATCH_AXES if mesh.shape[a] > 1))
    assert sorted(order) == list(range(mesh.size // mesh.shape['tensor'])), 'every shard once'
    links, between = set(), 0
    for column in mesh.devices.reshape(len(order), -1).T:
        for a, b in zip(order, order[1:] + order[:1]):
            one, other = column[a], column[b]
            if one.slice_index != other.slice_index:
                between += 1
                continue
            there = zip((*one.coords, one.core_on_chip), (*other.coords, other.core_on_chip))
            links.add(sum(abs(x - y) for x, y in there))
    return links, between // mesh.shape['tensor']


@pytest.mark.parametrize('sides', [(2, 2), (4, 4), (2, 4), (3, 4), (4, 3), (8, 16), (16, 16), (4, 4, 4), (2, 4, 8), (3, 3, 2), (2, 3, 5)])
def test_a_closed_walk_over_a_grid(sides):
    walk = mesh_lib.grid_cycle(sides)
    assert sorted(walk) == sorted(itertools.product(*map(range, sides)))
    assert {sum(abs(x - y) for x, y in zip(a, b)) for a, b in zip(walk, walk[1:] + walk[:1])} == {1}


def test_without_a_closed_walk_only_the_last_hop_is_long():
    for sides in ((3, 3), (5,), (8, 1), (3, 1, 3)):
        walk = mesh_lib.grid_cycle(sides)
        assert sorted(walk) == sorted(itertools.product(*map(range, sides)))
        assert {sum(abs(x - y) for x, y in zip(a, b)) for a, b in zip(walk, walk[1:])} == {1}
    assert mesh_lib.grid_cycle((1, 1)) == [(0, 0)] and mesh_lib.grid_cycle((2,)) == [(0,), (1,)]


V5E = 'TPU v5 lite'


@pytest.mark.parametrize('sides, spec, options', [
    ((2, 2, 1), dict(data=-1), dict(kind=V5E)), ((4, 4, 1), dict(data=-1), dict(kind=V5E)),
    ((4, 4, 1), dict(data=-1, fsdp=4), dict(kind=V5E)), ((8, 16, 1), dict(data=-1), dict(kind=V5E)),
    ((16, 16, 1), dict(data=-1), dict(kind=V5E)), ((16, 16, 1), dict(data=-1, fsdp=16), dict(kind=V5E)),
    ((16, 16, 1), dict(replica=2, data=-1, fsdp=16), dict(kind=V5E)), ((16, 16, 1), dict(data=-1, fsdp=4), dict(kind=V5E)),
    ((4, 4, 4), dict(data=-1), {}), ((4, 4, 4), dict(data=-1, fsdp=4), {}), ((4, 4, 4), dict(data=-1, fsdp=4, tensor=4), {}),
    ((2, 4, 8), dict(data=-1, fsdp=8), {}), ((2, 4, 8), dict(replica=2, data=-1, fsdp=2), {}), ((2, 4, 8), dict(data=-1, tensor=4), {}),
    ((4, 4, 4), dict(data=-1, fsdp=8, tensor=2), dict(cores=2, kind='TPU7x'))])
def test_every_hop_of_the_ring_is_one_link(sides, spec, options):
    assert hops(sides, spec, **options) == ({1}, 0)


@pytest.mark.parametrize('spec', [dict(replica=-1, fsdp=16), dict(replica=4, data=-1, fsdp=4), dict(data=-1, fsdp=4),
                                  dict(replica=2, data=-1, fsdp=8), dict(replica=-1, data=2, fsdp=4)])
def test_the_ring_completes_a_slice_before_the_next(spec):
    assert hops((4, 4, 1), spec, slices=4, kind=V5E) == ({1}, 4)


def test_fsdp_and_tensor_stay_within_a_slice():
    for spec in (dict(replica=-1, fsdp=4, tensor=4), dict(data=-1, fsdp=8, tensor=2), dict(replica=2, data=-1, tensor=4),
                 dict(replica=8, data=-1, fsdp=2)):
        grid = mesh_lib.make_mesh(spec, chips((4, 4, 1), slices=4, device_kind=V5E)).devices
        slices = np.vectorize(lambda d: d.slice_index)(grid)
        assert (slices == slices[:, :, :1, :1]).all()
        order = [s for s, _ in itertools.groupby(slices[:, :, 0, 0].reshape(-1))]
        assert order == [0, 1, 2, 3], 'slices are the slowest part of the batch index'
        assert len({d.id for d in grid.flat}) == 64
    for spec in (dict(data=2, fsdp=-1), dict(fsdp=32, tensor=2), dict(tensor=64)):
        with pytest.raises(RecipeError, match='mesh: .*over the 4 slices of 16 devices; valid: replica . data a multiple of 4') as error:
            mesh_lib.make_mesh(spec, chips((4, 4, 1), slices=4, device_kind=V5E))
        assert '\n' not in str(error.value)
    with pytest.raises(RecipeError, match='slices of unequal sizes'):
        mesh_lib.make_mesh(dict(data=-1), chips((4, 4, 1), slices=2, device_kind=V5E)[:-1])


def test_gpu_nodes_stay_together():
    nodes = [dataclasses.replace(c, process_index=c.coords[0]) for c in chips((4, 8), platform='gpu', device_kind='H100')]
    grid = mesh_lib.make_mesh(dict(data=-1, fsdp=4, tensor=2), nodes[::-1]).devices
    assert [d.id for d in grid.flat] == list(range(32))
    assert all(len({d.process_index for d in grid[0, i].flat}) == 1 for i in range(4))


@pytest.mark.parametrize('sides, slices, kind, wires', [
    ((16, 16, 1), 1, V5E, (1, 4)), ((8, 16, 1), 1, V5E, (1, 3)), ((4, 4, 1), 4, V5E, (4, 2)), ((4, 4, 8), 1, 'TPU v5', (1, 6)),
    ((2, 2, 1), 1, V5E, (1, 2)), ((4, 4, 1), 1, 'TPU v9', (1, 1))])
def test_what_connects_devices(sides, slices, kind, wires):
    mesh = mesh_lib.make_mesh(dict(data=-1), chips(sides, slices, device_kind=kind))
    with mesh_lib.activate(mesh):
        found = mesh_lib.wires()
    assert found == (kind, *wires) and mesh_lib.wires() is None
    gpus = [dataclasses.replace(c, process_index=c.coords[0]) for c in chips((4, 8), platform='gpu', device_kind='NVIDIA H100')]
    with mesh_lib.activate(mesh_lib.make_mesh(dict(data=-1), gpus)):
        assert mesh_lib.wires() == ('NVIDIA H100', 4, 1)


def test_the_ring_is_plain_where_places_are_unknown():
    mesh = mesh_lib.make_mesh(dict(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        assert mesh_lib.ring_order(('data', 'fsdp')) == tuple(range(8)), 'no active mesh'
        with mesh_lib.activate(mesh):
            assert mesh_lib.ring_order(('data', 'fsdp')) == tuple(range(8)), 'devices without coordinates'
            assert mesh_lib.ring_order(('fsdp',)) == (0, 1)
        with mesh_lib.activate(mesh.abstract_mesh):
            assert mesh_lib.ring_order(('data',)) == tuple(range(4))
        with mesh_lib.activate(mesh_lib.make_mesh(dict(data=8))), pytest.raises(ValueError, match='not the current one'):
            mesh_lib.ring_order(('data',))
    holes = [c for c in chips((4, 4, 1)) if c.coords != (1, 1, 0)]
    assert mesh_lib._closed_walk([mesh_lib._place(c) for c in holes]) == list(range(15))


def test_a_batch_is_split_over_every_axis_but_tensor():
    mesh = mesh_lib.make_mesh(dict(replica=2, fsdp=2, tensor=2))
    assert mesh_lib.batch_shards(mesh) == 4
    batch = mesh_lib.put_batch({'image': np.arange(24).reshape(8, 3), 'label': np.arange(8)}, mesh, 8)
    np.testing.assert_array_equal(batch['image'], np.arange(24).reshape(8, 3))
    for value in batch.values():
        assert value.sharding.spec == P(('replica', 'data', 'fsdp'))
        shards = sorted((shard.index[0].start, shard.index[0].stop) for shard in value.addressable_shards)
        assert shards == [(a, a + 2) for a in (0, 0, 2, 2, 4, 4, 6, 6)]
    abstract = mesh_lib.abstract_mesh(dict(data=-1, fsdp=16), 256)
    assert mesh_lib.batch_shards(abstract) == 256 and abstract.shape['data'] == 16


def test_rows_of_this_process(monkeypatch):
    mesh = mesh_lib.make_mesh(dict(data=-1))
    assert mesh_lib.process_rows(mesh, 32).tolist() == list(range(32))

    def owning(*spans):
        indices = {i: (slice(*span),) for i, span in enumerate(spans)}
        sharding = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: indices)
        monkeypatch.setattr(mesh_lib, 'batch_sharding', lambda mesh: sharding)
    owning((8, 12), (12, 16), (8, 12))  # two devices of a tensor axis share rows
    assert mesh_lib.process_rows(mesh, 32).tolist() == list(range(8, 16))
    owning((16, 18), (2, 4), (0, 2), (18, 20))  # a host's 2 x 2 chips on a mesh that follows the torus
    assert mesh_lib.process_rows(mesh, 32).tolist() == [0, 1, 2, 3, 16, 17, 18, 19]


def test_constraining_a_batch():
    x = jnp.ones((8, 2))
    assert mesh_lib.constrain_batch({'x': x})['x'] is x, 'no mesh, nothing to do'
    mesh = mesh_lib.make_mesh(dict(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        constrained = jax.jit(lambda x: (
            mesh_lib.constrain_batch(x * 1.), mesh_lib.constrain_batch((x * 2.).T, leading=1)))(x)
    axes = ('replica', 'data', 'fsdp')
    for found, wanted in zip(constrained, (P(axes), P(None, axes))):
        assert found.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, wanted), 2)
