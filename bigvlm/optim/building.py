"""From the recipe's ``optim`` to an update: clipping, direction, rates by path, schedule, weight decay, lookahead."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigvlm import schedules
from bigvlm.core import parts, paths
from bigvlm.core.parts import RecipeError
from bigvlm.optim import directions, muon

OPTIMIZERS = {f.__name__: f for f in (directions.adamw, directions.adafactor, directions.lamb, directions.sgd, directions.lion,
                                      muon.muon)}
_GIVEN = 'shapes'  # {path: shape} of all parameters, for optimizers that declare it; never written in a recipe


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

    def update(self, gradient: Mapping[str, Any], state: Any, trainable: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """(updated parameters, new optimizer state)."""
        step, state = self.tx.update(dict(gradient), state, dict(trainable))
        return {path: x + step[path].astype(x.dtype) for path, x in trainable.items()}, state


@dataclasses.dataclass(frozen=True)
class _Common:
    """The fields of every optimizer.

    ``clip``: the largest global norm of the gradient (0: no limit). ``weight_decay`` is decoupled (arXiv 1711.05101);
    ``decay_by``: 'lr' takes lr · schedule · rate · weight_decay · p off p, as AdamW in PyTorch and optax; 'schedule'
    takes schedule · weight_decay · p, as big_vision, whose published values are therefore smaller by the factor lr;
    'gradient' is not decoupled but adds weight_decay · p to the clipped gradient, as SGD in PyTorch.
    ``decay`` and ``rates``: rule lists of multipliers; ``freeze``: regexes of parameters that are not trained.
    ``lookahead``: steps between synchronisations (0: none), ``lookahead_alpha``: how far the slow weights then go.
    """
    lr: float
    weight_decay: float = 0.
    decay_by: str = 'lr'
    clip: float = 0.
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'name': 'cosine'})
    decay: Sequence[tuple[str, float]] = (('.*/kernel', 1.), ('.*', 0.))
    rates: Sequence[tuple[str, float]] = (('.*', 1.),)
    freeze: Sequence[str] = ()
    lookahead: int = 0
    lookahead_alpha: float = .5

    def __post_init__(self):
        for name in ('lr', 'weight_decay', 'clip'):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or value < 0 or (name == 'lr' and value == 0):
                least = 'above' if name == 'lr' else 'at least'
                raise RecipeError(f'optim.{name}: {value!r} must be a number, {least} 0')
        if self.decay_by not in ('lr', 'schedule', 'gradient'):
            raise RecipeError(f'optim.decay_by: {self.decay_by!r} (valid: lr, schedule, gradient)')
        if not isinstance(self.lookahead, int) or isinstance(self.lookahead, bool) or self.lookahead < 0:
            raise RecipeError(f'optim.lookahead: {self.lookahead!r} must be a whole number of steps, at least 0')
        if not 0. < self.lookahead_alpha <= 1.:
            raise RecipeError(f'optim.lookahead_alpha: {self.lookahead_alpha!r} must be above 0 and at most 1')


def build(spec: Mapping[str, Any], *, total_steps: int, batch: int, examples_per_epoch: int | None,
          params: Any) -> Optimizer:
    """The optimizer that the recipe's ``optim`` describes.

    Args:
        spec: ``{name, lr, …}``: the fields of ``_Common`` and of the optimizer's function.
        total_steps, batch, examples_per_epoch: of the run, for durations.
        params: the parameters, nested by module; only paths and shapes are read, so they may be abstract.

    Raises:
        RecipeError: an unknown or impossible field, or a rule that matches no parameter.
    """
    fields = parts.freeze(dict(spec))
    name = fields.pop('name', None)
    if name not in OPTIMIZERS:
        raise RecipeError(f'optim.name: {name!r} (valid: {", ".join(OPTIMIZERS)})')
    common, own = [f.name for f in dataclasses.fields(_Common)], list(_fields(name))
    unknown = set(fields) - {*common, *own}
    if unknown:
        raise RecipeError(f'optim.{min(unknown)}: {name} has no such field (valid: {", ".join([*common, *own])})')
    if 'lr' not in fields:
        raise RecipeError('optim.lr: this field is required')
    settings = _Common(**{k: v for k, v in fields.items() if k in common})
    flat = paths.flatten(params)
    given = {_GIVEN: {path: tuple(x.shape) for path, x in flat.items()}} if _GIVEN in _parameters(name) else {}
    direction = OPTIMIZERS[name](**{k: v for k, v in fields.items() if k in own}, **given)
    if direction.ratio and settings.decay_by != 'lr':
        raise RecipeError(f"optim.decay_by: {settings.decay_by!r}, but {name}'s ratio takes in the decay (valid: lr)")

    trainable, table = _by_path(settings, list(flat))
    multiplier = schedules.build(settings.schedule, peak=settings.lr, total_steps=total_steps, batch=batch,
                                 examples_per_epoch=examples_per_epoch)
    tx = optax.named_chain(('clip', optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()),
                           *([('decay', _into_gradient(settings, table))] if settings.decay_by == 'gradient' else ()),
                           (name, direction.tx), ('step', _step(settings, multiplier, table, direction.ratio)))
    if settings.lookahead:
        tx = _lookahead(tx, settings.lookahead, settings.lookahead_alpha)
    return Optimizer(tx, lambda step: settings.lr * multiplier(step), trainable, table)


def complete(spec: Any) -> None:
    """Writes the defaults of the optimizer's and its schedule's fields into the recipe's ``optim``."""
    def fill(spec, defaults: Mapping[str, Any]):
        for key, value in defaults.items():
            if key not in spec:
                spec[key] = value
    common = {f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory()
              for f in dataclasses.fields(_Common) if f.name != 'lr'}
    fill(spec, common | (_fields(spec.name) if spec.get('name') in OPTIMIZERS else {}))
    fill(spec.schedule, schedules.defaults(spec.schedule.get('name')))


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(OPTIMIZERS[name]).parameters


