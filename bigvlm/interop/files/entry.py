"""What every format gives of an open file."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from bigvlm.core.foreign import Index

INDEX = '.index.json'  # how the name of an index of several files ends


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a file.

    take: what an index of one slice (start, stop, no step) per dimension covers; none of them is empty. It may be a view of the file.
    whole: every ``take`` decodes all of the array (a compressed member).
    """
    shape: tuple[int, ...]
    dtype: np.dtype
    take: Callable[[Index], np.ndarray]
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Opened:
    """{name: array} of an open file; ``close`` frees the file, after which nothing more can be taken."""
    entries: Mapping[str, Entry]
    close: Callable[[], None]


def reason(error: BaseException) -> str:
    """The reason in an error of a library, as a line of ours."""
    return ' '.join(str(error).split())[:200] or type(error).__name__
