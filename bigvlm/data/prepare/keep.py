"""Keep lists: which examples of a source a filter has left, as the source `subset` reads them."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import fresh


def write(path: Path, kept: np.ndarray, source: Any, summary: Mapping[str, Any]) -> None:
    """`path`, an .npy of ascending indices, and `path`.json, which says of what source they are and why."""
    checked(path)
    said = dict(source=source.name, fingerprint=source.fingerprint, examples=len(source), kept=len(kept), **summary)
    with fresh(path) as part, open(part, 'wb') as file:
        np.save(file, np.asarray(kept, np.uint32 if len(source) < 2 ** 32 else np.int64))
    with fresh(described(path)) as part:
        part.write_text(json.dumps(said, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def checked(path: Path) -> None:
    """Raises RecipeError for a name that is none of a keep list."""
    if path.suffix != '.npy':
        raise RecipeError(f'--out: the name of a keep list ends in .npy, found {path}')


def described(path: Path) -> Path:
    return path.with_name(path.name + '.json')
