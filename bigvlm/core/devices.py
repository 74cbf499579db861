"""What is known about accelerators: one table, each row with its sources. Per jax device, which need not be a whole chip.

Nothing here was measured. Memory limits marked 'compiler' are what that platform's compiler refuses to exceed (read from
its error); those marked 'datasheet' are what the vendor prints, of which a run can use somewhat less.
"""

import dataclasses
import resource
import sys
from collections.abc import Iterable
from typing import Any

GIB = 2 ** 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts of one jax device.

    Attributes:
        kinds: what the lower-cased ``device_kind`` contains.
        flops: peak dense bfloat16 FLOP/s.
        hbm: bytes of memory that a program may use; ``hbm_source``: 'compiler' or 'datasheet'.
        bandwidth: of that memory, bytes/s.
        link: one direction of one link to a neighbour (TPU), or of all links into the node's switch (GPU), bytes/s.
        network: what one device can send to other slices or nodes, bytes/s.
        wraps: TPU: a side of the torus is closed if it is a multiple of this; 0 where there is a switch.
        source: of everything not marked otherwise.
    """
    kinds: tuple[str, ...]
    flops: float
    hbm: float
    hbm_source: str
    bandwidth: float
    link: float
    network: float
    wraps: int
    source: str


_CLOUD = ("datasheet: Google Cloud's TPU system architecture pages; links as in jax-ml.github.io/scaling-book, somewhat below the "
          'pages\' figures')
_NVIDIA = "datasheet: NVIDIA's, SXM form, dense; network: one 400 Gbit/s adapter per GPU, as in DGX systems"

# A v4 device is a whole chip ("megacore"), a TPU7x device is half of one: two TensorCores, each with its own memory.
CHIPS = {
    'v4': Chip(('tpu v4',), 275e12, 30.75 * GIB, 'compiler', 1.2e12, 4.5e10, 6.25e9, 4, _CLOUD),
    'v5e': Chip(('v5 lite', 'v5lite', 'v5e'), 197e12, 15.75 * GIB, 'compiler', 8.19e11, 4.5e10, 3.125e9, 16, _CLOUD),
    'v5p': Chip(('v5p', 'tpu v5'), 459e12, 95.74 * GIB, 'compiler', 2.765e12, 9e10, 6.25e9, 4, _CLOUD),
    'v6e': Chip(('v6 lite', 'v6e'), 918e12, 31.25 * GIB, 'compiler', 1.638e12, 9e10, 1.25e10, 16, _CLOUD),
    'tpu7x': Chip(('tpu7x', 'tpu7'), 2307e12 / 2, 192 * GIB / 2, 'datasheet', 7.38e12 / 2, 9e10 / 2, 1.25e10 / 2, 4, _CLOUD),
    'h200': Chip(('h200',), 989e12, 141e9, 'datasheet', 4.8e12, 4.5e11, 5e10, 0, _NVIDIA),
    'h100': Chip(('h100',), 989e12, 80e9, 'datasheet', 3.35e12, 4.5e11, 5e10, 0, _NVIDIA),
    'a100': Chip(('a100',), 312e12, 80e9, 'datasheet', 2.039e12, 3e11, 2.5e10, 0, _NVIDIA),
}

# Kinds whose peak is another than the chip's above: Google's v2 and v3 pages are per chip of two devices and are left out.
_OTHER_PEAKS = (('h100 pcie', 756e12), ('h100 nvl', 835e12))


def chip(device_kind: str) -> Chip | None:
    """The facts of a ``jax.Device.device_kind``; None if it is not known (a CPU, for one)."""
    kind = device_kind.lower()
    return next((c for c in CHIPS.values() if any(name in kind for name in c.kinds)), None)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a ``jax.Device.device_kind``; None if it is not known."""
    other = next((peak for name, peak in _OTHER_PEAKS if name in device_kind.lower()), None)
    known = chip(device_kind)
    return other or (known.flops if known else None)


def peak_memory(devices: Iterable[Any]) -> dict[str, float]:
    """The most bytes in use at once since the process began, as far as it can be known.

    ``host_memory_peak``: the process's resident memory. ``device_memory_peak``: of the fullest of these devices; left out where the
    platform does not tell (a CPU, whose arrays are in host memory).
    """
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 / 1024 if sys.platform == 'darwin' else 1)
    peaks = [stats['peak_bytes_in_use'] for d in devices if 'peak_bytes_in_use' in (stats := d.memory_stats() or {})]
    return {'host_memory_peak': kibibytes * 1024.} | ({'device_memory_peak': float(max(peaks))} if peaks else {})
