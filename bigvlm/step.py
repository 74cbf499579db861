"""The training step, written out: rounds, gradient, update, clamp, EMA; and the model's FLOPs.

One ``jax.jit`` with the layouts of its arguments (pjit, under today's name). It needs no data library, so that the
planner and the benchmarks can compile it anywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigvlm import model as model_lib, optim
from bigvlm.core import flops, layout as layout_lib, mesh as mesh_lib, paths, rounds as rounds_lib
from bigvlm.model import Model
from bigvlm.state import State, example_batch


def make(model: Model, optimizer: optim.Optimizer, stored: layout_lib.Layout, config: Mapping[str, Any], kind: str,
         reached: set[str] | None = None, sources: Mapping[int, str] | None = None
         ) -> Callable[[State, Mapping[str, Any]], tuple[State, dict[str, Any]]]:
    """``step(state, batch) -> (state, metrics)`` for batches of one kind; metrics are scalars.

    ``reached``: the modules that this kind's objectives touch; parameters of others get no update at all (no decay, no
    momentum). None for all. ``sources``: {number: name} of the data sets that this kind mixes: with two or more there are
    metrics of each, see ``by_source``.
    """
    teachers = _teachers(model, kind)
    second = model_lib.has_second_round(model, kind)

    def step(state: State, batch: Mapping[str, Any]):
        with layout_lib.activate(stored):
            key = jax.random.fold_in(state.key, state.step)
            trainable, frozen = optim.split(state.params, optimizer.trainable)
            rounds = _of_trainable(model_lib.rounds(model, key, kind, second), frozen)
            teacher = (lambda features_of: {name: features_of(state.ema[name]) for name in teachers}) if teachers else None
            (loss, metrics, collections), gradient = rounds_lib.value_and_grad(
                rounds, trainable, state.collections, batch, micro=config['micro'], teacher=teacher)

            updated, opt = optimizer.update(stored.as_moments(gradient), state.opt, stored.as_moments(trainable))
            updated = optim.clamp(updated, config['clamp'])
            if reached is not None:
                updated = {path: new if path.split('/')[0] in reached else trainable[path] for path, new in updated.items()}
                opt = optim.keep_unreached(opt, state.opt, trainable, lambda path: path.split('/')[0] in reached)
            ema = {name: optim.ema_update(old, updated, config['ema'][name]) for name, old in state.ema.items()}
            scalars, per_example = _apart(metrics)
            metrics = {'loss': loss, 'grad_norm': optim.global_norm(gradient), 'lr': optimizer.schedule(state.step), **scalars}
            if sources is not None and len(sources) > 1:
                metrics |= by_source(per_example, batch['id'][:, 0], sources)
            state = State(step=state.step + 1, params=optim.merge(updated, frozen), opt=opt, ema=ema, collections=collections,
                          key=state.key)
            return state, jax.tree.map(lambda x: jnp.asarray(x, float), metrics)  # float32, or float64 where jax computes in that
    return step


def _apart(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(scalars, metrics per example without their ``_B``). Those nobody asks for are never computed: the compiler drops them."""
    scalars = {name: value for name, value in metrics.items() if not name.endswith('_B')}
    return scalars, {name.removesuffix('_B'): value for name, value in metrics.items() if name.endswith('_B')}


def by_source(per_example: Mapping[str, jax.Array], number_B: jax.Array, sources: Mapping[int, str]) -> dict[str, jax.Array]:
    """``METRIC/NAME``: the mean of each metric [B] over the global batch's examples of data set NAME, and ``examples/NAME``,
    how many these are. Where there are none, the mean is 0: see ``present``.

    The mean of a metric over the batch is Σ examples/NAME · METRIC/NAME / B. One sum over devices, of a few numbers.
    """
    numbers_S = jnp.array(list(sources), jnp.uint32)
    value_MB = jnp.stack([jnp.ones(number_B.shape, jnp.float32), *(x.astype(jnp.float32) for x in per_example.values())])
    total_SM = jnp.where(numbers_S[:, None, None] == number_B, value_MB, 0.).sum(-1)
    count_S = total_SM[:, 0]
    mean_SM = total_SM / jnp.maximum(count_S, 1.)[:, None]
    found = {f'examples/{name}': count_S[s] for s, name in enumerate(sources.values())}
    return found | {f'{metric}/{name}': mean_SM[s, m] for m, metric in enumerate(per_example, start=1)
                    for s, name in enumerate(sources.values())}


