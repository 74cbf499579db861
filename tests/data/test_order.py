import time

import pytest

from bigvlm.data.order import order


@pytest.mark.parametrize('n', [1, 2, 3, 5, 16, 17, 64, 65, 1000, 1025])
def test_is_a_permutation(n):
    for epoch in (0, 1):
        assert sorted(order(7, n, epoch, i) for i in range(n)) == list(range(n))


def test_depends_on_seed_and_epoch():
    orders = {tuple(order(seed, 50, epoch, i) for i in range(50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_mixes_well():
    """Positions of neighbours are unrelated: differences are as of random pairs, and every start is different."""
    n = 4096
    found = [order(0, n, 0, i) for i in range(n)]
    steps = sum(abs(a - b) for a, b in zip(found, found[1:])) / (n - 1)
    assert abs(steps / (n / 3) - 1) < .05  # the mean distance of two random numbers below n
    firsts = [order(seed, n, 0, 0) for seed in range(512)]
    assert abs(sum(firsts) / len(firsts) / (n / 2) - 1) < .1
    assert len(set(firsts)) > 450


def test_is_constant_time_and_needs_no_memory():
    n = 10 ** 12
    start = time.perf_counter()
    assert len({order(0, n, 3, i) for i in range(n - 200, n)}) == 200
    assert time.perf_counter() - start < .5


def test_refuses_positions_outside():
    with pytest.raises(IndexError):
        order(0, 10, 0, 10)
