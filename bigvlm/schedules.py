"""Learning-rate schedules, as a multiplier of the peak rate: one function per schedule, and warm-up for all.

A schedule is ``f(step, run, **fields) -> multiplier``; its keyword arguments are the recipe's fields. ``step`` counts
from 0 and may be traced; the last step of a run of T steps is T−1.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from bigvlm.core import durations
from bigvlm.core.parts import RecipeError


class Run(NamedTuple):
    """What a schedule knows of the run: ``total`` and ``warmup`` in steps, ``end`` as a fraction of the peak rate, and
    how to turn a field's duration into steps."""
    total: int
    warmup: int
    end: float
    steps: Callable[[str, Any], int]

    def progress(self, step):
        """0 at the end of the warm-up, 1 at the end of the run."""
        return jnp.clip((step - self.warmup) / max(self.total - self.warmup, 1), 0., 1.)


def constant(step, run: Run):
    """The peak rate to the end."""
    return jnp.ones_like(step, jnp.float32)


def linear(step, run: Run):
    """A straight line to ``end``."""
    return 1. - (1. - run.end) * run.progress(step)


def cosine(step, run: Run):
    """Half a cosine to ``end`` (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    return run.end + (1. - run.end) * .5 * (1. + jnp.cos(jnp.pi * run.progress(step)))


def cosine_restarts(step, run: Run, *, cycles: int = 10):
    """``cycles`` half cosines to ``end`` of equal length, each from the peak (Loshchilov and Hutter, arXiv 1608.03983;
    CLOOB has 10)."""
    if not isinstance(cycles, int) or isinstance(cycles, bool) or cycles < 1:
        raise RecipeError(f'optim.schedule.cycles: {cycles!r} must be a whole number, at least 1')
    # In whole steps, so that no rounding decides on which step a cycle begins.
    length, done = max(run.total - run.warmup, 1), jnp.maximum(step - run.warmup, 0)
    part = jnp.where(done >= length, 1., done * cycles % length / length)
    return run.end + (1. - run.end) * .5 * (1. + jnp.cos(jnp.pi * part))


def step_decay(step, run: Run, *, milestones: Sequence[tuple[str | int, float]] = ()):
    """The peak rate times the factors of the ``milestones``, (duration from the run's start, factor), that are past."""
    if not milestones or any(not isinstance(m, tuple) or len(m) != 2 for m in milestones):
        raise RecipeError(f"optim.schedule.milestones: {milestones!r} (valid: pairs of a duration and a factor, such as "
                          "(('50%', .1), ('75%', .1)))")
    if run.end:
        raise RecipeError('optim.schedule.end: step_decay ends where its factors lead; leave it 0')
    left = jnp.ones((), jnp.float32)
    for place, (duration, factor) in enumerate(milestones):
        if not isinstance(factor, (int, float)) or factor < 0:
            raise RecipeError(f'optim.schedule.milestones.{place}: the factor {factor!r} must be a number, at least 0')
        left = left * jnp.where(step >= run.steps(f'milestones.{place}', duration), factor, 1.)
    return left


def rsqrt(step, run: Run, *, timescale: str | int = '10000 steps', cooldown: str | int = '0 steps'):
    """1/sqrt(1 + (steps after warm-up) / timescale), and a linear cool-down to ``end`` (Zhai et al., arXiv 2106.04560,
    as in big_vision)."""
    scale = run.steps('timescale', timescale)
    if scale < 1:
        raise RecipeError('optim.schedule.timescale: must be at least one step')
    decayed = 1. / jnp.sqrt(1. + jnp.maximum(step - run.warmup, 0) / scale)
    return run.end + (decayed - run.end) * _left(step, run, cooldown)


def wsd(step, run: Run, *, cooldown: str | int = '20%', shape: str = 'linear'):
    """Warm-up, stable, decay: the peak rate until a cool-down to ``end`` that is ``linear`` or ``sqrt``, which is
    1 − sqrt(part of the cool-down done) (Hägele et al., arXiv 2405.18392)."""
    if shape not in ('linear', 'sqrt'):
        raise RecipeError(f'optim.schedule.shape: {shape!r} (valid: linear, sqrt)')
    left = _left(step, run, cooldown)
    return run.end + (1. - run.end) * (left if shape == 'linear' else 1. - jnp.sqrt(1. - left))


SCHEDULES = {f.__name__: f for f in (constant, linear, cosine, cosine_restarts, step_decay, rsqrt, wsd)}


def _left(step, run: Run, cooldown: str | int):
    """How much of the cool-down at the run's end is left: 1 until it begins, 0 at the end of the run."""
    length = run.steps('cooldown', cooldown)
    if run.warmup + length > run.total:
        raise RecipeError(f'optim.schedule: warmup ({run.warmup} steps) and cooldown ({length} steps) are longer than '
                          f'the run ({run.total} steps)')
    return jnp.clip((run.total - step) / length, 0., 1.) if length else 1.


def defaults(name: str | None) -> dict[str, Any]:
    """The fields of a schedule with their defaults; none for a name that ``build`` will refuse."""
    if name not in SCHEDULES:
        return {}
    own = list(inspect.signature(SCHEDULES[name]).parameters.values())[2:]
    return {'warmup': '0 steps', 'end': 0.} | {p.name: p.default for p in own}


def build(spec: Mapping[str, Any], *, peak: float, total_steps: int, batch: int,
          examples_per_epoch: int | None) -> Callable[[Any], Any]:
    """``step -> multiplier`` of the peak rate, from the recipe's ``optim.schedule``.

    Fields of every schedule: ``warmup``, a duration: step s of it has (s + 1) / warmup of the rate, so that no step is
    lost; ``end``, the final learning rate (not a fraction: papers state it as a rate).

    Raises:
        RecipeError: unknown schedule or field, a duration that does not fit the run, end above the peak.
    """
    fields = dict(spec)
    schedule = SCHEDULES.get(fields.pop('name', ''))
    if schedule is None:
        raise RecipeError(f'optim.schedule.name: {spec.get("name")!r} (valid: {", ".join(SCHEDULES)})')
    own = list(inspect.signature(schedule).parameters)[2:]
    unknown = set(fields) - {*own, 'warmup', 'end'}
    if unknown:
        raise RecipeError(f'optim.schedule.{min(unknown)}: {schedule.__name__} has no such field (valid: '
                          f'{", ".join(["warmup", "end", *own])})')

    def steps(field: str, duration: Any) -> int:
        return durations.steps(duration, batch=batch, examples_per_epoch=examples_per_epoch, total_steps=total_steps,
                               what=f'optim.schedule.{field}')
    warmup, end = steps('warmup', fields.pop('warmup', 0)), fields.pop('end', 0.)
    if warmup >= total_steps > 1:  # runs of one step exist, to look at
        raise RecipeError(f'optim.schedule.warmup: {warmup} steps of warm-up in a run of {total_steps} steps')
    if not 0. <= end <= peak:
        raise RecipeError(f'optim.schedule.end: {end!r} must be between 0 and the peak rate optim.lr={peak!r}')
    run = Run(total_steps, warmup, end / peak, steps)

    def multiplier(step):
        step = jnp.asarray(step, int)  # of 64 bits, as are quotients, where jax computes in float64
        warm = jnp.minimum(1., (step + 1) / warmup) if warmup else 1.
        return jnp.asarray(warm * schedule(step, run, **fields), float)
    multiplier(0)  # whatever is wrong with the fields is said now
    return multiplier