def _fields(name: str) -> dict[str, Any]:
    """An optimizer's own fields and their defaults."""
    return {key: p.default for key, p in _parameters(name).items() if key != _GIVEN}


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


def _into_gradient(settings: _Common, table: Mapping[str, tuple[float, float]]) -> optax.GradientTransformation:
    """Weight decay as part of the gradient."""
    def update(gradient, params):
        return {path: g + settings.weight_decay * table[path][0] * params[path] for path, g in gradient.items()}
    return optax.stateless(update)


class StepState(NamedTuple):
    count: Any  # int32 scalar: updates made


def restarted(state: Any) -> Any:
    """An optimizer's state whose schedule begins anew; its moments, and the counts that they are corrected by, stay."""
    def new(node):
        return StepState(jnp.zeros_like(node.count)) if isinstance(node, StepState) else node
    return jax.tree.map(new, state, is_leaf=lambda node: isinstance(node, StepState))


def _step(settings: _Common, multiplier: Callable, table: Mapping[str, tuple[float, float]],
          ratio: Callable | None) -> optax.GradientTransformation:
    """From a direction to the update: rates, schedule and decoupled weight decay, path by path."""
    def init(params):
        return StepState(jnp.zeros((), jnp.int32))

    def update(found, state, params):
        scheduled = multiplier(state.count)

        def one(path: str):
            decay, rate = table[path]
            decays = settings.weight_decay * decay if settings.decay_by != 'gradient' else 0.
            if ratio is not None:
                whole = found[path] + decays * params[path] if decays else found[path]
                return -(settings.lr * rate * scheduled * ratio(path, whole, params[path], bool(decays)) * whole)
            taken = settings.lr * rate * scheduled * found[path]
            if decays:
                per_weight = settings.lr * rate if settings.decay_by == 'lr' else 1.
                taken = taken + per_weight * scheduled * decays * params[path]
            return -taken
        return {path: one(path) for path in found}, StepState(state.count + 1)
    return optax.GradientTransformation(init, update)


class LookaheadState(NamedTuple):
    fast: Any   # the state of what is wrapped
    slow: Any   # {path: leaf}: the slow weights
    count: Any  # int32 scalar: updates made


def _lookahead(tx: optax.GradientTransformation, every: int, alpha: float) -> optax.GradientTransformation:
    """Lookahead (Zhang et al., arXiv 1907.08610): every so many updates the slow weights go ``alpha`` of the way to the
    parameters, which then go on from there; moments stay. optax's wants pairs of parameters, where a run has one set.

    A parameter that the synchronising step does not reach waits, as do its slow weights, for the next one that reaches it.
    """
    def init(params):
        return LookaheadState(tx.init(params), {path: jnp.array(x) for path, x in params.items()}, jnp.zeros((), jnp.int32))

    def update(gradient, state, params):
        step, fast = tx.update(gradient, state.fast, params)
        count = state.count + 1
        meet = count % every == 0
        slow = {path: jnp.where(meet, x + alpha * (params[path] + step[path] - x), x) for path, x in state.slow.items()}
        return ({path: jnp.where(meet, slow[path] - params[path], x) for path, x in step.items()},
                LookaheadState(fast, slow, count))
    return optax.GradientTransformation(init, update)
