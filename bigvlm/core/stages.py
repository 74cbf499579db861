"""Stages of one run: from some step on, some keys of the recipe have other values (CLIPA's low resolution first, say).

    c.stages = (dict(until='90%', set={'data.train.ops.1.size': 112, 'towers.image.patch_dropout': .5}), dict())

What a stage does not set is as in the recipe, so the recipe itself says how the run ends. A stage never changes a
parameter's shape, the schedule or the batch.
"""
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bigvlm.core import durations
from bigvlm.core.parts import RecipeError, freeze

_MAY_SET = ('augment', 'data', 'decoders', 'fusion', 'micro', 'objectives', 'towers')


def configs(config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The resolved recipe as it is in each stage; itself alone if it has none. Raises RecipeError for impossible ones."""
    stages = config.get('stages') or ({},)
    if not isinstance(stages, tuple):
        raise RecipeError(f'stages: a tuple of dicts such as (dict(until=100, set={{…}}), dict()), found {stages!r}')
    found = []
    for number, stage in enumerate(stages):
        where, last = f'stages.{number}', number == len(stages) - 1
        if not isinstance(stage, Mapping) or set(stage) - {'until', 'set'} or not isinstance(stage.get('set', {}), Mapping):
            raise RecipeError(f'{where}: a stage is dict(until=…, set={{key: value}}), found {stage!r}')
        if ('until' in stage) == last:
            raise RecipeError(f'{where}: every stage but the last ends at its until, and the last at the end of the run; '
                              f'found {"until=" + repr(stage["until"]) if last else "no until"}')
        staged = dict(config)
        for path, value in stage.get('set', {}).items():
            keys = path.split('.')
            if keys[0] not in _MAY_SET or len(keys) < 2 and keys != ['micro']:
                raise RecipeError(f'{where}.set: {path!r} cannot change within a run (what can: {", ".join(_MAY_SET)})')
            staged = _replaced(staged, keys, freeze(value), f'{where}.set: {path!r}')
        found.append(staged)
    return tuple(found)


@contextmanager
def naming(number: int, config: Mapping[str, Any]) -> Iterator[None]:
    """Errors about the recipe, raised within, say which stage they are about, if there are several."""
    try:
        yield
    except RecipeError as e:
        if len(config.get('stages', ())) < 2 or str(e).startswith('stages.'):
            raise
        raise RecipeError(f'stages.{number}: {e}') from None


def starts(config: Mapping[str, Any], **units: Any) -> tuple[int, ...]:
    """The first step of each stage. `units`: as `durations.steps` wants them."""
    found = [0]
    for number, stage in enumerate((config.get('stages') or ({},))[:-1]):
        where = f'stages.{number}.until'
        found.append(durations.steps(stage['until'], what=where, **units))
        if not found[-2] < found[-1] < units['total_steps']:
            raise RecipeError(f'{where}: {stage["until"]!r} is step {found[-1]}; it must lie after step {found[-2]}, where the stage '
                              f'begins, and before the end of the run at step {units["total_steps"]}')
    return tuple(found)


def at(first_steps: tuple[int, ...], step: int) -> int:
    """The stage that takes this step."""
    return max(stage for stage, first in enumerate(first_steps) if first <= step)


def _replaced(node: Any, keys: list[str], value: Any, where: str) -> Any:
    """A copy of nested dicts and tuples with the value at a path replaced; all but the last key must be there."""
    key, rest = keys[0], keys[1:]
    if isinstance(node, tuple):
        if not key.isdigit() or int(key) >= len(node):
            raise RecipeError(f'{where}: {key!r} is no place in a tuple of {len(node)}')
        index = int(key)
        return node[:index] + (_replaced(node[index], rest, value, where) if rest else value,) + node[index + 1:]
    if not isinstance(node, Mapping):
        raise RecipeError(f'{where}: there is nothing below {node!r}')
    if key not in node and rest:
        raise RecipeError(f'{where}: the recipe has no {key!r} (there are: {", ".join(map(str, node))})')
    return {**node, key: _replaced(node[key], rest, value, where) if rest else value}
