"""What is known about accelerators from their vendors' data sheets."""

# Dense bfloat16 FLOP/s of one jax device, by what the lower-cased device_kind contains; the first that fits.
# Sources: Google Cloud's TPU system architecture pages (a v2 or v3 device is one of a chip's two cores); NVIDIA's
# A100, H100 (SXM) and H200 data sheets, without sparsity.
_PEAK = (
    ('v6e', 918e12), ('v6 lite', 918e12),
    ('v5p', 459e12), ('v5e', 197e12), ('v5 lite', 197e12), ('v5lite', 197e12), ('tpu v5', 459e12),
    ('tpu v4', 275e12),
    ('h200', 989e12), ('h100 pcie', 756e12), ('h100 nvl', 835e12), ('h100', 989e12),
    ('a100', 312e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a ``jax.Device.device_kind``; None if it is not known (a CPU, for one)."""
    kind = device_kind.lower()
    return next((peak for name, peak in _PEAK if name in kind), None)
