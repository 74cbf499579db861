"""Arrays of other libraries by their names: tables, written beside the towers, that work in both directions.

A table maps templates of our paths to where the same array is in a file of theirs:

    FOREIGN = {'norm/scale': 'layernorm.weight',                                     # the same array
               'encoder/blocks/mlp/fc1/kernel': 'layers.{}.fc1.weight',              # our leading axis is their layers
               'stage{stage}/conv/kernel': 'layer{stage}.conv.weight',               # what our path has in braces is in their name
               'encoder/blocks/attention/key/kernel': Theirs('layers.{}.in_proj_weight', part=(1, 3)),
               'patch_embed/kernel': Theirs('proj.weight', 'w c p q -> (p q c) w')}

Kernels lead with their outputs there unless a pattern says otherwise: [out, in] and [out, in, row, column].
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from einops import rearrange

from bigvlm.core.parts import RecipeError

Index = tuple[slice, ...]
_KERNELS = {2: 'o i -> i o', 4: 'o i p q -> p q i o'}
_SHOWN = 40  # names that an error lists


class WeightsError(RecipeError):
    """A file of weights cannot be read, or is not of the model that it should be of; the message names file and arrays."""


@dataclasses.dataclass(frozen=True)
class Theirs:
    """Where one array of ours (of a stacked one, one layer of it) is.

    name: in their file; ``{}`` is the layer's number. pattern: of einops, theirs -> ours; '' is the same array, but kernels lead
    with outputs. part: (k, n), the k-th of n equal parts of theirs along its first axis, before the pattern. row: the first of the
    rows of theirs (their last axis but one) that are ours, where others hold another array. sizes: of axes that the pattern puts
    together. layers: (first, step) of the numbers there of the layers that are stacked here.
    """
    name: str
    pattern: str = ''
    part: tuple[int, int] = (0, 1)
    row: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    layers: tuple[int, int] = (0, 1)


class Weights(Protocol):
    """An open file (or several) of theirs. Shapes are known without reading; ``read`` gives what an index covers, as NumPy."""
    where: str

    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, index: Index) -> np.ndarray: ...


Table = Mapping[str, Theirs | tuple[Theirs, ...]]  # {our path: it, or one of each layer, stacked on our first axis}


def table(templates: Mapping[str, str | Theirs], shapes: Mapping[str, tuple[int, ...]], *, ours: str = '', theirs: str = '',
          **sizes: int) -> dict[str, Theirs | tuple[Theirs, ...]]:
    """The entries of those ``shapes`` (of all of our paths) that begin with ``ours``, by ``templates`` without it; ``theirs``
    comes before their names. ``sizes``: of axes in patterns.

    Raises:
        WeightsError: an array of ours is in no template, so that the other library's model has no place for it.
    """
    patterns = [(re.compile(re.sub(r'\\{(\w+)\\}', r'(?P<\1>\\w+)', re.escape(path))), spec) for path, spec in templates.items()]
    found: dict[str, Theirs | tuple[Theirs, ...]] = {}
    for path, shape in shapes.items():
        if not path.startswith(ours):
            continue
        inner = path.removeprefix(ours)
        for pattern, spec in patterns:
            if match := pattern.fullmatch(inner):
                found[path] = _entry(spec, shape, path, theirs, match.groupdict(), sizes)
                break
        else:
            raise WeightsError(f'{path}: the other library\'s model has no such array (it has: {", ".join(list(templates)[:_SHOWN])})')
    return found


def _entry(spec: str | Theirs, shape, path: str, prefix: str, groups: Mapping[str, str], sizes: Mapping[str, int]):
    spec = Theirs(spec) if isinstance(spec, str) else spec
    stacked = '{}' in spec.name
    dims = len(shape) - stacked
    pattern = spec.pattern or (_KERNELS.get(dims, '') if path.endswith('kernel') else '')
    together = re.findall(r'\w+', ' '.join(re.findall(r'\(.*?\)', pattern)))
    axes = tuple((axis, size) for axis, size in sizes.items() if axis in together)

    def of(*layer: int) -> Theirs:
        return dataclasses.replace(spec, name=prefix + spec.name.format(*layer, **groups), pattern=pattern, sizes=spec.sizes + axes)
    first, step = spec.layers
    return tuple(of(first + step * i) for i in range(shape[0])) if stacked else of()


# Both directions of one entry.

def _sides(pattern: str, dims: int) -> tuple[list[str], list[str]]:
    """The axes of theirs and of ours; what stands in brackets is one."""
    if not pattern:
        return ([f'axis{i}' for i in range(dims)],) * 2
    theirs, ours = (re.findall(r'\(.*?\)|[^\s()]+', side) for side in pattern.split('->'))
    return theirs, ours


def _theirs_of_ours(entry: Theirs, x: Any) -> Any:
    theirs, _, ours = entry.pattern.partition('->')
    return rearrange(x, f'{ours.strip()} -> {theirs.strip()}', **dict(entry.sizes)) if entry.pattern else x


def _shape_there(entry: Theirs, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the part of their array that is ours."""
    return jax.eval_shape(lambda x: _theirs_of_ours(entry, x), jax.ShapeDtypeStruct(shape, np.float32)).shape


