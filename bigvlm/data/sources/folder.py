"""Folders of image files: one folder per class, or images without labels, with captions in text files beside them."""
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.cache import cache_dir, fresh

_IMAGES = ('.jpg', '.jpeg', '.png', '.webp', '.gif')
_VERSION = 1  # of the index files


class Folder:
    """All images below `root`, at any depth, in the order of their paths (a folder's files before its folders).

    With `classes`, the folders in `root` are the classes: `label` is the number of the image's, sorted by name. `names`
    is a file that gives them readable names: JSON {folder: name}, or lines of folder, tab (or space) and name.
    With `captions`, the lines of KEY.txt beside KEY.jpg are the captions.

    The folder is listed whenever it is opened: whether names came or went is seen by nothing else on every file system
    (on mounted buckets, folders have no time of change). The index of what was found is named by the hash of all names, so
    that processes that see the same files share one, mapped into memory. Sizes and contents are not looked at.
    """

    def __init__(self, root: str, classes: bool = True, names: str = '', captions: bool = False):
        self._root = os.path.abspath(os.path.expanduser(root))
        if storage.is_remote(root) or not os.path.isdir(self._root):
            raise RecipeError(f'root: no folder {root!r} on this machine' + (
                '; of images in a bucket, make tars or a table' if storage.is_remote(root) else ''))
        if names and not classes:
            raise RecipeError('names: of what, with classes=False?')
        self.name, self.io, self._captions = root, storage.Counts(), captions
        folders, firsts, hashed, blob, ends = _listed(self._root, classes)
        if not len(ends):
            where = f'{root}/CLASS/' if classes else root
            raise RecipeError(f'root: no {", ".join(_IMAGES)} in {where}' + ('; or classes=False' if classes else ''))
        said = _names(names) if names else {}
        if names and (unknown := [folder for folder in folders if folder not in said]):
            raise RecipeError(f'names: {names} has no name for {unknown[0]!r} ({len(unknown)} of {len(folders)} folders are missing)')
        self.label_names = tuple(said.get(folder, folder) for folder in folders)
        self._firsts = np.array(firsts)
        self._blob = _mapped(f'{hashed}-names', np.frombuffer(blob, np.uint8), np.dtype('u1'))
        self._ends = _mapped(f'{hashed}-ends', ends, np.dtype('<u8'))
        self.fingerprint = hashlib.sha256(json.dumps([hashed, self.label_names, captions]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._path(index)
        example: dict[str, Any] = {}
        if self._captions:
            example['captions'] = self.captions(index)
            if not example['captions']:
                raise BadExample('no caption')
        if self.label_names:
            example['label'] = int(np.searchsorted(self._firsts, index, side='right')) - 1
        example['image'] = self._read(path)
        if not example['image']:
            raise BadExample('no image')
        return example

    def captions(self, index: int) -> tuple[str, ...]:
        """The lines of the text file beside the image, () if it is empty or captions were not asked for."""
        if not self._captions:
            return ()
        try:
            lines = self._read(os.path.splitext(self._path(index))[0] + '.txt').decode('utf-8', 'replace').splitlines()
        except BadExample:
            return ()
        return tuple(text for line in lines if (text := ' '.join(line.split())))

    def describe(self, index: int) -> str:
        """The path below root: 'n01440764/n01440764_10026.JPEG'."""
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._blob[start:int(self._ends[index])].tobytes())

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self.describe(index))

    def _read(self, path: str) -> bytes:
        try:
            return storage.read(path, counts=self.io)
        except (FileNotFoundError, IsADirectoryError):
            raise BadExample('no image file') from None


def _listed(root: str, classes: bool) -> tuple[list[str], list[int], str, bytearray, np.ndarray]:
    """Classes, the first image of each, a hash, all paths below `root` in one piece, and where in it each path ends."""
    blob, lengths = bytearray(), []
    folders, firsts, top = [''], [0], ()
    if classes:
        with os.scandir(root) as entries:
            folders = sorted((e.name for e in entries if e.name[0] != '.' and e.is_dir()), key=os.fsencode)
        firsts, top = [], (_identity(root),)
    for folder in folders:
        firsts += [len(lengths)] if classes else []
        for path in _images(os.path.join(root, folder), folder, top):
            blob += path
            lengths.append(len(path))
    ends = np.cumsum(np.array(lengths, np.uint64), dtype=np.uint64)
    digest = hashlib.sha256(f'folder {_VERSION} {classes}'.encode())
    digest.update(ends.tobytes())
    digest.update(blob)
    return (folders if classes else []), firsts, digest.hexdigest()[:32], blob, ends


def _images(folder: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """Paths of the images in `folder`, which is called `below` there, and in its folders; `above` are those it lies in."""
    here = _identity(folder)
    if here in above:
        return  # a link back to a folder that this one lies in
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == '.':
                continue  # what systems and editors leave behind
            if entry.name.lower().endswith(_IMAGES):
                files.append(os.fsencode(entry.name))
            elif entry.is_dir():
                folders.append(entry.name)
    prefix = os.fsencode(below) + b'/' if below else b''
    yield from (prefix + name for name in sorted(files))
    for name in sorted(folders, key=os.fsencode):
        yield from _images(os.path.join(folder, name), f'{below}/{name}' if below else name, (*above, here))


def _identity(folder: str) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _mapped(name: str, numbers: np.ndarray, kind: np.dtype) -> np.ndarray:
    """`numbers`, from a file in the cache that all processes share."""
    path = cache_dir('index', 'folder') / f'{name}.bin'
    if not path.exists():
        with fresh(path) as part:
            numbers.astype(kind, copy=False).tofile(part)
    return np.asarray(np.memmap(path, kind, 'r'))


def _names(file: str) -> dict[str, str]:
    try:
        with open(os.path.expanduser(file), encoding='utf-8') as opened:
            text = opened.read()
    except OSError as error:
        raise RecipeError(f'names: {file}: {error.strerror}') from None
    if file.endswith('.json'):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RecipeError(f'names: {file} is no JSON: {error}') from None
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
            raise RecipeError(f'names: {file} must be an object of folder: name')
        return found
    pairs = (line.split('\t' if '\t' in line else None, 1) for line in text.splitlines() if line.strip())
    return {pair[0].strip(): pair[-1].strip() for pair in pairs}
