import json
import os
from pathlib import Path

import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import Dataset
from bigvlm.data.sources.folder import Folder
from tests.data.fakes import encoded, picture


def write(root, *paths):
    """Each file holds its own path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return str(root)


PATHS = ['n02/b.JPEG', 'n02/a.jpg', 'n01/z.png', 'n02/deep/er/x.webp', 'n02/Z.jpg', 'n10/ü.gif']


def test_classes(tmp_path):
    root = write(tmp_path / 'train', *PATHS, 'n01/readme.txt', 'loose.jpg', 'n02/._a.jpg', '.hidden/a.jpg', 'n02/.cache/a.jpg')
    source = Folder(root)
    found = [source.describe(i) for i in range(len(source))]
    assert found == ['n01/z.png', 'n02/Z.jpg', 'n02/a.jpg', 'n02/b.JPEG', 'n02/deep/er/x.webp', 'n10/ü.gif']
    assert set(found) == {p.relative_to(root).as_posix() for p in Path(root).rglob('*') if p.is_file()} - {
        'n01/readme.txt', 'loose.jpg', 'n02/._a.jpg', '.hidden/a.jpg', 'n02/.cache/a.jpg'}
    assert source.label_names == ('n01', 'n02', 'n10')
    for i, path in enumerate(found):
        assert source[i] == {'image': path.encode(), 'label': source.label_names.index(path.partition('/')[0])}
        assert source.captions(i) == ()
    for index in (-1, 6):
        with pytest.raises(IndexError):
            source[index]
    assert source.io.requests == 6 and source.io.bytes == sum(len(path.encode()) for path in found)


def test_images_without_labels_but_captions(tmp_path):
    root = write(tmp_path, 'b.jpg', 'a.jpg', 'sub/c.jpg')
    flat = Folder(root, classes=False)
    assert [flat[i] for i in range(3)] == [{'image': name} for name in (b'a.jpg', b'b.jpg', b'sub/c.jpg')] and flat.label_names == ()
    (tmp_path / 'a.txt').write_text(' one\tcaption \n\n  another\n', encoding='utf-8')
    (tmp_path / 'b.txt').write_text('\n')
    source = Folder(root, classes=False, captions=True)
    assert source[0] == {'image': b'a.jpg', 'captions': ('one caption', 'another')} and source.captions(0) == source[0]['captions']
    for index in (1, 2):
        assert source.captions(index) == ()
        with pytest.raises(BadExample, match='no caption'):
            source[index]
    assert source.fingerprint != flat.fingerprint


@pytest.mark.parametrize('file, text', [
    ('names.json', json.dumps({'n01': 'tench', 'n02': 'great white shark', 'n10': 'x', 'n99': 'unused'})),
    ('names.tsv', 'n01\ttench\nn02\tgreat white shark\n\nn10\tx\n'), ('LOC_synset_mapping.txt', 'n01 tench\nn02 great white shark\nn10 x')])
def test_readable_class_names(tmp_path, file, text):
    root = write(tmp_path / 'train', *PATHS)
    (tmp_path / file).write_text(text)
    assert Folder(root, names=str(tmp_path / file)).label_names == ('tench', 'great white shark', 'x')
    write(tmp_path / 'train', 'n11/a.jpg')
    with pytest.raises(RecipeError, match="no name for 'n11'|for 'n11'"):
        Folder(root, names=str(tmp_path / file))


def test_a_changed_folder_is_seen(tmp_path):
    root = write(tmp_path / 'a', *PATHS)
    first = Folder(root)
    assert Folder(root).fingerprint == first.fingerprint == Folder(write(tmp_path / 'copy', *reversed(PATHS))).fingerprint
    index = list((tmp_path / 'cache' / 'index' / 'folder').iterdir())
    assert len(index) == 2, 'the copies share one index'
    os.rename(tmp_path / 'a' / 'n01' / 'z.png', tmp_path / 'a' / 'n01' / 'y.png')
    renamed = Folder(root)
    assert renamed.fingerprint != first.fingerprint and renamed.describe(0) == 'n01/y.png'
    assert first.describe(0) == 'n01/z.png'
    with pytest.raises(BadExample, match='no image file'):
        first[0]
    os.makedirs(tmp_path / 'a' / 'n00')  # a class without images moves the labels
    assert Folder(root)[0]['label'] == 1 and Folder(root).fingerprint != renamed.fingerprint


def test_links(tmp_path):
    root = write(tmp_path / 'a', *PATHS)
    write(tmp_path / 'elsewhere', 'far.jpg')
    os.symlink(tmp_path / 'elsewhere', tmp_path / 'a' / 'n03')
    os.symlink(tmp_path / 'a', tmp_path / 'a' / 'n01' / 'back')
    os.symlink(tmp_path / 'nowhere.jpg', tmp_path / 'a' / 'n01' / 'zz.jpg')
    source = Folder(root)
    found = [source.describe(i) for i in range(len(source))]
    assert 'n03/far.jpg' in found and not any('back' in path for path in found)
    with pytest.raises(BadExample, match='no image file'):
        source[found.index('n01/zz.jpg')]


def test_unusable_images(tmp_path, monkeypatch):
    root = write(tmp_path, 'a/0.jpg', 'a/1.jpg')
    (tmp_path / 'a' / '1.jpg').write_bytes(b'')
    source = Folder(root)
    with pytest.raises(BadExample, match='no image'):
        source[1]

    def denied(*_, **__):
        raise PermissionError('denied')
    monkeypatch.setattr(storage, 'read', denied)
    with pytest.raises(PermissionError):
        source[0]


def test_in_a_data_set(tmp_path):
    for i in range(4):
        write(tmp_path, f'c{i % 2}/{i}.png')
        (tmp_path / f'c{i % 2}' / f'{i}.png').write_bytes(encoded('PNG', pixels=picture(seed=i)))
    data = Dataset(dict(source=dict(name='folder', root=str(tmp_path)), ops=(dict(name='decode'),)))
    assert (data.example(2)['image'] == picture(seed=1)).all() and data.example(2)['label'] == 1 and data.label_names == ('c0', 'c1')


def test_what_is_wrong_is_said(tmp_path):
    write(tmp_path, 'a.jpg', 'c/x.txt')
    (tmp_path / 'bad.json').write_text('{')
    (tmp_path / 'list.json').write_text('["a"]')
    for fields, message in ((dict(root=str(tmp_path)), 'or classes=False'), (dict(root=str(tmp_path / 'none')), 'no folder'),
                            (dict(root='gs://bucket/train'), 'make tars or a table'),
                            (dict(root=str(tmp_path / 'c'), classes=False), 'no .jpg'),
                            (dict(root=str(tmp_path), classes=False, names='x'), 'names: of what')):
        with pytest.raises(RecipeError, match=message):
            Folder(**fields)
    write(tmp_path, 'c/x.jpg')
    for file, message in (('bad.json', 'no JSON'), ('list.json', 'must be an object'), ('none.tsv', 'No such file')):
        with pytest.raises(RecipeError, match=f'names: .*{message}'):
            Folder(str(tmp_path), names=str(tmp_path / file))
