"""Step time, examples/s, achieved FLOP/s and memory of any recipe on the current devices, from random batches.

    python tools/bench_step.py --config configs/siglip_b16.py:batch=512 [--config.mesh.fsdp=2] [--steps 10]

Needs no data and none of the data libraries. Compile time is printed apart; the first step is not counted.
"""

import os
import statistics
import sys
import time

import jax
import numpy as np
from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm import blueprint, recipe  # noqa: E402
from bigvlm.core import flops as flops_lib, mesh as mesh_lib  # noqa: E402
from bigvlm.core.devices import peak_flops  # noqa: E402
from bigvlm.plan import plan as plan_lib  # noqa: E402

_EPOCH = 10 ** 9  # examples; only the schedule sees it


def random_batch(shapes, size: int, vocab: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch of ``{key: (example shape, dtype)}``: pixels over their range, token ids below ``vocab``."""
    high = {'uint8': 256, 'int32': vocab, 'uint32': 2 ** 31}
    return {key: rng.integers(0, high[dtype], (size, *shape)).astype(dtype) for key, (shape, dtype) in shapes.items()}


def main(config):
    config = recipe.resolve(config)
    kind = next(iter(config['kinds']))
    plan = blueprint.make(config, examples_per_epoch=_EPOCH)
    mesh = mesh_lib.make_mesh(config['mesh'])
    placed = plan.on(mesh)
    flops = plan.model_flops(kind)

    with jax.set_mesh(mesh):
        state = placed.init()(np.uint32(config['seed']))
        vocab = min((t.vocab for t in (make() for make in plan.model.towers.values()) if hasattr(t, 'vocab')), default=2)
        rows = mesh_lib.process_rows(mesh, config['batch'])
        local = random_batch(plan.shapes[kind], len(rows), vocab, np.random.default_rng(config['seed']))
        batch = mesh_lib.put_batch(local, mesh, config['batch'])
        began = time.perf_counter()
        jitted = placed.step(kind)
        compiled_flops = flops_lib.count(jitted, state, batch)
        held = sum(shard.data.nbytes for x in jax.tree.leaves((state, batch)) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
                   for shard in x.addressable_shards if shard.device == mesh.local_devices[0])
        step = jitted.lower(state, batch).compile()
        print(f'compile          {time.perf_counter() - began:.1f} s')
        seconds = []
        for _ in range(flags.FLAGS.steps + 1):
            began = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
    report(config, mesh, flops, statistics.median(seconds[1:]), seconds[1:], step.memory_analysis(), float(metrics['loss']))
    check_plan(sum(plan_lib.state_bytes(placed, kind).values()), held, compiled_flops / mesh.size, step.cost_analysis())


def check_plan(planned: int, held: int, flops: float, analysis) -> None:
    """What the planner would say of this step on these devices, beside what they hold and XLA counts."""
    print(f'planned/device   arguments {planned / 2**20:,.2f} MiB, held by its arrays {held / 2**20:,.2f} MiB ({planned / held:.3f})')
    counted = (analysis or {}).get('flops')
    if counted:  # with elementwise operations; XLA counts a loop's body once on some platforms
        print(f'                 compiled FLOPs {flops:.5g}, by XLA {counted:.5g} ({flops / counted:.3f})')


def report(config, mesh, flops, median, seconds, memory, loss):
    device = mesh.devices.flat[0]
    peak = peak_flops(device.device_kind)
    print(f'device           {mesh.size} × {device.device_kind}, mesh {dict(mesh.shape)}')
    print(f'batch            {config["batch"]} in {config["micro"]} micro-batches')
    print(f'step time        {1e3 * median:.1f} ms (median of {len(seconds)}; {1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})')
    print(f'examples/s       {config["batch"] / median:,.1f}')
    print(f'model FLOPs      {flops:.4g} a step, {flops / median / mesh.size / 1e12:.3f} TFLOP/s per device')
    print(f'MFU              {f"{flops / median / mesh.size / peak:.1%}" if peak else "unknown: no peak for this device"}')
    if memory is not None:
        print(f'memory (compiler) arguments {memory.argument_size_in_bytes / 2**20:,.1f} MiB, temporaries '
              f'{memory.temp_size_in_bytes / 2**20:,.1f} MiB per device')
    statistics_ = device.memory_stats() or {}
    peak_bytes = statistics_.get('peak_bytes_in_use')
    print(f'memory (peak)    {f"{peak_bytes / 2**20:,.1f} MiB" if peak_bytes else "not reported by this device"}')
    print(f'loss             {loss:.4f}')


if __name__ == '__main__':
    flags.DEFINE_integer('steps', 10, 'Steps to time.')
    recipe.run(main)
