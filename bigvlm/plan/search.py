"""Which micro-batches, rematerialisation and mesh? Compiles what arithmetic cannot rule out, and ranks what fits.

Choices are tried from the fastest on: by a lower bound of their step time, the products of the traced step at the assumed
efficiency or the least transfer of parameters and gradients, whichever takes longer. Not compiled is

- what the state alone overfills;
- what needs more than fits by what has been compiled before: with fewer micro-batches or with more activations kept a
  step does not need less, and N times as many micro-batches save at most N-fold;
- what cannot be faster than the fastest that fits.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from bigvlm.core import flops as flops_lib, mesh as mesh_lib
from bigvlm.core.parts import RecipeError
from bigvlm.nn.transformer import NAMES
from bigvlm.plan import minimum, plan as plan_lib, roofline, text
from bigvlm.plan.plan import Plan
from bigvlm.plan.topology import Topology

# From keeping everything to keeping nothing but a block's input: fewer and fewer activations are named.
REMATS = ('none', *('+'.join(NAMES[:n]) for n in range(len(NAMES), 0, -1)), 'full')


@dataclasses.dataclass(frozen=True)
class Choice:
    """One setting of the recipe: (axis, size) pairs, a name of REMATS and a number of micro-batches."""
    mesh: tuple[tuple[str, int], ...]
    remat: str
    micro: int

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe with it."""
        towers = {name: tower | {'remat': self.remat} if 'remat' in tower else tower for name, tower in config['towers'].items()}
        return {**config, 'mesh': dict(self.mesh), 'micro': self.micro, 'towers': towers}

    def __str__(self) -> str:
        return f'mesh {_mesh_text(self.mesh)}; rematerialisation {self.remat}; {self.micro} micro-batches'


@dataclasses.dataclass(frozen=True)
class Known:
    """What arithmetic says of a choice: bytes of its state on a device, and a lower bound of its seconds per step."""
    state: int
    seconds: float
    transfer: float


def search(config: Mapping[str, Any], topology: Topology, *, limit: int, say: Callable[[str], Any], **given: Any) -> list[Plan]:
    """The plans that were compiled: those that fit, the fastest estimate first; then the others, the least over first.

    ``given`` is for ``plan.plan``. Raises RecipeError if there is nothing to try.
    """
    known = _known(config, topology, given, say)
    order = sorted(known, key=lambda c: (known[c].seconds, known[c].transfer))
    plans: dict[Choice, Plan] = {}
    began, memory = time.monotonic(), topology.chip.hbm
    while len(plans) < limit:
        fastest = min((p.estimate.seconds for p in plans.values() if p.memory.fits), default=math.inf)
        left = [c for c in order if c not in plans and known[c].seconds < fastest and _least(c, known, plans) <= memory]
        if not left:
            break
        pace = (time.monotonic() - began) / max(1, len(plans))
        to_go = min(limit - len(plans), len(left))
        say(f'{len(plans) + 1} of at most {len(plans) + to_go}' + (f' (~{pace * to_go / 60:.0f} min)' if plans else '') + f': {left[0]}')
        found = plans[left[0]] = plan_lib.plan(left[0].of(config), topology, **given)
        say(f'    {text.verdict(found)}' + (f'; {1e3 * found.estimate.seconds:.1f} ms' if found.estimate else ''))
    return sorted(plans.values(), key=lambda p: (not p.memory.fits, p.estimate.seconds if p.memory.fits else -p.memory.room))


def _least(choice: Choice, known: Mapping[Choice, Known], plans: Mapping[Choice, Plan]) -> float:
    """Bytes that a choice needs at least, as far as others that have been compiled tell."""
    temporaries = 0.
    for other, found in plans.items():
        if REMATS.index(other.remat) >= REMATS.index(choice.remat):   # it keeps no more than this one
            temporaries = max(temporaries, (found.memory.needed - known[other].state) * min(1., other.micro / choice.micro))
    return known[choice].state + temporaries


