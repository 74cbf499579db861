import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.prepare import convert as convert_lib
from bigvlm.data.prepare import images
from bigvlm.data.prepare.convert import Settings, convert
from tests.data.fakes import encoded, picture
from tests.data.listed import Listed

FORMATS = {'webdataset': 'tar', 'array_record': 'array_record'}


def examples(count=10):
    found = [{'image': encoded(pixels=picture(60 + i, 50, seed=i)), 'captions': (f'picture {i}', f'Bild {i} – schön'), 'label': i % 3}
             for i in range(count)]
    return [*found[:4], 'truncated image', *found[5:]]


def written(out, ending):
    return {path.name: path.read_bytes() for path in sorted(out.glob(f'*.{ending}'))}


@pytest.mark.parametrize('to', FORMATS)
def test_there_and_back(tmp_path, to):
    source = Listed(examples())
    manifest = convert(source, tmp_path / 'out', Settings(to=to, shard=4), workers=3)
    assert sorted(written(tmp_path / 'out', FORMATS[to])) == [f'train-0000{k}.{FORMATS[to]}' for k in range(3)]
    assert manifest['finished'] and manifest['written'] == 9 and convert_lib.unusable(manifest) == {'truncated image': ['listed:4']}
    assert manifest == json.loads((tmp_path / 'out/train.manifest.json').read_text())
    assert [entry['examples'] for entry in manifest['shards'].values()] == [4, 3, 2]
    assert convert_lib.keys(manifest) == ('image', 'captions', 'label')
    again = parts.build('bigvlm.data.sources', dict(name=to, files=f'{tmp_path}/out/*.{FORMATS[to]}'), 'source')
    assert len(again) == 9
    for new, old in enumerate([0, 1, 2, 3, 5, 6, 7, 8, 9]):
        assert {key: again[new][key] for key in source.examples[old]} == source.examples[old]
    if to == 'array_record':
        assert again[4]['key'] == 'listed:5'


@pytest.mark.parametrize('to', FORMATS)
def test_the_same_bytes_whoever_writes_them_and_when(tmp_path, to, monkeypatch):
    monkeypatch.setattr('time.time', lambda: 1e9)
    convert(Listed(examples(80)), tmp_path / 'a', Settings(to=to, shard=37, size=55), workers=1)
    monkeypatch.setattr('time.time', lambda: 2e9)
    convert(Listed(examples(80)), tmp_path / 'b', Settings(to=to, shard=37, size=55), workers=4)
    assert written(tmp_path / 'a', FORMATS[to]) == written(tmp_path / 'b', FORMATS[to]) != {}


def test_a_killed_conversion_goes_on(tmp_path):
    settings, all_of_it = Settings(to='webdataset', shard=16), examples(100)
    with pytest.raises(RuntimeError, match='power cut'):
        convert(Listed([*all_of_it[:70], RuntimeError('power cut'), *all_of_it[71:]]), tmp_path / 'out', settings, workers=2)
    half = written(tmp_path / 'out', 'tar')
    assert sorted(half) == [f'train-0000{k}.tar' for k in range(4)]
    assert not json.loads((tmp_path / 'out/train.manifest.json').read_text())['finished']
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {*half, 'train.manifest.json'}  # nothing half-written stays
    (tmp_path / 'out/.train-00004.tar-x1').write_bytes(b'left by a kill')
    rest = Listed(all_of_it)
    convert(rest, tmp_path / 'out', settings, workers=2)
    assert sorted(rest.asked) == list(range(64, 100))
    convert(Listed(all_of_it), tmp_path / 'at_once', settings)
    assert not list((tmp_path / 'out').glob('.*'))
    assert written(tmp_path / 'out', 'tar') == written(tmp_path / 'at_once', 'tar')
    (tmp_path / 'out/train-00001.tar').write_bytes(b'short')  # what is there but not whole is made again
    (tmp_path / 'out/train-00006.tar').unlink()
    third = Listed(all_of_it)
    convert(third, tmp_path / 'out', settings)
    assert sorted(third.asked) == [*range(16, 32), *range(96, 100)]
    assert written(tmp_path / 'out', 'tar') == written(tmp_path / 'at_once', 'tar')


def test_a_folder_holds_one_thing(tmp_path):
    convert(Listed(examples(4)), tmp_path, Settings(to='webdataset'))
    for source, settings in ((Listed(examples(4)), Settings(to='webdataset', size=9)),
                             (Listed(examples(4), fingerprint='2'), Settings(to='webdataset'))):
        with pytest.raises(RecipeError, match='--out.*choose another folder'):
            convert(source, tmp_path, settings)
    (tmp_path / 'train.manifest.json').unlink()
    with pytest.raises(RecipeError, match='no train.manifest.json'):
        convert(Listed(examples(4)), tmp_path, Settings(to='webdataset'))


