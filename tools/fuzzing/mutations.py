"""Ways to damage bytes: each takes a bytearray and a random.Random and changes the first in place."""


def flip_bits(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def zero(data, rng):
    where = stretch(data, rng)
    data[where] = bytes(where.stop - where.start)


def randomise(data, rng):
    where = stretch(data, rng)
    data[where] = rng.randbytes(where.stop - where.start)


def remove(data, rng):
    where = stretch(data, rng)
    if where.stop - where.start < len(data):
        del data[where]


def double(data, rng):
    where = stretch(data, rng)
    at = rng.choice((where.stop, rng.randrange(len(data) + 1)))
    data[at:at] = data[where]


def overwrite(data, rng):
    """A piece of the file over another."""
    where = stretch(data, rng)
    at = rng.randrange(len(data))
    data[at:at + where.stop - where.start] = data[where]


def truncate(data, rng):
    del data[rng.randrange(len(data)):]


def extreme(data, rng):
    """A number of 1 to 8 bytes as large, or as negative, as it can be."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data))
    most = b'\xff' * (size - 1)
    data[at:at + size] = rng.choice((b'\xff' + most, b'\x7f' + most, most + b'\x7f', b'\x80' + bytes(size - 1)))


def stretch(data, rng):
    """A place and a length of any order of magnitude; half of them on tars' block boundaries."""
    size = min(len(data), int(2 ** rng.uniform(0, 14)))
    at = rng.randrange(len(data) - size + 1)
    if rng.random() < .5:
        at, size = at // 512 * 512, -(-size // 512) * 512
    return slice(at, min(at + size, len(data)))


ANY = (flip_bits, zero, randomise, remove, double, overwrite, truncate, extreme)


def mutated(data: bytes, rng, kinds) -> bytes:
    """`data` with one to four mutations of these kinds; never empty."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(kinds)(found, rng)
        if not found:
            found += b'\0'
    return bytes(found)
