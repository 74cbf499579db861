"""Durations in any unit: ``100`` or ``'100 steps'``, ``'1e6 examples'``, ``'3 epochs'``, ``'5%'`` of the run."""

import re
from fractions import Fraction

from bigvlm.core.parts import RecipeError

_UNITS = {'step': 'steps', 'steps': 'steps', 'example': 'examples', 'examples': 'examples', 'epoch': 'epochs',
          'epochs': 'epochs', '%': '%', '': 'steps'}
_NUMBER_UNIT = re.compile(r'\s*([-+.\d_]*(?:(?<=[\d.])[eE][-+]?\d+)?)\s*(.*?)\s*', re.DOTALL)  # matches anything
_VALID = "write a number of steps, or '100 steps', '1e6 examples', '3 epochs' or '5%'"


def parse(duration: str | int, what: str = 'duration') -> tuple[Fraction, str]:
    """``(amount, unit)``, the unit one of steps, examples, epochs, %. ``what`` is the recipe key, for errors."""
    if isinstance(duration, bool) or not isinstance(duration, (int, str)):
        raise RecipeError(f'{what}: {duration!r} is no duration; {_VALID}')
    number, unit = _NUMBER_UNIT.fullmatch(str(duration)).groups()
    try:
        amount = Fraction(number.replace('_', ''))  # exact: 0.1 epochs of 1000 examples are 100 examples, not 99.99…
    except (ValueError, ZeroDivisionError):
        raise RecipeError(f'{what}: {duration!r} is no duration; {_VALID}') from None
    if unit not in _UNITS:
        raise RecipeError(f'{what}: unknown unit {unit!r} in {duration!r} (valid: steps, examples, epochs, %)')
    if amount < 0:
        raise RecipeError(f'{what}: {duration!r} is negative; {_VALID}')
    return amount, _UNITS[unit]


def steps(duration: str | int, *, batch: int, examples_per_epoch: int | None, total_steps: int | None = None,
          what: str = 'duration') -> int:
    """``duration`` in whole steps, rounded down, but at least one if it is positive.

    Args:
        duration: see this file's head.
        batch: examples per step.
        examples_per_epoch: size of the training set; None if it is not known, and then epochs are an error.
        total_steps: length of the run; None while that is what is being worked out, and then percents are an error.
        what: the recipe key, for errors.

    Raises:
        RecipeError: not a duration, or a unit that cannot be converted here.
    """
    amount, unit = parse(duration, what)
    if unit == 'steps':
        exact = amount
    elif unit == 'examples':
        exact = amount / batch
    elif unit == 'epochs':
        if not examples_per_epoch:
            raise RecipeError(f'{what}: {duration!r} needs the size of an epoch, which is not known here; use steps or '
                              'examples')
        exact = amount * examples_per_epoch / batch
    else:
        if total_steps is None:
            raise RecipeError(f'{what}: {duration!r} is a part of the run, whose length is not known here; use steps, '
                              'examples or epochs')
        exact = amount * total_steps / 100
    return max(int(exact), 1) if exact else 0
