"""Meshes, data and comparisons for tests of streamed losses: float64, every shape of mesh, dense formulas beside them."""

import math
import re
from contextlib import nullcontext

import fast
import jax
import numpy as np

from bigvlm.core import mesh as meshes

MESHES = {'one': dict(data=1), 'data': dict(data=8), 'fsdp': dict(data=4, fsdp=2), 'tensor': dict(data=2, fsdp=2, tensor=2)}
ROUTES = (('data', 'ring'), ('fsdp', 'all_gather'), ('tensor', 'ring'))


def on_mesh(name):
    spec = MESHES[name]
    return meshes.make_mesh(spec, jax.devices()[:math.prod(spec.values())])


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def evaluate(function, arrays, scalars=(), mesh='one'):
    """``function(*arrays, *scalars)`` compiled, in float64, with arrays sharded as a batch."""
    with jax.enable_x64(True), jax.set_mesh(on_mesh(mesh)) if mesh else nullcontext():
        if mesh:
            arrays = jax.device_put(arrays, meshes.batch_sharding(on_mesh(mesh)))
        return jax.tree.map(np.asarray, fast.jit(function)(*arrays, *scalars))


def error(found, wanted) -> float:
    """The largest of max|difference| / max|wanted|, leaf by leaf; leaves of no more than rounding errors count as zero."""
    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all(), (a.shape, b.shape)
        largest = np.abs(b).max()
        return np.abs(a - b).max() / (largest if largest > 1e-12 else 1.)
    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


def sizes(function, *shapes, mesh='data'):
    """Elements of every array in ``function`` as lowered for a mesh; inside a shard_map these are one shard's."""
    with jax.set_mesh(on_mesh(mesh)):
        arrays = [jax.ShapeDtypeStruct(s, np.float32, sharding=meshes.batch_sharding(on_mesh(mesh))) for s in shapes]
        text = jax.jit(function).lower(*arrays).as_text()
    return {math.prod(map(int, dims.split('x'))) for dims in re.findall(r'tensor<([0-9x]+)x[a-z]+[0-9]+>', text)}