def _known(config, topology: Topology, given, say) -> dict[Choice, Known]:
    """Every choice that arithmetic alone does not rule out."""
    kind = given.get('kind') or next(iter(config['kinds']))
    products: dict[tuple, float] = {}    # of (remat, whether micro-batched): the mesh does not change them
    known = {}
    for mesh in _meshes(config, topology):
        placed = _place(Choice(mesh, 'full', 1), config, topology, given)
        state = sum(plan_lib.state_bytes(placed, kind).values())
        if state > topology.chip.hbm:
            say(f'not tried: mesh {_mesh_text(mesh)}, whose state alone needs {text.size(state)} of {text.size(topology.chip.hbm)}')
            continue
        modules = minimum.reached(placed, kind)
        for remat, micro in itertools.product(REMATS, _micros(config['batch'], mesh)):
            choice = Choice(mesh, remat, micro)
            if (remat, micro > 1) not in products:
                products[remat, micro > 1] = _flops(_place(choice, config, topology, given), kind) / placed.mesh.size
            compute = products[remat, micro > 1] / (given.get('efficiency', roofline.EFFICIENCY) * topology.chip.flops)
            so_set = _so_set(placed, choice.of(config))
            transfer = sum(row.wire / roofline.bandwidth(topology.chip, placed.mesh, row.axes, False)
                           for row in minimum.parameters(so_set, modules) if row.wire)
            known[choice] = Known(state, max(compute, transfer), transfer)
    if not known:
        raise RecipeError(f'--search: on no mesh of {topology.text} does the state alone fit, or the batch divide')
    return known


def _place(choice: Choice, config, topology: Topology, given):
    return plan_lib.place(choice.of(config), topology, given.get('examples_per_epoch'))


def _so_set(placed, config):
    """Remat and micro-batches change no layout: the same placing, of the recipe with other values of those."""
    return dataclasses.replace(placed, plan=dataclasses.replace(placed.plan, config=config))


def _flops(placed, kind: str) -> int:
    with jax.set_mesh(placed.mesh), mesh_lib.activate(placed.mesh):
        return flops_lib.count(placed.step(kind), placed.state(), placed.batch(kind))


def _meshes(config, topology: Topology) -> Iterator[tuple[tuple[str, int], ...]]:
    """Slices over ``replica``; fsdp and tensor a power of two each within a slice; tensor only where the layout splits by it."""
    each = len(topology.devices) // topology.slices
    by_tensor = any(s in ('column', 'row') or 'tensor' in str(s) for _, s in config['layout'])
    for tensor, fsdp in itertools.product((1, 2, 4) if by_tensor else (1,), _powers(each)):
        if each % (tensor * fsdp) == 0:
            yield (('replica', topology.slices), ('data', each // (tensor * fsdp)), ('fsdp', fsdp), ('tensor', tensor))


def _powers(up_to: int) -> list[int]:
    return [2 ** i for i in range(up_to.bit_length())]


def _micros(batch: int, mesh: tuple[tuple[str, int], ...]) -> list[int]:
    shards = math.prod(n for axis, n in mesh if axis != 'tensor')
    return [n for n in _powers(batch) if batch % (shards * n) == 0]


def _mesh_text(mesh) -> str:
    return ', '.join(f'{axis} {n}' for axis, n in mesh if n > 1) or 'one device'


def report(plans: Sequence[Plan]) -> str:
    """A table of what was compiled, and the command-line overrides of the best."""
    rows = [('mesh', 'rematerialisation', 'micro', 'GiB', 'room', 'TFLOP', 'MiB moved', 'ms', 'examples/s', 'MFU')]
    for p in plans:
        figures = ('–',) * 4 if p.estimate is None else (
            f'{p.traffic.bytes / text.MIB:.0f}', f'{1e3 * p.estimate.seconds:.1f}', f'{p.run.examples_per_second:,.0f}',
            f'{100 * p.run.mfu:.1f} %')
        rows.append((_mesh_text(p.mesh.items()), '/'.join(dict.fromkeys(p.remat.values())), str(p.micro),
                     f'{p.memory.needed / text.GIB:.2f}', f'{p.memory.room / text.GIB:+.2f}', f'{p.compiled_flops / 1e12:.2f}', *figures))
    best = plans[0]
    return f'{text.table(rows)}\n' + (f'best: {overrides(best)}' if best.memory.fits else 'nothing that was tried fits')


def overrides(plan: Plan) -> str:
    """What to add to the command line for this plan's setting."""
    return ' '.join([f'--config.micro={plan.micro}', *(f'--config.towers.{name}.remat={remat}' for name, remat in plan.remat.items()),
                     *(f'--config.mesh.{axis}={n}' for axis, n in plan.mesh.items())])