def test_tars_as_webdataset_wants_them(tmp_path):
    source = Listed([{'image': encoded('PNG'), 'captions': ('one', 'two'), 'boxes': np.float32([[0, .5]]), 'n': np.int64(3)},
                     {'captions': ('no picture',)}, {'image': picture(), 'label': 1}])
    convert(source, tmp_path, Settings(to='webdataset', prefix='x'))
    assert convert_lib.keys(json.loads((tmp_path / 'x.manifest.json').read_text())) == ()
    with tarfile.open(tmp_path / 'x-00000.tar') as tar:
        names, data = tar.getnames(), {m.name: tar.extractfile(m).read() for m in tar}
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar.getmembers()} == {(0, 0, '', 0o644)}
    assert names == ['0000000000.png', '0000000000.txt', '0000000000.json', '0000000001.txt', '0000000001.json', '0000000002.png',
                     '0000000002.json']
    assert json.loads(data['0000000000.json']) == {'key': 'listed:0', 'captions': ['one', 'two'], 'boxes': [[0, .5]], 'n': 3}
    assert data['0000000000.txt'] == b'one' and np.array_equal(np.asarray(Image.open(io.BytesIO(data['0000000002.png']))), picture())
    with pytest.raises(RecipeError, match="'mask'.*array_record"):
        convert(Listed([{'mask': np.zeros((100, 100), bool)}]), tmp_path / 'b', Settings(to='webdataset'))
    with pytest.raises(RecipeError, match='--to: .*set'):
        convert(Listed([{'strange': {1, 2}}]), tmp_path / 'c', Settings(to='array_record'))


def test_images_made_smaller():
    checks = np.indices((100, 160)).sum(0) % 2 * 255  # every other pixel: only averaging makes it grey
    data = encoded('PNG', pixels=np.repeat(checks[..., None], 3, 2).astype(np.uint8))
    ending, small = images.smaller(data, 50, 95)
    pixels = np.asarray(Image.open(io.BytesIO(small)).convert('L'), int)
    assert ending == 'jpg' and pixels.shape == (50, 80) and abs(pixels - 127).max() < 12
    assert images.smaller(data, 100) == ('png', data) and images.smaller(data) == ('png', data)
    assert images.smaller(data, 0, 50, reencode=True)[1][:3] == b'\xff\xd8\xff'
    bmp = encoded('BMP')
    ending, png = images.smaller(bmp)
    assert ending == 'png' and np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(Image.open(io.BytesIO(bmp))))
    assert images.smaller(encoded('GIF', 'P'))[0] == 'gif' and images.smaller(encoded('WEBP'), 10, reencode=True)[0] == 'jpg'
    low, high = (len(images.smaller(encoded(pixels=picture(300, 300)), 100, quality)[1]) for quality in (30, 95))
    assert low < high


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGBA', 'P', 'I;16', '1'])
def test_every_kind_of_picture_becomes_a_jpeg(mode):
    file = io.BytesIO()
    if mode == 'I;16':
        Image.fromarray(np.full((60, 80), 30_000, np.uint16)).save(file, 'PNG')
    else:
        Image.fromarray(picture(60, 80)).convert(mode).save(file, 'TIFF' if mode == 'CMYK' else 'PNG')
    ending, data = images.smaller(file.getvalue(), 30)
    with Image.open(io.BytesIO(data)) as opened:
        assert ending == 'jpg' and opened.size == (40, 30) and opened.mode in ('RGB', 'L')


def test_orientation_stays():
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'a secret place'
    file = io.BytesIO()
    Image.fromarray(picture(80, 60)).save(file, 'JPEG', exif=exif)
    _, data = images.smaller(file.getvalue(), 30)
    with Image.open(io.BytesIO(data)) as opened:
        assert dict(opened.getexif()) == {0x0112: 6} and opened.size == (30, 40)


def test_what_cannot_be_decoded_is_left_out_if_asked(tmp_path):
    cut = encoded(pixels=picture(200, 200))[:1500]
    source = [{'image': encoded(), 'captions': ('a',)}, {'image': cut, 'captions': ('b',)}, {'image': b'nothing', 'captions': ('c',)}]
    with pytest.raises(BadExample, match='truncated image'):
        images.smaller(cut, 20)
    loose = convert(Listed(source), tmp_path / 'a', Settings(to='webdataset'))
    assert loose['written'] == 2 and convert_lib.unusable(loose) == {'not an image': ['listed:2']}
    strict = convert(Listed(source), tmp_path / 'b', Settings(to='webdataset', decode=True))
    assert convert_lib.unusable(strict) == {'truncated image': ['listed:1'], 'not an image': ['listed:2']}


def test_label_names_go_along(tmp_path):
    source = Listed(examples(3))
    source.label_names = ('cat', 'dog', 'cow')
    convert(source, tmp_path, Settings())
    again = parts.build('bigvlm.data.sources', dict(name='array_record', files=f'{tmp_path}/*.array_record'), 'source')
    assert again.label_names == source.label_names


@pytest.mark.parametrize('wrong', [dict(to='zip'), dict(shard=0), dict(quality=0), dict(size=-1)])
def test_wrong_settings(wrong):
    with pytest.raises(RecipeError, match='--'):
        Settings(**wrong)
