import hashlib
import io
import threading
import urllib.error
import urllib.request

import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import cache_dir, fetch, fresh, locked

DATA = b'a model'
SHA256 = hashlib.sha256(DATA).hexdigest()
URL = 'https://example.com/files/x.model'


@pytest.fixture
def net(monkeypatch):
    """Answers every download with DATA and counts them."""
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(DATA)
    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    return asked


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_dir('a', 'b') == tmp_path / 'cache' / 'a' / 'b' and cache_dir('a', 'b').is_dir()
    monkeypatch.delenv('BIGVLM_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_dir() == tmp_path / '.cache' / 'bigvlm'


def test_local_files_are_used_in_place(tmp_path):
    (tmp_path / 'x').write_bytes(DATA)
    assert fetch(str(tmp_path / 'x')) == fetch(str(tmp_path / 'x'), SHA256) == tmp_path / 'x'
    with pytest.raises(RecipeError, match=f'{SHA256}.*expected 00'):
        fetch(str(tmp_path / 'x'), '0' * 64)
    with pytest.raises(RecipeError, match='no file'):
        fetch(str(tmp_path / 'y'))


def test_a_url_is_downloaded_once(net):
    assert fetch(URL, SHA256).read_bytes() == DATA
    assert fetch(URL, SHA256).name.endswith('x.model')
    assert net == [URL]


def test_a_wrong_download_is_not_kept(net):
    with pytest.raises(RecipeError, match='expected 0000'):
        fetch(URL, '0' * 64)
    assert not list(cache_dir('files').iterdir())


@pytest.mark.parametrize('url, sha256', [(URL, ''), (URL, 'abc'), (URL.replace('https', 'http'), SHA256)])
def test_a_url_needs_https_and_a_hash(net, url, sha256):
    with pytest.raises(RecipeError):
        fetch(url, sha256)
    assert not net


def test_offline_says_what_to_do(monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError('no route')
    monkeypatch.setattr(urllib.request, 'urlopen', offline)
    with pytest.raises(OSError) as caught:
        fetch(URL, SHA256)
    assert all(part in str(caught.value) for part in ('x.model', URL, SHA256, str(cache_dir('files'))))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), fresh(tmp_path / 'x') as part:
        part.write_bytes(b'half')
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_the_lock_keeps_others_out():
    seen = []

    def other():
        with locked('x'):
            seen.append('other')
    with locked('x'):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(.1)
        seen.append('first')
    thread.join()
    assert seen == ['first', 'other']
