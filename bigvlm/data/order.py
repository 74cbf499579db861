"""Orders of n examples that are computed, never stored: any position of any epoch in O(1).

``Shuffle`` is a true shuffle of everything. ``Blocks`` keeps neighbours together, so that storage is read in long pieces:
blocks of consecutive examples are shuffled, and the examples of a few of them at a time.
"""
from dataclasses import dataclass

_MASK = (1 << 64) - 1
_ROUNDS = 6
_WITHIN = 0x77696e646f77  # sets the order within a window apart from that of the blocks


def order(seed: int, n: int, epoch: int, i: int) -> int:
    """Where position `i` of an epoch looks: for each (seed, n, epoch), a permutation of range(n).

    A Feistel network permutes the next power of four above n; positions that leave range(n) walk on until they return
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), less than four times on average.
    """
    if not 0 <= i < n:
        raise IndexError(f'position {i} of {n}')
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    key = mix(mix(seed & _MASK) ^ epoch)
    while True:
        left, right = i >> half, i & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mix(key ^ (turn << 58) ^ right) & low)
        i = left << half | right
        if i < n:
            return i


def mix(x: int) -> int:
    """The finalizer of splitmix64: 64 bits in, 64 well-stirred bits out."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return x ^ x >> 31


@dataclass(frozen=True)
class Shuffle:
    """Every permutation of range(n) alike."""
    seed: int
    n: int

    def at(self, epoch: int, i: int) -> int:
        return order(self.seed, self.n, epoch, i)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `block` consecutive examples in shuffled order; within `window` blocks in a row, examples are shuffled.

    Examples that do not fill a block join the last window.
    """
    seed: int
    n: int
    block: int
    window: int

    def at(self, epoch: int, i: int) -> int:
        if not 0 <= i < self.n:
            raise IndexError(f'position {i} of {self.n}')
        whole, size = self.n // self.block, self.window * self.block
        windows = max(1, -(-whole // self.window))
        number = min(i // size, windows - 1)
        start, first = number * size, number * self.window
        end = self.n if number == windows - 1 else start + size
        inner = order(mix(self.seed & _MASK) ^ _WITHIN ^ number, end - start, epoch, i - start)
        block, offset = first + inner // self.block, inner % self.block
        if block >= whole:
            return whole * self.block + inner - (whole - first) * self.block
        return order(self.seed, whole, epoch, block) * self.block + offset
