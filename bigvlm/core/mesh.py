"""The device mesh. Axes: ``replica`` (across slices), ``data``, ``fsdp``, ``tensor``; any may be 1.

The batch is split over the first three; parameters are split over ``fsdp`` and ``tensor``. TPU slices are joined by a
slow network, chips of a slice by links to their neighbours: axes are laid along the links, and slices on the slowest
axes. ``activate`` lets code under trace see where devices are, so that a ring can go from neighbour to neighbour.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from bigvlm.core import devices as devices_lib
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


def make_mesh(spec: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with Auto axes over ``devices`` (default: all): live ones, or those of a topology without hardware.

    Within a TPU slice the axes follow the torus. Several slices are spread over ``replica``, and over ``data`` what is
    left of them. Elsewhere devices come by node, so that the last axes stay within one as long as they fit.
    Raises RecipeError if the sizes do not fill the devices, or ``fsdp`` or ``tensor`` would cross slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = axis_sizes(spec, len(devices))
    grid = _slices_on_slow_axes(sizes, devices) if devices[0].platform == 'tpu' else np.reshape(
        sorted(devices, key=lambda d: (_slice_of(d), d.process_index, d.id)), tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice_of(device) -> int:
    return getattr(device, 'slice_index', None) or 0  # a single slice has none


def _slices_on_slow_axes(sizes: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    slices = defaultdict(list)
    for device in devices:
        slices[_slice_of(device)].append(device)
    n, each = len(slices), len(devices) // len(slices)
    if any(len(members) != each for members in slices.values()):
        raise RecipeError(f'mesh: slices of unequal sizes {[len(m) for m in slices.values()]}; valid: equal ones')
    replica = math.gcd(sizes['replica'], n)  # how many parts of each axis are on slices of their own
    data = n // replica
    if sizes['data'] % data:
        raise RecipeError(f'mesh: {dict(sizes)} splits fsdp or tensor over the {n} slices of {each} devices; valid: replica * data a '
                          f'multiple of {n} and fsdp * tensor a divisor of {each}, such as replica={n}, data=-1, fsdp={math.gcd(16, each)}')
    shape = (sizes['replica'] // replica, sizes['data'] // data, sizes['fsdp'], sizes['tensor'])
    grids = [mesh_utils.create_device_mesh(shape, slices[i], allow_split_physical_axes=True) for i in sorted(slices)]
    return rearrange(np.stack(grids), '(r d) replica data fsdp tensor -> (r replica) (d data) fsdp tensor', r=replica)


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


_active: ContextVar[Mesh | None] = ContextVar('active_mesh', default=None)


@contextmanager
def activate(mesh: Mesh | jax.sharding.AbstractMesh) -> Iterator[None]:
    """Within it, code under trace knows the devices of the current mesh; an abstract mesh has none to know."""
    token = _active.set(mesh if isinstance(mesh, Mesh) else None)
    try:
        yield
    finally:
        _active.reset(token)


class Wires(NamedTuple):
    """What connects devices. ``groups``: slices, or nodes, that only a network joins; ``links``: at work in an all-gather."""
    kind: str
    groups: int
    links: int


def wires() -> Wires | None:
    """Of the active mesh, if there is one.

    An all-gather uses a closed side of a torus both ways, an open one half as well; GPUs of a node meet in a switch.
    """
    mesh = _active.get()
    return None if mesh is None else _wires(mesh)


@lru_cache
def _wires(mesh: Mesh) -> Wires | None:
    first, chip = mesh.devices.flat[0], devices_lib.chip(mesh.devices.flat[0].device_kind)
    if first.platform != 'tpu' or chip is None:
        return Wires(first.device_kind, len({(_slice_of(d), d.process_index) for d in mesh.devices.flat}), 1)
    sides = [len(set(side)) for side in zip(*(d.coords for d in mesh.devices.flat if _slice_of(d) == _slice_of(first)))]
    links = sum(2 if side % chip.wraps == 0 else 1 for side in sides if side > 1)
    return Wires(first.device_kind, len({_slice_of(d) for d in mesh.devices.flat}), max(links, 1))


def ring_order(axes: tuple[str, ...]) -> tuple[int, ...]:
    """The order in which a ring should visit the shards of the current mesh's ``axes`` (indices row-major over them).

    On a TPU slice it is a closed walk from neighbour to neighbour that needs no link around the torus; it exists where
    one side is even. A line, or a grid of odd sides, is walked to its end and back in one long hop. Slices are
    completed one after the other. Where the devices are unknown (``activate``) or no grid, it is the plain order.
    """
    current, active = jax.sharding.get_abstract_mesh(), _active.get()
    if active is None:
        return tuple(range(math.prod(current.shape[a] for a in axes)))
    if dict(active.shape) != dict(current.shape):
        raise ValueError(f'the active mesh {dict(active.shape)} is not the current one {dict(current.shape)}')
    return _ring_order(active, axes)


@lru_cache
def _ring_order(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Over the devices at index 0 of all other axes: where those are split, theirs are moved by the same hops."""
    shards = mesh.devices[tuple(slice(None) if a in axes else 0 for a in mesh.axis_names)].reshape(-1)
    slices = defaultdict(list)
    for index, device in enumerate(shards):
        slices[_slice_of(device)].append(index)
    on_torus = shards[0].platform == 'tpu'  # elsewhere coordinates, if there are any, do not mean neighbours
    return tuple(members[i] for members in slices.values()
                 for i in (_closed_walk([_place(shards[m]) for m in members]) if on_torus else range(len(members))))


