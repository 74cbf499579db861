"""PyTorch's files of a state_dict (.pt, .pth, .bin), by torch with weights_only: nothing in them is executed.

Of a dict of a training run its 'state_dict' is taken; 'module.', which data-parallel training puts before every name, is left out.
"""

import functools
import importlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from bigvlm.core.foreign import Index, WeightsError
from bigvlm.interop.files.entry import Entry, Opened, reason

_DTYPES = ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')


def opened(path: Path) -> Opened:
    """Maps the file. One of PyTorch before 1.6, which is no zip archive, is read whole.

    Raises:
        WeightsError: torch is not installed, or the file is damaged, holds more than arrays and plain values, or is TorchScript.
    """
    try:
        torch = importlib.import_module('torch')  # an optional one: who has safetensors or .npz needs none
    except ImportError as error:
        raise WeightsError(f'{path}: a file of PyTorch needs torch to be read: pip install torch, or save its state_dict as '
                           '.safetensors where torch is') from error
    zipped = _zipped(path)
    try:
        found = torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except Exception as error:  # of many kinds; torch's text also says how to load it unsafely, which is not passed on
        raise WeightsError(f'{path} is no whole state_dict of arrays, and nothing in it was executed: {_reason(error)}') from error
    tensors = {name: x.detach() for name, x in _state_dict(path, torch, found).items()}
    return Opened({name: _entry(path, torch, name, x) for name, x in tensors.items()}, tensors.clear)


def _reason(error: Exception) -> str:
    if asked := re.search(r'GLOBAL ([\w.]+)', str(error)):
        return f'it asks for {asked[1]}; where you trust it, save its state_dict alone'
    return 'it is damaged, or of another kind' if isinstance(error, pickle.UnpicklingError) else reason(error)


def _zipped(path: Path) -> bool:
    """Whether it is of the zipped kind, which can be mapped. Raises WeightsError if it is a damaged one, or TorchScript."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsError(f'{path} is no whole file of PyTorch: {reason(error)}') from error
    if any(name.endswith('/constants.pkl') for name in names):
        raise WeightsError(
            f'{path} is a TorchScript program, not a state_dict. If you trust it (this runs it): python -c "import torch; '
            f'torch.save(torch.jit.load(\'{path}\', map_location=\'cpu\').state_dict(), \'{path.stem}_state_dict.pt\')"')
    return True


def _state_dict(path: Path, torch, found) -> Mapping:
    if isinstance(found, Mapping) and isinstance(found.get('state_dict'), Mapping):
        found = found['state_dict']
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(f'{path} holds {type(found).__name__}, not a state_dict {{name: array}}')
    for name, x in found.items():
        if not isinstance(name, str) or not isinstance(x, torch.Tensor):
            raise WeightsError(f'{path}: {str(name)!r} is {type(x).__name__}, no array; expected is {{name: array}}, alone or as '
                               '\'state_dict\'')
    if all(name.startswith('module.') for name in found):
        found = {name.removeprefix('module.'): x for name, x in found.items()}
    return found


def _entry(path: Path, torch, name: str, x) -> Entry:
    dtype = str(x.dtype).removeprefix('torch.')
    if dtype not in _DTYPES or x.layout != torch.strided:
        raise WeightsError(f'{path}: {name!r} is {dtype}, {x.layout}, which cannot be read (what can: dense {", ".join(_DTYPES)})')
    there = np.dtype(ml_dtypes.bfloat16) if dtype == 'bfloat16' else np.dtype(dtype)
    view = x.view(torch.int16).numpy().view(there) if dtype == 'bfloat16' else x.numpy()
    view.flags.writeable = False
    return Entry(tuple(x.shape), there, functools.partial(_take, view))


def _take(view: np.ndarray, index: Index) -> np.ndarray:
    return view[index]
