"""How often a loop of a compiled program runs.

GPU and CPU texts give the number. A TPU's has to be worked out: where the counter starts, what is added to it, and what it
is compared with; each may hide behind copies, or be carried by the loop unchanged.
"""

import math
import re

from bigvlm.plan.program import Computation, Instruction, Program


def trips(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """None if the text does not tell."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
    if known is not None:
        return int(known)
    condition = program.computations[loop.attribute(r'condition=%?([\w.\-]+)')]
    body = program.computations[loop.attribute(r'body=%?([\w.\-]+)')]
    test = condition.instructions[condition.root]
    if test.opcode != 'compare' or 'direction=LT' not in test.rest:
        return None
    counter = _element(condition, test.operands[0])
    initial = _follow(computation, loop.operands[0])
    if counter is None or initial is None or initial.opcode != 'tuple':
        return None

    def before(index: int) -> int | None:
        """What the loop's state has at ``index`` when it begins."""
        return _constant(computation, initial.operands[index])

    def inside(where: Computation, name: str) -> int | None:
        """A constant of the body or condition, its own or one that the loop carries unchanged."""
        index = _element(where, name)
        if index is None:
            return _constant(where, name)
        carried = body.instructions[body.root].operands
        return before(index) if index < len(carried) and _element(body, carried[index]) == index else None

    update = _follow(body, body.instructions[body.root].operands[counter])
    if update is None or update.opcode != 'add' or counter not in [_element(body, name) for name in update.operands]:
        return None
    step = next((inside(body, name) for name in update.operands if _element(body, name) != counter), None)
    begin, end = before(counter), inside(condition, test.operands[1])
    return None if None in (begin, end, step) or not step else max(0, math.ceil((end - begin) / step))


def _follow(computation: Computation, name: str) -> Instruction | None:
    """The instruction behind copies."""
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ('copy', 'bitcast', 'convert', 'reshape', 'copy-done', 'copy-start'):
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction


def _element(computation: Computation, name: str) -> int | None:
    """The index, if it is an element of the computation's own state."""
    found = _follow(computation, name)
    if found is None or found.opcode != 'get-tuple-element':
        return None
    source = computation.instructions.get(found.operands[0])
    return int(found.attribute(r'index=(\d+)')) if source is not None and source.opcode == 'parameter' else None


def _constant(computation: Computation, name: str) -> int | None:
    found = _follow(computation, name)
    value = None if found is None or found.opcode != 'constant' else re.match(r'(-?\d+)\)', found.rest)
    return int(value.group(1)) if value else None
