"""The state of a run: everything that is trained, carried or drawn from, saved together."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding

from bigvlm import optim
from bigvlm.core import layout as layout_lib, mesh as mesh_lib, paths
from bigvlm.model import Model


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
        for field in ('image', 'text'):
            key = getattr(objective, field, None)
            if key is not None:
                tower = getattr(objective, f'{field}_tower', '') or key
                shapes[key] = model.towers[tower]().example()
        if getattr(objective, 'target', '') == 'labels':
            shapes['label'] = ((), 'int32')
        if hasattr(objective, 'example'):  # keys that no tower reads
            shapes |= objective.example()
    return shapes


def abstract_variables(model: Model, kinds: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    """(params, collections) as ShapeDtypeStructs; nothing is computed. ``kinds``: {kind: {key: (shape, dtype)}}."""
    batches = {kind: example_batch(shapes, smallest_batch()) for kind, shapes in kinds.items()}
    variables = dict(jax.eval_shape(lambda key, b: model.init(key, b, method='init_all'), jax.random.key(0), batches))
    return variables.pop('params'), variables


def initializer(model: Model, optimizer: optim.Optimizer, kinds: Mapping[str, Mapping[str, Any]], ema: Mapping[str, float]):
    """``init(seed) -> State``; pure, to be evaluated abstractly or jitted with output layouts."""
    def init(seed):
        batches = {kind: {key: np.zeros((smallest_batch(), *shape), dtype) for key, (shape, dtype) in shapes.items()}
                   for kind, shapes in kinds.items()}
        init_key, run_key = jax.random.split(jax.random.key(seed))
        variables = dict(model.init(init_key, batches, method='init_all'))
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
        collections=jax.tree.map(lambda _: mesh_lib.replicated(mesh), state.collections),
        key=mesh_lib.replicated(mesh))
