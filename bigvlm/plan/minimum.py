"""The least that a recipe's layouts ask to be moved, from the recipe and the mesh alone; no compiled program is looked at.

Bytes are counted as in ``hlo``: the whole array on one device. Per parameter, with N micro-batches:

- *gathers* of what is stored split over batch axes, in the compute dtype: once per forward pass, and once more for the
  backward pass where the block is rematerialised. Micro-batching runs the forward pass twice: 1 or 2 gathers without,
  2N or 3N with it. A tower of which nothing is trained only goes forward;
- *reduce-scatter* of its gradient, N times, and once an *all-reduce* of the part that is left over the other batch axes;
- an *all-reduce* of the gradient of what is stored on every device, once. With ZeRO-1 (moments split) it is a
  reduce-scatter, and the new parameters are gathered, in the dtype that they are stored in.

What is summed over micro-batches first is in the dtype of the stored parameter. Then what losses send, as they say it
themselves: the collectives that are written out in code that has all mesh axes in hand (``jax.shard_map``), each as often
as it runs (a ring's hops, a gather and its reduce-scatter, statistics).

Not in it: activations under tensor parallelism, which are split inside a block; a second round's forward pass; metrics.
Axes of size 1 move nothing.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from bigvlm import step as step_lib
from bigvlm.blueprint import Placed
from bigvlm.core import mesh as mesh_lib, paths
from bigvlm.plan import hlo


class Needed(NamedTuple):
    """``bytes`` and ``wire`` per step and device; ``what`` it is for: 'parameters', 'gradients', 'update' or 'losses'."""
    what: str
    kind: str
    axes: tuple[str, ...]
    bytes: float
    wire: float


def of(placed: Placed, kind: str, jaxpr: Any) -> list[Needed]:
    """Everything that a step on batches of ``kind`` must move; ``jaxpr``: of that step. One row per purpose, kind and axes."""
    rows = [*parameters(placed, reached(placed, kind)), *written_out(jaxpr, dict(placed.mesh.shape))]
    found: dict[tuple, Needed] = {}
    for row in rows:
        if row.bytes:
            key = row[:3]
            before = found.get(key, Needed(*key, 0., 0.))
            found[key] = Needed(*key, before.bytes + row.bytes, before.wire + row.wire)
    return sorted(found.values(), key=lambda row: -row.bytes)


def _needed(what: str, kind: str, axes: tuple[str, ...], size: float, times: int, shape: dict[str, int]) -> Needed:
    ways = math.prod(shape[a] for a in axes)
    axes = tuple(a for a in axes if shape[a] > 1)
    if ways == 1:
        return Needed(what, kind, axes, 0., 0.)
    return Needed(what, kind, axes, times * size, times * hlo.wire(kind, size, ways))


def reached(placed: Placed, kind: str) -> set[str]:
    """The modules that a step on batches of ``kind`` touches: parameters of others move nothing."""
    plan = placed.plan
    return step_lib.reached_modules(plan.model, kind, plan.shapes[kind], plan.abstract.params, plan.abstract.collections,
                                    plan.config['batch'])


def parameters(placed: Placed, modules: set[str]) -> Iterator[Needed]:
    """What the parameters of ``modules`` and their gradients move; no step is traced for it."""
    plan, shape = placed.plan, dict(placed.mesh.shape)
    config, trainable = plan.config, plan.optimizer.trainable
    flat = paths.flatten(plan.abstract.params)
    trained = {path.split('/')[0] for path in flat if trainable[path]}
    for path, x in flat.items():
        module = path.split('/')[0]
        if module in modules:
            tower = {**config['towers'], **config['fusion'], **config['decoders']}.get(module, {})
            yield from _one(path, x, placed, shape, tower, config['micro'], module in trained, trainable[path])


def _one(path: str, x: Any, placed: Placed, shape: dict[str, int], tower: dict, micro: int, backward: bool, trainable: bool
         ) -> Iterator[Needed]:
    """What one parameter moves. ``tower``: its tower's fields; ``backward``: whether the tower is trained at all."""
    used = jnp.dtype(tower.get('dtype', x.dtype)).itemsize
    stored, moments = _axes(placed.stored.specs[path]), _axes(placed.stored.moment(path))
    split = tuple(a for a in mesh_lib.BATCH_AXES if a in stored and shape[a] > 1)
    size = math.prod(x.shape) / (shape['tensor'] if 'tensor' in stored else 1)

    again = backward and 'blocks' in path.split('/') and tower.get('remat', 'none') != 'none'
    passes = (1 if micro == 1 else 2 * micro if backward else micro) + (micro if again else 0)
    if split:
        yield _needed('parameters', 'all-gather', split, size * used, passes, shape)
    if not trainable:
        return
    summed = used if micro == 1 else x.dtype.itemsize
    reduced = split or tuple(a for a in mesh_lib.BATCH_AXES if a in moments and shape[a] > 1)
    rest = tuple(a for a in mesh_lib.BATCH_AXES if a not in reduced and shape[a] > 1)
    if split:
        yield _needed('gradients', 'reduce-scatter', split, size * used, micro, shape)
    elif reduced:
        yield _needed('gradients', 'reduce-scatter', reduced, size * summed, 1, shape)
        yield _needed('update', 'all-gather', reduced, size * x.dtype.itemsize, 1, shape)
    yield _needed('gradients', 'all-reduce', rest, size * summed / math.prod(shape[a] for a in reduced), 1, shape)


def _axes(spec: Any) -> set[str]:
    return {axis for axes in spec if axes is not None for axis in ((axes,) if isinstance(axes, str) else axes)}


# Collectives that code writes out, by the primitive's name: (as hlo calls it, whether it counts what it gives).
_PRIMITIVES = {
    'all_gather': ('all-gather', True), 'all_gather_invariant': ('all-gather', True), 'reduce_scatter': ('reduce-scatter', False),
    'psum': ('all-reduce', False), 'psum_invariant': ('all-reduce', False), 'pmax': ('all-reduce', False),
    'pmin': ('all-reduce', False), 'ppermute': ('collective-permute', False), 'all_to_all': ('all-to-all', False)}


def written_out(jaxpr: Any, shape: dict[str, int], times: int = 1, whole: bool = False) -> Iterator[Needed]:
    """The collectives that a jaxpr writes out on a mesh of this shape; ``whole``: in code that has all its axes in hand."""
    while hasattr(jaxpr, 'jaxpr') and not hasattr(jaxpr, 'eqns'):
        jaxpr = jaxpr.jaxpr
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name in _PRIMITIVES and whole:
            kind, gives = _PRIMITIVES[name]
            axes = params['axis_name'] if 'axis_name' in params else params['axes']
            axes = (axes,) if isinstance(axes, str) else tuple(axes)
            size = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (eqn.outvars if gives else eqn.invars))
            yield _needed('losses', kind, axes, size, times, shape)
        inner_times = times * (params['length'] if name == 'scan' else 1)
        inner_whole = whole or name == 'shard_map' and _in_hand(params) == set(shape)
        for value in params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(item, 'eqns') or hasattr(item, 'jaxpr'):
                    yield from written_out(item, shape, inner_times, inner_whole)


def _in_hand(params: Any) -> set[str]:
    """The axes that a shard_map takes in hand."""
    return set(params['newly_manual_axes'] if 'newly_manual_axes' in params else params['manual_axes'])  # its name in earlier jax
