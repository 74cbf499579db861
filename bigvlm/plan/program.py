"""The text of a compiled program, taken apart into computations and instructions.

Only what the planner looks at: names, types, opcodes, operands, and attributes as text.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import cached_property

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 'bf16': 16, 'f16': 16, 's32': 32, 'u32': 32,
         'f32': 32, 's64': 64, 'u64': 64, 'f64': 64, 'c64': 64, 'c128': 128, 'f8e4m3fn': 8, 'f8e5m2': 8, 'f8e4m3': 8}
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s*(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$')
_ARRAY = re.compile(r'\b([a-z]+[0-9][a-z0-9]*|pred)\[([0-9,]*)\]')


class Unreadable(ValueError):
    """The text says something that this reader does not know; the message quotes it."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    result: str                    # its type
    opcode: str
    operands: tuple[str, ...]
    rest: str                      # everything after the opcode

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found.group(1) if found else None

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that run when this one does; a reduction's scalar function is none."""
        if self.opcode in ('fusion', 'call', 'async-start', 'call-start'):
            return tuple(re.findall(r'(?:calls|to_apply)=%?([\w.\-]+)', self.rest))
        return ()

    @cached_property
    def branches(self) -> tuple[str, ...]:
        listed = self.attribute(r'branch_computations=\{([^}]*)\}')
        if listed is not None:
            return tuple(name.strip().lstrip('%') for name in listed.split(','))
        return tuple(re.findall(r'(?:true|false)_computation=%?([\w.\-]+)', self.rest))


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]   # in the order of the schedule
    root: str

    @cached_property
    def order(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.instructions)}


@dataclasses.dataclass(frozen=True)
class Program:
    computations: Mapping[str, Computation]
    entry: str
    partitions: int                # devices of the program; of one slice, if there are several


def parse(text: str) -> Program:
    computations, entry, current, root, name = {}, '', None, '', ''
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            name, current, root = head.group(2), {}, ''
            entry = name if head.group(1) else entry
        elif line.rstrip() == '}' and current is not None:  # a kernel's metadata can begin a line with one, too
            computations[name], current = Computation(name, current, root), None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            is_root, own, result, opcode, rest = found.groups()
            current[own] = Instruction(own, result, opcode, _operands(rest), rest)
            root = own if is_root else root
    if not entry:
        raise Unreadable('no ENTRY computation in the program text')
    partitions = re.search(r'num_partitions=(\d+)', text[:text.find('\n')])
    return Program(computations, entry, int(partitions.group(1)) if partitions else 1)


def _operands(rest: str) -> tuple[str, ...]:
    """The names before the parenthesis that closes the operands."""
    depth = 1
    for end, character in enumerate(rest):
        depth += (character == '(') - (character == ')')
        if not depth:
            return tuple(re.findall(r'%([\w.\-]+)', rest[:end]))
    return ()


def size(type_text: str) -> float:
    """Of an array, or of all arrays of a tuple."""
    total = 0.
    for dtype, dims in _ARRAY.findall(type_text):
        if dtype not in _BITS:
            raise Unreadable(f'the element type {dtype!r}')
        total += math.prod(int(d) for d in dims.split(',') if d) * _BITS[dtype] / 8
    return total
