"""Meshes: sizes, and how batches lie on them."""

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
    assert mesh_lib.process_rows(mesh, 32) == slice(0, 32)

    def owning(*spans):
        indices = {i: (slice(*span),) for i, span in enumerate(spans)}
        sharding = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: indices)
        monkeypatch.setattr(mesh_lib, 'batch_sharding', lambda mesh: sharding)
    owning((8, 12), (12, 16), (8, 12))  # two devices of a tensor axis share rows
    assert mesh_lib.process_rows(mesh, 32) == slice(8, 16)
    owning((0, 4), (8, 12))
    with pytest.raises(RecipeError, match='scattered rows'):
        mesh_lib.process_rows(mesh, 32)


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
