"""What a GPU compiler must know of its target, for GPUs that are not there. Everything here is from data sheets.

Sources: the table of technical specifications per compute capability in NVIDIA's CUDA programming guide (9.0: threads,
registers, shared memory); the H100 architecture white paper (132 SMs of the SXM form, 128 FP32 units each, 50 MB of L2,
1.98 GHz at most); the H100 and H200 data sheets (memory and its bandwidth).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of GPU. Sizes in bytes, bandwidth in bytes/s, clock in GHz."""
    description: str
    memory: int
    bandwidth: int
    capability: tuple[int, int] = (9, 0)
    processors: int = 132              # SMs
    units: int = 128                   # FP32 units of one
    clock: float = 1.98
    l2: int = 50 * 2 ** 20
    shared: int = 228 * 2 ** 10        # per SM; a block may have 1 KiB less, and 48 KiB without asking
    registers: int = 64 * 2 ** 10
    threads: int = 2048                # per SM


TARGETS = {
    'h100': Target('NVIDIA H100 80GB HBM3', 80 * 10 ** 9, 3350 * 10 ** 9),
    'h200': Target('NVIDIA H200', 141 * 10 ** 9, 4800 * 10 ** 9),
}

_LIBRARIES = {'dnn_version_info': (9, 8, 0), 'runtime_version': (12, 9, 0)}   # cuDNN and CUDA, as jax's wheels bring them


def target_config(kind: str) -> str:
    """The text of XLA's ``GpuTargetConfigProto`` for a kind of TARGETS."""
    t = TARGETS[kind]
    device = {
        'threads_per_block_limit': 1024, 'threads_per_warp': 32, 'shared_memory_per_block': 48 * 2 ** 10,
        'shared_memory_per_core': t.shared, 'shared_memory_per_block_optin': t.shared - 2 ** 10,
        'threads_per_core_limit': t.threads, 'core_count': t.processors, 'fpus_per_core': t.units,
        'block_dim_limit_x': 2 ** 31 - 1, 'block_dim_limit_y': 2 ** 16 - 1, 'block_dim_limit_z': 2 ** 16 - 1,
        'memory_bandwidth': t.bandwidth, 'l2_cache_size': t.l2, 'clock_rate_ghz': t.clock, 'device_memory_size': t.memory,
        'registers_per_core_limit': t.registers, 'registers_per_block_limit': t.registers,
        'cuda_compute_capability': dict(zip(('major', 'minor'), t.capability)),
    }
    versions = {name: dict(zip(('major', 'minor', 'patch'), version)) for name, version in _LIBRARIES.items()}
    return _proto({'gpu_device_info': device, 'platform_name': 'CUDA', **versions, 'device_description_str': t.description})


def _proto(fields: dict, indent: str = '') -> str:
    lines = []
    for key, value in fields.items():
        if isinstance(value, dict):
            lines.append(f'{indent}{key} {{\n{_proto(value, indent + "  ")}{indent}}}\n')
        else:
            lines.append(f'{indent}{key}: ' + (f'"{value}"' if isinstance(value, str) else f'{value}') + '\n')
    return ''.join(lines)
