"""The environment in which jax compiles for accelerators that are not there. It is read when jax is imported: set it before.

Imports nothing that imports jax.
"""

from collections.abc import Mapping

# JAX_PLATFORMS lets jax start without an accelerator. The second lets several processes compile at once. The TPU_ ones after
# it keep libtpu from asking a cloud's metadata server where it runs; the last from writing its log to stderr.
_ALWAYS = {
    'JAX_PLATFORMS': 'cpu',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0',
    'TPU_MIN_LOG_LEVEL': '3', 'TPU_STDERR_LOG_LEVEL': '3', 'TF_CPP_MIN_LOG_LEVEL': '3',
}
# Without a GPU the compiler cannot try tilings out, and its own choice for Triton's products fails on some shapes.
_GPU_FLAGS = '--xla_gpu_enable_triton_gemm=false'


def variables(existing: Mapping[str, str]) -> dict[str, str]:
    """What to set; ``existing``: os.environ, whose XLA_FLAGS are kept."""
    flags = existing.get('XLA_FLAGS', '')
    return _ALWAYS | {'XLA_FLAGS': flags if _GPU_FLAGS in flags else f'{flags} {_GPU_FLAGS}'.strip()}
