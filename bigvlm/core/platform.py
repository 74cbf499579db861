"""Which platform the code under trace is for."""

import jax


def current() -> str:
    """'cpu', 'gpu' or 'tpu': of the current mesh's devices (``jax.set_mesh``), which need not be this machine's; else the default's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
