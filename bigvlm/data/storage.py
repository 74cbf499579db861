"""The only door to stored bytes: files of this machine, gs://, s3:// and http(s):// by one set of functions.

Remote storage is read through obstore (the bindings of the object_store library), which is imported at its first use.
Credentials: S3 takes the AWS_* variables or the machine's role, GCS the application default credentials; a public bucket
needs AWS_SKIP_SIGNATURE=true or GOOGLE_SKIP_SIGNATURE=true, another endpoint AWS_ENDPOINT_URL or GOOGLE_BASE_URL.
"""
import functools
import glob
import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple

from bigvlm.core.parts import RecipeError

_REMOTE = re.compile(r'(gs|s3|https?)://([^/]+)/?(.*)', re.DOTALL)
_WILD = re.compile(r'[*?\[]')
_BRACES = re.compile(r'\{([^{}]*)\}')
_TIMEOUT_S, _RETRIES, _PATIENCE_S = 60, 4, 120  # of one request, how often it is sent again, and for how long at most
_OPEN_FILES = 256  # of one Files; the others are opened for each read
_AT_ONCE = 32  # requests under way for many small questions


class Stat(NamedTuple):
    """`size` in bytes; `version` changes when the content does: the time of change of a file, the ETag of an object."""
    size: int
    version: str


class Counts:
    """How many requests were made and how many bytes they brought; may be shared by threads."""

    def __init__(self):
        self.requests = self.bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """One more request, which brought `count` bytes."""
        with self._lock:
            self.requests += 1
            self.bytes += count


def is_remote(url: str) -> bool:
    """Whether `url` names something that is not a file of this machine."""
    return '://' in url and _REMOTE.fullmatch(url) is not None


def expand(patterns: str | Sequence[str], what: str) -> list[str]:
    """The files that patterns name, each pattern's in the order of their names.

    `{00000..00099}` and `{a,b}` work everywhere; `*`, `?`, `[…]` and `**` (any folders) in local files, gs:// and s3://.
    `what` is the recipe's key, for errors. Raises RecipeError for a pattern that matches nothing and for a file named twice.
    """
    return list(find(patterns, what))


def find(patterns: str | Sequence[str], what: str) -> dict[str, Stat | None]:
    """As `expand`, with what the listing told of each file anyway; None where nothing was listed."""
    found: dict[str, Stat | None] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        for part in _braces(pattern):
            matches = _matches(part, what)
            if not matches:
                raise RecipeError(f'{what}: nothing matches {part!r}')
            if twice := found.keys() & matches.keys():
                raise RecipeError(f'{what}: {min(twice)} is named twice')
            found |= matches
    if not found:
        raise RecipeError(f'{what}: no file is named')
    return found


def stat(url: str) -> Stat:
    """Size and version of one file. Raises FileNotFoundError, or OSError for what may pass."""
    if not is_remote(url):
        known = os.stat(url)
        return Stat(known.st_size, str(known.st_mtime_ns))
    import obstore
    store, path = _at(url)
    return _stat(_ask(url, obstore.head, store, path))


def stats(urls: Sequence[str]) -> list[Stat]:
    """`stat` of many files, several at once where it takes a request each."""
    if not any(map(is_remote, urls)):
        return [stat(url) for url in urls]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(stat, urls))


def read(url: str, offset: int = 0, size: int | None = None, counts: Counts | None = None) -> bytes:
    """`size` bytes from `offset`, or all up to the end. Raises FileNotFoundError; OSError for a short read and what may pass."""
    if is_remote(url):
        data = _fetch(url, offset, size, counts)
    else:
        file = os.open(url, os.O_RDONLY)
        try:
            data = _pread(file, offset, max(0, os.fstat(file).st_size - offset) if size is None else size, counts)
        finally:
            os.close(file)
    return _whole(url, data, offset, size)


def chunks(url: str, size: int = 8 << 20, start: int = 0) -> Iterator[bytes]:
    """The content from `start` to the end in pieces of `size` bytes, the last one shorter."""
    end = stat(url).size
    for at in range(start, end, size):
        yield read(url, at, min(size, end - at))


