"""What a compiled program sends over the wires, read from its text: every collective, how often, how much, over which axes.

Compilers say the same thing in several ways, and each is counted once:

- a loop's body runs as often as its loop: GPU and CPU texts give the trip count, a TPU's has to be read from the counter's
  start, step and bound;
- GPUs split every collective into ``-start`` and ``-done``; TPUs do so for some, and start others as a call to another core;
- a TPU's "async collective fusion" repeats one collective in a start, several step and a done fusion: the start counts;
- a TPU writes some reduce-scatters as a fusion of an all-reduce and a slice of it;
- between TPU slices data leaves by ``send`` and ``recv`` with a note of what they are for. Such a text is one slice's.

Bytes are those of the whole array on one device, whichever side of the collective it is on: what an all-gather gives, what a
reduce-scatter takes, what an all-reduce, a permute or an all-to-all takes and gives. ``wire`` is what a device has to send
for it on a ring: (n-1)/n of the array, twice that for an all-reduce, all of it for a permute.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bigvlm.plan import groups, loops
from bigvlm.plan.program import Computation, Instruction, Program, Unreadable, parse, size as size_of

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute', 'all-to-all', 'ragged-all-to-all', 'collective-broadcast')
NETWORK = 'network'   # the "axis" between TPU slices, where the text does not say which mesh axis it is

_MEGASCALE = {'ALL_REDUCE': 'all-reduce', 'ALL_GATHER': 'all-gather', 'REDUCE_SCATTER': 'reduce-scatter',
              'ONE_TO_ONE': 'collective-permute', 'ALL_TO_ALL': 'all-to-all'}
_WORK = ('fusion', 'dot', 'convolution', 'custom-call', 'while', 'reduce', 'sort')   # what an open transfer can hide behind


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the text. ``bytes`` and ``wire`` are of one execution on one device (see the file's head)."""
    kind: str
    bytes: float
    wire: float
    group: int                     # devices that take part together
    axes: tuple[str, ...]
    times: int                     # executions per step
    asynchronous: bool             # something is computed while it is under way
    name: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of a step; ``unknown``: loops with collectives whose length the text does not tell, counted as one trip."""
    collectives: tuple[Collective, ...]
    unknown: tuple[str, ...]

    @property
    def bytes(self) -> float:
        return sum(c.times * c.bytes for c in self.collectives)

    @property
    def wire(self) -> float:
        return sum(c.times * c.wire for c in self.collectives)

    def table(self) -> list[dict]:
        """One row per kind, axes and whether asynchronous, the largest first."""
        rows: dict[tuple, dict] = {}
        for c in self.collectives:
            row = rows.setdefault((c.kind, c.axes, c.asynchronous), dict(
                kind=c.kind, axes=c.axes, asynchronous=c.asynchronous, group=c.group, count=0, times=0, bytes=0., wire=0.))
            row['count'] += 1
            row['times'] += c.times
            row['bytes'] += c.times * c.bytes
            row['wire'] += c.times * c.wire
        return sorted(rows.values(), key=lambda row: -row['bytes'])


@dataclasses.dataclass(frozen=True)
class _Reading:
    """What is looked up and noted down while a program is read. ``mesh``: axis sizes, or nothing."""
    program: Program
    mesh: dict[str, int]
    unknown: list[str]
    seen: set[str]                 # computations that have been counted
    begun: set[str]                # asynchronous fusions by their id: those whose start has been counted,
    continued: set[str]            # and those of which another part has been met


class _Caller(NamedTuple):
    """The instruction that runs a computation, and whether others run meanwhile."""
    name: str
    hidden: bool


def collectives(text: str, mesh: Mapping[str, int] | None = None) -> Traffic:
    """All collectives of ``compiled.as_text()``.

    ``mesh``: the mesh's axis sizes in order, of one slice where there are several, so that groups of devices can be named
    by axes; without it they are not. Raises Unreadable for a text that it does not understand.
    """
    program = parse(text)
    if mesh is not None and math.prod(mesh.values()) != program.partitions:
        raise Unreadable(f'a mesh of {dict(mesh)} for a program of {program.partitions} devices')
    reading = _Reading(program, dict(mesh or {}), [], set(), set(), set())
    found = tuple(_inside(reading, program.entry, 1, _Caller('', False)))
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            if computation.name not in reading.seen and instruction.opcode.removesuffix('-start') in KINDS:
                raise Unreadable(f'{instruction.name} in {computation.name}: nothing that this reader knows runs it')
    if lost := reading.continued - reading.begun:
        raise Unreadable(f'asynchronous collectives without a start, of the chains {", ".join(sorted(lost))}')
    return Traffic(found, tuple(reading.unknown))


def _inside(reading: _Reading, name: str, times: int, caller: _Caller) -> Iterator[Collective]:
    """The collectives of one computation and of all that it calls, run ``times`` times."""
    reading.seen.add(name)
    computation = reading.program.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode == 'while':
            body = instruction.attribute(r'body=%?([\w.\-]+)')
            trips = loops.trips(reading.program, computation, instruction)
            inner = list(_inside(reading, body, times * (1 if trips is None else trips), caller))
            if trips is None and inner:
                reading.unknown.append(f'{instruction.name} in {name}')
            yield from inner
        elif instruction.opcode == 'conditional':  # slices or devices may take different ones: the largest counts
            each = [list(_inside(reading, branch, times, caller)) for branch in instruction.branches]
            yield from max(each, key=lambda found: sum(c.times * c.bytes for c in found), default=[])
        elif instruction.called:
            calling = _Caller(instruction.name, _hidden(computation, instruction))
            for inner in instruction.called:
                yield from _inside(reading, inner, times, calling)
        else:
            found = _collective(reading, computation, instruction, times, caller)
            if found is not None:
                yield found


def _collective(reading: _Reading, computation: Computation, instruction: Instruction, times: int, caller: _Caller) -> Collective | None:
    kind = instruction.opcode.removesuffix('-start')
    if kind == 'send' and 'megascale' in instruction.rest:
        return _between_slices(computation, instruction, times)
    if kind not in KINDS:
        return None
    chain = instruction.attribute(r'chain_id="([^"]*)"')
    if chain is not None:
        begins = caller.name.startswith('async-collective-start')
        (reading.begun if begins else reading.continued).add(chain)
        if not begins:
            return None
    together = groups.groups(instruction, reading.program.partitions)
    group = 2 if kind == 'collective-permute' else max(map(len, together), default=1)
    size = sum(size_of(computation.instructions[name].result) for name in instruction.operands)
    if kind == 'all-gather':
        size *= group
    if kind == 'all-reduce' and 'all-reduce-scatter' in computation.name:
        kind = 'reduce-scatter'
    hidden = chain is not None or caller.hidden or _hidden(computation, instruction)
    return Collective(kind, size, wire(kind, size, group), group, groups.axes(together, reading.mesh), times, hidden, instruction.name)


def wire(kind: str, size: float, group: int) -> float:
    """Bytes that a device of a group sends for a collective of ``size`` bytes; see the file's head."""
    if kind in ('collective-permute', 'collective-broadcast'):
        return size
    return size * (group - 1) / group * (2 if kind == 'all-reduce' else 1)


