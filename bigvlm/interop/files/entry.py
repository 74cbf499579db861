"""What every format gives of an open file."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.foreign import Index, WeightsError

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


def json_mapping(path: Path) -> dict[str, Any]:
    """A file of JSON, {} where there is none. Raises WeightsError for anything but a mapping."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as e:
        raise WeightsError(f'{path}: this is no JSON ({e})') from None
    if not isinstance(found, dict):
        raise WeightsError(f'{path}: a mapping is expected, found {type(found).__name__}')
    return found
