"""Which devices take part in a collective together.

Compilers write it as lists, as generated lists ("[2,4]<=[4,2]T(1,0)"), or as axes of a mesh that they have made up.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from bigvlm.plan.program import Instruction, Unreadable


def groups(instruction: Instruction, partitions: int) -> list[tuple[int, ...]]:
    """Numbers of devices; for a permute, pairs of sender and receiver."""
    pairs = instruction.attribute(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}')
    if pairs is not None:
        return _lists(pairs)
    text = instruction.attribute(r'replica_groups=(.*)')
    if text is None:
        return [tuple(range(partitions))]
    if found := re.match(r'\{((?:\{[\d,]*\},?)*)\}', text):
        return _lists(found.group(1)) or [tuple(range(partitions))]
    if found := re.match(r'(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)', text):
        shape, source = found.group(1).split('<=')
        return [tuple(map(int, row)) for row in _generated(source).reshape(_numbers(shape))]
    if found := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", text):
        return _of_mesh(*found.groups())
    raise Unreadable(f'the groups of {instruction.name}: {text[:80]}')


def _lists(text: str) -> list[tuple[int, ...]]:
    return [tuple(_numbers(group)) for group in re.findall(r'\{([\d,]+)\}', text)]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r'\d+', text)]


def _generated(text: str) -> np.ndarray:
    """``[4,2]T(1,0)``: 0, 1, 2, … in that shape, transposed, as one list."""
    dims, _, permutation = text.partition('T')
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (ids.transpose(_numbers(permutation)) if permutation else ids).reshape(-1)


def _of_mesh(axes: str, ids: str | None, over: str) -> list[tuple[int, ...]]:
    """``mesh['a'=4,'b'=4] {'b'}``: devices in the shape of the mesh, grouped over the axes in braces.

    A part of an axis is ``'a':(2)4``: the axis as (2, 4, rest), and of those the second.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
    parts = {name: (int(before), int(size)) for name, before, size in wanted if size}
    shape, grouped = [], []
    for name, size in sizes.items():
        before, own = parts.get(name, (1, size))
        grouped += [len(shape) + 1] if name in [w for w, *_ in wanted] else []
        shape += [before, own, size // before // own]
    devices = (np.arange(math.prod(sizes.values())) if ids is None else _generated(ids)).reshape(shape)
    rest = [d for d in range(devices.ndim) if d not in grouped]
    order = devices.transpose(rest + grouped).reshape(-1, math.prod(shape[d] for d in grouped))
    return [tuple(map(int, row)) for row in order]


def axes(groups: Sequence[tuple[int, ...]], mesh: dict) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ; devices are numbered through the mesh, last axis first."""
    if not mesh:
        return ()
    places = [np.stack(np.unravel_index(np.asarray(group), tuple(mesh.values()))) for group in groups]
    return tuple(axis for i, axis in enumerate(mesh) if any((p[i] != p[i, 0]).any() for p in places))
