"""Arrays of a file of weights onto the devices of a mesh, one device's shard after the other."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from bigvlm.core.foreign import Arrays, WeightsError


def arrays(source: Arrays, wanted: Mapping[str, Sharding], dtype: Any = np.float32) -> dict[str, jax.Array]:
    """{our path: array in ``dtype``, laid out as asked}.

    Each process reads what its own devices hold, a shard that several of them hold once. (Of an array whose axes are put together
    from theirs, as a patch kernel's, all is read for each shard.) On the host there is never more than one shard (of a replicated
    array: all of it) and what its conversion takes; the arrays share no memory with the file or each other.

    Raises:
        WeightsError: ``source`` has no such path, or an array cannot be read.
    """
    if unknown := sorted(wanted.keys() - source.shapes.keys()):
        raise WeightsError(f'{source.weights.where} has no array for {unknown[0]}')
    return {path: _placed(source, path, sharding, np.dtype(dtype)) for path, sharding in wanted.items()}


def _placed(source: Arrays, path: str, sharding: Sharding, dtype: np.dtype) -> jax.Array:
    shape = source.shapes[path]
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}  # of each shard, by its bounds
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        devices.setdefault(tuple(piece.indices(n)[:2] for piece, n in zip(index, shape)), []).append(device)
    placed: list[jax.Array] = []
    for bounds, holders in devices.items():
        shard = np.array(source.read(path, tuple(slice(*bound) for bound in bounds)), dtype, order='C')
        for device in holders:
            # A copy for each: on CPU, jax may keep NumPy's memory as an array's own, whatever ``may_alias`` says.
            target = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            placed.append(jax.device_put(shard if device is holders[-1] else shard.copy(), target).block_until_ready())
        del shard  # before the next is read
    return jax.make_array_from_single_device_arrays(shape, sharding, placed, dtype=dtype)
