"""FLOPs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from bigvlm.core import flops, mesh as mesh_lib

A, B, W = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 4), (4, 5), (4, 4)))
PRODUCT = 2 * 3 * 4 * 5
SQUARE = 2 * 3 * 4 * 4


def test_products():
    assert flops.count(lambda a, b: jnp.tanh(a) @ b + 1., A, B) == PRODUCT
    batched = (jax.ShapeDtypeStruct((7, 3, 4), jnp.float32), jax.ShapeDtypeStruct((7, 4, 5), jnp.bfloat16))
    assert flops.count(lambda a, b: jnp.einsum('nij,njk->nki', a, b), *batched) == 7 * PRODUCT
    assert flops.count(lambda a, b: jnp.tensordot(a, b, ((0, 1), (0, 1))), A, A) == 2 * 3 * 4
    assert flops.count(jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), (0, 1)), A, B) == 3 * PRODUCT


@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions(groups):
    image, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6 // groups, 10))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                            feature_group_count=groups)
    assert flops.count(convolve, image, kernel) == 2 * (2 * 6 * 6 * 10) * (3 * 3 * 6 // groups)


def test_a_scan_counts_each_trip_and_a_checkpoint_what_it_repeats():
    def scan(a, w, body=lambda x, w: x @ w):
        return jax.lax.scan(lambda x, _: (body(x, w), None), a, None, length=6)[0].sum()
    assert flops.count(scan, A, W) == 6 * SQUARE
    assert flops.count(jax.grad(scan, (0, 1)), A, W) == 3 * 6 * SQUARE
    nested = jax.jit(lambda a, w: scan(a, w, jax.checkpoint(lambda x, w: jnp.sin(x @ w) @ w)))
    assert flops.count(nested, A, W) == 6 * 2 * SQUARE
    # Forward 2, again 1 (the last product's value is not needed to differentiate it), backward 4.
    assert flops.count(jax.grad(nested, (0, 1)), A, W) == 6 * 7 * SQUARE


def test_a_shard_map_counts_every_device():
    mesh = mesh_lib.make_mesh(dict(data=4, fsdp=2))
    x = jax.ShapeDtypeStruct((24, 4), jnp.float32)
    both = P(('data', 'fsdp'))
    whole = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(both, P()), out_specs=both)
    assert flops.count(whole, x, W) == 8 * SQUARE == flops.count(lambda x, w: x @ w, x, W)
    # Manual over data only: a shard holds six rows, and what fsdp does is not the body's business.
    part = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data'),
                         axis_names={'data'})
    assert flops.count(jax.jit(part), x, W) == 8 * SQUARE


def test_a_branch_counts_the_dearer_way_and_custom_gradients_count_too():
    def branch(a, w):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ w @ w, lambda: a @ w)
    assert flops.count(branch, A, W) == 2 * SQUARE

    @jax.custom_vjp
    def double(a, w):
        return a @ w
    double.defvjp(lambda a, w: (a @ w, (a, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g @ jnp.eye(4)))
    assert flops.count(double, A, W) == SQUARE
    assert flops.count(jax.grad(lambda a, w: double(a, w).sum(), (0, 1)), A, W) == 3 * SQUARE + 2 * 4 * 4 * 4
