"""Checkpoints: exact, atomic, portable between meshes, and honest about damage."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from bigvlm.checkpoint import CheckpointError, Checkpoints


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt: tuple
    key: jax.Array


def layouts(shape):
    devices = jax.devices()[:np.prod(shape)]
    mesh = jax.make_mesh(shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices)
    return NamedSharding(mesh, P()), NamedSharding(mesh, P(None, 'fsdp'))


def make_state(shape=(2, 4), seed=0):
    replicated, split = layouts(shape)
    rng = np.random.default_rng(seed)
    kernel = jax.device_put(rng.normal(size=(6, 8)).astype(np.float32), split)
    moments = {'image/kernel': jax.device_put(rng.normal(size=(6, 8)).astype(jnp.bfloat16), split)}
    put = lambda x: jax.device_put(x, replicated)  # noqa: E731
    params = {'image': {'kernel': kernel}, 'match': {'t': put(jnp.float32(seed + .1))}}
    return State(step=put(jnp.int32(seed)), params=params, opt=(optax.EmptyState(), optax.TraceState(moments)),
                 key=put(jax.random.key(seed)))


def abstract(state, shape=(2, 4)):
    replicated, split = layouts(shape)
    sharding = lambda x: split if x.ndim else replicated  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), state)


def raw(x):
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert a.dtype == b.dtype and raw(a).tobytes() == raw(b).tobytes()


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / 'checkpoints', keep=2, keep_every=10)
    yield made
    made.close()


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, make_state(seed=step), {'examples_seen': 32 * step})
    checkpoints.wait()


@pytest.mark.parametrize('shape', [(2, 4), (1, 1), (8, 1), (1, 2)])
def test_bit_exact_on_any_mesh(checkpoints, shape):
    save(checkpoints, 3)
    state, extra, step = checkpoints.restore(abstract(make_state(), shape))
    assert (extra, step) == ({'examples_seen': 96}, 3)
    assert_same(state, make_state(seed=3))
    assert state.params['image']['kernel'].sharding.is_equivalent_to(layouts(shape)[1], 2)
    assert np.array_equal(jax.random.bits(state.key), jax.random.bits(jax.random.key(3)))


def test_parameters_alone(checkpoints):
    save(checkpoints, 3, 4)
    params, step = checkpoints.restore_params(abstract(make_state()).params)
    assert step == 4
    assert_same(params, make_state(seed=4).params)
    assert checkpoints.restore_params(abstract(make_state()).params, step=3)[0]['match']['t'] == np.float32(3.1)


def test_what_is_saved_is_what_was_there_when_save_was_called(checkpoints):
    state = make_state(seed=5)
    checkpoints.save(5, state, {})
    overwrite = jax.jit(lambda s: s.replace(params=jax.tree.map(jnp.zeros_like, s.params)), donate_argnums=0)
    jax.block_until_ready(overwrite(state))
    checkpoints.wait()
    assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(seed=5))


def test_the_newest_are_kept_and_some_for_ever(checkpoints):
    save(checkpoints, 9, 10, 11, 12, 13)
    assert checkpoints.steps() == [10, 12, 13] and checkpoints.latest() == 13


def damage(checkpoints, step):
    files = list((checkpoints.directory / str(step) / 'params').rglob('d/*'))
    assert files
    for file in files:
        file.unlink()


def test_walks_back_over_damage_and_goes_on_from_there(checkpoints, caplog):
    save(checkpoints, 1, 2)
    damage(checkpoints, 2)
    state, _, step = checkpoints.restore(abstract(make_state()))
    assert step == 1 and 'checkpoints/2 cannot be read' in caplog.text
    assert_same(state, make_state(seed=1))
    with pytest.raises(CheckpointError, match='step 2 can'):
        checkpoints.restore(abstract(make_state()), step=2)
    checkpoints.restore(abstract(make_state()))
    save(checkpoints, 2)  # the same step again, whole this time
    assert checkpoints.restore(abstract(make_state()))[2] == 2
    again = Checkpoints(checkpoints.directory)
    assert again.steps() == [1, 2] and (checkpoints.directory.parent / 'checkpoints_set_aside' / '2.0').is_dir()
    again.close()


def test_a_save_without_its_commit_file_is_no_checkpoint(checkpoints):
    save(checkpoints, 1, 2)
    (checkpoints.directory / '2' / 'commit_success.txt').unlink()
    (checkpoints.directory / '3').mkdir()
    again = Checkpoints(checkpoints.directory)
    assert again.steps() == [1]
    save(again, 2)
    assert again.steps() == [1, 2]
    again.close()


def test_none(checkpoints, tmp_path):
    assert checkpoints.steps() == [] and checkpoints.latest() is None
    with pytest.raises(CheckpointError, match='no complete checkpoint'):
        checkpoints.restore(abstract(make_state()))
    with pytest.raises(CheckpointError, match='no such folder'):
        Checkpoints(tmp_path / 'nowhere', read_only=True)


def test_another_model_is_refused_with_the_difference(checkpoints):
    save(checkpoints, 1, 2)
    state = abstract(make_state())
    params = {'image': {'kernel': jax.ShapeDtypeStruct((6, 9), jnp.float32)},
              'text': {'bias': jax.ShapeDtypeStruct((3,), jnp.float32)}}
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(state.replace(params=params, step=jax.ShapeDtypeStruct((), jnp.float32)))
    for line in ('- params/match/t float32[]', '+ params/text/bias float32[3]',
                 'params/image/kernel: float32[6, 8] → float32[6, 9]', 'step: int32[] → float32[]'):
        assert line in str(error.value)
    assert 'checkpoints/2 does not fit' in str(error.value)  # and older ones are not tried


# Orbax's own threads complain about the event loop of the write that failed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_failed_save_is_told_and_the_next_succeeds(checkpoints):
    save(checkpoints, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # the kernel refuses longer files, as on a full disk
    try:
        with pytest.raises(CheckpointError, match='step 2 could not be saved'):
            checkpoints.save(2, make_state(seed=2), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps() == [1] and checkpoints.restore(abstract(make_state()))[2] == 1
    save(checkpoints, 2)
    assert checkpoints.restore(abstract(make_state()))[2] == 2


def test_saving_a_step_twice_is_an_error(checkpoints):
    save(checkpoints, 0, 4)
    with pytest.raises(CheckpointError, match='step 4'):
        save(checkpoints, 0, 4)
    with pytest.raises(CheckpointError, match='step 3'):
        save(checkpoints, 3)
    assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(seed=4))


CHILD = textwrap.dedent('''
    import sys
    import jax.numpy as jnp
    from bigvlm.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=100)
    for step in range(1, 1000):
        state = {'params': {'x': jnp.full((4_000_000,), float(step))}, 'step': jnp.int32(step)}
        checkpoints.save(step, state, {'step': step})
        print(step, flush=True)
''')


@pytest.mark.multiprocess
def test_kill_during_a_save_leaves_the_previous_one(tmp_path):
    for last in (2, 4):
        child = subprocess.Popen([sys.executable, '-c', CHILD, str(tmp_path / f'{last}')], stdout=subprocess.PIPE,
                                 text=True, env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])})
        for line in child.stdout:
            if int(line) == last:  # its save has begun in the background
                child.send_signal(signal.SIGKILL)
                break
        child.wait()
        checkpoints = Checkpoints(tmp_path / f'{last}', keep=100)
        shapes = {'params': {'x': jax.ShapeDtypeStruct((4_000_000,), jnp.float32)},
                  'step': jax.ShapeDtypeStruct((), jnp.int32)}
        state, extra, step = checkpoints.restore(shapes)
        assert last - 1 <= step <= last + 1 and extra == {'step': step} and state['step'] == step
        assert np.all(np.asarray(state['params']['x']) == step)
        if checkpoints.latest() < last + 1:
            checkpoints.save(last + 1, {'params': {'x': jnp.zeros(3)}, 'step': jnp.int32(0)}, {})
        checkpoints.close()
