"""Files of weights: what is read is what was written, no more of a file than asked for, and bad files are refused unexecuted."""

import io
import json
import os
import sys
import weakref
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch_models
from safetensors.numpy import load_file, save_file

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.files import safetensors
from bigvlm.interop.weights import IN_FOLDERS, open_weights, save_weights

DTYPES = ('float32', 'float16', 'float64', 'int64', 'uint8', 'bool', ml_dtypes.bfloat16)


def made():
    rng = np.random.default_rng(0)
    found = {f'a/{np.dtype(dtype)}.weight': (rng.normal(size=(7, 5, 3)) * 3).astype(dtype) for dtype in DTYPES}
    return found | {'scalar': np.array(rng.normal(), np.float32), 'none': np.zeros((3, 0), np.float32),
                    'fortran': np.asfortranarray(rng.normal(size=(6, 4)))}


def write_npz(path, arrays, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, x in arrays.items():
            member = io.BytesIO()
            np.save(member, x)
            archive.writestr(f'{name}.npy', member.getvalue())
    return path


def write_sharded(folder, arrays):
    files = save_weights(folder, arrays.items(), shard_bytes=500)
    assert len(files) > 3
    return files[-1]


WRITERS = {
    'single': lambda folder, arrays: save_weights(folder, arrays.items())[0],
    'open_clip': lambda folder, arrays: save_weights(folder, arrays.items(), 'open_clip_model.safetensors')[0].parent,
    'index': write_sharded,
    'folder': lambda folder, arrays: write_sharded(folder, arrays).parent,
    'npz': lambda folder, arrays: write_npz(folder / 'x.npz', arrays),
    'npz_deflated': lambda folder, arrays: write_npz(folder / 'x.npz', arrays, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize('kind', WRITERS)
def test_what_is_read_is_what_was_written(tmp_path, kind):
    arrays, rng = made(), np.random.default_rng(1)
    with open_weights(WRITERS[kind](tmp_path, arrays)) as weights:
        assert sorted(weights.names()) == sorted(arrays) and str(tmp_path) in weights.where
        for name, x in arrays.items():
            assert weights.shape(name) == x.shape and weights.dtype(name) == x.dtype
            whole = weights.read(name)
            assert whole.dtype == x.dtype and whole.shape == x.shape and whole.tobytes() == x.tobytes()
            for _ in range(8):
                index = tuple(slice(*rng.integers(0, n + 2, 2)) for n in x.shape[:rng.integers(x.ndim + 1)])
                before = weights.bytes_read
                piece = weights.read(name, index)
                assert piece.shape == x[index].shape and piece.tobytes() == x[index].tobytes()
                assert weights.bytes_read - before == (x.nbytes if kind == 'npz_deflated' and piece.size else piece.nbytes)


def test_what_is_asked_for_wrongly(tmp_path):
    weights = open_weights(WRITERS['single'](tmp_path, made()))
    for index in (np.s_[::2,], np.s_[:, :, :, :]):
        with pytest.raises(ValueError, match='was asked for'):
            weights.read('a/float32.weight', index)
    with pytest.raises(WeightsError, match="has no array 'b' .it has 10 others, as "):
        weights.read('b')
    weights.close()
    with pytest.raises(WeightsError, match='closed'):
        weights.read('scalar')


def test_numpy_s_own_archives_with_bfloat16(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / 'x.npz', **{'params/img/kernel': x, 'old': x.view('V2'), 'big': np.arange(3, dtype='>f4')})
    with open_weights(tmp_path) as weights:  # the only file there
        for name in ('params/img/kernel', 'old'):
            found = weights.read(name, (slice(1, None),))
            assert found.dtype == ml_dtypes.bfloat16 and np.array_equal(found, x[1:])
        assert np.array_equal(weights.read('big'), [0, 1, 2])


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('kind', ['single', 'npz'])
def test_a_slice_of_a_large_file_takes_no_more_memory_than_itself(tmp_path, kind):
    path = WRITERS[kind](tmp_path, {'x': np.ones((1024, 8192), np.float32)})  # 32 MiB

    def anonymous():
        return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon')) * 1024
    with open_weights(path) as weights:
        before = anonymous()
        kept = [weights.read('x', np.s_[64 * i:64 * i + 64, 128:256]) for i in range(16)]
        assert sum(x.sum() for x in kept) == 1024 * 128 and anonymous() - before < 4 * 2 ** 20
        assert weights.bytes_read == 1024 * 128 * 4


# Writing.

def test_shards_and_their_index(tmp_path):
    arrays = {f'x{i}': np.full((10,), i, np.float32) for i in range(5)}
    files = save_weights(tmp_path, iter(arrays.items()), shard_bytes=80, metadata={'format': 'pt', 'by': 'me'})
    assert [f.name for f in files] == [*(f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)), 'model.safetensors.index.json']
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)
    index = json.loads(files[-1].read_text())
    assert index['metadata']['total_size'] == 200 and index['weight_map']['x4'] == 'model-00003-of-00003.safetensors'
    assert {name: x.tobytes() for f in files[:-1] for name, x in load_file(f).items()} == {n: x.tobytes() for n, x in arrays.items()}
    with safetensors.safe_open(files[0], framework='np') as file:
        assert file.metadata() == {'format': 'pt', 'by': 'me'}


def test_dtype_of_the_file_and_orders(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    (file,) = save_weights(tmp_path, {'x': x.T, 'n': np.arange(3), 'y': x[::2]}.items(), dtype=ml_dtypes.bfloat16)
    found = load_file(file)
    assert np.array_equal(found['x'], x.T.astype(ml_dtypes.bfloat16)) and np.array_equal(found['y'], x[::2].astype(ml_dtypes.bfloat16))
    assert np.array_equal(found['n'], np.arange(3)) and found['n'].dtype == np.int64


def test_one_file_s_arrays_at_a_time(tmp_path):
    alive, most = [], 0

    def one_by_one():
        nonlocal most
        for i in range(12):
            x = np.full((100,), i, np.float32)
            alive.append(weakref.ref(x))
            most = max(most, sum(one() is not None for one in alive))
            yield f'x{i}', x
            del x
    assert len(save_weights(tmp_path, one_by_one(), shard_bytes=1200)) == 5
    assert most == 4  # three of a file, and the first of the next


@pytest.mark.parametrize('first, second', [(1, 1), (1, 3), (3, 1), (3, 2), (3, 3)])
def test_saving_again_replaces_all_of_the_old_files(tmp_path, first, second):
    (tmp_path / 'other-00001-of-00002.safetensors').write_bytes(b'not ours')
    for seed, shards in ((1, first), (2, second)):
        arrays = {f'x{i}': np.full((10,), seed, np.float32) for i in range(6)}
        files = save_weights(tmp_path, arrays.items(), shard_bytes=240 / shards)
        assert {f.name for f in tmp_path.iterdir()} == {f.name for f in files} | {'other-00001-of-00002.safetensors'}
    with open_weights(tmp_path) as weights:
        assert all(np.all(weights.read(name) == 2) for name in arrays)


def interrupted():
    yield 'a', np.zeros(100)
    yield 'b', np.zeros(100)
    raise RuntimeError('the disk fell out')


@pytest.mark.parametrize('arrays, error', [
    (interrupted(), 'fell out'), ([('a', np.zeros(100)), ('b', np.zeros(100)), ('a', np.zeros(100))], "two arrays 'a'"),
    ([], 'no arrays'), ([('a', np.zeros(100)), ('b', np.array(['x']))], '<U1 cannot be saved'),
    ([('__metadata__', np.zeros(100))], 'cannot be saved')])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, arrays, error):
    save_weights(tmp_path, [('old', np.ones(3))])
    with pytest.raises((WeightsError, RuntimeError), match=error):
        save_weights(tmp_path, arrays, shard_bytes=900)
    assert [f.name for f in tmp_path.iterdir()] == ['model.safetensors'] and load_file(tmp_path / 'model.safetensors')['old'][0] == 1


@pytest.mark.parametrize('kept', range(5))
def test_killed_while_files_get_their_names(tmp_path, monkeypatch, kept):
    """Old or new weights, or a refusal; never some of each."""
    save_weights(tmp_path, [(name, np.zeros(10)) for name in 'abc'], shard_bytes=100)
    done, replace = [], Path.replace

    def until(self, target):
        if len(done) == kept:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if kept < 4 else patch.context():
        patch.setattr(Path, 'replace', until)
        save_weights(tmp_path, [(name, np.ones(10)) for name in 'abc'], shard_bytes=100)
    try:
        with open_weights(tmp_path) as weights:
            values = {float(weights.read(name)[0]) for name in 'abc'}
    except WeightsError as error:
        assert 'has none of' in str(error)
        values = {0} if kept < 4 else {}
    assert len(values) == 1 and (kept < 4 or values == {1.})


# Bad files.

def raw(path, header, data=b'', length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(header) if length is None else length).to_bytes(8, 'little') + header + data)


