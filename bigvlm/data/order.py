"""A shuffled order of n examples that is computed, never stored: any position of any epoch in O(1)."""

_MASK = (1 << 64) - 1
_ROUNDS = 6


def order(seed: int, n: int, epoch: int, i: int) -> int:
    """Where position `i` of an epoch looks: for each (seed, n, epoch), a permutation of range(n).

    A Feistel network permutes the next power of four above n; positions that leave range(n) walk on until they return
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), less than four times on average.
    """
    if not 0 <= i < n:
        raise IndexError(f'position {i} of {n}')
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    key = _mix(_mix(seed & _MASK) ^ epoch)
    while True:
        left, right = i >> half, i & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(key ^ (turn << 58) ^ right) & low)
        i = left << half | right
        if i < n:
            return i


def _mix(x: int) -> int:
    """The finalizer of splitmix64: 64 bits in, 64 well-stirred bits out."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return x ^ x >> 31
