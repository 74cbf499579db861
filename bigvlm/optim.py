"""The optimizer: which parameters move, in which direction, and how far; and what happens to them after the update.

Parameters are handled as flat dicts ``{path: leaf}`` of the trainable ones only: what is frozen has no gradient, no
optimizer state and no update. The optimizer's state is made of such dicts too, so that layouts and checkpoints follow
the parameters' paths.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm import schedules
from bigvlm.core import parts, paths
from bigvlm.core.parts import RecipeError

Flat = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What ``build`` makes.

    tx: the gradient transformation over the trainable ``{path: leaf}``.
    schedule: step -> learning rate, before the rates by path.
    trainable: for every path, whether it is trained.
    table: for every path, (weight-decay multiplier, learning-rate multiplier); (0, 0) where frozen.
    """
    tx: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    trainable: Mapping[str, bool]
    table: Mapping[str, tuple[float, float]]

    def update(self, gradient: Flat, state: Any, trainable: Flat) -> tuple[dict[str, Any], Any]:
        """(updated parameters, new optimizer state)."""
        step, state = self.tx.update(dict(gradient), state, dict(trainable))
        return {path: x + step[path].astype(x.dtype) for path, x in trainable.items()}, state


# --- directions: one function per optimizer; its keyword arguments are the recipe's fields ---

def adamw(*, b1: float = .9, b2: float = .999, eps: float = 1e-8,
          mu_dtype: str = 'float32') -> optax.GradientTransformation:
    """Adam's direction (Kingma and Ba, arXiv 1412.6980). ``mu_dtype``: how the first moment is kept."""
    _fractions(b1=b1, b2=b2)
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=_moment_dtype('mu_dtype', mu_dtype))


def adafactor(*, momentum: float = .9, momentum_dtype: str = 'bfloat16', b2_cap: float = .999, b2_power: float = .8,
              eps: float = 1e-30, factor_from: int = 32, clip_rms: float = 0.) -> optax.GradientTransformation:
    """Adafactor's direction (Shazeer and Stern, arXiv 1804.04235) as ViT-G was trained (Zhai et al., arXiv 2106.04560).

    The second moment is factored over the two largest dimensions if both are at least ``factor_from``; its decay is
    min(b2_cap, 1 − t^−b2_power); no scaling by the parameters' size; momentum without bias correction. ``clip_rms``
    limits the root mean square of each parameter's update (0: no limit).
    """
    _fractions(momentum=momentum, b2_cap=b2_cap)

    def decay_rate(count, power):
        return jnp.minimum(b2_cap, 1. - (jnp.asarray(count, jnp.float32) + 1.) ** -power)
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=b2_power, min_dim_size_to_factor=factor_from, epsilon=eps,
                                    decay_rate_fn=decay_rate),
        optax.clip_by_block_rms(clip_rms) if clip_rms else optax.identity(),
        optax.ema(momentum, debias=False, accumulator_dtype=_moment_dtype('momentum_dtype', momentum_dtype)))


OPTIMIZERS = {f.__name__: f for f in (adamw, adafactor)}


def _fractions(**fields: float) -> None:
    for name, value in fields.items():
        if not 0. <= value < 1.:
            raise RecipeError(f'optim.{name}: {value!r} must be at least 0 and below 1')


def _moment_dtype(field: str, dtype: str):
    if dtype not in ('float32', 'bfloat16'):
        raise RecipeError(f'optim.{field}: {dtype!r} (valid: float32, bfloat16)')
    return jnp.dtype(dtype)


# --- building ---

@dataclasses.dataclass(frozen=True)
class _Common:
    """The fields of every optimizer.

    ``clip``: the largest global norm of the gradient (0: no limit). ``weight_decay`` is decoupled (arXiv 1711.05101);
    ``decay_by``: 'lr' takes lr · schedule · rate · weight_decay · p off p, as AdamW in PyTorch and optax; 'schedule'
    takes schedule · weight_decay · p, as big_vision, whose published values are therefore smaller by the factor lr.
    ``decay`` and ``rates``: rule lists of multipliers; ``freeze``: regexes of parameters that are not trained.
    """
    lr: float
    weight_decay: float = 0.
    decay_by: str = 'lr'
    clip: float = 0.
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'name': 'cosine'})
    decay: Sequence[tuple[str, float]] = (('.*/kernel', 1.), ('.*', 0.))
    rates: Sequence[tuple[str, float]] = (('.*', 1.),)
    freeze: Sequence[str] = ()

    def __post_init__(self):
        for name in ('lr', 'weight_decay', 'clip'):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or value < 0 or (name == 'lr' and value == 0):
                least = 'above' if name == 'lr' else 'at least'
                raise RecipeError(f'optim.{name}: {value!r} must be a number, {least} 0')
        if self.decay_by not in ('lr', 'schedule'):
            raise RecipeError(f'optim.decay_by: {self.decay_by!r} (valid: lr, schedule)')


