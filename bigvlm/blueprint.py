"""What a recipe amounts to before anything is allocated: abstract state, optimizer, and, on a mesh, layouts and the step.

The trainer, the planner and the benchmarks all start here. It needs no data: where no data say otherwise, a batch has
the shapes that the towers take.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigvlm import model as model_lib, optim, recipe, step as step_lib
from bigvlm.core import durations, layout as layout_lib, mesh as mesh_lib, paths
from bigvlm.core.parts import RecipeError
from bigvlm.nn import augment
from bigvlm.state import State, abstract_variables, example_batch, expected_shapes, initializer, shardings


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A recipe without devices. ``shapes``: {kind: {key: (example shape, dtype)}}; ``abstract``: ShapeDtypeStructs;
    ``sources``: {kind: {number: name}} of the data sets that a kind mixes, which get losses of their own."""
    config: Mapping[str, Any]
    model: model_lib.Model
    shapes: Mapping[str, Any]
    optimizer: optim.Optimizer
    total_steps: int
    units: Mapping[str, Any]
    abstract: State
    sources: Mapping[str, Mapping[int, str]]

    def model_flops(self, kind: str) -> int:
        """FLOPs of one step over the global batch, as MFU counts them."""
        return step_lib.model_flops(self.config, self.optimizer, kind, self.shapes[kind], self.abstract)

    def on(self, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> 'Placed':
        """Raises RecipeError if the batch cannot be split over the mesh, or a layout rule is wrong on it."""
        recipe.check_mesh(self.config, mesh_lib.batch_shards(mesh))
        stored = layout_lib.make(self.config['layout'], dict(sorted(paths.flatten(self.abstract.params).items())), mesh)
        return Placed(self, mesh, stored, shardings(self.abstract, stored, mesh))


@dataclasses.dataclass(frozen=True)
class Placed:
    """A blueprint on a mesh: where everything is stored, and the jitted functions."""
    plan: Blueprint
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    stored: layout_lib.Layout
    shardings: State

    def init(self):
        """``init(seed, loaded) -> State``, jitted: each parameter is made where it is stored, or given away by ``loaded``."""
        p = self.plan
        return jax.jit(initializer(p.model, p.optimizer, p.shapes, p.config['ema']), out_shardings=self.shardings, donate_argnums=1)

    def drawn(self, path: str):
        """``drawn(seed)``, jitted: one of ``variables`` as it is without anything loaded, on every device."""
        p = self.plan
        init = initializer(p.model, p.optimizer, p.shapes, p.config['ema'])

        def one(seed):
            state = init(seed)
            return (paths.flatten(state.params) | paths.flatten(state.collections.get('batch_stats', {})))[path]
        return jax.jit(one, out_shardings=mesh_lib.replicated(self.mesh))

    def variables(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape, type and layout} of parameters and running statistics: what ``init`` takes as loaded."""
        state = self.state()
        return paths.flatten(state.params) | paths.flatten(state.collections.get('batch_stats', {}))

    def step(self, kind: str):
        """``step(state, batch) -> (state, metrics)``, jitted; what no objective of this kind reaches gets no update."""
        p = self.plan
        reached = step_lib.reached_modules(p.model, kind, p.shapes[kind], p.abstract.params, p.abstract.collections,
                                           p.config['batch'])
        step = step_lib.make(p.model, p.optimizer, self.stored, p.config, kind, reached, p.sources.get(kind))
        return step_lib.jit(step, self.mesh, self.shardings)

    def state(self) -> State:
        """The state's shapes, types and layouts: for restoring, and for compiling."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.plan.abstract, self.shardings)

    def batch(self, kind: str) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch's shapes, types and layout."""
        layout = mesh_lib.batch_sharding(self.mesh)
        return {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
                for key, x in example_batch(self.plan.shapes[kind], self.plan.config['batch']).items()}

    def table(self) -> str:
        """The parameters: shape, type, stored layout, bytes per device, weight decay, rate."""
        flat = dict(sorted(paths.flatten(self.plan.abstract.params).items()))
        return layout_lib.table(flat, self.stored, self.mesh, step_lib.parameter_columns(self.plan.optimizer))


def check_norm_groups(config: Mapping[str, Any], model: model_lib.Model) -> None:
    """Raises RecipeError for towers whose batch norm would see other groups with micro-batches than without."""
    piece = config['batch'] // config['micro']
    for name, build in model.towers.items():
        tower = build()
        if not hasattr(tower, 'bn_group') or tower.bn_frozen or config['micro'] == 1:
            continue
        whole = tower.bn_group * tower.bn_blocks
        if not whole or piece % whole:
            raise RecipeError(f'towers.{name}.bn_group: found {tower.bn_group} (bn_blocks {tower.bn_blocks}) with micro-batches of '
                              f'{piece}; valid: bn_group · bn_blocks a divisor of {piece}, or micro=1')


def make(config: Mapping[str, Any], *, examples_per_epoch: int, shapes: Mapping[str, Any] | None = None,
         model: model_lib.Model | None = None, sources: Mapping[str, Mapping[int, str]] | None = None) -> Blueprint:
    """Of a resolved recipe. Raises RecipeError for whatever can be found wrong without data and devices."""
    model = model or model_lib.from_config(config)
    shapes = shapes or {kind: expected_shapes(model, kind) for kind in config['kinds']}
    augment.check(config['augment'], shapes)
    check_norm_groups(config, model)
    params, _ = abstract_variables(model, shapes)
    units = dict(batch=config['batch'], examples_per_epoch=examples_per_epoch)
    units['total_steps'] = durations.steps(config['steps'], what='steps', **units)
    optimizer = optim.build(config['optim'], params=params, **units)
    optim.clamp(dict.fromkeys(paths.flatten(params), np.zeros(())), config['clamp'])  # its rules match something
    abstract = jax.eval_shape(initializer(model, optimizer, shapes, config['ema']), np.uint32(0))
    return Blueprint(config, model, shapes, optimizer, units['total_steps'], units, abstract, sources or {})