def entry(shape, offsets, dtype='F32'):
    return dict(dtype=dtype, shape=shape, data_offsets=offsets)


BAD_SAFETENSORS = {
    'truncated': ({'a': entry([4], [0, 16])}, b'1234'),
    'trailing': ({'a': entry([4], [0, 16])}, b'1' * 20),
    'header_beyond_the_file': ({'a': entry([4], [0, 16])}, b'1' * 16, 1 << 20),
    'header_beyond_all_files': ({'a': entry([4], [0, 16])}, b'1' * 16, (1 << 63) + 5),
    'out_of_range': ({'a': entry([4], [16, 32])}, b'1' * 16),
    'overlapping': ({'a': entry([4], [0, 16]), 'b': entry([4], [8, 24])}, b'1' * 24),
    'gap': ({'a': entry([4], [0, 16]), 'b': entry([4], [20, 36])}, b'1' * 36),
    'other_length': ({'a': entry([5], [0, 16])}, b'1' * 16),
    'negative': ({'a': entry([-4], [0, -16])}, b'1' * 16),
    'overflow': ({'a': entry([1 << 40, 1 << 40], [0, 16])}, b'1' * 16),
    'nested': (b'{"a":' + b'[' * 200_000,),
    'no_json': (b'{' * 40, b'1' * 16),
    'twice': (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b'1' * 8),
    'unknown_dtype': ({'a': entry([4], [0, 16], 'X9')}, b'1' * 16),
    'short': (b'', b'', 5),
}


