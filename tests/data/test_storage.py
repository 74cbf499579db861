import threading

import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from tests.data.servers import as_gcs, as_s3, serving

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A server whose buckets 'bucket' is; s3:// and gs:// lead to it."""
    monkeypatch.setattr(storage, '_RETRIES', 2)
    storage._store.cache_clear()
    folder = tmp_path / 'bucket' / 'set'
    (folder / 'deep').mkdir(parents=True)
    for name in ('a-00.tar', 'a-01.tar', 'a-02.tar', 'b c.tar', 'a-00.txt', 'a-00.tar.tmp', 'deep/a-03.tar', 'deep/x+y.tar'):
        (folder / name).write_bytes(CONTENT + name.encode())
    with serving(tmp_path) as server:
        as_s3(server, monkeypatch)
        as_gcs(server, monkeypatch)
        yield server
    storage._store.cache_clear()


@pytest.fixture(params=['local', 's3', 'gs', 'http'])
def root(request, remote, tmp_path):
    """The folder 'set' as each kind of storage names it."""
    return {'local': str(tmp_path / 'bucket'), 's3': 's3://bucket', 'gs': 'gs://bucket',
            'http': f'{remote.url}/bucket'}[request.param] + '/set'


def test_reads_ranges_and_all(root, remote):
    counts = storage.Counts()
    url = f'{root}/deep/a-03.tar'
    whole = CONTENT + b'deep/a-03.tar'
    assert storage.read(url, 10, 300, counts) == whole[10:310]
    assert storage.read(url, counts=counts) == whole
    assert storage.read(url, 2000) == whole[2000:]
    assert storage.read(url, 7, 0) == b''
    assert (counts.requests, counts.bytes) == (2, 300 + len(whole))
    assert storage.stat(url).size == len(whole)
    assert [len(part) for part in storage.chunks(url, 1000, 50)] == [1000, 1000, len(whole) - 2050]
    assert b''.join(storage.chunks(url, 1000, 50)) == whole[50:]
    for name in ('b c.tar', 'deep/x+y.tar'):
        assert storage.read(f'{root}/{name}', len(CONTENT), len(name)) == name.encode()


def test_one_request_a_read(remote):
    storage.read('s3://bucket/set/a-00.tar', 3, 5)
    assert remote.requests == [('GET', '/bucket/set/a-00.tar', 'bytes=3-7')]


def test_the_version_is_the_contents(root, tmp_path):
    before = storage.stat(f'{root}/a-00.tar')
    assert storage.stat(f'{root}/a-00.tar') == before != storage.stat(f'{root}/a-01.tar')
    (tmp_path / 'bucket/set/a-00.tar').write_bytes(CONTENT[::-1] + b'a-00.tar')
    after = storage.stat(f'{root}/a-00.tar')
    assert after.size == before.size and after.version != before.version


def test_globs_and_braces(root):
    def names(*patterns):
        return [url.removeprefix(root + '/') for url in storage.expand([f'{root}/{p}' for p in patterns], 'files')]
    assert names('a-{00..02}.tar') == ['a-00.tar', 'a-01.tar', 'a-02.tar']
    assert names('{b c,a-01}.tar', 'deep/{a-03,x+y}.tar') == ['b c.tar', 'a-01.tar', 'deep/a-03.tar', 'deep/x+y.tar']
    if root.startswith('http'):
        with pytest.raises(RecipeError, match=r'files: a web server cannot list .*braces'):
            names('*.tar')
        return
    assert names('*.tar') == ['a-00.tar', 'a-01.tar', 'a-02.tar', 'b c.tar']
    assert names('**/a-0[!1].tar') == ['a-00.tar', 'a-02.tar', 'deep/a-03.tar']
    assert names('d*/*+?.tar', 'a-0?.txt') == ['deep/x+y.tar', 'a-00.txt']
    with pytest.raises(RecipeError, match=r"files: nothing matches '.*/none-\*.tar'"):
        names('*.txt', 'none-*.tar')
    with pytest.raises(RecipeError, match='a-01.tar is named twice'):
        names('a-01.tar', 'a-*.tar')