def build(spec: Mapping[str, Any], *, total_steps: int, batch: int, examples_per_epoch: int | None,
          params: Any) -> Optimizer:
    """The optimizer that the recipe's ``optim`` describes.

    Args:
        spec: ``{name, lr, …}``: the fields of ``_Common`` and of the optimizer's function.
        total_steps, batch, examples_per_epoch: of the run, for durations.
        params: the parameters, nested by module; only paths are read, so they may be abstract.

    Raises:
        RecipeError: an unknown or impossible field, or a rule that matches no parameter.
    """
    fields = parts.freeze(dict(spec))
    name = fields.pop('name', None)
    if name not in OPTIMIZERS:
        raise RecipeError(f'optim.name: {name!r} (valid: {", ".join(OPTIMIZERS)})')
    common, own = [f.name for f in dataclasses.fields(_Common)], list(inspect.signature(OPTIMIZERS[name]).parameters)
    unknown = set(fields) - {*common, *own}
    if unknown:
        raise RecipeError(f'optim.{min(unknown)}: {name} has no such field (valid: {", ".join([*common, *own])})')
    if 'lr' not in fields:
        raise RecipeError('optim.lr: this field is required')
    settings = _Common(**{k: v for k, v in fields.items() if k in common})
    direction = OPTIMIZERS[name](**{k: v for k, v in fields.items() if k in own})

    trainable, table = _by_path(settings, list(paths.flatten(params)))
    multiplier = schedules.build(settings.schedule, peak=settings.lr, total_steps=total_steps, batch=batch,
                                 examples_per_epoch=examples_per_epoch)
    tx = optax.named_chain(('clip', optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()),
                           (name, direction), ('step', _step(settings, multiplier, table)))
    return Optimizer(tx, lambda step: settings.lr * multiplier(step), trainable, table)


def complete(spec: Any) -> None:
    """Writes the defaults of the optimizer's and its schedule's fields into the recipe's ``optim``."""
    def fill(spec, defaults: Mapping[str, Any]):
        for key, value in defaults.items():
            if key not in spec:
                spec[key] = value
    common = {f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory()
              for f in dataclasses.fields(_Common) if f.name != 'lr'}
    own = inspect.signature(OPTIMIZERS[spec.name]).parameters if spec.get('name') in OPTIMIZERS else {}
    fill(spec, common | {key: p.default for key, p in own.items()})
    fill(spec.schedule, schedules.defaults(spec.schedule.get('name')))


def _by_path(settings: _Common, names: list[str]) -> tuple[dict[str, bool], dict[str, tuple[float, float]]]:
    """Rules are matched against all paths, so that freezing a tower does not make its rules errors."""
    frozen = paths.select(settings.freeze, names, what='optim.freeze')
    if len(frozen) == len(names):
        raise RecipeError('optim.freeze: every parameter is frozen; there is nothing to train')
    decay = paths.match(settings.decay, names, what='optim.decay')
    rates = paths.match(settings.rates, names, what='optim.rates')
    for path, rate in rates.items():
        if not rate > 0.:
            raise RecipeError(f'optim.rates: {rate!r} for {path!r} must be above 0; use optim.freeze to stop it')
    table = {path: (0., 0.) if path in frozen else (float(decay[path]), float(rates[path])) for path in names}
    return {path: path not in frozen for path in names}, table


class StepState(NamedTuple):
    count: Any  # int32 scalar: updates made