@pytest.mark.parametrize('kind', BAD_SAFETENSORS)
def test_safetensors_that_are_none(tmp_path, kind):
    raw(tmp_path / 'model.safetensors', *BAD_SAFETENSORS[kind])
    with pytest.raises(WeightsError, match=r'model\.safetensors is no whole safetensors file: '):
        open_weights(tmp_path)


def test_a_dtype_that_numpy_has_not(tmp_path):
    raw(tmp_path / 'x.safetensors', {'a': entry([4], [0, 4], 'F8_E4M3')}, b'1234')
    with pytest.raises(WeightsError, match="'a' is of F8_E4M3, which cannot be read .what can: F64, "):
        open_weights(tmp_path / 'x.safetensors')


def names_a_path(shard):
    return {'weight_map': {'x': 'model-1.safetensors', 'y': shard}}


BAD_INDICES = {
    'above': (names_a_path('../y.safetensors'), "'y' is in '../y.safetensors', which is no name of a file"),
    'absolute': (names_a_path('/etc/y.safetensors'), 'no name of a file'),
    'drive': (names_a_path('c:y.safetensors'), 'no name of a file'),
    'backslash': (names_a_path('..\\y.safetensors'), 'no name of a file'),
    'parent': (names_a_path('..'), 'no name of a file'),
    'number': (names_a_path(3), 'no name of a file'),
    'pickle': (names_a_path('y.bin'), 'not of the kind of model.safetensors.index.json'),
    'missing': (names_a_path('y.safetensors'), "names 'y.safetensors', which is not in the folder"),
    'not_in_it': ({'weight_map': {'x': 'model-1.safetensors', 'y': 'model-1.safetensors'}}, "has no 'y', which"),
    'more_in_it': ({'weight_map': {'x': 'model-1.safetensors', 'z': 'model-2.safetensors'}}, "has 'more', which .* says is in another"),
    'duplicate': ({'weight_map': {'x': 'model-1.safetensors', 'z': 'model-2.safetensors', 'more': 'model-3.safetensors'}},
                  "has 'more', which .* says is in another"),
    'twice': ('{"weight_map": {"x": "model-1.safetensors", "x": "model-2.safetensors"}}', 'twice'),
    'nested': ('[' * 200_000, 'is no index'),
    'list': ('[1]', 'is no index'),
    'no_map': ('{}', 'no weight_map'),
    'no_text': (b'\xff\xfe\0', 'is no index'),
    'empty': ('', 'is empty'),
}


@pytest.mark.parametrize('kind', BAD_INDICES)
def test_an_index_that_is_none(tmp_path, kind):
    index, error = BAD_INDICES[kind]
    folder = tmp_path / 'model'
    folder.mkdir()
    for path, names in {'y': 'y', 'model/model-1': 'x', 'model/model-2': ('z', 'more'), 'model/model-3': ('more',)}.items():
        save_file({name: np.zeros(3) for name in names}, tmp_path / f'{path}.safetensors')
    written = index if isinstance(index, (str, bytes)) else json.dumps(index)
    (folder / 'model.safetensors.index.json').write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(WeightsError, match=error):
        open_weights(folder)


