"""The state of a run: everything that is trained, carried or drawn from, saved together."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm import optim
from bigvlm.core import layout as layout_lib, mesh as mesh_lib, paths
from bigvlm.model import Model, prepare, towers_of


LOADABLE = ('params', 'batch_stats')  # collections that other libraries' files hold, too; their paths differ


@struct.dataclass
class State:
    """Parameters (nested by module name), optimizer state of the trainable ones, EMAs of them ({name: {path: leaf}}),
    variable collections, the step about to be taken (int32), and the run's key. All randomness is folded from
    (key, step), so nothing else needs to be kept."""
    step: Any
    params: Any
    opt: Any
    ema: Any
    collections: Any
    key: Any


def smallest_batch() -> int:
    """A few examples, as many as the current mesh can split: for tracing what does not depend on the batch's size."""
    mesh = jax.sharding.get_abstract_mesh()
    return 2 if mesh.empty else 2 * mesh_lib.batch_shards(mesh)


def example_batch(shapes: Mapping[str, tuple[tuple[int, ...], Any]], size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of ``size`` examples from ``{key: (example shape, dtype)}``."""
    return {key: jax.ShapeDtypeStruct((size, *shape), dtype) for key, (shape, dtype) in shapes.items()}


def expected_shapes(model: Model, kind: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """{key: (example shape, dtype)} that the objectives of this kind read, by what their towers take: a batch without data."""
    shapes: dict[str, Any] = {'id': ((2,), 'uint32')}
    for make in model.objectives.values():
        objective = make()
        if kind not in getattr(objective, 'kinds', ('pairs',)):
            continue
        shapes |= {key: model.towers[tower]().example() for key, (_, tower) in towers_of(objective).items()}
        if getattr(objective, 'target', '') == 'labels':
            shapes['label'] = ((), 'int32')
        if hasattr(objective, 'example'):  # keys that no tower reads
            shapes |= objective.example()
    return shapes


def abstract_variables(model: Model, kinds: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    """(params, collections) as ShapeDtypeStructs; nothing is computed. ``kinds``: {kind: {key: (shape, dtype)}}."""
    batches = {kind: example_batch(shapes, smallest_batch()) for kind, shapes in kinds.items()}
    variables = dict(jax.eval_shape(functools.partial(_variables, model), jax.random.key(0), batches))
    return variables.pop('params'), variables


def _variables(model: Model, key, batches: Mapping[str, Any]) -> Mapping[str, Any]:
    return model.init(key, {kind: prepare(model, batch, key, kind) for kind, batch in batches.items()}, method='init_all')


def initializer(model: Model, optimizer: optim.Optimizer, kinds: Mapping[str, Mapping[str, Any]], ema: Mapping[str, float]):
    """``init(seed, loaded) -> State``; pure, to be evaluated abstractly or jitted with output layouts.

    ``loaded``: {path: array} of parameters and running statistics that are taken as they are; what would have been drawn for
    them is not computed. Averages, and what the optimizer keeps of parameters, begin with them.
    """
    def init(seed, loaded={}):  # noqa: B006  it is not changed
        batches = {kind: {key: np.zeros((smallest_batch(), *shape), dtype) for key, (shape, dtype) in shapes.items()}
                   for kind, shapes in kinds.items()}
        init_key, run_key = jax.random.split(jax.random.key(seed))
        variables = dict(_variables(model, init_key, batches))
        variables = {name: paths.unflatten({path: loaded.get(path, x) for path, x in paths.flatten(arrays).items()})
                     if name in LOADABLE else arrays for name, arrays in variables.items()}
        params = variables.pop('params')
        trainable, _ = optim.split(params, optimizer.trainable)
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=optimizer.tx.init(trainable),
                     ema={name: trainable for name in ema}, collections=variables, key=run_key)
    return init


def shardings(state: State, stored: layout_lib.Layout, mesh) -> State:
    """The layout of every leaf of an (abstract) state. Optimizer moments and EMAs follow their parameter."""
    flat = paths.flatten(state.params)
    moments = {path: stored.moment(path) for path in flat}
    return State(
        step=mesh_lib.replicated(mesh),
        params=paths.unflatten(stored.shardings(mesh, flat)),
        opt=optim.state_shardings(state.opt, flat, moments, mesh),
        ema={name: {path: NamedSharding(mesh, moments[path]) for path in values} for name, values in state.ema.items()},
        collections={name: jax.tree.map(functools.partial(_collection_sharding, name, mesh), arrays)
                     for name, arrays in state.collections.items()},
        key=mesh_lib.replicated(mesh))


def _collection_sharding(collection: str, mesh, array) -> NamedSharding:
    """Queues keep whole batches, [batches, B, …], each example where the batch has it; the rest is small and everywhere."""
    if collection == 'queue' and len(array.shape) > 1:
        return NamedSharding(mesh, P(None, mesh_lib.batch_axes(mesh)))
    return mesh_lib.replicated(mesh)