def _between_slices(computation, send, times) -> Collective:
    """A transfer between TPU slices: a ``send``, and a ``recv`` of the same name for the runtime to meet at."""
    what = send.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    if what not in _MEGASCALE:
        raise Unreadable(f'a transfer between slices of the kind {what!r}')
    kind, key = _MEGASCALE[what], send.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"')
    size = size_of(computation.instructions[send.operands[0]].result)
    received = [i for i in computation.instructions.values() if i.opcode == 'recv' and f'rendezvous="{key}"' in i.rest]
    # Who takes part: "{1,2}x{0:3}" is slices × devices of each, and the slices reduce or gather device by device.
    slices = send.attribute(r'_xla_megascale_target="\{([\d,]+)\}x')
    group = len(slices.split(',')) if slices else 2
    if kind == 'all-gather':
        size *= group
    hidden = not received or _works_between(computation, send.name, _user(computation, received[0]))
    return Collective(kind, size, wire(kind, size, group), group, (NETWORK,), times, hidden, send.name)


def _user(computation: Computation, instruction: Instruction) -> str | None:
    """The ``-done`` of what an instruction has started, if it is in the same computation."""
    return next((i.name for i in computation.instructions.values()
                 if i.opcode.endswith('-done') and instruction.name in i.operands), None)


def _hidden(computation: Computation, instruction: Instruction) -> bool:
    """Whether something is computed between a ``-start`` and its ``-done``."""
    if not instruction.opcode.endswith('-start') or '"is_sync":true' in instruction.rest:
        return False
    return _works_between(computation, instruction.name, _user(computation, instruction))


def _works_between(computation: Computation, first: str, last: str | None) -> bool:
    """``last`` None: what was started here ends elsewhere, after everything that follows."""
    names = list(computation.instructions)
    stop = len(names) if last is None else computation.order[last]
    return any(computation.instructions[name].opcode in _WORK for name in names[computation.order[first] + 1:stop])