def test_links_of_a_download_cache_are_followed(tmp_path):
    (tmp_path / 'snapshot').mkdir()
    file = save_weights(tmp_path / 'blobs', [('x', np.ones(2))])[0]
    (tmp_path / 'snapshot' / 'model.safetensors').symlink_to(file)
    assert open_weights(tmp_path / 'snapshot').names() == ['x']


class Payload:
    """Says on unpickling that it was."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def object_npz(path):
    np.savez(path, fine=np.zeros(3), bad=np.array([Payload(path.parent / 'ran')], object))


def lying_npz(path):
    """Says that its array is larger than it is."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, dict(descr='<f4', fortran_order=False, shape=(1 << 30,)))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x.npy', member.getvalue() + b'1' * 40)


def other_npz(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../../x.txt', b'no array')


def twice_npz(path):
    member = io.BytesIO()
    np.save(member, np.zeros(3))
    with zipfile.ZipFile(path, 'w') as archive, pytest.warns(UserWarning, match='Duplicate'):
        for _ in range(2):
            archive.writestr('x.npy', member.getvalue())


def cut_npz(path):
    np.savez(path, x=np.zeros(300))
    path.write_bytes(path.read_bytes()[:-100])


BAD_NPZ = {'object': (object_npz, r"'bad\.npy': an array of object, not of numbers, is never read"),
           'text': (lambda path: np.savez(path, x=np.array(['a'])), r"'x\.npy': an array of <U1, not of numbers"),
           'lying': (lying_npz, 'are not those of float32'), 'other': (other_npz, r"'\.\./\.\./x\.txt': "),
           'twice': (twice_npz, "two arrays 'x'"),
           'cut': (cut_npz, r'x\.npz is no whole \.npz file'), 'no_zip': (lambda path: path.write_bytes(b'x' * 99), 'no whole .npz')}


@pytest.mark.parametrize('kind', BAD_NPZ)
def test_npz_that_are_none(tmp_path, kind):
    write, error = BAD_NPZ[kind]
    write(tmp_path / 'x.npz')
    with pytest.raises(WeightsError, match=error):
        open_weights(tmp_path / 'x.npz')
    assert [f.name for f in tmp_path.iterdir()] == ['x.npz']


def test_a_compressed_member_that_is_damaged(tmp_path):
    path = write_npz(tmp_path / 'x.npz', {'x': np.random.default_rng(0).normal(size=2000)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[5000:5100] = bytes(100)
    path.write_bytes(data)
    with open_weights(path) as weights, pytest.raises(WeightsError, match=r"x\.npz: 'x' cannot be read: "):
        weights.read('x')


@pytest.mark.parametrize('name, error', [
    ('x.h5', 'is no file of weights by its name'), ('x.safetensors', 'is empty'), ('x.npz', 'is empty'), ('x.pt', 'is empty'),
    ('nothing/x.npz', 'there is no such file'), ('', 'has none of model.safetensors, ')])
def test_names_of_files(tmp_path, name, error):
    if name and '/' not in name:
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=error):
        open_weights(tmp_path / name)


def test_a_folder_of_several_is_asked_about(tmp_path):
    for name in ('epoch_1.pt', 'epoch_2.pt'):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r'has none of .*; name one of: epoch_1\.pt, epoch_2\.pt'):
        open_weights(tmp_path)
    for name in reversed([name for name in IN_FOLDERS if name.endswith('.safetensors')]):
        save_file({name: np.zeros(1)}, tmp_path / name)
        assert open_weights(tmp_path).names() == [name]  # the first of them wins


# PyTorch's.

def test_without_torch_its_files_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'x.pt').write_bytes(b'PK')
    with pytest.raises(WeightsError, match='needs torch to be read: pip install torch, or save its state_dict as .safetensors'):
        open_weights(tmp_path / 'x.pt')


@pytest.fixture
def torch():
    return pytest.importorskip('torch')


