"""The loss alone, with its gradients: what each way to compute it holds, sends and costs. Embeddings are float32.

    python tools/bench_loss.py --topology v5e:16x16 --width 768 --batches 32768,131072,1048576     # ahead of time, no chip
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tools/bench_loss.py --batches 2048,8192 --dtype float32
    python tools/bench_loss.py --rounding 8,64,256

With ``--topology`` every variant is compiled for chips that need not be there: memory per device as the compiler lays it
out, collectives with the trips of their loops, or by how much it does not fit. Without it, the variants are timed on the
devices at hand, in turns, so that only ratios within a turn count. The variants:

    dense        the formula over the global B x B matrix; the compiler splits it
    gathered     every device holds b x B logits of its own rows (and columns): open_clip's local_loss with gather_with_grad
    tiles        bigvlm, rows and columns gathered, pairs in tiles
    ring         bigvlm, columns travel, pairs in tiles

``--rounding`` compiles nothing: it prints how wrong the gradient of the columns would be if it were rounded to bfloat16
at every hop of a ring of so many devices, which is why it is not (``bigvlm.core.pairwise``).
"""

import argparse
import json
import math
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
from jax import lax  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from bigvlm.core import exchange, mesh as mesh_lib, pairwise  # noqa: E402
from bigvlm.plan import hlo, plan as plan_lib, topology as topologies  # noqa: E402

LOSSES = ('softmax', 'sigmoid')
GIB = 2**30


# The variants: of rows and columns [B, D], a scale, a bias.

def dense(loss: str, dtype: str, rows_BD, cols_BD, scale, bias):
    batch = rows_BD.shape[0]
    l_BB = scale * _products(rows_BD, cols_BD, dtype)
    if loss == 'sigmoid':
        sign_BB = 2. * jnp.eye(batch) - 1.
        return -jax.nn.log_sigmoid(sign_BB * (l_BB + bias)).sum() / batch
    right_B = jnp.diagonal(l_BB)
    return .5 * sum((jax.nn.logsumexp(l_BB, axis) - right_B).mean() for axis in (0, 1))


def gathered(loss: str, dtype: str, rows_BD, cols_BD, scale, bias):
    axes = mesh_lib.batch_axes(jax.sharding.get_abstract_mesh())

    def local(rows_bD, cols_bD, scale, bias):
        b, n = rows_bD.shape[0], lax.axis_size(axes)
        own_b = lax.axis_index(axes) * b + jnp.arange(b)
        all_rows_BD, all_cols_BD = (lax.all_gather(x.astype(dtype), axes, tiled=True) for x in (rows_bD, cols_bD))

        def cross_entropy(x_bD, all_BD):
            l_bB = scale * _products(x_bD, all_BD, dtype)
            return (jax.nn.logsumexp(l_bB, 1) - jnp.take_along_axis(l_bB, own_b[:, None], 1)[:, 0]).sum()
        if loss == 'sigmoid':
            l_bB = scale * _products(rows_bD, all_cols_BD, dtype) + bias
            sign_bB = 2. * (own_b[:, None] == jnp.arange(b * n)) - 1.
            value = -jax.nn.log_sigmoid(sign_bB * l_bB).sum()
        else:
            value = .5 * (cross_entropy(rows_bD, all_cols_BD) + cross_entropy(cols_bD, all_rows_BD))
        return lax.psum(value, axes) / (b * n)
    return jax.shard_map(local, in_specs=(P(axes), P(axes), P(), P()), out_specs=P())(rows_BD, cols_BD, scale, bias)


def streamed(way: str, tile: int, wire: str | None, loss: str, dtype: str, rows_BD, cols_BD, scale, bias):
    options = dict(exchange=way, tile=tile, dtype=dtype, wire=wire)
    if loss == 'sigmoid':
        return pairwise.sigmoid(rows_BD, cols_BD, scale, bias, **options)[0]
    return pairwise.softmax(rows_BD, cols_BD, scale, **options)[0]


def _products(a, b, dtype):
    precision = lax.Precision.HIGHEST if dtype == 'float32' else None
    return jnp.einsum('ad,bd->ab', a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=jnp.float32)


def variants(args) -> dict:
    return {'dense': dense, 'gathered': gathered,
            'tiles': lambda *a: streamed('all_gather', args.tile, args.wire, *a),
            'ring': lambda *a: streamed('ring', args.tile, args.wire, *a)}


def with_gradients(function, loss: str, dtype: str, mesh):
    """The value and its gradients to rows, columns, scale and bias, jitted for global arrays on ``mesh``."""
    batch, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    both = jax.value_and_grad(lambda *a: function(loss, dtype, *a), (0, 1, 2, 3))
    return jax.jit(both, out_shardings=(whole, (batch, batch, whole, whole)))


