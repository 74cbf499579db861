"""Arrays of one size for a model of another: positions of images and texts, vocabularies.

Image positions are resampled as a tower resamples them for an image of another side (nn/positions.py: bilinear between the centres
of cells, antialiased where the grid shrinks), so that a model fitted to a side gives what it gave for images of that side before.
Others resample otherwise: big_vision and AugReg bilinearly between the corners of the grid (scipy.ndimage.zoom, order 1), open_clip
and timm bicubically and antialiased, transformers bicubically.

L positions, S of them wanted, V vocabulary, W width, D layers, T offsets of a window, N heads.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.core.foreign import WeightsError
from bigvlm.nn import positions

_GRIDS = {'vit': (r'position', 0), 'modified_resnet': (r'pool/position', 1)}  # (path in the tower, rows before the grid)
_WINDOWS = r'stage\d+/blocks/\w+/attention/position_bias'
_TEXTS, _EMBEDDING = ('text', 'bert'), 'embed/embedding'


def fit(path: str, array: np.ndarray, shape: tuple[int, ...], towers: Mapping[str, Mapping[str, Any]], *,
        initial: np.ndarray | None = None, longer: bool = False) -> np.ndarray:
    """An array of a file, for the parameter of this path and shape of a model with these ``towers`` (the recipe's specs).

    Positions of a ViT and of a modified ResNet, and a Swin's biases of relative positions, are resampled. Of texts' positions the
    first are kept; of a vocabulary the first rows. Rows that the file does not have are those of ``initial`` (the parameter as it
    is drawn, of this shape): of a vocabulary, and with ``longer`` of texts' positions, which are an error without.

    Raises:
        WeightsError: another array differs in shape, or one of these in its width; names path and shapes.
    """
    shape = tuple(shape)
    if tuple(array.shape) == shape:
        return array
    name, _, inner = path.partition('/')
    spec = towers.get(name, {})
    try:
        return _fitted(inner, spec, array, shape, initial, longer)
    except _Unfit as why:
        raise WeightsError(f'{path}: the file has {list(array.shape)}, the model {list(shape)}; {why}') from None


class _Unfit(Exception):
    """Why an array cannot be fitted."""


def _fitted(inner: str, spec: Mapping[str, Any], array: np.ndarray, shape: tuple[int, ...], initial: np.ndarray | None,
            longer: bool) -> np.ndarray:
    kind = spec.get('name')
    if array.ndim == len(shape) and array.shape[-1] == shape[-1]:
        pattern, first = _GRIDS.get(kind, ('', 0))
        if pattern and re.fullmatch(pattern, inner):
            return np.concatenate([array[:first], _resampled(array[first:], shape[0] - first)])
        if kind == 'swin' and re.fullmatch(_WINDOWS, inner) and array.shape[0] == shape[0]:
            return np.stack([_resampled(table_TN, shape[1]) for table_TN in array])
        if inner == _EMBEDDING:
            return _rows(array, shape, initial)
        if kind in _TEXTS and inner == 'position':
            return _text_positions(array, shape, initial, longer, bool(spec.get('class_token')))
    raise _Unfit('only positions and rows of a vocabulary can be fitted to another number')


def _resampled(array_LW: np.ndarray, wanted: int) -> np.ndarray:
    old, new = math.isqrt(len(array_LW)), math.isqrt(max(wanted, 0))
    if old ** 2 != len(array_LW) or new ** 2 != wanted:
        raise _Unfit(f'{len(array_LW)} and {wanted} positions are not both those of squares')
    found_SW = positions.resample(array_LW.astype(np.float32), (old, old), (new, new))
    return np.asarray(found_SW).astype(array_LW.dtype)


def _text_positions(array: np.ndarray, shape: tuple[int, ...], initial: np.ndarray | None, longer: bool, class_token: bool) -> np.ndarray:
    if shape[0] > len(array) and not longer:
        raise _Unfit('a longer text needs positions that the file does not have (longer=True takes initial values)')
    if not class_token:
        return _rows(array, shape, initial)
    kept = None if initial is None else initial[:-1]  # the last is the class token's
    return np.concatenate([_rows(array[:-1], (shape[0] - 1, *shape[1:]), kept), array[-1:]])


def _rows(array: np.ndarray, shape: tuple[int, ...], initial: np.ndarray | None) -> np.ndarray:
    rows = len(array)
    if shape[0] <= rows:
        return array[:shape[0]]
    if initial is None or tuple(initial.shape) != shape:
        found = 'none' if initial is None else list(initial.shape)
        raise _Unfit(f'{shape[0] - rows} new rows need initial values of that shape, found {found}')
    return np.concatenate([array, np.asarray(initial[rows:]).astype(array.dtype)])
