"""tools/demo.py: a page of what a model makes of photos."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tools import demo

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Six photos as files and, with captions and a damaged one, in a tar."""
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    with tarfile.open(folder / 'all.tar', 'w') as tar:
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / f'{i}.jpg')
            data = (folder / f'{i}.jpg').read_bytes()
            for end, content in (('jpg', data), ('json', json.dumps({'captions': [f'a red <dog> number {i}']}).encode())):
                info = tarfile.TarInfo(f'{i:03}.{end}')
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def test_names_and_texts(run, photos, tmp_path, capsys):
    assert demo.main(['--checkpoint', str(run), '--images', f'{photos}/*.jpg', '--names', 'dog, cat', '--texts', 'a red dog; blue',
                      '--html', str(tmp_path / 'x.html')]) == 0
    page = (tmp_path / 'x.html').read_text()
    assert '6 images, 2 names' in page and 'a red dog' in page and page.count('<img') == 6 + 2 * 5 and 'data:image/jpeg;base64,' in page


def test_the_captions_of_tars(run, photos, tmp_path):
    assert demo.main(['--checkpoint', str(run), '--images', f'{photos}/all.tar', '--html', str(tmp_path / 'x.html')]) == 0
    page = (tmp_path / 'x.html').read_text()
    assert 'among 6 images' in page and 'a red &lt;dog&gt; number 5' in page and page.count('<img') == 30


@pytest.mark.parametrize('more, message', [(['--images', 'nothing/*.jpg', '--names', 'x'], "no file is 'nothing/*.jpg'"),
                                           ([], 'neither is given')])
def test_what_cannot_be(run, photos, capsys, more, message):
    assert demo.main(['--checkpoint', str(run), *(more or ['--images', f'{photos}/*.jpg'])]) == 2
    assert message in capsys.readouterr().err
