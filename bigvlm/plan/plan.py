"""A plan: the real step compiled for machines that are not here, and what the compiler says of it.

``plan(config, topology)`` is all of the planner; the command, the table in the docs, the search and the tests call it.
Figures are per device and step unless they say otherwise.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigvlm import blueprint
from bigvlm.blueprint import Placed
from bigvlm.core import flops as flops_lib, mesh as mesh_lib
from bigvlm.core.parts import RecipeError
from bigvlm.plan import hlo, minimum as minimum_lib, roofline
from bigvlm.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. ``state``: {what: bytes} of the step's arguments, from shapes and layouts.

    The compiler's own figures are None where it refused: ``arguments`` includes padding of its tiles; ``output``: what is
    not written over an argument. ``needed`` is then what its error says, at least.
    """
    state: Mapping[str, int]
    limit: float
    limit_source: str
    arguments: int | None = None
    temporaries: int | None = None
    output: int | None = None
    code: int | None = None
    refused: float | None = None

    @property
    def needed(self) -> float:
        return self.refused if self.refused is not None else self.arguments + self.temporaries + self.output + self.code

    @property
    def fits(self) -> bool:
        return self.refused is None and self.needed <= self.limit

    @property
    def room(self) -> float:
        """What is left, negative if it does not fit."""
        return self.limit - self.needed


@dataclasses.dataclass(frozen=True)
class Run:
    """The recipe's schedule at the estimated step time."""
    steps: int
    examples: int
    examples_per_second: float
    mfu: float
    hours: float
    device_hours: float      # of chips
    cost: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of one recipe on one topology.

    ``model_flops`` is the numerator of MFU: forward and backward pass, without what rematerialisation and micro-batches
    repeat; a frozen tower's forward pass only. A causal mask does not halve the attention scores, as in PaLM's definition
    (arXiv 2204.02311, appendix B). ``compiled_flops`` counts the step as it is compiled. ``traffic``, ``estimate`` and ``run``
    are None where the compiler refused: there is no program to read them from.
    """
    topology: str
    chips: int
    devices: int
    device_kind: str
    mesh: Mapping[str, int]
    kind: str
    batch: int
    micro: int
    remat: Mapping[str, str]
    memory: Memory
    peak_flops: float
    model_flops: float
    compiled_flops: float
    minimum: tuple[minimum_lib.Needed, ...]
    traffic: hlo.Traffic | None
    estimate: roofline.Estimate | None
    run: Run | None
    compile_seconds: float
    notes: tuple[str, ...]

    @property
    def minimum_bytes(self) -> float:
        return sum(row.bytes for row in self.minimum)

    @property
    def minimum_wire(self) -> float:
        return sum(row.wire for row in self.minimum)

    def as_dict(self) -> dict[str, Any]:
        """Everything, with what is worked out from it, as JSON takes it."""
        found = dataclasses.asdict(self)
        found['memory'] |= dict(needed=self.memory.needed, fits=self.memory.fits, room=self.memory.room)
        found['minimum'] = [row._asdict() for row in self.minimum]
        found |= dict(minimum_bytes=self.minimum_bytes, minimum_wire=self.minimum_wire)
        if self.traffic is not None:
            found['traffic'] = dict(bytes=self.traffic.bytes, wire=self.traffic.wire, unknown=self.traffic.unknown,
                                    table=self.traffic.table())
            found['estimate'] |= dict(seconds=self.estimate.seconds, hidden=self.estimate.hidden, exposed=self.estimate.exposed)
        return found


def plan(config: Mapping[str, Any], topology: Topology, *, kind: str | None = None, examples_per_epoch: int | None = None,
         efficiency: float = roofline.EFFICIENCY, price: float | None = None) -> Plan:
    """Compiles the step of a resolved recipe for a topology.

    Args:
        kind: of batches; the recipe's first by default.
        examples_per_epoch: needed where the recipe counts in epochs.
        efficiency: fraction of the peak that matrix products are assumed to reach.
        price: of one chip and hour.

    Raises:
        RecipeError: the recipe, or the recipe on this mesh, is impossible. Whatever the compiler finds wrong other than
        memory is raised as it comes.
    """
    kind = kind or next(iter(config['kinds']))
    if kind not in config['kinds']:
        raise RecipeError(f'--kind: the recipe has no batches of the kind {kind!r} (kinds: {", ".join(config["kinds"])})')
    placed = place(config, topology, examples_per_epoch)
    mesh, began = placed.mesh, time.perf_counter()
    with jax.set_mesh(mesh), mesh_lib.activate(mesh):
        state, batch, step = placed.state(), placed.batch(kind), placed.step(kind)
        traced = step.trace(state, batch)
        compiled_flops = flops_lib.count(step, state, batch) / mesh.size
        lowered = traced.lower(lowering_platforms=(topology.platform,))
        compiled, refused = _compile(lowered)
    compile_seconds = time.perf_counter() - began
    needs = tuple(minimum_lib.of(placed, kind, traced.jaxpr))
    model_flops = placed.plan.model_flops(kind) / mesh.size

    memory = _memory(placed, kind, topology, compiled, refused)
    traffic = estimate = run = None
    notes = list(placed.stored.notes)
    if compiled is not None:
        traffic = hlo.collectives(compiled.as_text(), slice_shape(mesh))
        touched = 2 * memory.arguments + 2 * memory.temporaries
        estimate = roofline.estimate(topology.chip, mesh, compiled_flops, touched, traffic, efficiency)
        run = _run(placed, topology, estimate.seconds, model_flops, price)
    if topology.platform == 'cuda':
        notes.append("compiled without a GPU: which GEMM kernels a real run would take is not known, Triton's are off")
    return Plan(
        topology.text, topology.chips, mesh.size, topology.devices[0].device_kind, dict(mesh.shape), kind, config['batch'],
        config['micro'], {name: tower['remat'] for name, tower in config['towers'].items() if 'remat' in tower}, memory,
        topology.chip.flops, model_flops, compiled_flops, needs, traffic, estimate, run, compile_seconds, tuple(notes))


def place(config: Mapping[str, Any], topology: Topology, examples_per_epoch: int | None = None) -> Placed:
    """The recipe on the topology's mesh; nothing is compiled."""
    try:
        made = blueprint.make(config, examples_per_epoch=examples_per_epoch)
    except RecipeError as e:
        if examples_per_epoch is None and 'size of an epoch' in str(e):
            raise RecipeError(f'--examples_per_epoch: give the size of the training set; {e}') from None
        raise
    return made.on(mesh_lib.make_mesh(config['mesh'], topology.devices))


