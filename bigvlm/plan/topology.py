"""Named groups of accelerators, without hardware: ``v5e:16x16``, ``v5p:8x8x8``, ``h100:32`` -> devices to compile for.

A TPU topology is chips along each side of the torus, a GPU one the number of GPUs, 8 to a node. Their compilers come
with the platform's jax wheels and run on any machine, given the variables of ``bigvlm.plan.environment``.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from bigvlm.core.devices import CHIPS, Chip
from bigvlm.core.parts import RecipeError
from bigvlm.plan import gpu

TPUS = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2, 'tpu7x': 3}   # dimensions of the torus
GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """``name`` as asked for; ``chip``: facts of one device; ``platform``: what to lower for ('tpu' or 'cuda')."""
    name: str
    slices: int
    platform: str
    chip: Chip
    devices: Sequence[Any]
    chips: int        # what is rented; a TPU7x chip is two devices

    @property
    def text(self) -> str:
        return f'{self.slices} × {self.name}' if self.slices > 1 else self.name


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """``'v5e:16x16'`` -> ('v5e', (16, 16)). Raises RecipeError that says which names there are."""
    kind, _, size = name.partition(':')
    dimensions = TPUS.get(kind, 1 if kind in gpu.TARGETS else 0)
    if not dimensions or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', size) or size.count('x') != dimensions - 1:
        valid = ', '.join([*(f'{k}:{"x".join("N" * n)}' for k, n in TPUS.items()), *(f'{k}:N' for k in gpu.TARGETS)])
        raise RecipeError(f'--topology: {name!r} is none that can be compiled for (valid: {valid}, with numbers for N)')
    return kind, tuple(map(int, size.split('x')))


def get(name: str, slices: int = 1) -> Topology:
    """Raises RecipeError for unknown names, impossible sizes and a compiler that is not installed."""
    kind, sides = parse(name)
    return _gpus(name, kind, sides[0], slices) if kind in gpu.TARGETS else _tpus(name, kind, sides, slices)


def _tpus(name: str, kind: str, sides: tuple[int, ...], slices: int) -> Topology:
    if not _installed('libtpu'):
        raise RecipeError("--topology: compiling for TPUs needs libtpu, which is not installed: pip install -e '.[plan]'")
    options: dict[str, Any] = {'num_slices': slices} if slices > 1 else {}
    if kind == 'v4':
        options['chip_config_name'] = 'megacore'
    if math.prod(sides) == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    elif len(sides) == 2:   # whole sides of a pod are closed; three-dimensional slices are closed where they can be by default
        options['wrap'] = (*(side % CHIPS[kind].wraps == 0 for side in sides), False)
    return Topology(name, slices, 'tpu', CHIPS[kind], _devices(name, platform='tpu', topology_name=name, **options),
                    math.prod(sides) * slices)


def _gpus(name: str, kind: str, number: int, slices: int) -> Topology:
    if slices > 1:
        raise RecipeError('--slices: GPUs have no slices; give the number of all GPUs in --topology')
    if not any(_installed(f'jax_plugins.{name}') for name in ('xla_cuda12', 'xla_cuda13')):
        raise RecipeError("--topology: compiling for GPUs needs jax's CUDA wheels, which are not installed: pip install -e '.[cuda]'")
    nodes, each = (1, number) if number <= GPUS_PER_NODE else (number // GPUS_PER_NODE, GPUS_PER_NODE)
    if nodes * each != number:
        raise RecipeError(f'--topology: {number} GPUs do not fill nodes of {GPUS_PER_NODE}; '
                          f'valid: up to {GPUS_PER_NODE}, or a multiple of it')
    devices = _devices(name, platform='cuda', target_config=gpu.target_config(kind), topology=f'1x{nodes}x{each}')
    return Topology(name, 1, 'cuda', CHIPS[kind], devices, number)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:   # not even the package that it would be in
        return False


def _devices(name: str, **options: Any) -> Sequence[Any]:
    try:
        return topologies.get_topology_desc(**options).devices
    except Exception as e:  # jax raises what the plug-in gives it; its first line says what is wrong with the shape
        raise RecipeError(f'--topology: {name!r} cannot be made: {str(e).splitlines()[0]}') from None
