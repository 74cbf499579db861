"""Another source, some of whose images have the captions of others: the noise of web data in a known amount."""
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._passed_on import pass_on


class Mismatched:
    """The examples of source `of` (a spec), of which about a `share` have the captions of another, chosen by `seed` and index once for
    all epochs. Only the field `captions` is exchanged; an example whose new captions cannot be read cannot be used.
    """

    def __init__(self, of: Mapping[str, Any], share: float, seed: int = 0):
        if not isinstance(of, Mapping):
            raise RecipeError(f"of: the source whose captions are mixed up, as dict(name='webdataset', files=…), found {of!r}")
        if not 0. <= share <= 1.:
            raise RecipeError(f'share: found {share}; valid: 0 to 1')
        self._of = parts.build('bigvlm.data.sources', of, 'of')
        if len(self._of) < 2:
            raise RecipeError(f'of: {self._of.name} has {len(self._of)} example; captions are exchanged among two or more')
        self._share, self._seed = share, seed
        self.name = f'{self._of.name} ({share:.0%} mismatched)'
        pass_on(self, self._of, self._read)
        self.fingerprint = hashlib.sha256(json.dumps([self._of.fingerprint, share, seed]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._exchanged(index, self._of[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._of.captions(self.whose(index))

    def describe(self, index: int) -> str:
        whose = self.whose(index)
        return self._of.describe(index) + (f' with the captions of {self._of.describe(whose)}' if whose != index else '')

    def whose(self, index: int) -> int:
        """The example whose captions this one has; mostly itself."""
        rng = np.random.default_rng((self._seed, index))
        if rng.random() >= self._share:
            return index
        return int(index + 1 + rng.integers(len(self) - 1)) % len(self)

    def _exchanged(self, index: int, example: dict[str, Any]) -> dict[str, Any]:
        whose = self.whose(index)
        return example if whose == index else {**example, 'captions': self._of.captions(whose)}

    def _read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples first to stop - 1, read together, and exchanged captions one by one."""
        found = list(self._of.read(first, stop))
        for place, example in enumerate(found):
            if not isinstance(example, BadExample):
                try:
                    found[place] = self._exchanged(first + place, example)
                except BadExample as error:
                    found[place] = error
        return found
