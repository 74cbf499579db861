import dataclasses
import itertools
import types

import numpy as np
import pytest

from bigvlm.core.devices import CHIPS
from bigvlm.plan import hlo, roofline


@dataclasses.dataclass(frozen=True)
class Device:
    coords: tuple[int, ...] = ()
    process_index: int = 0
    slice_index: int | None = None


def torus(data, fsdp):
    """data × fsdp devices in a grid, data along the first side."""
    devices = np.empty((data, fsdp), object)
    for i, j in itertools.product(range(data), range(fsdp)):
        devices[i, j] = Device((i, j, 0))
    return types.SimpleNamespace(axis_names=('data', 'fsdp'), devices=devices)


def nodes(data, fsdp, per_node=8):
    devices = np.array([Device(process_index=i // per_node) for i in range(data * fsdp)], object).reshape(data, fsdp)
    return types.SimpleNamespace(axis_names=('data', 'fsdp'), devices=devices)


V5E, V5P, H100 = CHIPS['v5e'], CHIPS['v5p'], CHIPS['h100']


def test_links_of_a_torus():
    assert roofline.bandwidth(V5E, torus(4, 4), ('fsdp',), False) == V5E.link, 'a line: one link'
    assert roofline.bandwidth(V5E, torus(16, 4), ('data',), False) == 2 * V5E.link, 'a closed side: both directions'
    assert roofline.bandwidth(V5E, torus(16, 4), ('data', 'fsdp'), False) == 3 * V5E.link, 'both sides at once'
    assert roofline.bandwidth(V5P, torus(4, 4), ('data',), False) == 2 * V5P.link, 'a v5p closes at 4'
    assert roofline.bandwidth(V5E, torus(16, 16), ('data', 'fsdp'), True) == V5E.link, 'a permute: one link'
    assert roofline.bandwidth(V5E, torus(4, 4), (hlo.NETWORK,), False) == V5E.network


def test_gpus_of_one_and_of_several_nodes():
    assert roofline.bandwidth(H100, nodes(2, 8), ('fsdp',), False) == H100.link, 'within a node'
    assert roofline.bandwidth(H100, nodes(2, 8), ('data',), False) == H100.network, 'one member in each node'
    assert roofline.bandwidth(H100, nodes(2, 8), ('data', 'fsdp'), False) == 8 * H100.network, 'eight adapters into each node'
    assert roofline.bandwidth(H100, nodes(2, 8), ('data', 'fsdp'), True) == H100.network, 'the slowest hop'


def traffic(*collectives):
    return hlo.Traffic(tuple(collectives), ())


def collective(wire, times=1, asynchronous=False, axes=('fsdp',), kind='all-gather'):
    return hlo.Collective(kind, wire, wire, 4, axes, times, asynchronous, 'x')


def test_step_time_is_the_largest_and_what_is_not_overlapped():
    link = V5E.link
    found = roofline.estimate(V5E, torus(4, 4), flops=.5 * V5E.flops, touched=.25 * V5E.bandwidth, efficiency=.5, traffic=traffic(
        collective(.1 * link, times=3, asynchronous=True), collective(.2 * link), collective(.1 * link, kind='collective-permute')))
    assert found.compute == pytest.approx(1.) and found.memory == pytest.approx(.25)
    assert found.hidden == pytest.approx(.3) and found.exposed == pytest.approx(.3)
    assert found.seconds == pytest.approx(1.3) and found.bound_by == 'products'
    slow = roofline.estimate(V5E, torus(4, 4), 0., 0., traffic(collective(2 * link, asynchronous=True)), .5)
    assert slow.seconds == pytest.approx(2.) and slow.bound_by == 'overlapped transfers'
