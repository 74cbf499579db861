"""NumPy's .npz without pickles: big_vision's and AugReg's files. Members that are not compressed are mapped, others read when asked for."""

import functools
import math
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from bigvlm.core.foreign import Index, WeightsError
from bigvlm.interop.files.entry import Entry, Opened, reason

_BROKEN = (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error)


def opened(path: Path) -> Opened:
    """Raises WeightsError if it is damaged, or a member is no array of numbers."""
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise WeightsError(f'{path} is no whole .npz file: {reason(error)}') from error
    try:
        mapped = np.memmap(path, np.uint8, mode='r')
        entries: dict[str, Entry] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix('.npy')
            if name in entries:
                raise WeightsError(f'{path} has two arrays {name!r}')
            try:
                entries[name] = _entry(archive, member, mapped)
            except _BROKEN as error:
                raise WeightsError(f'{path}: {member.filename!r}: {reason(error)}') from error
    except BaseException:
        archive.close()
        raise
    return Opened(entries, archive.close)


def _entry(archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: np.ndarray) -> Entry:
    """Reads no more than the header. Raises ValueError for what is no array of numbers of the length that it says."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f'version {version} of .npy cannot be read')
        shape, fortran, stored = read(file)
        start = file.tell()
    dtype = _dtype(stored)
    if member.file_size != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{member.file_size} bytes are not those of {stored} {list(shape)}')
    order = 'F' if fortran else 'C'
    if member.compress_type == zipfile.ZIP_STORED:
        return Entry(shape, dtype, functools.partial(_mapped, mapped, _offset(member, mapped) + start, shape, dtype, order))
    return Entry(shape, dtype, functools.partial(_decoded, archive, member, start, shape, dtype, order), whole=True)


def _dtype(stored: np.dtype) -> np.dtype:
    """NumPy saves bfloat16 as two bytes without a meaning."""
    if stored.kind == 'V' and stored.itemsize == 2 and stored.fields is None:
        return np.dtype(ml_dtypes.bfloat16)
    if stored.hasobject or stored.kind not in 'fiub' or stored.subdtype:
        raise ValueError(f'an array of {stored}, not of numbers, is never read')
    return stored


def _offset(member: zipfile.ZipInfo, mapped: np.ndarray) -> int:
    """Where a stored member begins: after its own header, whose last two lengths are not those of the central directory."""
    header = member.header_offset
    name, extra = (int.from_bytes(mapped[header + i:header + i + 2].tobytes(), 'little') for i in (26, 28))
    start = header + 30 + name + extra
    if start + member.file_size > mapped.size:
        raise ValueError('it ends after the file does')
    return start


def _mapped(mapped: np.ndarray, offset: int, shape, dtype: np.dtype, order: str, index: Index) -> np.ndarray:
    return np.ndarray(shape, dtype, mapped, offset, order=order)[index]


def _decoded(archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int, shape, dtype: np.dtype, order: str,
             index: Index) -> np.ndarray:
    return np.frombuffer(archive.read(member), dtype, offset=start).reshape(shape, order=order)[index]
