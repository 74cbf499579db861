"""Arrays of files onto meshes: the right numbers in the right places, little memory, and no process reads another's shards."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import foreign
from bigvlm.core.foreign import Theirs, WeightsError
from bigvlm.core.mesh import make_mesh
from bigvlm.interop import load
from bigvlm.interop.weights import open_weights, save_weights
from tests.interop.fakes import Memory

ROOT = Path(__file__).parents[2]
FOREIGN = {
    'blocks/fc/kernel': 'layers.{}.fc.weight',
    **{f'blocks/{name}/kernel': Theirs('layers.{}.qkv.weight', part=(i, 3)) for i, name in enumerate(('query', 'key', 'value'))},
    'norm/scale': 'norm.weight', 'patch/kernel': Theirs('patch.weight', 'w c p q -> (p q c) w'),
    'class': Theirs('position', '1 w -> w', row=0), 'position': Theirs('position', row=1), 'scale': 'scale'}
SHAPES = {'blocks/fc/kernel': (3, 8, 16), **{f'blocks/{name}/kernel': (3, 8, 8) for name in ('query', 'key', 'value')},
          'norm/scale': (8,), 'patch/kernel': (12, 8), 'class': (8,), 'position': (16, 8), 'scale': ()}
FSDP = {'blocks/fc/kernel': P(None, None, 'fsdp'), 'blocks/query/kernel': P(None, 'fsdp'), 'blocks/key/kernel': P(None, 'fsdp', 'tensor'),
        'blocks/value/kernel': P(None, None, ('fsdp', 'tensor')), 'patch/kernel': P('tensor', 'fsdp'), 'position': P(('fsdp', 'tensor'))}
TABLE = foreign.table(FOREIGN, SHAPES, p=2, q=2)
MESHES = {'fsdp': dict(data=1, fsdp=4, tensor=2), 'hybrid': dict(data=2, fsdp=2, tensor=2), 'data': dict(data=8)}


def theirs():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in foreign.expected(TABLE, SHAPES).items()}


def write_npz(folder, arrays):
    np.savez(folder / 'x.npz', **arrays)
    return folder / 'x.npz'


WRITERS = {'safetensors': lambda folder, arrays: save_weights(folder, arrays.items())[0],
           'sharded': lambda folder, arrays: save_weights(folder, arrays.items(), shard_bytes=1500)[-1], 'npz': write_npz}


def shardings(mesh):
    return {path: NamedSharding(mesh, FSDP.get(path, P())) for path in SHAPES}


@pytest.mark.parametrize('kind', WRITERS)
@pytest.mark.parametrize('spec', MESHES)
def test_numbers_places_and_bytes(tmp_path, kind, spec):
    mesh, x = make_mesh(MESHES[spec]), theirs()
    with open_weights(WRITERS[kind](tmp_path, x)) as weights:
        source = foreign.Arrays(weights, TABLE, SHAPES)
        expected = {path: np.array(source.read(path)) for path in SHAPES}
        weights.bytes_read = 0
        found = load.arrays(source, shardings(mesh))
        # Every shard once, however many devices hold it; rows of 'patch' are put together from several axes of theirs, all of which
        # are read for each piece of the rows.
        patches = len({str(i[0]) for i in shardings(mesh)['patch/kernel'].devices_indices_map(SHAPES['patch/kernel']).values()})
        assert weights.bytes_read == sum(x.nbytes for x in expected.values()) + (patches - 1) * expected['patch/kernel'].nbytes
    assert found.keys() == SHAPES.keys()
    for path, sharding in shardings(mesh).items():
        assert found[path].sharding == sharding and found[path].dtype == np.float32
        assert np.array_equal(found[path], expected[path])


def aligned(x):
    """The same numbers at a multiple of 64 bytes, where jax would take NumPy's memory for its own."""
    room = np.empty(x.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    found = room[start:start + x.nbytes].view(x.dtype).reshape(x.shape)
    found[...] = x
    return found


def test_arrays_own_their_memory():
    weights = Memory({'norm.weight': aligned(np.arange(64, dtype=np.float32))})
    source = foreign.Arrays(weights, foreign.table(FOREIGN, {'norm/scale': (64,)}), {'norm/scale': (64,)})
    found = load.arrays(source, {'norm/scale': NamedSharding(make_mesh(dict(data=8)), P())})['norm/scale']
    weights.arrays['norm.weight'][:] = -1
    assert np.array_equal(found, np.arange(64))
    assert len({shard.data.unsafe_buffer_pointer() for shard in found.addressable_shards}) == 8


@pytest.mark.parametrize('stored, dtype', [(ml_dtypes.bfloat16, np.float32), (np.float16, jnp.bfloat16), (np.float32, np.float16)])
def test_dtypes(tmp_path, stored, dtype):
    x = {name: array.astype(stored) for name, array in theirs().items()}
    with open_weights(WRITERS['safetensors'](tmp_path, x)) as weights:
        source = foreign.Arrays(weights, TABLE, SHAPES)
        found = load.arrays(source, {'position': shardings(make_mesh(MESHES['fsdp']))['position']}, dtype)
    assert found['position'].dtype == dtype and np.array_equal(found['position'], x['position'][1:].astype(dtype))


def test_what_cannot_be_loaded(tmp_path):
    x, one = theirs(), jax.sharding.SingleDeviceSharding(jax.devices()[3])
    x['layers.1.fc.weight'][15, 2] = np.nan
    with open_weights(WRITERS['safetensors'](tmp_path, x)) as weights:
        source = foreign.Arrays(weights, TABLE, SHAPES)
        assert load.arrays(source, {'class': one})['class'].devices() == {jax.devices()[3]}
        with pytest.raises(WeightsError, match='has no array for blocks/mask'):
            load.arrays(source, {'class': one, 'blocks/mask': one})
        with pytest.raises(WeightsError, match='not finite'):
            load.arrays(source, shardings(make_mesh(MESHES['fsdp'])))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_beyond_the_arrays():
    from tools import bench_import
    (row,) = bench_import.main(['--gib', '.15'])
    assert row['arrays'] > row['file'] * .99 > 128 * 2 ** 20
    assert row['peak'] >= row['before'] + row['arrays']  # it is measured
    assert row['peak'] - row['before'] - row['arrays'] <= .2 * row['file']


CODE = '''
import json, sys
import jax
import numpy as np
jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[1]))
from bigvlm.core import foreign
from bigvlm.core.mesh import make_mesh
from bigvlm.interop import load
from bigvlm.interop.weights import open_weights
from tests.interop.test_load import SHAPES, TABLE, shardings, theirs
whole = foreign.Arrays(open_weights(sys.argv[3]), TABLE, SHAPES)
read = {}
with open_weights(sys.argv[3]) as weights:
    source = foreign.Arrays(weights, TABLE, SHAPES)
    for path, sharding in shardings(make_mesh(dict(data=1, fsdp=4))).items():
        before = weights.bytes_read
        x = load.arrays(source, {path: sharding})[path]
        read[path] = weights.bytes_read - before
        assert len(x.addressable_shards) == 2
        for shard in x.addressable_shards:
            assert np.array_equal(shard.data, whole.read(path)[shard.index]), path
print(json.dumps(read))
'''


@pytest.mark.multiprocess
def test_two_processes_read_half_each(tmp_path):
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    file = save_weights(tmp_path, theirs().items())[0]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(ROOT)}
    processes = [subprocess.Popen([sys.executable, '-c', CODE, str(i), str(port), str(file)], cwd=ROOT, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    for out, _ in outputs:
        read = json.loads(out.splitlines()[-1])
        for path, shape in SHAPES.items():
            whole = 4 * int(np.prod(shape, dtype=int))
            assert read[path] == (whole if FSDP.get(path, P()) == P() else whole // 2), path  # whole where it is replicated
