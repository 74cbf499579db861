"""How a run begins: from nothing, or with what ``config.start`` names of other models and runs.

    c.start = dict(
        image=dict(checkpoint='npz:B_16.npz', load=(('image/.*', r'\\g<0>'),)),              # a tower of another library
        text=dict(checkpoint='hf:bert-base-uncased', load=(('text/(?!out).*', r'\\g<0>'),)))
    c.start = dict(run=dict(checkpoint='runs/low@20000', optimizer='keep'))                  # another run goes on, under this recipe
"""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bigvlm import optim
from bigvlm.blueprint import Placed
from bigvlm.core import parts, paths
from bigvlm.core.parts import RecipeError
from bigvlm.interop import resize
from bigvlm.interop.source import Source, open_source
from bigvlm.state import State

log = logging.getLogger('bigvlm.start')

_LISTED = 12  # paths that an error shows
# Fields of a tower that no array shows.
_COMPUTED = ('activation', 'norm_eps', 'mean', 'std', 'pre_norm', 'pool', 'last_norm', 'causal', 'first_position')


@dataclasses.dataclass(frozen=True)
class Start:
    """One entry of ``config.start``.

    checkpoint: as interop/source.py reads it. load: (regex of this run's parameters and running statistics, their path there), in
    which ``\\\\1`` and ``\\\\g<0>`` stand for groups; the first that matches counts, '' leaves a parameter as it is drawn, as does no
    match. resize: regexes of those that may have another shape there: positions are interpolated, of a vocabulary or of text
    positions the first rows are taken (and the rest stays as drawn). optimizer: 'reset', or 'keep' the moments and averages of a
    run; the schedule and the data begin anew in either case.
    """
    checkpoint: str
    load: tuple[tuple[str, str], ...]
    resize: tuple[str, ...]
    optimizer: str


def entries(config: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Start]:
    """``config.start``, checked against the run's own parameters, by their paths. Raises RecipeError."""
    found = {}
    for key, spec in config.get('start', {}).items():
        where, fields = f'start.{key}', [field.name for field in dataclasses.fields(Start)]
        if set(spec) != set(fields):
            raise RecipeError(f'{where}: found {", ".join(spec)}; valid: {", ".join(fields)}, of which checkpoint is required')
        found[key] = one = Start(**parts.freeze(spec))
        if not one.checkpoint:
            raise RecipeError(f'{where}.checkpoint: which? valid: hf:…, open_clip:…, timm:…, npz:FILE, or a run\'s WORKDIR[@STEP]')
        if one.optimizer not in ('reset', 'keep'):
            raise RecipeError(f'{where}.optimizer: found {one.optimizer!r}; valid: reset, keep')
        paths.match(one.load, names, what=f'{where}.load', cover=False)
        paths.select(one.resize, names, what=f'{where}.resize')
    return found


@dataclasses.dataclass(frozen=True)
class Opened:
    """An entry whose checkpoint is open and fits. ``wanted``: {our path: the path there}; ``resized``: those of another shape."""
    key: str
    one: Start
    source: Source
    wanted: Mapping[str, str]
    resized: Sequence[str]
    kept: Mapping[str, jax.ShapeDtypeStruct]

    def told(self, of: int) -> str:
        return f'{len(self.wanted)} of {of} parameters begin with those of {self.source.where}'


def opened(placed: Placed) -> list[Opened]:
    """The entries of ``config.start``, checked against their checkpoints, of which no array is read yet; the log tells where towers
    are loaded that compute otherwise here.

    Raises:
        RecipeError: a checkpoint is not there, lacks what is asked of it, or has it in another shape.
    """
    config, names = placed.plan.config, placed.variables()
    found: list[Opened] = []
    for key, one in entries(config, names).items():
        where, source = f'start.{key}', open_source(one.checkpoint)
        wanted = _targets(one, names, where)
        if both := sorted(wanted.keys() & {path for before in found for path in before.wanted}):
            raise RecipeError(f'{where}.load: another entry gives {both[0]} already')
        resized = _resized(names, source, wanted, one, where)
        kept = _kept(placed, source, wanted, f'{where}.optimizer') if one.optimizer == 'keep' else {}
        for difference in _differences(config, source, wanted):
            log.warning('%s: %s', where, difference)
        found.append(Opened(key, one, source, wanted, resized, kept))
    return found


def begin(placed: Placed) -> State:
    """The state that the run begins with, each leaf in its layout. Raises RecipeError as ``opened``, and for damaged arrays."""
    loaded: dict[str, jax.Array] = {}
    kept: dict[str, jax.Array] = {}
    for entry in opened(placed):
        loaded |= _load(placed, entry)
        kept |= entry.source.load_kept(entry.kept) if entry.kept else {}
        log.info(entry.told(len(placed.variables())))
    state = placed.init()(np.uint32(placed.plan.config['seed']), loaded)
    if kept:
        state = jax.tree_util.tree_map_with_path(lambda key_path, x: kept.get(paths.from_key_path(key_path), x), state)
        state = state.replace(opt=jax.device_put(optim.restarted(state.opt), placed.shardings.opt))
    return state


