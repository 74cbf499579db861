"""A codebook of patches: what tools/train_codebook.py learns, and how patches become codes and codes pictures.

H, W pixels; L patches, row by row; P the numbers of a patch (row, column, colour); F features; K codes.
"""
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import fresh

_ARRAYS = ('mean_P', 'projection_PF', 'inverse_FP', 'code_KF')
_VERSION = 1  # of the file
_ROWS, _PIECE = 64, 1 << 18  # see _product


@dataclasses.dataclass(frozen=True)
class Codebook:
    """Codes are points among features (x / 255 - mean) · projection of patches x; ``inverse`` takes features back to patches.

    ``about`` says what it was learned from and how it did; it is kept in the file as JSON.
    """
    patch: int
    mean_P: np.ndarray
    projection_PF: np.ndarray
    inverse_FP: np.ndarray
    code_KF: np.ndarray
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, '_half_K', np.square(self.code_KF).sum(axis=1) / 2)

    def __len__(self) -> int:
        return len(self.code_KF)

    def features(self, patch_LP: np.ndarray) -> np.ndarray:
        """uint8 [L, P] -> float32 [L, F]."""
        return _product(patch_LP.astype(np.float32) / np.float32(255) - self.mean_P, self.projection_PF)

    def nearest(self, feature_LF: np.ndarray) -> np.ndarray:
        """The code at the least Euclidean distance, int32 [L]; of equal ones the first."""
        return np.argmax(_product(feature_LF, self.code_KF.T) - self._half_K, axis=1).astype(np.int32)

    def codes(self, image_HWC: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> int32 [L]. ValueError for an image that patches do not cut evenly."""
        return self.nearest(self.features(cut(image_HWC, self.patch)))

    def pixels(self, code_L: np.ndarray) -> np.ndarray:
        """uint8 [L, P] of codes; what features leave out is grey."""
        return np.clip(np.rint((self.code_KF[code_L] @ self.inverse_FP + self.mean_P) * 255), 0, 255).astype(np.uint8)

    def picture(self, code_L: np.ndarray, rows: int) -> np.ndarray:
        """uint8 [H, W, 3] of codes in a grid of ``rows`` rows."""
        return rearrange(self.pixels(code_L), '(r c) (p q k) -> (r p) (c q) k', r=rows, p=self.patch, q=self.patch)

    def save(self, path: Path) -> None:
        """One .npz file, whole or not at all."""
        with fresh(path) as part, open(part, 'wb') as file:
            np.savez(file, version=_VERSION, patch=self.patch, about=json.dumps(self.about, ensure_ascii=False),
                     **{name: getattr(self, name) for name in _ARRAYS})


def load(path: Path) -> Codebook:
    """RecipeError for what is no codebook."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if int(found['version']) != _VERSION:
                raise RecipeError(f'codebook: {path} is of version {int(found["version"])}; valid: {_VERSION}, made again')
            return Codebook(int(found['patch']), *(found[name].astype(np.float32) for name in _ARRAYS), json.loads(str(found['about'])))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f'codebook: {path} is no codebook of tools/train_codebook.py ({error})') from None


def cut(image_HWC: np.ndarray, patch: int) -> np.ndarray:
    """uint8 [L, P]. ValueError for an image that patches do not cut evenly."""
    if image_HWC.ndim != 3 or image_HWC.shape[0] % patch or image_HWC.shape[1] % patch:
        raise ValueError(f'patches of {patch} pixels do not cut an image of shape {image_HWC.shape} evenly')
    return rearrange(image_HWC, '(r p) (c q) k -> (r c) (p q k)', p=patch, q=patch)


def _product(a_MK: np.ndarray, b_KN: np.ndarray) -> np.ndarray:
    """The matrix product, in pieces of at most 2^18 multiplications: from there on OpenBLAS starts threads, which in a loader,
    whose threads keep the cores busy already, wait for each other ten times longer than the product takes."""
    out_MN = np.empty((len(a_MK), b_KN.shape[1]), np.float32)
    step = max(1, _PIECE // (a_MK.shape[1] * _ROWS))
    for row in range(0, len(a_MK), _ROWS):
        for column in range(0, b_KN.shape[1], step):
            np.matmul(a_MK[row:row + _ROWS], b_KN[:, column:column + step], out=out_MN[row:row + _ROWS, column:column + step])
    return out_MN
