"""Short hashes of captions and images, and columns of numbers that grow without a Python object per example.

64 bits: among n examples, some two different ones share a hash with a probability of about n² / 2**65, 3e-6 for 10 million.
"""
import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from bigvlm.data.prepare.images import small_gray

_FLAT = 8  # levels of grey between the lightest and the darkest cell

def of_bytes(data: bytes | np.ndarray) -> int:
    """The first 64 bits of SHA-256, of pixels as of files."""
    raw = data if isinstance(data, bytes) else str(data.shape).encode() + np.ascontiguousarray(data).tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], 'little')


def of_caption(caption: str) -> int:
    """Of what is left of a caption when case, punctuation and spacing are made alike."""
    return of_bytes(normal(caption).encode())


def of_captions(captions: Sequence[str]) -> int:
    """Of all captions of an example, in whatever order."""
    return of_bytes('\n'.join(sorted(map(normal, captions))).encode())


def normal(caption: str) -> str:
    """Unicode's NFKC, case folded, letters, marks and digits only, one space between words."""
    folded = unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', caption).casefold())
    return ' '.join(''.join(c if unicodedata.category(c)[0] in 'LNM' else ' ' for c in folded).split())


def dhash(image: bytes | np.ndarray) -> int:
    """64 bits: whether each cell of the image, shrunk to 9 × 8 grey ones, is darker than its right neighbour.

    The difference hash of N. Krawetz ("Kind of like that", 2013): it survives scaling, recompression and changes of
    brightness, not crops or flips. Pictures of hardly any contrast, which would all be alike, get the hash of their file
    instead. Raises BadExample for what cannot be decoded.
    """
    gray_HW = small_gray(image, 9, 8)
    if int(gray_HW.max()) - int(gray_HW.min()) < _FLAT:
        return of_bytes(image)
    return int.from_bytes(np.packbits(gray_HW[:, :-1] < gray_HW[:, 1:]).tobytes(), 'big')


class Column:
    """Numbers of one type in a growing array: 'Q' is 8 bytes, 'I' 4."""

    def __init__(self, kind: str = 'Q'):
        self._values = array(kind)

    def add(self, *values: int) -> None:
        self._values.extend(values)

    def extend(self, values: Iterable[int]) -> None:
        self._values.extend(values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def values(self) -> np.ndarray:
        return np.frombuffer(self._values, np.dtype(self._values.typecode)) if len(self._values) else np.zeros(0, self._values.typecode)
