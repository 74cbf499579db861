"""Directions: one function per optimizer; its keyword arguments are the recipe's fields.

Rates, schedules and decoupled weight decay are the same for all and are applied afterwards (``building``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigvlm.core.parts import RecipeError

STACKED = 'blocks'  # the path component of parameters that are stacked over layers along their first axis, as in core/layout


class Direction(NamedTuple):
    """What an optimizer's function makes.

    tx: from the clipped gradients {path: leaf} to the directions to go against.
    ratio: ``(path, direction with its weight decay, parameter, whether it decays) -> factor``, for optimizers that scale
        the whole update, decay included; None for those that do not.
    """
    tx: optax.GradientTransformation
    ratio: Callable[[str, Any, Any, bool], Any] | None = None


def adamw(*, b1: float = .9, b2: float = .999, eps: float = 1e-8, mu_dtype: str = 'float32') -> Direction:
    """Adam's direction (Kingma and Ba, arXiv 1412.6980). ``mu_dtype``: how the first moment is kept."""
    fractions(b1=b1, b2=b2)
    return Direction(scale_by_adam(b1, b2, eps, moment_dtype('mu_dtype', mu_dtype)))


def adafactor(*, momentum: float = .9, momentum_dtype: str = 'bfloat16', b2_cap: float = .999, b2_power: float = .8,
              eps: float = 1e-30, factor_from: int = 32, clip_rms: float = 0.) -> Direction:
    """Adafactor's direction (Shazeer and Stern, arXiv 1804.04235) as ViT-G was trained (Zhai et al., arXiv 2106.04560).

    The second moment is factored over the two largest dimensions if both are at least ``factor_from``; its decay is
    min(b2_cap, 1 − t^−b2_power); no scaling by the parameters' size; momentum without bias correction. ``clip_rms``
    limits the root mean square of each parameter's update (0: no limit).
    """
    fractions(momentum=momentum, b2_cap=b2_cap)

    def decay_rate(count, power):
        return jnp.minimum(b2_cap, 1. - (jnp.asarray(count, jnp.float32) + 1.) ** -power)
    return Direction(optax.chain(
        optax.scale_by_factored_rms(decay_rate=b2_power, min_dim_size_to_factor=factor_from, epsilon=eps,
                                    decay_rate_fn=decay_rate),
        optax.clip_by_block_rms(clip_rms) if clip_rms else optax.identity(),
        optax.ema(momentum, debias=False, accumulator_dtype=moment_dtype('momentum_dtype', momentum_dtype))))


def lamb(*, b1: float = .9, b2: float = .999, eps: float = 1e-6, mu_dtype: str = 'float32', adapt: str = 'all') -> Direction:
    """LAMB (You et al., arXiv 1904.00962, algorithm 2 with φ the identity): Adam's direction and the weight decay, together
    scaled to the norm of the layer's parameter; by 1 where either norm is 0.

    A stacked parameter [depth, …] has a ratio for each of its layers. ``adapt``: 'all' scales every parameter, as the
    paper; 'decayed' only those with weight decay, so that biases, norms and temperatures go by Adam.
    """
    fractions(b1=b1, b2=b2)
    if adapt not in ('all', 'decayed'):
        raise RecipeError(f'optim.adapt: {adapt!r} (valid: all, decayed)')

    def ratio(path: str, update, param, decays: bool):
        if adapt == 'decayed' and not decays:
            return 1.
        axes = tuple(range(STACKED in path.split('/'), param.ndim))
        of_param, of_update = (jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axes, keepdims=True)) for x in (param, update))
        both = (of_param > 0.) & (of_update > 0.)
        return jnp.where(both, of_param / jnp.where(both, of_update, 1.), 1.)
    return Direction(scale_by_adam(b1, b2, eps, moment_dtype('mu_dtype', mu_dtype)), ratio)


def sgd(*, momentum: float = .9, nesterov: bool = False, momentum_dtype: str = 'float32') -> Direction:
    """The sum of gradients, each step's weighted by ``momentum`` to the power of its age, as in PyTorch (no dampening);
    ``nesterov`` looks one step ahead. ``momentum`` 0 keeps no state."""
    fractions(momentum=momentum)
    if nesterov and not momentum:
        raise RecipeError('optim.nesterov: needs a momentum above 0')
    dtype = moment_dtype('momentum_dtype', momentum_dtype)
    return Direction(optax.trace(momentum, nesterov, accumulator_dtype=dtype) if momentum else optax.identity())


def lion(*, b1: float = .9, b2: float = .99, mu_dtype: str = 'float32') -> Direction:
    """Lion (Chen et al., arXiv 2302.06675): the sign of b1 · moment + (1 − b1) · gradient; the moment decays by b2."""
    fractions(b1=b1, b2=b2)
    return Direction(optax.scale_by_lion(b1, b2, mu_dtype=moment_dtype('mu_dtype', mu_dtype)))


def scale_by_adam(b1: float, b2: float, eps: float, mu_dtype=None) -> optax.GradientTransformation:
    """optax's, but each parameter's moments are corrected by its own number of updates, as in PyTorch, where a parameter without a
    gradient waits. By the run's, one that every third step reaches (FLAVA's kinds) would go up to two thirds too far for long.
    The state is optax's with a ``count`` per path, so that ``states.keep_unreached`` keeps it like the moments."""
    each = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def by_field(states):
        return optax.ScaleByAdamState(*({path: state[i] for path, state in states.items()} for i in range(3)))

    def init(params):
        return by_field({path: each.init(x) for path, x in params.items()})

    def update(gradient, state, params=None):
        found = {path: each.update(g, optax.ScaleByAdamState(*(field[path] for field in state))) for path, g in gradient.items()}
        return {path: direction for path, (direction, _) in found.items()}, by_field({path: own for path, (_, own) in found.items()})
    return optax.GradientTransformation(init, update)


def fractions(**fields: float) -> None:
    for name, value in fields.items():
        if not 0. <= value < 1.:
            raise RecipeError(f'optim.{name}: {value!r} must be at least 0 and below 1')


def moment_dtype(field: str, dtype: str):
    if dtype not in ('float32', 'bfloat16') and not (dtype == 'float64' and jax.config.jax_enable_x64):
        raise RecipeError(f'optim.{field}: {dtype!r} (valid: float32, bfloat16, and float64 where JAX_ENABLE_X64 is set)')
    return jnp.dtype(dtype)
