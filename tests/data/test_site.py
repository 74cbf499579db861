import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data import site
from bigvlm.data.sources.named import named
from bigvlm.data.sources.webdataset import Webdataset
from tests.data.fakes import sample, write_tar


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and a working directory without site files."""
    (tmp_path / 'home').mkdir()
    (tmp_path / 'work').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('BIGVLM_SITE', raising=False)
    monkeypatch.chdir(tmp_path / 'work')
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    return path


def entry(name):
    return f"[cc12m.train]\nname = '{name}'\nfiles = ['a', 'b']\n"


def test_which_file_counts(home, monkeypatch):
    write(home / 'work' / 'site.toml', entry('from_work'))
    assert site.resolve('cc12m', 'train') == {'name': 'from_work', 'files': ['a', 'b']}
    write(home / 'home' / '.config' / 'bigvlm' / 'site.toml', entry('from_home'))
    assert site.resolve('cc12m', 'train')['name'] == 'from_home'
    monkeypatch.setenv('BIGVLM_SITE', str(write(home / 'mine.toml', entry('from_environment'))))
    assert site.resolve('cc12m', 'train')['name'] == 'from_environment'


def test_what_is_wrong_is_said(home, monkeypatch):
    with pytest.raises(RecipeError, match=r'there is none: set \$BIGVLM_SITE.*cc12m.train = .*docs/datasets.md'):
        site.resolve('cc12m', 'train')
    monkeypatch.setenv('BIGVLM_SITE', str(home / 'none.toml'))
    with pytest.raises(RecipeError, match='BIGVLM_SITE names .*none.toml.*no file'):
        site.resolve('cc12m', 'train')
    file = write(home / 'site.toml', '''
        cc12m = {train = {name = 'table'}, val = {}}
        loop.train = {name = 'named', set = 'loop'}
        coco.x = 1''')
    monkeypatch.setenv('BIGVLM_SITE', str(file))
    everything = "did you mean 'cc12m'.*there are: cc12m, coco, loop.*cc12m.train = .*docs/datasets.md"
    for ask, message in ((('cc3m', 'train'), f"set: {file} has no set 'cc3m'.*{everything}"),
                         (('cc12m', 'test'), "split: .*has 'cc12m' without split 'test'.*there are: train, val"),
                         (('coco', 'train'), 'there are: none'), (('cc12m', 'val'), r'\[cc12m.val\].* must have a name'),
                         (('loop', 'train'), 'is named itself')):
        with pytest.raises(RecipeError, match=message) as error:
            site.resolve(*ask)
        assert '\n' not in str(error.value)
    write(file, '[cc12m')
    with pytest.raises(RecipeError, match='cannot be read'):
        site.resolve('cc12m', 'train')


def test_the_example_of_the_messages_is_right(home):
    write(home / 'work' / 'site.toml', site._EXAMPLE)
    assert site.resolve('cc12m', 'train') == {'name': 'webdataset', 'files': '/data/cc12m/{00000..01242}.tar'}


def test_a_named_source_is_the_source(home):
    write_tar(home / 'a.tar', {'1': sample(1), '2': sample(2, json=None, txt=None)})
    write(home / 'work' / 'site.toml', f"[mine.train]\nname = 'webdataset'\nfiles = ['{home}/a.tar']\nrequire = ['image']\n")
    direct, source = Webdataset(str(home / 'a.tar'), require=('image',)), named(set='mine', split='train')
    assert type(source) is Webdataset and source.fingerprint == direct.fingerprint
    assert source[1] == direct[1] and len(source) == 2
    assert hasattr(source, 'read') == hasattr(direct, 'read')
    with pytest.raises(Exception, match='no caption'):
        named(set='mine', split='train', require=('captions',))[1]
    with pytest.raises(RecipeError, match=r'site.toml \[mine.train\].filez: unknown field.*did you mean .files.'):
        named(set='mine', split='train', filez='x')


def test_overrides_are_fields_of_the_source_that_is_named(home, monkeypatch):
    tar = write_tar(home / 'a.tar', {'0': sample(0), '1': sample(1, jpg=None)})
    monkeypatch.setenv('BIGVLM_SITE', str(write(home / 'site.toml', f"[mine.train]\nname = 'webdataset'\nfiles = '{tar}'\n")))
    built = parts.build('bigvlm.data.sources', dict(name='named', set='mine', split='train', require=('captions',)), 'data.train.source')
    assert len(built) == 2 and 'image' not in built[1]
    with pytest.raises(RecipeError, match='requires: unknown field'):
        parts.build('bigvlm.data.sources', dict(name='named', set='mine', split='train', requires=()), 'data.train.source')