def _place(device) -> tuple[int, ...]:
    return *device.coords, device.core_on_chip


def _closed_walk(places: Sequence[tuple[int, ...]]) -> list[int]:
    """The order that visits ``places`` from neighbour to neighbour; as they come if they are not a full grid."""
    values = [sorted(set(v)) for v in zip(*places)]
    grid = {tuple(axis.index(v) for axis, v in zip(values, place)): i for i, place in enumerate(places)}
    sides = tuple(len(axis) for axis in values)
    if len(grid) != len(places) or math.prod(sides) != len(places):
        return list(range(len(places)))
    return [grid[cell] for cell in grid_cycle(sides)]


def grid_cycle(sides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All cells of a grid, each a neighbour of the one before; the last of the first too, if that is possible.

    An even side is cut into rows, the rest is one column axis (itself a walk). Rows are walked to and fro over columns
    1 and on; column 0 is the way back.
    """
    even = next((k for k, n in enumerate(sides) if n % 2 == 0), None)
    if even is None:
        return _to_and_fro(sides)
    columns = _to_and_fro(sides[:even] + (1,) + sides[even + 1:])
    if len(columns) == 1:
        return _to_and_fro(sides)
    row = [columns[1:], columns[:0:-1]]
    cells = [(r, c) for r in range(sides[even]) for c in row[r % 2]] + [(r, columns[0]) for r in reversed(range(sides[even]))]
    return [(*c[:even], r, *c[even + 1:]) for r, c in cells]


def _to_and_fro(sides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All cells of a grid, each a neighbour of the one before."""
    if not sides:
        return [()]
    inner = _to_and_fro(sides[1:])
    return [(i, *cell) for i in range(sides[0]) for cell in (inner if i % 2 == 0 else reversed(inner))]


def constrain_batch(tree, *, leading: int = 0):
    """Constrains every array's batch axis (after ``leading`` others) to the current mesh's batch axes.

    Without a current mesh (a tower used alone) it does nothing: there is nothing to shard. Nor is there over axes that a
    shard_map around it has taken in hand.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in batch_axes(mesh) if mesh.shape[a] > 1 and a not in mesh.manual_axes)
    if not axes:
        return tree
    spec = P(*([None] * leading), axes)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def process_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of the global batch that this process must feed, ascending: a host's chips are a square of the torus, so
    that on most TPU meshes there are gaps between them."""
    spans = {index[0].indices(batch)[:2] for index in batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()}
    return np.concatenate([np.arange(*span) for span in sorted(spans)])


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows of each array, as global arrays of leading size ``batch_size``."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value, (batch_size, *value.shape[1:]))
            for key, value in batch.items()}
