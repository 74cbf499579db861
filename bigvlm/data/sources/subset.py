"""Some examples of another source: those that a keep list names, in their old order."""
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._passed_on import pass_on

_GAP = 16  # examples left out in a row that are still cheaper to read over than to ask twice


class Subset:
    """The examples of source `of` (a spec) whose indices the file `keep` holds: an .npy of ascending whole numbers.

    `tools/data.py filter` and `dedup` write such files. If `keep`.json says which source it was made for, another one is
    an error.
    """

    def __init__(self, of: Mapping[str, Any], keep: str):
        if not isinstance(of, Mapping):
            raise RecipeError(f"of: the source that the examples are of, as dict(name='webdataset', files=…), found {of!r}")
        self._of = parts.build('bigvlm.data.sources', of, 'of')
        self._keep_K = _load(Path(keep).expanduser(), self._of)
        self.name = f'{self._of.name} ({Path(keep).name})'
        pass_on(self, self._of, self._read)
        digest = hashlib.sha256(self._of.fingerprint.encode())
        digest.update(np.ascontiguousarray(self._keep_K, np.int64))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._keep_K)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._of[int(self._keep_K[index])]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._of.captions(int(self._keep_K[index]))

    def describe(self, index: int) -> str:
        return self._of.describe(int(self._keep_K[index]))

    def _read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples first to stop - 1, by a request for each run of near neighbours."""
        wanted_K = np.asarray(self._keep_K[first:stop], np.int64)
        found = []
        for run_R in np.split(wanted_K, np.flatnonzero(np.diff(wanted_K) > _GAP) + 1):
            if len(run_R):
                examples = self._of.read(int(run_R[0]), int(run_R[-1]) + 1)
                found += [examples[place] for place in (run_R - run_R[0]).tolist()]
        return found


def _load(path: Path, source: Any) -> np.ndarray:
    """Memory-mapped: processes share it. Raises RecipeError for a list that cannot be of this source."""
    try:
        keep_K = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f'keep: cannot read {path} as an .npy array ({error})') from None
    if keep_K.ndim != 1 or keep_K.dtype.kind not in 'iu' or not len(keep_K):
        raise RecipeError(f'keep: {path} holds {keep_K.dtype} {list(keep_K.shape)}; indices are a list of whole numbers')
    if np.any(keep_K[1:] <= keep_K[:-1]) or keep_K[0] < 0 or keep_K[-1] >= len(source):
        raise RecipeError(f'keep: {path} must hold ascending indices below {len(source)}, the size of {source.name}')
    about = path.with_name(path.name + '.json')
    if about.exists():
        said = json.loads(about.read_text(encoding='utf-8'))
        if said.get('fingerprint') not in (None, source.fingerprint):
            raise RecipeError(f'keep: {path} was made for {said.get("source")} with fingerprint {said["fingerprint"]}; '
                              f'{source.name} has {source.fingerprint}')
    return keep_K
