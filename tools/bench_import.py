"""Memory, bytes and seconds of importing a file of weights onto an FSDP mesh of virtual CPU devices. Linux only.

    python tools/bench_import.py --gib 2                                  # made in a temporary folder, removed at the end
    python tools/bench_import.py --gib 2 --dtype bfloat16 --processes 2   # which share the mesh's devices

The model is a made transformer with fused projections, other orders of axes and an embedding, so that every kind of table entry is
read. Each process of the import is a new one, of which this one reads the anonymous memory (RssAnon of /proc: mapped files are not
in it) about 2,000 times a second, from when jax is up and has put something on each device until the arrays are there.
"""
import argparse
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402
from einops import rearrange  # noqa: E402

from bigvlm.core import foreign  # noqa: E402
from bigvlm.core.foreign import Theirs  # noqa: E402
from bigvlm.interop import load  # noqa: E402
from bigvlm.interop.weights import open_weights, save_weights  # noqa: E402

DEPTH, PATCH, VOCABULARY = 24, 16, 32  # layers; pixels; tokens, in widths
TEMPLATES = {
    **{f'encoder/blocks/attention/{kind}/kernel': Theirs('layers.{}.in_proj_weight', part=(i, 3))
       for i, kind in enumerate(('query', 'key', 'value'))},
    'encoder/blocks/attention/out/kernel': 'layers.{}.out_proj.weight',
    'encoder/blocks/mlp/fc1/kernel': 'layers.{}.fc1.weight',
    'encoder/blocks/mlp/fc2/kernel': 'layers.{}.fc2.weight',
    'encoder/blocks/norm/scale': 'layers.{}.norm.weight',
    'patch_embed/kernel': Theirs('conv1.weight', 'w c p q -> (p q c) w', sizes=(('p', PATCH), ('q', PATCH))),
    'embed/embedding': 'token_embedding.weight',
}


def main(argv=None) -> list[dict]:
    """Prints the table; returns its rows, sizes in bytes."""
    options = arguments(argv)
    if options.measure:
        measure(options)
        return []
    with tempfile.TemporaryDirectory(dir=options.dir, prefix='bench_import-') as folder:
        start = time.perf_counter()
        width = width_of(options.gib * 2 ** 30 / np.dtype(dtype_of(options)).itemsize)
        (file,) = save_weights(folder, their_arrays(width), dtype=dtype_of(options), shard_bytes=float('inf'))
        size = file.stat().st_size
        print(f'made {size / 2 ** 30:.3f} GiB of {options.dtype}, width {width}, in {time.perf_counter() - start:.0f} s', flush=True)
        rows = [dict(row, file=size) for row in run(options, file, width)]
    print(f'{"process":>7} {"seconds":>8} {"read":>8} {"arrays":>8} {"before":>8} {"peak":>8} {"peak-arrays":>12} {"of file":>8}   GiB')
    for i, row in enumerate(rows):
        rest = row['peak'] - row['arrays']
        columns = ' '.join(f'{row[key] / 2 ** 30:8.3f}' for key in ('read', 'arrays', 'before', 'peak'))
        print(f'{i:7} {row["seconds"]:8.1f} {columns} {rest / 2 ** 30:12.3f} {rest / size:8.3f}', flush=True)
    return rows


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gib', type=float, default=2., help='size of the file, about')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32', help='of the file; arrays are float32')
    parser.add_argument('--devices', type=int, default=8, help='of the mesh, in all')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--dir', help='of the temporary folder')
    parser.add_argument('--measure', help=argparse.SUPPRESS)  # file, width, process, port, of one import
    return parser.parse_args(argv)


def dtype_of(options):
    import ml_dtypes
    return ml_dtypes.bfloat16 if options.dtype == 'bfloat16' else np.dtype(options.dtype)


def width_of(numbers: float) -> int:
    """Of a model of about so many parameters: DEPTH · 12 w² and an embedding of VOCABULARY · w²."""
    return max(64, round((numbers / (DEPTH * 12 + VOCABULARY)) ** .5 / 64) * 64)


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    square = (DEPTH, width, width)
    return {**{f'encoder/blocks/attention/{kind}/kernel': square for kind in ('query', 'key', 'value', 'out')},
            'encoder/blocks/mlp/fc1/kernel': (DEPTH, width, 4 * width), 'encoder/blocks/mlp/fc2/kernel': (DEPTH, 4 * width, width),
            'encoder/blocks/norm/scale': (DEPTH, width), 'patch_embed/kernel': (3 * PATCH ** 2, width),
            'embed/embedding': (VOCABULARY * width, width)}


def their_arrays(width: int):
    rng = np.random.default_rng(0)
    for name, shape in foreign.expected(foreign.table(TEMPLATES, shapes(width)), shapes(width)).items():
        yield name, rng.random(shape, np.float32)


def run(options, file, width: int) -> list[dict]:
    """The rows of all processes, which import together."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu',
                   'XLA_FLAGS': f'--xla_force_host_platform_device_count={options.devices // options.processes}'}
    children = [subprocess.Popen(
        [sys.executable, __file__, '--processes', str(options.processes), '--measure', f'{file},{width},{i},{port}'],
        env=environment, stdout=subprocess.PIPE, bufsize=0) for i in range(options.processes)]
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(watch, children))
    if any(child.wait() for child in children):
        raise SystemExit('a process of the import failed; its error is above')
    return rows


def watch(child) -> dict:
    """The child's row, and the most anonymous memory that it had between its two lines."""
    row, peak = {}, 0
    while True:
        told = select.select([child.stdout], [], [], .0005)[0]
        peak = max(peak, anonymous(child.pid))
        if told:
            line = child.stdout.readline()
            if not line:
                return row
            row |= json.loads(line)
            peak = row['peak'] = row['before'] if 'arrays' not in row else peak


def anonymous(pid: int | str) -> int:
    """Bytes, of a process that lives; 0 of one that has ended."""
    with open(f'/proc/{pid}/status') as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith('RssAnon')), 0)


def measure(options) -> None:
    import jax
    file, width, process, port = options.measure.rsplit(',', 3)
    if options.processes > 1:
        jax.distributed.initialize(f'localhost:{port}', options.processes, int(process))
    from bigvlm.core import layout
    from bigvlm.core.mesh import make_mesh
    mesh = make_mesh(dict(data=1, fsdp=jax.device_count()))
    abstract = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes(int(width)).items()}
    shardings = layout.make((('.*', 'fsdp'),), abstract, mesh).shardings(mesh, abstract)
    with open_weights(file) as weights:
        source = foreign.Arrays(weights, foreign.table(TEMPLATES, shapes(int(width))), shapes(int(width)))
        jax.block_until_ready([jax.device_put(rearrange(np.ones((2, 2)), 'a b -> b a'), device) for device in jax.local_devices()])
        print(json.dumps(dict(before=anonymous('self'))), flush=True)
        start = time.perf_counter()
        arrays = load.arrays(source, shardings)
        print(json.dumps(dict(seconds=time.perf_counter() - start, read=weights.bytes_read, after=anonymous('self'), arrays=sum(
            shard.data.nbytes for x in arrays.values() for shard in x.addressable_shards))), flush=True)


if __name__ == '__main__':
    main()