def _fused(entry: Theirs) -> bool:
    """Whether their array holds others of ours, too."""
    return entry.row is not None or entry.part[1] > 1


def _shared(entry: Theirs, there: Sequence[int]) -> int | None:
    """The axis along which they put other arrays beside ours, if they do; ``there``: our part's shape."""
    if not _fused(entry):
        return None
    return 0 if entry.row is None else len(there) - 2


def _first_row(entry: Theirs, there: Sequence[int]) -> int:
    """Where our part, of this shape, begins along that axis."""
    return entry.part[0] * there[0] if entry.row is None else entry.row


def _read(entry: Theirs, weights: Weights, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """Of axes of theirs that are axes of ours, too, what the index covers is read; of those that are put together, all."""
    there = _shape_there(entry, shape)
    theirs, ours = _sides(entry.pattern, len(shape))
    alone = set(theirs) & set(ours) - {'1'}
    wanted = [index[ours.index(axis)].indices(n)[:2] if axis in alone else (0, n) for axis, n in zip(theirs, there)]
    if (shared := _shared(entry, there)) is not None:
        first = _first_row(entry, there)
        wanted[shared] = tuple(first + bound for bound in wanted[shared])
    x = weights.read(entry.name, tuple(slice(*bounds) for bounds in wanted))
    x = rearrange(x, entry.pattern, **dict(entry.sizes)) if entry.pattern else x
    return x[tuple(slice(None) if axis in alone else piece for axis, piece in zip(ours, index))]


class Arrays:
    """Weights of another library under our paths. Every array that ours need is there in its shape, and nothing else, or the error
    lists what is missing (-), not expected (+) and of another shape (~). ``ignored``: regexes of names that carry nothing learned.
    """

    def __init__(self, weights: Weights, table: Table, shapes: Mapping[str, tuple[int, ...]], ignored: Sequence[str] = ()):
        self.weights, self.table, self.shapes = weights, table, {path: tuple(shapes[path]) for path in table}
        self._check(ignored)

    def read(self, path: str, index: Index = ()) -> np.ndarray:
        """What ``index`` covers of an array of ours (all by default); of their file, little more than that is read.

        Raises:
            WeightsError: there are NaNs or infinities in it, or it cannot be read.
        """
        shape, entry = self.shapes[path], self.table[path]
        index = (*index, *(slice(None),) * (len(shape) - len(index)))
        if isinstance(entry, Theirs):
            found = _read(entry, self.weights, shape, index)
        else:
            found = self._stacked(entry[index[0]], shape[1:], index[1:])
        if not np.isfinite(found).all():
            raise WeightsError(f'{self.weights.where}: {names_of(entry)[0]} holds numbers that are not finite')
        return found

    def _stacked(self, layers: tuple[Theirs, ...], shape: tuple[int, ...], index: Index) -> np.ndarray:
        """Layer by layer into their place: of a large array there is never a second copy."""
        found = None
        for number, layer in enumerate(layers):
            x = _read(layer, self.weights, shape, index)
            found = np.empty((len(layers), *x.shape), x.dtype) if found is None else found
            found[number] = x
        return np.empty((0, *shape)) if found is None else found

    def _check(self, ignored: Sequence[str]) -> None:
        wanted = expected(self.table, self.shapes)
        there = set(self.weights.names())
        wrong = [f'- {name} {list(shape)}' for name, shape in wanted.items() if name not in there]
        wrong += [f'+ {name} {list(self.weights.shape(name))}' for name in sorted(there - wanted.keys())
                  if not any(re.fullmatch(rule, name) for rule in ignored)]
        wrong += [f'~ {name} {list(self.weights.shape(name))}, expected {list(shape)}' for name, shape in wanted.items()
                  if name in there and tuple(self.weights.shape(name)) != shape]
        if wrong:
            more = [f'… and {len(wrong) - _SHOWN} more'] if len(wrong) > _SHOWN else []
            raise WeightsError('\n'.join([f'{self.weights.where} is not of this model (- missing, + not expected, ~ of another shape):',
                                          *wrong[:_SHOWN], *more]))


def names_of(entry: Theirs | tuple[Theirs, ...]) -> list[str]:
    return [one.name for one in (entry if isinstance(entry, tuple) else (entry,))]


def _each(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int | None, Theirs, tuple[int, ...]]]:
    """(our path, layer or None, entry, our shape of it)."""
    for path, entry in table.items():
        if isinstance(entry, Theirs):
            yield path, None, entry, tuple(shapes[path])
        else:
            for layer, one in enumerate(entry):
                yield path, layer, one, tuple(shapes[path][1:])