def test_braces_that_are_missing(tmp_path):
    with pytest.raises(RecipeError, match='nothing matches .*a-10.tar'):
        storage.expand(f'{tmp_path}/bucket/a-{{10..12}}.tar', 'files')
    with pytest.raises(RecipeError, match='no file is named'):
        storage.expand((), 'files')


def test_listings_bring_the_stats(remote):
    for scheme in ('s3', 'gs'):
        found = storage.find(f'{scheme}://bucket/set/**/*.tar', 'files')
        requests = len(remote.requests)
        assert len(found) == 6 and len(remote.requests) == requests
        assert all(known == storage.stat(url) for url, known in found.items())
    urls = [f'{remote.url}/bucket/set/a-0{i}.tar' for i in range(3)]
    assert storage.stats(urls) == [storage.stat(url) for url in urls]


@pytest.mark.parametrize('root', ['s3', 'gs', 'http'], indirect=True)
def test_failures(root, remote):
    url = f'{root}/a-00.tar'
    remote.faults[:] = [503, 500]
    assert storage.read(url, 5, 20) == CONTENT[5:25]
    remote.faults[:] = ['short']
    assert storage.read(url, 5, 1000) == CONTENT[5:1005]
    remote.faults[:] = [503] * 3
    with pytest.raises(OSError, match='a-00.tar.*503') as caught:
        storage.read(url, 5, 20)
    assert not isinstance(caught.value, FileNotFoundError)
    remote.faults[:] = [403]
    with pytest.raises(OSError, match='a-00.tar'):
        storage.read(url, 5, 20)
    for question in (storage.read, storage.stat, lambda url: storage.read(url, 3, 4)):
        with pytest.raises(FileNotFoundError, match='none.tar'):
            question(f'{root}/none.tar')


def test_a_server_that_does_not_answer_is_asked_again_but_not_for_ever(remote, monkeypatch):
    monkeypatch.setattr(storage, '_TIMEOUT_S', .2)
    monkeypatch.setattr(storage, '_RETRIES', 1)
    storage._store.cache_clear()
    url = f'{remote.url}/bucket/set/a-00.tar'
    remote.faults[:] = ['silent']
    assert storage.read(url, 5, 20) == CONTENT[5:25]
    remote.faults[:] = ['silent'] * 2
    with pytest.raises(OSError, match='a-00.tar'):
        storage.read(url, 5, 20)


def test_beyond_the_end(root):
    for offset in (len(CONTENT) + 5, 9999):
        with pytest.raises(OSError, match='a-00.tar'):
            storage.read(f'{root}/a-00.tar', offset, 100)


def test_a_local_name_with_wildcards_in_it(tmp_path):
    (tmp_path / 'a[1].tar').write_bytes(b'x')
    assert storage.expand(str(tmp_path / 'a[1].tar'), 'files') == [str(tmp_path / 'a[1].tar')]


def test_a_local_file_that_is_missing(tmp_path):
    for question in (storage.read, storage.stat):
        with pytest.raises(FileNotFoundError, match='none'):
            question(str(tmp_path / 'none'))


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setattr(storage, '_RETRIES', 0)
    storage._store.cache_clear()
    with pytest.raises(OSError, match='http://127.0.0.1:9/x'):
        storage.read('http://127.0.0.1:9/x', 0, 3)


def test_files_stay_open_within_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, '_OPEN_FILES', 2)
    for i in range(5):
        (tmp_path / str(i)).write_bytes(CONTENT[i:])
    files = storage.Files([str(tmp_path / str(i)) for i in range(5)])

    def work():
        for i in range(100):
            assert files.read(i % 5, i, 50) == CONTENT[i % 5 + i:][:50]
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files._open) == 2 and (files.counts.requests, files.counts.bytes) == (400, 20_000)
    with pytest.raises(OSError, match='shorter'):
        files.read(0, len(CONTENT) - 5, 6)


def test_remote_files_are_counted(remote):
    files = storage.Files(['s3://bucket/set/a-00.tar', f'{remote.url}/bucket/set/a-01.tar'])
    assert files.read(1, 4, 3) == files.read(0, 4, 3) == CONTENT[4:7]
    assert (files.counts.requests, files.counts.bytes) == (2, 6)