def _targets(one: Start, names: Mapping[str, Any], where: str) -> dict[str, str]:
    """{our path: the path there}."""
    found = {}
    for path in names:
        for regex, there in one.load:
            if match := re.fullmatch(regex, path):
                if there:
                    found[path] = match.expand(there)
                break
    if not found:
        raise RecipeError(f'{where}.load: nothing is loaded')
    return found


def _differences(config: Mapping[str, Any], source: Source, wanted: Mapping[str, str]) -> list[str]:
    """Of towers that are loaded, the fields by which the same arrays give something else than there."""
    found = []
    for here, there in sorted({(path.split('/')[0], other.split('/')[0]) for path, other in wanted.items()}):
        if here in config['towers'] and there in source.config['towers']:
            ours, theirs = (parts.build('bigvlm.towers', towers[name], f'towers.{name}')
                            for towers, name in ((config['towers'], here), (source.config['towers'], there)))
            fields = [field for field in _COMPUTED if hasattr(ours, field) and hasattr(theirs, field)]
            found += [f'towers.{here}.{field} is {getattr(ours, field)!r} here and was {getattr(theirs, field)!r} in {source.where}'
                      for field in fields if getattr(ours, field) != getattr(theirs, field)]
    return found


def _resized(names: Mapping[str, Any], source: Source, wanted: Mapping[str, str], one: Start, where: str) -> list[str]:
    """Our paths of those that have another shape there, as a rule allows; RecipeError for what is not there or may not be so."""
    if len(set(wanted.values())) < len(wanted):
        raise RecipeError(f'{where}.load: two parameters would be loaded from one of {source.where}')
    if missing := [path for path in wanted.values() if path not in source.abstract]:
        raise RecipeError(f'{where}.load: {source.where} has no {", ".join(missing[:_LISTED])}{", …" if len(missing) > _LISTED else ""} '
                          f'(it has: {", ".join(list(source.abstract)[:_LISTED])}, …)')
    other = [path for path, there in wanted.items() if source.abstract[there].shape != names[path].shape]
    for path in other:
        if not any(re.fullmatch(rule, path) for rule in one.resize):
            raise RecipeError(f'{where}: {path} is {list(names[path].shape)} here and {list(source.abstract[wanted[path]].shape)} in '
                              f'{source.where}; valid: the same shape, or a rule of {where}.resize that covers it')
    return other


def _load(placed: Placed, entry: Opened) -> dict[str, jax.Array]:
    names, source = placed.variables(), entry.source
    same = {path: there for path, there in entry.wanted.items() if path not in entry.resized}
    found = source.load({there: names[path] for path, there in same.items()}) if same else {}
    result = {path: found[there] for path, there in same.items()}
    for path in entry.resized:
        result[path] = _fitted(placed, source, path, entry.wanted[path])
    return result


def _fitted(placed: Placed, source: Source, path: str, there: str) -> jax.Array:
    """One of another shape, whole on every host; what it lacks is as it would be drawn."""
    name = placed.variables()[path]
    everywhere = jax.sharding.NamedSharding(placed.mesh, jax.sharding.PartitionSpec())
    theirs = np.asarray(source.load({there: jax.ShapeDtypeStruct(source.abstract[there].shape, name.dtype, sharding=everywhere)})[there])
    drawn = np.asarray(placed.drawn(path)(np.uint32(placed.plan.config['seed'])))
    log.info('%s: %s becomes %s', path, list(theirs.shape), list(name.shape))
    fitted = resize.fit(path, theirs, name.shape, placed.plan.config['towers'], initial=drawn, longer=True)  # a rule asked for it
    return jax.device_put(np.asarray(fitted, name.dtype), name.sharding)


def _kept(placed: Placed, source: Source, loaded: Mapping[str, str], where: str) -> dict[str, jax.ShapeDtypeStruct]:
    """What is kept of a run, its optimizer's state and averages, by the paths of this run's state. ``loaded``: {our path: the path
    there}."""
    if other := [path for path, trained in placed.plan.optimizer.trainable.items() if trained and loaded.get(path) != path]:
        raise RecipeError(f'{where}: {other[0]} does not begin with its own value of {source.where}, so that its moments would be '
                          "another's; valid: a load of all that is trained, or reset")
    flat = {paths.from_key_path(key_path): x for key_path, x in jax.tree_util.tree_flatten_with_path(placed.state())[0]}
    wanted = {path: x for path, x in flat.items() if path.startswith(('opt/', 'ema/'))}
    if source.load_kept is None:
        raise RecipeError(f'{where}: {source.where} has no optimizer to keep; valid: reset')
    kept = {path: x for path, x in source.kept.items() if not path.startswith('collections/')}
    for path in sorted(wanted.keys() | kept.keys()):
        here, there = (found[path].shape if path in found else 'absent' for found in (wanted, kept))
        if here != there:
            raise RecipeError(f'{where}: {path} is {here} here and {there} in {source.where}; valid: the same optimizer, parameters and '
                              'averages, or reset')
    return wanted