def expected(table: Table, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """{their name: shape} of the arrays that the table reads; a name of several of ours holds all their parts."""
    found: dict[str, tuple[int, ...]] = {}
    for path, _, entry, shape in _each(table, shapes):
        there = _shape_there(entry, shape)
        if (shared := _shared(entry, there)) is not None:
            length = entry.part[1] * there[0] if entry.row is None else entry.row + there[shared]
            before = found[entry.name][shared] if entry.name in found else 0
            there = (*there[:shared], max(length, before), *there[shared + 1:])
        elif entry.name in found:
            raise WeightsError(f'{path}: {entry.name} is another array of ours already')
        found[entry.name] = there
    return found


def export(table: Table, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(their name, array) of all that the table has, one at a time. ``params``: {our path: array}; layers are taken apart.

    Raises:
        WeightsError: the parts of one of their arrays do not fill it.
    """
    shapes = {path: tuple(params[path].shape) for path in table}
    wanted = expected(table, shapes)
    pieces: dict[str, list[tuple[str, int | None, Theirs]]] = {}
    for path, layer, entry, _ in _each(table, shapes):
        pieces.setdefault(entry.name, []).append((path, layer, entry))
    for name, ours in pieces.items():
        found = {}
        for path, layer, entry in ours:
            x = np.asarray(params[path] if layer is None else params[path][layer])
            x = _theirs_of_ours(entry, x)
            found[_first_row(entry, x.shape) if _fused(entry) else 0] = x
        parts = [found[first] for first in sorted(found)]
        whole = np.concatenate(parts, axis=_shared(ours[0][2], parts[0].shape)) if len(parts) > 1 else parts[0]
        if whole.shape != wanted[name]:
            raise WeightsError(f'{name}: its parts {[list(x.shape) for x in parts]} do not fill {list(wanted[name])}')
        yield name, np.asarray(whole, order='C')  # ascontiguousarray would give a scalar an axis
