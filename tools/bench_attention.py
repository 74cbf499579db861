"""Attention implementations side by side: errors, time, memory. From this comes the length from which TPUs use the kernel.

    python tools/bench_attention.py --topology v5e:2x2 --lengths 64,196,256,577,729,1024   # ahead of time, no chip
    python tools/bench_attention.py --lengths 64,196,577,729,1024                          # on the devices at hand

With ``--topology``: temporaries and memory traffic of forward and backward pass by the compiler's account, per device.
Without: values and gradients against float32 by the plain formula, with and without padding, and time. Run it on a GPU
or TPU before trusting a new jax, cuDNN or libtpu there.
"""

import argparse
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm.plan import environment  # noqa: E402

if any(argument.startswith('--topology') for argument in sys.argv):
    os.environ.update(environment.variables(os.environ))  # before jax is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from bigvlm.core import mesh as mesh_lib, platform  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.nn.attention import attend  # noqa: E402
from bigvlm.plan import topology as topologies  # noqa: E402

KERNELS = {'cpu': ('xla',), 'gpu': ('xla', 'cudnn'), 'tpu': ('xla', 'splash')}


def gradient(implementation: str, causal: bool):
    """query, key, value [B,L,N,H], mask [B,L] or None, weight of the outputs -> (value, gradients), jitted."""
    def loss(query, key, value, mask, weight):
        out = attend(query, key, value, mask_BS=mask, causal=causal, implementation=implementation)
        return (out.astype(jnp.float32) * weight).sum(), out
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def ahead_of_time(shape, mesh, dtype, causal) -> None:
    layout = mesh_lib.batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((shape[0] * mesh.size, *shape[1:]), dtype, sharding=layout)
    weight = jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=layout)
    with jax.set_mesh(mesh):
        for implementation in KERNELS[platform.current()]:
            target = 'cuda' if platform.current() == 'gpu' else platform.current()
            compiled = gradient(implementation, causal).trace(x, x, x, None, weight).lower(lowering_platforms=(target,)).compile()
            moved = (compiled.cost_analysis() or {}).get('bytes accessed')  # GPU compilers do not say
            print(f'{shape[1]:6d} tokens  {implementation:7s} temporaries {compiled.memory_analysis().temp_size_in_bytes / 2**20:8.0f} MiB'
                  f'   memory traffic {"not reported" if moved is None else f"{moved / 2**20:8.0f} MiB"}', flush=True)


def live(shape, dtype, causal, rounds) -> None:
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]
    weight = jnp.asarray(rng.normal(size=shape), jnp.float32)
    padding = jnp.asarray(np.arange(shape[1])[None, :] < rng.integers(1, shape[1] + 1, shape[0])[:, None])
    low = [x.astype(dtype) for x in arrays]
    times = {}
    for mask in (None, padding):
        exact = gradient('xla', causal)(*arrays, mask, weight)
        for implementation in KERNELS[platform.current()]:
            run = gradient(implementation, causal)
            found = run(*low, mask, weight)
            errors = [float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
                      for a, b in zip((found[0][1], *found[1]), (exact[0][1], *exact[1]))]
            seconds = []
            for _ in range(rounds):
                began = time.perf_counter()
                jax.block_until_ready(run(*low, mask, weight))
                seconds.append(time.perf_counter() - began)
            times[implementation] = statistics.median(seconds)
            print(f'{shape[1]:6d} tokens  {"padded" if mask is not None else "full":6s}  {implementation:7s} relative error of the '
                  f'value {errors[0]:.1e}, gradients {max(errors[1:]):.1e}   {1e3 * times[implementation]:8.2f} ms   '
                  f'{times["xla"] / times[implementation]:.2f} x xla', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topology', help='compile for it instead of running')
    parser.add_argument('--lengths', default='64,196,256,577,729,1024')
    parser.add_argument('--batch', type=int, default=32, help='examples per device')
    parser.add_argument('--heads', type=int, default=16)
    parser.add_argument('--head_width', type=int, default=64)
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--causal', action='store_true')
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    for length in map(int, options.lengths.split(',')):
        shape = (options.batch, length, options.heads, options.head_width)
        if options.topology:
            try:
                topology = topologies.get(options.topology)
            except RecipeError as e:
                sys.exit(str(e))
            ahead_of_time(shape, mesh_lib.make_mesh({'data': -1}, topology.devices), options.dtype, options.causal)
        else:
            live(shape, options.dtype, options.causal, options.rounds)


if __name__ == '__main__':
    main()