def tensors(torch, arrays):
    return {name: torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == ml_dtypes.bfloat16 else torch.from_numpy(x)
            for name, x in arrays.items()}


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['plain', 'training', 'old', 'sharded'])
def test_what_is_read_of_pytorch_s(tmp_path, torch, kind):
    arrays = made()
    state, path = tensors(torch, arrays), tmp_path / 'pytorch_model.bin'
    state['fortran'] = torch.nn.Parameter(state['fortran'])
    if kind == 'training':
        state = dict(epoch=3, name='run', state_dict={f'module.{k}': x for k, x in state.items()}, optimizer={0: state['scalar']})
    if kind == 'sharded':
        names = sorted(state)
        for i in range(2):
            torch.save({name: state[name] for name in names[i::2]}, tmp_path / f'pytorch_model-{i}.bin')
        weight_map = {name: f'pytorch_model-{i % 2}.bin' for i, name in enumerate(names)}
        (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(dict(weight_map=weight_map)))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != 'old')
    with open_weights(tmp_path) as weights:
        assert sorted(weights.names()) == sorted(arrays)
        for name, x in arrays.items():
            assert weights.dtype(name) == x.dtype and weights.shape(name) == x.shape
            assert weights.read(name).tobytes() == x.tobytes()
            if x.ndim > 1:
                assert weights.read(name, np.s_[1:3, :2]).tobytes() == x[1:3, :2].tobytes()


@pytest.mark.parity
def test_shards_of_transformers_and_ours_for_it(tmp_path, torch):
    transformers = torch_models.transformers()
    config = transformers.BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = transformers.BertModel(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / 'theirs', max_shard_size='40KB')
    assert (tmp_path / 'theirs' / 'model.safetensors.index.json').exists()
    state = model.state_dict()
    with open_weights(tmp_path / 'theirs') as weights:
        assert sorted(weights.names()) == sorted(state)
        for name, x in state.items():
            assert weights.read(name).tobytes() == x.view(torch.int16).numpy().tobytes()
        files = save_weights(tmp_path / 'ours', ((name, weights.read(name)) for name in weights.names()), shard_bytes=40_000)
    assert len(files) > 2
    config.save_pretrained(tmp_path / 'ours')
    back, report = transformers.BertModel.from_pretrained(tmp_path / 'ours', dtype=torch.bfloat16, output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(x, state[name]) for name, x in back.state_dict().items())


@pytest.mark.parity
@pytest.mark.parametrize('old', [False, True])
def test_a_pickle_bomb_does_not_go_off(tmp_path, torch, old):
    torch.save({'x': torch.zeros(3), 'state_dict': Payload(tmp_path / 'ran')}, tmp_path / 'x.pt', _use_new_zipfile_serialization=not old)
    with pytest.raises(WeightsError, match='nothing in it was executed: it asks for posix.mkdir; where') as error:
        open_weights(tmp_path / 'x.pt')
    assert 'weights_only' not in str(error.value)  # torch's advice on how to set it off
    assert not (tmp_path / 'ran').exists()
    torch.load(tmp_path / 'x.pt', weights_only=False)
    assert (tmp_path / 'ran').exists()  # it was one


@pytest.mark.parity
@pytest.mark.parametrize('contents, error', [
    ([1, 2], 'holds list, not a state_dict'), ({}, 'holds dict, not a state_dict'),
    ({'model': {'x': 1}}, "'model' is dict, no array; expected is"), ({3: 4}, "'3' is int, no array")])
def test_pt_that_hold_something_else(tmp_path, torch, contents, error):
    torch.save(contents, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=error):
        open_weights(tmp_path / 'x.pth')


@pytest.mark.parity
def test_pt_of_other_dtypes_and_layouts(tmp_path, torch):
    for x in (torch.zeros(3, dtype=torch.complex64), torch.eye(3).to_sparse()):
        torch.save({'x': x}, tmp_path / 'x.pt')
        with pytest.raises(WeightsError, match="'x' is (complex64|float32), torch.(strided|sparse_coo), which cannot be read"):
            open_weights(tmp_path / 'x.pt')


@pytest.mark.parity
def test_pt_that_are_cut_or_not_pt(tmp_path, torch):
    torch.save({'x': torch.zeros(3000)}, tmp_path / 'x.pt')
    for data in ((tmp_path / 'x.pt').read_bytes()[:-500], b'x' * 400):
        (tmp_path / 'x.pt').write_bytes(data)
        with pytest.raises(WeightsError, match=r'x\.pt is no whole state_dict of arrays'):
            open_weights(tmp_path / 'x.pt')


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_torchscript_is_refused_with_the_command_that_helps(tmp_path, torch):
    torch.jit.script(torch.nn.Linear(3, 2)).save(tmp_path / 'ViT.pt')
    with pytest.raises(WeightsError, match='is a TorchScript program') as error:
        open_weights(tmp_path / 'ViT.pt')
    command = str(error.value).split('python -c ')[1].strip('"')
    exec(command.replace('ViT_state_dict.pt', str(tmp_path / 'saved.pt')), {})
    assert open_weights(tmp_path / 'saved.pt').shape('weight') == (2, 3)