def slice_shape(mesh: jax.sharding.Mesh) -> dict[str, int]:
    """The part of the mesh that one slice holds: what a program's text numbers its devices by."""
    slices = np.vectorize(lambda d: getattr(d, 'slice_index', None) or 0)(mesh.devices)
    places = np.argwhere(slices == slices.flat[0])
    return {axis: len(set(places[:, i])) for i, axis in enumerate(mesh.axis_names)}


def state_bytes(placed: Placed, kind: str) -> dict[str, int]:
    """Bytes per device of what a step takes, by shape and layout: a lower bound of what it needs."""
    state = placed.state()
    parts = {'parameters': state.params, 'optimizer': state.opt, 'averages': state.ema, 'collections': state.collections,
             'batch': placed.batch(kind)}
    return {name: sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))
            for name, tree in parts.items()}


# What TPU compilers say when a program does not fit: "… (48.25G) exceeds available HBM (15.75G)", "Used 25.20G of 15.75G hbm".
_REFUSALS = (re.compile(r'\(([\d.]+)([KMGT]?)B?\) exceeds available \w+ \(([\d.]+)([KMGT]?)B?\)'),
             re.compile(r'Used ([\d.]+)([KMGT]?)B? of ([\d.]+)([KMGT]?)B? hbm', re.IGNORECASE))
_UNITS = {'': 1, 'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30, 'T': 2 ** 40}


def _compile(lowered) -> tuple[Any, tuple[float, float] | None]:
    """(the executable, None), or (None, (needed, limit)) if the compiler says that it does not fit."""
    try:
        return lowered.compile(), None
    except jax.errors.JaxRuntimeError as e:
        refused = read_refusal(str(e))
        if refused is None:
            raise
        return None, refused


def read_refusal(message: str) -> tuple[float, float] | None:
    """(needed, limit) in bytes of a compiler's "out of memory"; None if it says something else."""
    if 'RESOURCE_EXHAUSTED' in message:
        for pattern in _REFUSALS:
            if found := pattern.search(message):
                needed, unit, limit, limit_unit = found.groups()
                return float(needed) * _UNITS[unit], float(limit) * _UNITS[limit_unit]
    return None


def _memory(placed: Placed, kind: str, topology: Topology, compiled, refused) -> Memory:
    chip, state = topology.chip, state_bytes(placed, kind)
    if refused is not None:
        return Memory(state, refused[1], 'compiler', refused=refused[0])
    stats = compiled.memory_analysis()
    return Memory(state, chip.hbm, chip.hbm_source, stats.argument_size_in_bytes, stats.temp_size_in_bytes,
                  stats.output_size_in_bytes - stats.alias_size_in_bytes, stats.generated_code_size_in_bytes)


def _run(placed: Placed, topology: Topology, seconds: float, model_flops: float, price: float | None) -> Run:
    batch, steps = placed.plan.config['batch'], placed.plan.total_steps
    hours = steps * seconds / 3600
    device_hours = hours * topology.chips
    return Run(steps, steps * batch, batch / seconds, model_flops / seconds / topology.chip.flops, hours, device_hours,
               None if price is None else price * device_hours)