class Files:
    """Random reads from many files by their number in `urls`; local ones stay open, as far as that is sensible.

    `counts` says what was read so far. May be used by any number of threads.
    """

    def __init__(self, urls: Sequence[str]):
        self.urls, self.counts = tuple(urls), Counts()
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of file `number`. Raises as `storage.read` does."""
        url, file = self.urls[number], self._open.get(number)
        if file is None and (is_remote(url) or (file := self._keep_open(number)) is None):
            return read(url, offset, size, self.counts)
        return _whole(url, _pread(file, offset, size, self.counts), offset, size)

    def _keep_open(self, number: int) -> int | None:
        with self._lock:
            if number not in self._open and len(self._open) < _OPEN_FILES:
                self._open[number] = os.open(self.urls[number], os.O_RDONLY)
            return self._open.get(number)

    def __del__(self, close=os.close):  # bound here: at the interpreter's end the module's own names are gone
        for file in getattr(self, '_open', {}).values():
            close(file)


def _braces(pattern: str) -> Iterator[str]:
    """'a{1..3}{x,y}' -> 'a1x', 'a1y', 'a2x', …; a number with leading zeros sets the width."""
    found = _BRACES.search(pattern)
    if not found:
        yield pattern
        return
    if numbers := re.fullmatch(r'(\d+)\.\.(\d+)', found[1]):
        first, last = numbers.groups()
        choices = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    else:
        choices = iter(found[1].split(','))
    for choice in choices:
        yield from _braces(pattern[:found.start()] + choice + pattern[found.end():])


def _matches(pattern: str, what: str) -> dict[str, Stat | None]:
    remote = _REMOTE.fullmatch(pattern)
    if not remote:
        path = os.path.expanduser(pattern)
        return {path: None} if os.path.exists(path) else dict.fromkeys(sorted(glob.glob(path, recursive=True)))
    if not _WILD.search(remote[3]):
        return {pattern: None}
    if remote[1] not in ('gs', 's3'):
        raise RecipeError(f'{what}: a web server cannot list its files, found {pattern!r}; name them with braces, '
                          'such as {00000..00099}')
    wanted = re.compile(_as_regex(remote[3]))
    root = f'{remote[1]}://{remote[2]}'
    return {f'{root}/{key}': known for key, known in sorted(_listed(root, remote[3])) if wanted.fullmatch(key)}


def _listed(root: str, pattern: str) -> Iterator[tuple[str, Stat]]:
    """Keys and stats of the objects in the deepest folder that `pattern` says without a wildcard, and below it if need be."""
    import obstore
    before = pattern[:_WILD.search(pattern).start()]
    folder = before.rpartition('/')[0]
    if '/' in pattern[len(before):]:
        pages = _ask(root, lambda: list(obstore.list(_store(root), prefix=folder)))
        objects = itertools.chain.from_iterable(pages)
    else:
        objects = _ask(root, obstore.list_with_delimiter, _store(root), prefix=folder)['objects']
    return ((found['path'], _stat(found)) for found in objects)


def _as_regex(pattern: str) -> str:
    """The glob as a regular expression: `*` and `?` stay in a folder, `**/` is any number of folders."""
    tokens = re.findall(r'\*\*/|\*+|\?|\[[^\]]+\]|.', pattern, re.DOTALL)
    fixed = {'**/': '(?:.*/)?', '**': '.*', '*': '[^/]*', '?': '[^/]'}
    return ''.join(fixed.get(t) or ('[' + t[1:-1].replace('!', '^', 1).replace('\\', '') + ']' if len(t) > 2 else re.escape(t))
                   for t in tokens)


def _fetch(url: str, offset: int, size: int | None, counts: Counts | None) -> bytes:
    import obstore
    store, path = _at(url)
    if size == 0:
        return b''
    if size is None:
        data = _ask(url, lambda: obstore.get(store, path, options={'range': {'offset': offset}} if offset else None).bytes())
    else:
        data = _ask(url, obstore.get_range, store, path, start=offset, length=size)
    if counts is not None:
        counts.add(len(data))
    return bytes(data)


def _pread(file: int, offset: int, size: int, counts: Counts | None) -> bytes:
    """One read; more only where the system gives less than asked for (it stops at 2 GiB)."""
    parts = []
    while size > 0 and (part := os.pread(file, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
        if counts is not None:
            counts.add(len(part))
    return parts[0] if len(parts) == 1 else b''.join(parts)


def _whole(url: str, data: bytes, offset: int, size: int | None) -> bytes:
    if size is not None and len(data) != size:
        raise OSError(f'{url}: {len(data)} of {size} bytes at {offset}; did the file become shorter?')
    return data


def _stat(found: Any) -> Stat:
    return Stat(found['size'], found['e_tag'] or str(found['last_modified']))  # both of which listings tell too


def _at(url: str) -> tuple[Any, str]:
    scheme, host, path = _REMOTE.fullmatch(url).groups()
    return _store(f'{scheme}://{host}'), path


@functools.cache
def _store(root: str) -> Any:
    from obstore.store import from_url
    options = {'timeout': timedelta(seconds=_TIMEOUT_S), 'connect_timeout': timedelta(seconds=10), 'allow_http': True}
    backoff = {'init_backoff': timedelta(seconds=.1), 'max_backoff': timedelta(seconds=10), 'base': 2}
    return from_url(root, client_options=options, retry_config={
        'max_retries': _RETRIES, 'retry_timeout': timedelta(seconds=_PATIENCE_S), 'backoff': backoff})


def _ask(url: str, question: Any, *arguments: Any, **options: Any) -> Any:
    """`question(…)` with the library's errors as OSError that names `url`; a missing file stays FileNotFoundError."""
    from obstore.exceptions import BaseError
    try:
        return question(*arguments, **options)
    except FileNotFoundError:
        raise FileNotFoundError(f'{url}: there is no such file') from None
    except (BaseError, OSError) as error:
        raise OSError(f'{url}: {str(error).splitlines()[0]}') from error
