"""Which piece goes into which row, and the account of it.

Array legend: P pieces, R rows.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """What became of the texts of some windows, in tokens; `rows` and `empty_rows` in rows, `unusable` in examples."""
    packed: int = 0
    dropped: int = 0
    rows: int = 0
    empty_rows: int = 0
    unusable: int = 0
    length: int = 1

    @property
    def fill(self) -> float:
        """The share of the rows' places that hold a token."""
        return self.packed / max(1, self.rows * self.length)

    @property
    def lost(self) -> float:
        """The share of the texts' tokens that found no place."""
        return self.dropped / max(1, self.packed + self.dropped)

    def __add__(self, other: 'Packing') -> 'Packing':
        return Packing(*(mine + its for mine, its in zip(self[:-1], other[:-1])), length=self.length)

    def __str__(self) -> str:
        return (f'{self.rows} rows of {self.length} tokens, {self.fill:.1%} filled, {self.empty_rows} empty; {self.lost:.2%} of the '
                f'tokens dropped; {self.unusable} examples without text')


def pack(sizes: Sequence[int], rows: int, length: int) -> tuple[list[list[int]], list[int]]:
    """(the numbers of the pieces in each row, those that found no room), by first-fit decreasing of what the rows can hold.

    Pieces are taken in order up to rows * length tokens, the largest of them first, each into the first row with room; then
    the others, in order. Were all of them sorted, the short ones would be those that are dropped. A row that stays empty
    gets every second piece of the row that has the most.
    """
    sizes_P = np.asarray(sizes, int)
    taken = int(np.searchsorted(np.cumsum(sizes_P), rows * length, side='right'))
    order = [*np.argsort(-sizes_P[:taken], kind='stable').tolist(), *range(taken, len(sizes))]
    room_R = np.full(rows, length)
    found: list[list[int]] = [[] for _ in range(rows)]
    dropped = []
    for number in order:
        row = int(np.argmax(room_R >= sizes[number]))
        if room_R[row] < sizes[number]:
            dropped.append(number)
        else:
            found[row].append(number)
            room_R[row] -= sizes[number]
    for row in found:
        donor = max(found, key=len)
        if not row and len(donor) > 1:
            row.extend(donor[1::2])
            del donor[1::2]
    return found, dropped
