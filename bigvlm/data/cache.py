"""The user's cache folder, files from the net checked by their hash, and a lock for what is built on first use."""
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bigvlm.core.parts import RecipeError


def cache_dir(*parts: str) -> Path:
    """`$BIGVLM_CACHE` or `~/.cache/bigvlm`, with `parts` below it; made if absent."""
    root = Path(os.environ.get('BIGVLM_CACHE') or Path.home() / '.cache' / 'bigvlm')
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(source: str, sha256: str = '') -> Path:
    """The local path of a file given as a path or an https URL, once its SHA-256 is known to be right.

    A URL needs its hash and is downloaded once, into the cache. A local file is used in place, its hash checked if told.
    Raises RecipeError for a wrong hash or path; OSError, naming file, URL and hash, where the net cannot be reached.
    """
    if '://' not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise RecipeError(f'no file {source!r}; give a local path, or an https URL with its sha256')
        if sha256:
            _check(path, source, sha256)
        return path
    if not source.startswith('https://'):
        raise RecipeError(f'{source!r}: give a local path or an https URL')
    if len(sha256) != 64:
        raise RecipeError(f'{source}: a URL needs its sha256 (64 hexadecimal digits), found {sha256!r}')
    name = source.rstrip('/').rsplit('/', 1)[-1]
    path = cache_dir('files') / f'{sha256[:16]}-{name}'
    if not path.exists():  # what is there was checked before it got its name
        _download(source, sha256, path)
    return path


def _download(url: str, sha256: str, path: Path) -> None:
    with fresh(path) as part:
        try:
            with urllib.request.urlopen(url, timeout=60) as reply, open(part, 'wb') as file:
                shutil.copyfileobj(reply, file)
        except (urllib.error.URLError, OSError) as error:
            raise OSError(f'cannot download {path.name.split("-", 1)[1]} from {url} ({error}); offline, put the file '
                          f'whose sha256 is {sha256} at {path}, or name a local copy in the recipe') from error
        _check(part, url, sha256)


def _check(path: Path, source: str, sha256: str) -> None:
    with open(path, 'rb') as file:
        found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found != sha256.lower():
        raise RecipeError(f'{source}: sha256 is {found}, expected {sha256}')


@contextlib.contextmanager
def fresh(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the name `path` at the end: readers see a whole file or none."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name[:40]}-')
    os.close(handle)
    try:
        yield Path(part)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock in the cache folder: of several processes, one builds and the others wait and then find it done."""
    with open(cache_dir('locks') / f'{name}.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