def _step(settings: _Common, multiplier: Callable,
          table: Mapping[str, tuple[float, float]]) -> optax.GradientTransformation:
    """From a direction to the update: rates, schedule and decoupled weight decay, path by path."""
    def init(params):
        return StepState(jnp.zeros((), jnp.int32))

    def update(directions, state, params):
        scheduled = multiplier(state.count)

        def one(path: str):
            decay, rate = table[path]
            taken = settings.lr * rate * scheduled * directions[path]
            if settings.weight_decay * decay:
                per_weight = settings.lr * rate if settings.decay_by == 'lr' else 1.
                taken = taken + per_weight * scheduled * settings.weight_decay * decay * params[path]
            return -taken
        return {path: one(path) for path in directions}, StepState(state.count + 1)
    return optax.GradientTransformation(init, update)


# --- parameters, trainable and frozen ---

def split(params: Any, trainable: Mapping[str, bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested parameters as two flat dicts ``{path: leaf}``: (trainable, frozen)."""
    flat = paths.flatten(params)
    return ({path: x for path, x in flat.items() if trainable[path]},
            {path: x for path, x in flat.items() if not trainable[path]})


def merge(trainable: Flat, frozen: Flat) -> dict[str, Any]:
    """The nested parameters that ``split`` took apart."""
    return paths.unflatten({**trainable, **frozen})


def clamp(params: Flat, rules: Iterable[tuple[str, float | None, float | None]], what: str = 'clamp') -> dict[str, Any]:
    """Limits what ``(regex, low, high)`` rules match; None is no limit. For after the update (temperatures)."""
    rules = [tuple(rule) for rule in rules]
    for rule in rules:
        if len(rule) != 3 or (None not in rule and rule[1] > rule[2]):
            raise RecipeError(f'{what}: {rule!r} is not (regex, low, high)')
    limits = paths.match(rules, params, what=what, cover=False)
    return {path: jnp.clip(x, *limits[path]) if path in limits else x for path, x in params.items()}


def ema_update(ema: Flat, params: Flat, decay: float) -> dict[str, Any]:
    """decay · ema + (1 − decay) · params, written so that what does not move stays bit for bit."""
    return {path: old + (1. - decay) * (params[path] - old) for path, old in ema.items()}


def global_norm(gradient: Any):
    """The Euclidean norm over all leaves, float32; of gradients, before clipping."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(gradient)))


# --- the optimizer's state, by parameter path ---

def state_paths(state: Any, params: Flat) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """For every leaf of an (abstract) optimizer state: its own path -> (its parameter's path or None, its shape)."""
    return {paths.from_key_path(key_path): (_owner(key_path, params), tuple(leaf.shape))
            for key_path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _owner(key_path: Sequence[Any], params: Flat) -> str | None:
    last = key_path[-1]
    return last.key if isinstance(last, jax.tree_util.DictKey) and last.key in params else None


def state_shardings(state: Any, params: Flat, specs: Mapping[str, P], mesh) -> Any:
    """The layout of an (abstract) optimizer state: moments as their parameter, factored ones without the dimension that
    was averaged over, the rest replicated. Same structure as ``state``, NamedShardings for leaves.

    ``params``: {path: array or ShapeDtypeStruct}; ``specs``: {path: stored PartitionSpec}.
    """
    def of(key_path, leaf):
        path = _owner(key_path, params)
        if path is None:
            return NamedSharding(mesh, P())
        field = paths.from_key_path(key_path[:-1])
        return NamedSharding(mesh, _moment_spec(field, leaf.shape, params[path].shape, specs[path]))
    return jax.tree_util.tree_map_with_path(of, state)


def _moment_spec(field: str, shape: tuple[int, ...], of_param: tuple[int, ...], spec: P) -> P:
    if shape == of_param:
        return spec
    if len(of_param) < 2:
        return P()
    # optax averages v_row over the largest dimension and v_col over the second largest, by argsort.
    averaged = int(np.argsort(of_param)[-2 if field.endswith('v_col') else -1])
    if shape != of_param[:averaged] + of_param[averaged + 1:]:
        return P()  # optax keeps one number in place of a moment that it does not need
    axes = [*spec, *[None] * (len(of_param) - len(spec))]
    return P(*axes[:averaged], *axes[averaged + 1:])


def keep_unreached(new: Any, old: Any, params: Flat, reached: Callable[[str], bool]) -> Any:
    """The new optimizer state, with the old moments of parameters for which ``reached(path)`` is false."""
    def choose(key_path, new_leaf, old_leaf):
        path = _owner(key_path, params)
        return new_leaf if path is None or reached(path) else old_leaf
    return jax.tree_util.tree_map_with_path(choose, new, old)
