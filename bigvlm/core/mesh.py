"""The device mesh. Axes: ``replica`` (across slices), ``data``, ``fsdp``, ``tensor``; any may be 1.

The batch is split over the first three; parameters are split over ``fsdp`` and ``tensor``.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from bigvlm.core.parts import RecipeError

AXES = ('replica', 'data', 'fsdp', 'tensor')
BATCH_AXES = ('replica', 'data', 'fsdp')


def axis_sizes(spec: Mapping[str, int], n_devices: int) -> dict[str, int]:
    """The size of each axis; one of them may be -1 for "the rest". Needs no device."""
    unknown = set(spec) - set(AXES)
    if unknown:
        raise RecipeError(f'mesh.{sorted(unknown)[0]}: unknown axis (valid: {", ".join(AXES)})')
    sizes = {axis: int(spec.get(axis, 1)) for axis in AXES}
    rest = [axis for axis, n in sizes.items() if n == -1]
    known = math.prod(n for n in sizes.values() if n != -1)
    if len(rest) > 1 or any(n < 1 and n != -1 for n in sizes.values()):
        raise RecipeError(f'mesh: sizes must be positive, with -1 for at most one axis; found {sizes}')
    if rest and n_devices % known == 0:
        sizes[rest[0]] = n_devices // known
    if math.prod(sizes.values()) != n_devices:
        raise RecipeError(f'mesh: {dict(spec)} does not fill {n_devices} devices exactly; set one axis to -1')
    return sizes


def make_mesh(spec: Mapping[str, int], devices: list | None = None) -> Mesh:
    """A mesh with Auto axes over ``devices`` (default: all), laid out by jax for the platform's topology."""
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(spec, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def abstract_mesh(spec: Mapping[str, int], n_devices: int) -> jax.sharding.AbstractMesh:
    """The same mesh without devices: for shapes, layouts and bytes before anything is allocated."""
    sizes = axis_sizes(spec, n_devices)
    return jax.sharding.AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh) -> int:
    """Over how many shards the batch is split."""
    return math.prod(mesh.shape[a] for a in BATCH_AXES if a in mesh.shape)


def batch_axes(mesh) -> tuple[str, ...]:
    """The batch axes that this mesh has."""
    return tuple(a for a in BATCH_AXES if a in mesh.axis_names)


def batch_sharding(mesh) -> NamedSharding:
    """The layout of a batch: its leading axis over the batch axes."""
    return NamedSharding(mesh, P(batch_axes(mesh)))


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain_batch(tree, *, leading: int = 0):
    """Constrains every array's batch axis (after ``leading`` others) to the current mesh's batch axes.

    Without a current mesh (a tower used alone) it does nothing: there is nothing to shard.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or batch_shards(mesh) == 1:
        return tree
    spec = P(*([None] * leading), batch_axes(mesh))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def process_rows(mesh: Mesh, batch: int) -> slice:
    """The rows of the global batch that this process must feed; contiguous on every mesh that ``make_mesh`` builds."""
    index_map = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    spans = sorted({index[0].indices(batch)[:2] for index in index_map.values()})
    start, stop = spans[0][0], spans[-1][1]
    if sum(b - a for a, b in spans) != stop - start:
        raise RecipeError(f'mesh: this process owns scattered rows of the batch {spans}; use another axis order')
    return slice(start, stop)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows of each array, as global arrays of leading size ``batch_size``."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value, (batch_size, *value.shape[1:]))
            for key, value in batch.items()}