def present(values: Mapping[str, float]) -> dict[str, float]:
    """Fetched metrics without the means of data sets of which the batch had no example; that they had none is told."""
    absent = {name.removeprefix('examples/') for name, count in values.items() if name.startswith('examples/') and not count}
    return {name: value for name, value in values.items() if not (name.count('/') > 1 and name.rpartition('/')[2] in absent)}


def _of_trainable(rounds: rounds_lib.Rounds, frozen: Mapping[str, Any]) -> rounds_lib.Rounds:
    """The same rounds as functions of the trainable parameters: what is frozen costs no backward pass."""
    def whole(function):
        return None if function is None else lambda trainable, *args: function(optim.merge(trainable, frozen), *args)
    return rounds_lib.Rounds(*map(whole, rounds[:-1]), prepare=rounds.prepare)


def _teachers(model: Model, kind: str) -> set[str]:
    objectives = [make() for make in model.objectives.values()]
    return {o.teacher for o in objectives if getattr(o, 'teacher', '') and kind in getattr(o, 'kinds', ('pairs',))}


def jit(step: Callable, mesh, state_shardings: State):
    """The step with its layouts: the state stays where it is stored (and is donated), batches over the batch axes."""
    def on_mesh(state, batch):
        with mesh_lib.activate(mesh):
            return step(state, batch)
    return jax.jit(on_mesh, in_shardings=(state_shardings, mesh_lib.batch_sharding(mesh)),
                   out_shardings=(state_shardings, mesh_lib.replicated(mesh)), donate_argnums=0)


def reached_modules(model: Model, kind: str, shapes: Mapping[str, Any], params: Any, collections: Any,
                    batch: int) -> set[str]:
    """The top-level modules that the objectives of this kind touch, found by tracing them abstractly on the global batch.

    Those of weight 0, which a stage or an ablation has switched off, reach nothing: their gradient is 0, and weight decay and momentum
    alone would move what only they use.
    """
    model, touched = model.clone(objectives={name: make for name, make in model.objectives.items() if make().weight}), set()

    def record(call, args, kwargs, context):
        if context.module.scope is not None and context.module.path:  # methods of unbound ones touch no parameter
            touched.add(context.module.path[0])
        return call(*args, **kwargs)

    def run(params, collections, batch):
        rounds = model_lib.rounds(model, jax.random.key(0), kind, model_lib.has_second_round(model, kind))
        batch = rounds.prepare(batch) if rounds.prepare is not None else batch
        features, collections = rounds.features(params, collections, batch)
        features2 = None
        if rounds.features2 is not None:
            pairs = rounds.pairs(params, collections, features, rounds.select(params, collections, features))
            features2, collections = rounds.features2(params, collections, pairs)
        return rounds.loss(params, collections, features, features2, {name: features for name in _teachers(model, kind)})
    no_mesh = jax.sharding.AbstractMesh((), ())  # so that no exchange is chosen
    with nn.intercept_methods(record), jax.sharding.use_abstract_mesh(no_mesh):
        jax.eval_shape(run, params, collections, example_batch(shapes, batch))
    return touched


def model_flops(config: Mapping[str, Any], optimizer: optim.Optimizer, kind: str, shapes: Mapping[str, Any], state: State) -> int:
    """FLOPs of one step over the global batch, forward and backward, without what rematerialisation and micro-batching repeat.

    This is the numerator of MFU. A frozen tower counts forward only; dropped patches and augmentation do not count.
    """
    model = model_lib.from_config(dict(config, augment={}), remat='none', attention='xla')  # kernels pad; the formula does not
    second = model_lib.has_second_round(model, kind)

    def gradient(params, collections, batch):
        trainable, frozen = optim.split(params, optimizer.trainable)
        rounds = _of_trainable(model_lib.rounds(model, jax.random.key(0), kind, second), frozen)
        def teacher(features_of):
            return {name: features_of(trainable) for name in _teachers(model, kind)}
        return rounds_lib.value_and_grad(rounds, trainable, collections, batch, teacher=teacher)
    return flops.count(gradient, state.params, state.collections, example_batch(shapes, config['batch']))


def parameter_columns(optimizer: optim.Optimizer) -> dict[str, dict[str, str]]:
    """Columns of the parameter table: weight decay and learning-rate multipliers, or that it is frozen."""
    decay = {path: f'{d:g}' for path, (d, _) in optimizer.table.items()}
    rate = {path: f'{r:g}' if optimizer.trainable[path] else 'frozen' for path, (_, r) in optimizer.table.items()}
    return {'decay': decay, 'rate': rate}


def flat_params(state: State) -> dict[str, Any]:
    return paths.flatten(state.params)
