"""How long a step should take if every part ran at its limit: an estimate by arithmetic, nothing is measured.

    step = max(products, memory, transfers that overlap with work) + transfers that do not

*Products*: the compiled program's FLOPs at ``efficiency`` of the chip's peak; the efficiency is an assumption. *Memory*:
arguments are read and written once, temporaries written once and read once; a lower bound. *Transfers*: bytes that a device
sends (``hlo``'s ``wire``) over the bandwidth of the axes that they cross, without latencies.

Bandwidth. TPU: an axis (or several) runs along one or more dimensions of the torus; each has one link, or two if it closes.
A permute goes over one link. Between slices: the device's share of the network. GPU: within a node the switch; a group over
several nodes enters each node once, over as many adapters as it has members there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigvlm.core.devices import Chip
from bigvlm.plan import hlo

EFFICIENCY = .5   # of the peak, for matrix products; an assumption, to be replaced by what your runs reach


@dataclasses.dataclass(frozen=True)
class Transfer:
    """All collectives over the same axes that are alike in being hidden or not; ``seconds`` per step."""
    axes: tuple[str, ...]
    permute: bool
    asynchronous: bool
    wire: float
    bandwidth: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step, and what they were made of."""
    efficiency: float
    compute: float
    memory: float
    transfers: tuple[Transfer, ...]

    @property
    def hidden(self) -> float:
        return sum(t.seconds for t in self.transfers if t.asynchronous)

    @property
    def exposed(self) -> float:
        return sum(t.seconds for t in self.transfers if not t.asynchronous)

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def bound_by(self) -> str:
        parts = {'products': self.compute, 'memory': self.memory, 'overlapped transfers': self.hidden}
        return max(parts, key=parts.get)


def estimate(chip: Chip, mesh: jax.sharding.Mesh, flops: float, touched: float, traffic: hlo.Traffic, efficiency: float) -> Estimate:
    """Of one device. ``flops``: of the compiled step; ``touched``: bytes of memory read and written."""
    sent: dict[tuple, float] = {}
    for c in traffic.collectives:
        key = (c.axes, c.kind == 'collective-permute', c.asynchronous)
        sent[key] = sent.get(key, 0.) + c.times * c.wire
    transfers = []
    for (axes, permute, asynchronous), wire in sent.items():
        rate = bandwidth(chip, mesh, axes, permute)
        transfers.append(Transfer(axes, permute, asynchronous, wire, rate, wire / rate))
    transfers.sort(key=lambda t: -t.seconds)
    return Estimate(efficiency, flops / (efficiency * chip.flops), touched / chip.bandwidth, tuple(transfers))


def bandwidth(chip: Chip, mesh: jax.sharding.Mesh, axes: Sequence[str], permute: bool) -> float:
    """Bytes/s that a device can send along ``axes`` of the mesh; see the file's head."""
    if hlo.NETWORK in axes:
        return chip.network
    together = _together(mesh, axes)
    if not chip.wraps:
        nodes = {d.process_index for d in together}
        if len(nodes) == 1:
            return chip.link
        return chip.network if permute else min(chip.link, chip.network * len(together) / len(nodes))
    if permute:
        return chip.link
    lengths = [len(set(values)) for values in zip(*(d.coords for d in together))]
    return chip.link * max(1, sum(1 + (n % chip.wraps == 0) for n in lengths if n > 1))


def _together(mesh: jax.sharding.Mesh, axes: Sequence[str]) -> list[Any]:
    """The devices of one group, on one slice."""
    where = tuple(slice(None) if not axes or a in axes else 0 for a in mesh.axis_names)
    group = list(np.reshape(mesh.devices[where], -1))
    first = getattr(group[0], 'slice_index', None)
    return [d for d in group if getattr(d, 'slice_index', None) == first]
