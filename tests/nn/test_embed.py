"""Looking tokens up: the gradient that is summed by hand is the compiler's, and comes back in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import mesh as mesh_lib
from bigvlm.nn.embed import Embed

IDS_BL = np.random.default_rng(0).integers(0, 16, (8, 5)).astype(np.int32)   # words of a batch repeat
WEIGHT_BLW = np.random.default_rng(1).normal(size=(8, 5, 4)).astype(np.float32)


@pytest.mark.parametrize('mesh', [dict(data=2, fsdp=4), dict(replica=2, data=2, fsdp=2), dict(fsdp=4, tensor=2)])
@pytest.mark.parametrize('stored', [P('fsdp', None), P(None, 'fsdp')])
def test_the_tables_gradient_is_scattered_to_where_it_is_stored(mesh, stored):
    mesh = mesh_lib.make_mesh(mesh)
    module = Embed(16, 4, jnp.float32, nn.initializers.normal(1.), stored)
    table_VW = np.random.default_rng(2).normal(size=(16, 4)).astype(np.float32)

    def loss(table_VW):
        return (module.apply({'params': {'embedding': table_VW}}, IDS_BL) * WEIGHT_BLW).sum()
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss))(table_VW)
    expected = np.zeros_like(table_VW)
    np.add.at(expected, IDS_BL, WEIGHT_BLW)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert gradient.sharding.is_equivalent_to(NamedSharding(mesh, stored), 2)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(table_VW), expected, atol=1e-5)  # without a mesh
