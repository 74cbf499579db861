"""What a user mixes: tars with a damaged stretch, a csv of product photos, a folder of classes; any hosts, workers, restarts."""
import csv
import shutil

import numpy as np
import pytest

from bigvlm.data.pipeline import Data, Stream, open_draws
from tests.data.fakes import encoded, picture, sample, write_tar

BATCH = 12


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    home = tmp_path_factory.mktemp('mixed')
    for number in range(2):
        write_tar(home / f'web-{number}.tar', {f'{number}{i:04}': sample(i) for i in range(20)})
    raw = bytearray((home / 'web-1.tar').read_bytes())
    raw[9000:12000] = bytes(3000)  # a stretch lost
    (home / 'web-1.tar').write_bytes(raw)
    (home / 'photos').mkdir()
    with open(home / 'products.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['file', 'title', 'price'])
        for i in range(15):
            (home / 'photos' / f'{i}.png').write_bytes(encoded('PNG', pixels=picture(50, 45, i)))
            rows.writerow([f'photos/{i}.png', f'product, number {i}\nin two lines', i])
        rows.writerow(['photos/gone.png', 'a photo that is not there', 1])
    for name in ('cat', 'dog'):
        (home / 'pets' / name).mkdir(parents=True)
        for i in range(4):
            (home / 'pets' / name / f'{i}.jpg').write_bytes(encoded(pixels=picture(seed=i)))
    common = (dict(name='decode'), dict(name='random_resized_crop', size=24), dict(name='tokenize', length=8),
              dict(name='keep', keys=('image', 'text')))
    prompt = dict(name='prompt', templates=('a photo of a {}', 'a {}'))
    data = dict(
        web=dict(source=dict(name='webdataset', files=f'{home}/web-*.tar'), ops=common, max_bad=.5, order='blocks', block=4, pool=16),
        shop=dict(source=dict(name='table', files=f'{home}/products.csv', image='file', captions='title'), ops=common, max_bad=.5),
        pets=dict(source=dict(name='folder', root=f'{home}/pets'), ops=(prompt, *common)),
        train=dict(mix=dict(web=4, shop=1, pets=1)))
    tokenizers = dict(text=dict(name='sentencepiece', train_on='web', vocab=40))
    return dict(batch=BATCH, seed=3, tokenizers=tokenizers, data=data,
                kinds=dict(pairs=dict(data='train', weight=2), images=dict(data='pets', weight=1)))


def batches(config, first, count, rows=slice(None), **loader):
    data = Data(config)
    stream = Stream(data.draws('pairs', 0, (0,)), BATCH, first, rows, **loader)
    try:
        return [next(stream) for _ in range(count)], stream.stats(), data
    finally:
        stream.close()


def same(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_batches_are_the_same_whoever_makes_them(config):
    wanted, stats, data = batches(config, 0, 30, workers=0)
    assert {key: (value.dtype, value.shape[1:]) for key, value in wanted[0].items()} == {
        'image': (np.uint8, (24, 24, 3)), 'text': (np.int32, (8,)), 'id': (np.uint32, (2,))}
    shares = np.bincount(np.concatenate([b['id'][:, 0] for b in wanted]), minlength=3) / (30 * BATCH)
    assert np.abs(shares - [1 / 6, 1 / 6, 4 / 6]).max() < .05  # pets, shop, web
    assert stats['requests'] > 0 and stats['examples'] == 30 * BATCH
    assert same(batches(config, 10, 20, workers=3)[0], wanted[10:])
    half = [batches(config, 5, 6, rows, workers=2)[0] for rows in (slice(0, 6), slice(6, 12))]
    assert same([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*half)], wanted[5:11])
    in_processes, _, other = batches(config, 0, 30, workers=1, processes=2)
    assert same(in_processes, wanted)
    for found in (data, other):
        assert list(found.lost()['shop']) == ['no image file']
        assert found.lost()['web'] and 'pets' not in found.lost()
        assert {name: entry['unusable'] for name, entry in found.record().items()}['shop'] == 1


def test_a_copy_elsewhere_is_the_same_data(config, tmp_path):
    home = config['data']['web']['source']['files'].rpartition('/')[0]
    shutil.copytree(home, tmp_path / 'copy')
    moved = eval(repr(config).replace(home, str(tmp_path / 'copy')))
    moved_data, data = Data(moved), Data(config)
    assert moved_data.datasets.fingerprint('train') == data.datasets.fingerprint('train')
    draws = data.draws('pairs', 0, (0,))
    again = open_draws(draws.spec)
    assert [again.at(7, row) for row in range(BATCH)] == [draws.at(7, row) for row in range(BATCH)]
