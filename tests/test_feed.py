"""The last leg of the data: what arrives on the devices, what is counted, and what happens when it ends or fails."""
import jax
import numpy as np
import pytest

from bigvlm.core import mesh as mesh_lib
from bigvlm.data.pipeline import Data
from bigvlm.feed import Feeds
from tests.data.fakes import sample, write_tar

LOADER = dict(workers=2, processes=0, prefetch=2)


def feeds(folder, stages=(), ops=(), **loader):
    if not (folder / 'a.tar').exists():
        for name in 'ab':
            write_tar(folder / f'{name}.tar', {f'{name}{i:03}': sample(i) for i in range(40)})
    ops = (dict(name='decode'), dict(name='resize', size=8), *ops, dict(name='keep', keys=('image',)))
    kinds = {kind: dict(data='train', weight=1) for kind in ('pairs', 'images')}
    config = dict(batch=8, seed=0, tokenizers={}, stages=stages, kinds=kinds,
                  data=dict(train=dict(source=dict(name='webdataset', files=str(folder / 'a.tar')), ops=ops)))
    data, first_steps = Data(config), (0, 4)[:len(stages) or 1]
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    return data, Feeds(data, first_steps, 8, mesh, LOADER | loader)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('BIGVLM_CACHE', str(tmp_path / 'cache'))


def test_each_kind_goes_through_its_batches_and_a_shared_source_is_counted_once(tmp_path):
    data, found = feeds(tmp_path)
    for step in range(8):
        kind, ids, batch = found.next(step, 0)
        assert kind == data.kinds.at(step) and isinstance(batch['image'], jax.Array) and batch['image'].dtype == np.uint8
        draws = data.draws(kind, 0, (0,), 8)
        assert ids.tolist() == [[0, draws.at(data.kinds.count(kind, step), row)[2]] for row in range(8)]
        assert np.array_equal(batch['id'], ids)
    scalars = found.scalars()
    assert .9 < scalars['data/requests_per_example'] < 1.5 and scalars['data/rss_gib'] > 0 and found.wait_s > 0
    found.close()


def test_a_failure_is_raised_in_its_turn_and_again(tmp_path):
    _, found = feeds(tmp_path, ops=(dict(name='keep', keys=('absent',)),))
    for _ in range(2):
        with pytest.raises(KeyError, match='absent'):
            found.next(0, 0)
    found.close()


def test_each_source_of_a_stage_is_recorded(tmp_path):
    data, found = feeds(tmp_path, stages=(dict(until=4, set={'data.train.source.files': str(tmp_path / 'b.tar')}), dict()))
    for step in range(8):
        found.next(step, int(step >= 4))
    found.close()
    noted = data.record()
    assert {name: entry['source'][-5:] for name, entry in noted.items()} == {'train': 'b.tar', 'train (stage 1)': 'a.tar'}
    assert found.wait_s >= 0 and noted['train']['fingerprint'] != noted['train (stage 1)']['fingerprint']
