"""An example as pictures and lines of text, whatever its ops have put into it.

H, W pixels; P the pixels of a patch's side; R, C rows and columns of patches; L patches or tokens.
"""
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from einops import rearrange

from bigvlm.data.bad import BadExample
from bigvlm.data.ops.decode import pixels

_NUMBERS = 12  # of an array are written out
_OF_TEXTS = ('text', 'token', 'valid')  # in the names of masks that are not of an image's patches


def drawn(example: Mapping[str, Any], decoders: Mapping[str, Callable] | None = None) -> tuple[list[tuple[str, np.ndarray]],
                                                                                                 list[tuple[str, str]]]:
    """([(key, uint8 [H, W, 3]), …], [(key, text), …]); `decoders`: key of token ids -> ids to text."""
    pictures, texts = [], []
    for key, value in example.items():
        if isinstance(value, bytes):
            _encoded(key, value, pictures, texts)
        elif _is_picture(value):
            pictures.append((key, value))
        elif isinstance(value, np.ndarray) and value.ndim == 4 and _is_picture(value[0]):
            pictures += [(f'{key}/{i}', picture) for i, picture in enumerate(value)]
        else:
            texts += _texts(key, value, decoders or {})
    if {'patches', 'patch_grid'} <= example.keys():
        pictures.append(('patches', _patched(example['patches'], example['patch_grid'])))
    for key, mask in example.items():
        if pictures and isinstance(mask, np.ndarray) and mask.dtype == bool and not any(word in key for word in _OF_TEXTS):
            if (covered := _covered(pictures[0][1], mask)) is not None:
                pictures.append((f'{key}: {mask.mean():.0%} masked', covered))
    return pictures, texts


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3


def _encoded(key: str, value: bytes, pictures: list, texts: list) -> None:
    try:
        pictures.append((key, pixels(value)))
        texts.append((key, f'{len(value):,} bytes'))
    except BadExample as bad:
        texts.append((key, f'{len(value):,} bytes: {bad}'))


def _texts(key: str, value: Any, decoders: Mapping[str, Callable]) -> list[tuple[str, str]]:
    if isinstance(value, (tuple, list)) and all(isinstance(one, str) for one in value):
        return [(key, one) for one in value]
    if isinstance(value, np.ndarray):
        lines = [(key, f'{value.dtype}{list(value.shape)} {_numbers(value)}')]
        if key in decoders and value.dtype.kind in 'iu' and value.ndim in (1, 2):  # -1 is where nothing is to be predicted
            lines += [(f'{key} decoded', decoders[key](ids[ids >= 0])) for ids in np.atleast_2d(value)]
        return lines
    return [(key, str(value))]


def _numbers(values: np.ndarray) -> str:
    flat = values.reshape(-1)
    shown = ' '.join(f'{v:.4g}' if values.dtype.kind == 'f' else str(int(v)) for v in flat[:_NUMBERS])
    return shown + (' …' if len(flat) > _NUMBERS else '')


def _patched(patch_LD: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The image that a grid of patches was cut from."""
    rows, columns = map(int, grid)
    side = int(round((patch_LD.shape[1] // 3) ** .5))
    return rearrange(patch_LD[:rows * columns], '(r c) (p q k) -> (r p) (c q) k', r=rows, p=side, q=side)


def _covered(image_HWC: np.ndarray, mask_L: np.ndarray) -> np.ndarray | None:
    """The image with masked patches greyed out, if the mask is a grid of the image's shape; masks of tokens are none."""
    height, width = image_HWC.shape[:2]
    rows = round((mask_L.size * height / width) ** .5)
    if mask_L.ndim == 2:
        mask_RC = mask_L
    elif mask_L.ndim == 1 and rows and mask_L.size % rows == 0 and abs(mask_L.size / rows / rows - width / height) < .1:
        mask_RC = rearrange(mask_L, '(r c) -> r c', r=rows)
    else:
        return None
    row_H = np.arange(height) * mask_RC.shape[0] // height
    column_W = np.arange(width) * mask_RC.shape[1] // width
    return np.where(mask_RC[row_H[:, None], column_W][..., None], np.uint8(128), image_HWC)
