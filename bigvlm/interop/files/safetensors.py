"""safetensors, by its own library: it maps the file, checks the header, and copies only what an index covers.

It refuses headers that are truncated, above 100 MB or nested, and offsets that are out of range, overlap or leave gaps.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bigvlm.core.foreign import Index, WeightsError
from bigvlm.interop.files.entry import Entry, Opened, reason

_DTYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64, 'I32': np.int32,
           'I16': np.int16, 'I8': np.int8, 'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8, 'BOOL': np.bool_}


def opened(path: Path) -> Opened:
    """Raises WeightsError if it is no safetensors file, is damaged, or holds a dtype that NumPy has not."""
    try:
        file = safe_open(path, framework='np')
    except (SafetensorError, OSError) as error:
        raise WeightsError(f'{path} is no whole safetensors file: {reason(error)}') from error
    file.__enter__()
    close = functools.partial(file.__exit__, None, None, None)
    try:
        return Opened({name: _entry(path, name, file.get_slice(name)) for name in file.keys()}, close)
    except WeightsError:
        close()
        raise


def _entry(path: Path, name: str, found) -> Entry:
    if found.get_dtype() not in _DTYPES:
        raise WeightsError(f'{path}: {name!r} is of {found.get_dtype()}, which cannot be read (what can: {", ".join(_DTYPES)})')

    def take(index: Index) -> np.ndarray:
        return found[index] if index else found[...]
    return Entry(tuple(found.get_shape()), np.dtype(_DTYPES[found.get_dtype()]), take)


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Contiguous ``arrays`` as one file, without another copy of them.

    Raises:
        WeightsError: of a dtype that the format has not, or a name that it keeps for itself.
    """
    for name, x in arrays.items():
        if name == '__metadata__' or x.dtype not in map(np.dtype, _DTYPES.values()):
            raise WeightsError(f'{path}: {name!r} of {x.dtype} cannot be saved (what can: {", ".join(_DTYPES)}, not as __metadata__)')
    save_file(dict(arrays), path, dict(metadata))