def picked(args, batch: int) -> str:
    """What 'auto' takes on the current mesh."""
    return exchange.route(batch, args.width, args.wire or args.dtype).exchange


# Ahead of time.

def plan(args, topology, mesh, loss: str, batch: int, name: str, function) -> dict:
    """Per device of ``mesh``: bytes and collectives; ``needs`` instead if that is more than the device has."""
    rows = jax.ShapeDtypeStruct((batch, args.width), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.replicated(mesh))
    found = dict(loss=loss, batch=batch, variant=name, width=args.width, dtype=args.dtype, topology=topology.text)
    began = time.perf_counter()
    try:
        compiled = with_gradients(function, loss, args.dtype, mesh).trace(rows, rows, scalar, scalar).lower(
            lowering_platforms=(topology.platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        refused = plan_lib.read_refusal(str(error))
        if refused is None:
            raise
        return found | dict(zip(('needs', 'limit'), refused))
    memory = compiled.memory_analysis()
    needs = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    if needs > topology.chip.hbm:  # a GPU's compiler does not mind
        return found | dict(needs=needs, limit=topology.chip.hbm)
    traffic = hlo.collectives(compiled.as_text())
    return found | dict(arguments=memory.argument_size_in_bytes, outputs=memory.output_size_in_bytes,
                        temporaries=memory.temp_size_in_bytes, peak=memory.peak_memory_in_bytes,
                        collectives=[{k: row[k] for k in ('kind', 'asynchronous', 'times', 'bytes', 'wire')} for row in traffic.table()],
                        compile_s=round(time.perf_counter() - began, 1))


def planned_line(found: dict) -> str:
    head = f'{found["loss"]:8} {found["batch"]:>9,} {found["variant"]:9}'
    if 'needs' in found:
        return f'{head} does not fit: needs {found["needs"] / GIB:.2f} GiB of {found["limit"] / GIB:.2f} GiB'
    sent = ', '.join(f'{c["kind"]}{" (async)" if c["asynchronous"] else ""} {c["times"]} x, {c["wire"] / 2**20:,.1f} MiB'
                     for c in found['collectives'])
    return f'{head} {found["temporaries"] / GIB:11.4f} {found["peak"] / GIB:9.4f} {found["arguments"] / GIB:9.4f}  {sent}'


# On the devices at hand.

def measure(args, mesh, loss: str, batch: int) -> list[dict]:
    """Examples/s of every variant: each turn runs all of them once, in another order."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2, batch, args.width)).astype(np.float32)
    data /= np.linalg.norm(data, axis=-1, keepdims=True)
    inputs = [*jax.device_put(tuple(data), mesh_lib.batch_sharding(mesh)), jnp.float32(10.), jnp.float32(-10.)]
    runs, values, seconds = {}, {}, {}
    for name, function in variants(args).items():
        runs[name] = with_gradients(function, loss, args.dtype, mesh)
        values[name] = float(jax.block_until_ready(runs[name](*inputs))[0])
        seconds[name] = []
    for turn in range(args.turns):
        for name in np.random.default_rng(turn).permutation(list(runs)):
            began = time.perf_counter()
            jax.block_until_ready(runs[name](*inputs))
            seconds[name].append(time.perf_counter() - began)
    auto = {'all_gather': 'tiles'}.get(picked(args, batch), picked(args, batch))
    return [dict(loss=loss, batch=batch, variant=name, width=args.width, dtype=args.dtype, value=values[name],
                 seconds=statistics.median(seconds[name]), examples_per_s=batch / statistics.median(seconds[name]),
                 to_gathered=statistics.median(g / s for g, s in zip(seconds['gathered'], seconds[name])), auto=name == auto)
            for name in runs]


def measured_line(found: dict) -> str:
    return (f'{found["loss"]:8} {found["batch"]:>9,} {found["variant"]:9} {1e3 * found["seconds"]:10.1f} ms '
            f'{found["examples_per_s"]:12,.0f}/s  {found["to_gathered"]:5.2f} x gathered  loss {found["value"]:.5f}'
            f'{"  <- auto" if found["auto"] else ""}')


# Rounding on the way.

def rounding(n: int, loss: str, scale: float, bias: float, b: int = 8, width: int = 64) -> dict:
    """Relative errors (of the norm) of ∂loss/∂columns summed around a ring of n devices: in float32, in bfloat16."""
    rows, cols = jax.random.normal(jax.random.key(0), (2, n * b, width))
    rows, cols = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (rows, .5 * rows + cols))
    gradient = jax.grad(lambda l_BB: _of_logits(loss, l_BB))(scale * rows @ cols.T + bias)
    from_device = jnp.einsum('nbc,nbd->ncd', gradient.reshape(n, b, -1), rows.reshape(n, b, -1), precision='highest')
    wanted = np.asarray(from_device, np.float64).sum(0)

    def around(dtype):
        def chunk(c):
            def hop(acc, part):
                return (acc.astype(jnp.float32) + part).astype(dtype), None
            parts = jnp.roll(lax.dynamic_slice_in_dim(from_device, c * b, b, 1), -c, 0)
            return lax.scan(hop, jnp.zeros((b, width), dtype), parts)[0]
        found = np.asarray(lax.map(chunk, jnp.arange(n)).astype(jnp.float32), np.float64).reshape(-1, width)
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return dict(devices=n, loss=loss, scale=scale, bias=bias, float32=around(jnp.float32), bfloat16=around(jnp.bfloat16))


def _of_logits(loss, l_BB):
    if loss == 'sigmoid':
        return -jax.nn.log_sigmoid((2. * jnp.eye(len(l_BB)) - 1.) * l_BB).sum()
    return .5 * sum((jax.nn.logsumexp(l_BB, axis) - jnp.diagonal(l_BB)).sum() for axis in (0, 1))


def round_all(args, show):
    for n in args.rounding:
        for loss, scale, bias in (('sigmoid', 10., -10.), ('sigmoid', 100., -10.), ('softmax', 14., 0.), ('softmax', 100., 0.)):
            found = rounding(n, loss, scale, bias)
            show(f'{n:4} devices  {loss} scale {scale:g} bias {bias:g}: float32 {found["float32"]:.1e}, '
                 f'bfloat16 at each hop {found["bfloat16"]:.2%}', found)


def plan_all(args, show):
    topology = topologies.get(args.topology, args.slices)
    mesh = mesh_lib.make_mesh(args.mesh, topology.devices)
    with jax.set_mesh(mesh), mesh_lib.activate(mesh):
        show(f'{topology.text}: {mesh.size} devices {dict(mesh.shape)}, width {args.width}, products {args.dtype}, tile {args.tile}')
        show(f'{"loss":8} {"batch":>9} {"variant":9} {"temporaries":>11} {"peak":>9} {"arguments":>9}  '
             'GiB per device; collectives: executions, what a device sends')
        for batch in args.batches:
            for loss in args.losses:
                for name, function in variants(args).items():
                    found = plan(args, topology, mesh, loss, batch, name, function)
                    show(planned_line(found), found)
            show(f'{"auto":8} {batch:>9,} {picked(args, batch)}')


def measure_all(args, show):
    mesh = mesh_lib.make_mesh(args.mesh)
    with jax.set_mesh(mesh), mesh_lib.activate(mesh):
        show(f'{mesh.size} x {jax.devices()[0].device_kind} {dict(mesh.shape)}, width {args.width}, products {args.dtype}, '
             f'tile {args.tile}, median of {args.turns} turns')
        for batch in args.batches:
            for loss in args.losses:
                for found in measure(args, mesh, loss, batch):
                    show(measured_line(found), found)


def main(args):
    results = []

    def show(line: str, found: dict | None = None):
        if found:
            results.append(found)
        if not args.json:
            print(line, flush=True)

    if args.rounding:
        round_all(args, show)
    elif args.topology:
        plan_all(args, show)
    else:
        measure_all(args, show)
    if args.json:
        print(json.dumps(results, indent=1))


def _parser() -> argparse.ArgumentParser:
    def numbers(text):
        return [int(x) for x in text.split(',')]

    def losses(text):
        unknown = set(text.split(',')) - set(LOSSES)
        if unknown:
            raise argparse.ArgumentTypeError(f'found {sorted(unknown)[0]!r}; valid: {", ".join(LOSSES)}')
        return text.split(',')

    def sizes(text):
        return {axis: int(n) for axis, n in (part.split('=') for part in text.split(','))}

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topology', default='', help='what to compile for, such as v5e:16x16 or h100:8')
    parser.add_argument('--slices', type=int, default=1, help='so many slices of the topology')
    parser.add_argument('--mesh', type=sizes, default={'data': -1}, help='mesh axes, such as data=-1,fsdp=16')
    parser.add_argument('--batches', type=numbers, default=[32768])
    parser.add_argument('--losses', type=losses, default=list(LOSSES))
    parser.add_argument('--width', type=int, default=768)
    parser.add_argument('--tile', type=int, default=1024)
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of matrix products')
    parser.add_argument('--wire', choices=('bfloat16', 'float32'), help='of columns on their way; default: as products take them')
    parser.add_argument('--turns', type=int, default=7)
    parser.add_argument('--rounding', type=numbers, help='ring sizes')
    parser.add_argument('--json', action='store_true')
    return parser


if __name__ == '__main__':
    main(_parser().parse_args())
