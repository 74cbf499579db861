"""Layouts: how a parameter is stored, and how it is used.

*Stored*: ordered regex rules over parameter paths (``config.layout``) give each parameter a strategy:

- ``'replicate'``: on every device;
- ``'fsdp'``: the largest dimension that the ``fsdp`` axis divides is split over it (the first dimension of scanned
  blocks is the layer, and is never split). With ``data=1`` this is full FSDP, with ``data`` or ``replica`` > 1 HSDP;
- ``'zero1'``: on every device, but its moments and averages are split over ``data`` and ``fsdp`` (ZeRO stage 1);
- ``'column'``, ``'row'``: tensor parallelism, output or input features over ``tensor``; of the other dimensions the
  largest that fits over ``fsdp``. ``column`` splits a vector too (the bias of a column-split product), ``row`` does not;
- a tuple with one mesh axis, tuple of axes or None per dimension, e.g. ``(None, 'fsdp', 'tensor')``.

*Used*: inside the forward pass ``fsdp`` is gathered and ``tensor`` kept, in the compute dtype. The change from the one
to the other happens in one place, ``to_used``, which towers put inside the rematerialised block, so that gathered
weights live for one layer only; its backward pass asks for the stored layout, so that gradients are reduce-scattered.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import mesh as mesh_lib, paths
from bigvlm.core.parts import RecipeError

_SCANNED = 'blocks'  # the path component of parameters that are stacked over layers


@dataclasses.dataclass(frozen=True)
class Layout:
    """The stored PartitionSpec of every parameter path on a mesh, that of its moments, and what could not be done as asked."""
    specs: Mapping[str, P]
    notes: tuple[str, ...] = ()
    moments: Mapping[str, P] = dataclasses.field(default_factory=dict)

    def moment(self, path: str) -> P:
        """How the optimizer's moments and the averages of a parameter are stored."""
        return self.moments.get(path, self.specs[path])

    def shardings(self, mesh, flat: Mapping[str, Any]) -> dict[str, NamedSharding]:
        return {path: NamedSharding(mesh, self.specs[path]) for path in flat}

    def as_moments(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """``{path: array}`` where it is to be updated. For ZeRO-1 that is a part on each device, so that gradients are
        reduce-scattered and only the updated parameters are gathered."""
        if jax.sharding.get_abstract_mesh().empty:
            return dict(flat)
        return {path: jax.lax.with_sharding_constraint(x, self.moments[path]) if path in self.moments else x
                for path, x in flat.items()}


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """One parameter while its layout is made. ``first``: the first dimension that may be split."""
    path: str
    shape: tuple[int, ...]
    mesh: Any
    notes: list[str]

    @property
    def first(self) -> int:
        return 1 if _SCANNED in self.path.split('/') else 0

    @property
    def is_vector(self) -> bool:
        return len(self.shape) - self.first < 2

    def ways(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[a] for a in axes)

    def note(self, text: str) -> None:
        self.notes.append(f'{self.path} {self.shape}: {text}')

    def largest(self, axes: tuple[str, ...], taken: dict[int, Any]) -> dict[int, Any]:
        """``taken`` {dimension: axes}, and the largest free dimension that divides over ``axes``, if there is one."""
        ways = self.ways(axes)
        free = [d for d in range(self.first, len(self.shape)) if d not in taken]
        if ways == 1 or self.is_vector or not free:
            return taken  # vectors are small: splitting them costs a collective and saves nothing
        fits = [d for d in free if self.shape[d] % ways == 0]
        if not fits:
            self.note(f'no {"other " if taken else ""}dimension divides by {"×".join(axes)}={ways}; replicated')
            return taken
        return taken | {max(fits, key=lambda d: self.shape[d]): axes if len(axes) > 1 else axes[0]}

    def tensor(self, dimension: int) -> dict[int, Any]:
        ways = self.ways(('tensor',))
        if ways == 1:
            return {}
        if self.shape[dimension] % ways:
            self.note(f'dimension {dimension} does not divide by tensor={ways}; replicated there')
            return {}
        return {dimension: 'tensor'}

    def spec(self, taken: dict[int, Any]) -> P:
        return P(*(taken.get(d) for d in range(len(self.shape)))) if taken else P()


def _fsdp(p: _Parameter) -> dict[int, Any]:
    return p.largest(('fsdp',), {})


def _column(p: _Parameter) -> dict[int, Any]:
    return p.largest(('fsdp',), p.tensor(len(p.shape) - 1)) if len(p.shape) > p.first else {}


def _row(p: _Parameter) -> dict[int, Any]:
    return {} if p.is_vector else p.largest(('fsdp',), p.tensor(p.first))


_STRATEGIES = {'replicate': lambda p: {}, 'fsdp': _fsdp, 'zero1': lambda p: {}, 'column': _column, 'row': _row}


def make(rules: Sequence[Sequence[Any]], shapes: Mapping[str, Any], mesh) -> Layout:
    """Resolves ``rules`` for every path of ``shapes`` ({path: array or ShapeDtypeStruct}) on ``mesh``."""
    strategies = paths.match(rules, shapes, what='layout')
    specs, moments, notes = {}, {}, []
    for path, strategy in strategies.items():
        parameter = _Parameter(path, tuple(shapes[path].shape), mesh, notes)
        if isinstance(strategy, str) and strategy in _STRATEGIES:
            specs[path] = parameter.spec(_STRATEGIES[strategy](parameter))
        else:
            specs[path] = _by_dimension(parameter, strategy)
        if strategy == 'zero1' and (split := parameter.largest(('data', 'fsdp'), {})):
            moments[path] = parameter.spec(split)
    return Layout(specs, tuple(notes), moments)


def _by_dimension(p: _Parameter, strategy: Any) -> P:
    if not isinstance(strategy, tuple) or len(strategy) != len(p.shape):
        names = ', '.join(f'"{name}"' for name in _STRATEGIES)
        raise RecipeError(f'layout: {p.path} has shape {p.shape}; {strategy!r} must be {names} or one axis per dimension')
    resolved, seen = [], []
    for d, axes in enumerate(strategy):
        named = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
        unknown = set(named) - set(mesh_lib.AXES)
        if unknown:
            raise RecipeError(f'layout: {p.path}: unknown mesh axis {sorted(unknown)[0]!r} (valid: {", ".join(mesh_lib.AXES)})')
        seen += named
        if twice := [a for a in named if seen.count(a) > 1]:
            raise RecipeError(f'layout: {p.path}: {strategy!r} names the axis {twice[0]!r} twice')
        if named and d < p.first:
            raise RecipeError(f'layout: {p.path}: {strategy!r} splits dimension 0, which counts the layers and is not split')
        if p.shape[d] % p.ways(named):
            p.note(f'dimension {d} does not divide by {"×".join(named)}={p.ways(named)}; replicated there')
            axes = None
        resolved.append(axes)
    return P(*resolved)


def _used_spec(stored: P) -> P:
    """The used layout: of the stored one, only ``tensor`` remains."""
    def keep(axes):
        named = () if axes is None else (axes,) if isinstance(axes, str) else axes
        return 'tensor' if 'tensor' in named else None
    return P(*(keep(axes) for axes in stored))


_active: contextvars.ContextVar[Layout | None] = contextvars.ContextVar('layout', default=None)


@contextlib.contextmanager
def activate(layout: Layout) -> Iterator[None]:
    """While a step is traced in this context, towers take their parameters' layouts from ``layout``."""
    token = _active.set(layout)
    try:
        yield
    finally:
        _active.reset(token)


def stored(path: str) -> P | None:
    """How the layout in force stores a parameter; None without one."""
    layout = _active.get()
    return None if layout is None else layout.specs.get(path)


def to_used(prefix: str, dtype: Any, *, scanned: bool = False) -> Callable[[Mapping], dict]:
    """Maps a module's stored variables to the ones it computes with; for ``nn.map_variables``.

    Args:
        prefix: the module's own path, e.g. ``image/blocks``.
        dtype: matrices are cast to it (gathering half the bytes for bfloat16); vectors stay as they are stored.
        scanned: the variables are one layer of a stack whose stored layout has a leading layer dimension.
    """
    layout = _active.get()

    def change(variables: Mapping) -> dict:
        flat = paths.flatten(dict(variables['params']))
        used = {}
        for path, x in flat.items():
            target = dtype if x.ndim >= 2 else x.dtype
            stored = layout.specs.get(f'{prefix}/{path}') if layout is not None else None
            if stored is None:
                used[path] = x.astype(target)
            else:
                used[path] = _use(x, P(*stored[1:]) if scanned else stored, target)
        return {'params': paths.unflatten(used)}
    return change


def _use(x, stored: P, dtype):
    """Gathers ``x`` over fsdp in ``dtype``; its cotangent is asked for in the stored layout (see the file's head)."""
    if all(axes is None for axes in stored):
        return x.astype(dtype)
    if jax.sharding.get_abstract_mesh().empty:
        return x.astype(dtype)
    stored_dtype = x.dtype

    @jax.custom_vjp
    def use(x):
        return jax.lax.with_sharding_constraint(x.astype(dtype), _used_spec(stored))

    def forward(x):
        return use(x), None

    def backward(_, cotangent):
        return (jax.lax.with_sharding_constraint(cotangent, stored).astype(stored_dtype),)

    use.defvjp(forward, backward)
    return use(x)


def table(flat: Mapping[str, Any], layout: Layout, mesh, columns: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The parameter table: path, shape, dtype, stored layout, bytes per device, and any ``columns`` {title: {path: text}}."""
    columns = columns or {}
    rows = [('parameter', 'shape', 'dtype', 'layout', 'bytes/device', *columns)]
    total = size = 0
    for path, x in flat.items():
        spec = layout.specs[path]
        local = math.prod(NamedSharding(mesh, spec).shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        total, size = total + local, size + math.prod(x.shape)
        rows.append((path, str(tuple(x.shape)), str(jnp.dtype(x.dtype)), _spec_text(spec), f'{local:,}',
                     *(str(columns[c].get(path, '')) for c in columns)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return '\n'.join([*lines, f'{size:,} parameters, {total:,} bytes per device', *layout.notes])


def _spec_text(spec: P) -> str:
    return '(' + ', '.join('-' if axes is None else axes if isinstance(axes, str) else '×'.join(axes) for axes in spec) + ')' \
        if any(axes is not None for axes in spec) else 'replicated'
