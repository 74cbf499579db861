"""What of a source would be skipped in training, and why: everything is read, and decoded if asked to."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigvlm.data.bad import BadExample
from bigvlm.data.ops.decode import pixels
from bigvlm.data.prepare.walk import walk


@dataclass(frozen=True)
class Checked:
    """`skipped`: reason -> the examples that cannot be used; `damage`: reason -> what the source had lost when it was opened.

    `checksums`: the share of the examples that could be compared with checksums of the source's own, None where it has none
    to speak of.
    """
    examples: int
    skipped: Mapping[str, Sequence[str]]
    damage: Mapping[str, Sequence[str]]
    checksums: float | None = None

    @property
    def bad(self) -> int:
        return sum(map(len, self.skipped.values()))

    @property
    def share(self) -> float:
        """Of all there should be, what is unusable or lost."""
        lost = sum(map(len, self.damage.values()))
        return (self.bad + lost) / max(1, self.examples + lost)

    def joined(self, wrong: Iterable[tuple[str, str]]) -> 'Checked':
        """With more (item, reason) that cannot be used; each item counts once for a reason."""
        skipped = {reason: list(items) for reason, items in self.skipped.items()}
        for item, reason in wrong:
            if item not in self.damage.get(reason, ()) and item not in skipped.setdefault(reason, []):
                skipped[reason].append(item)
        return replace(self, skipped={reason: items for reason, items in skipped.items() if items})

    def as_dict(self) -> dict[str, Any]:
        return dict(examples=self.examples, bad=self.bad, share=self.share, checksums=self.checksums,
                    skipped={k: list(v) for k, v in self.skipped.items()}, damage={k: list(v) for k, v in self.damage.items()})


def check(source: Any, decode: bool = False, ops: Sequence[Callable] = (), indices: Sequence[int] | None = None,
          workers: int = 0, what: str = '') -> Checked:
    """Reads `indices` of the source, all if not said. `decode`: images too; `ops`: those of a recipe, on the first draw.

    Tars whose index holds checksums (`tools/data.py index --crc`) are compared with them by reading alone.
    """
    def work(index: int, example: Mapping[str, Any]) -> None:
        if decode and isinstance(example.get('image'), bytes):
            pixels(example['image'])
        if ops:
            done = dict(example)
            if captions := done.get('captions'):
                done['caption'] = captions[0]
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, index))))
            for op in ops:
                done = op(done, rng)

    indices = range(len(source)) if indices is None else indices
    skipped: dict[str, list[str]] = {}
    for index, found in walk(source, work, indices, workers, what):
        if isinstance(found, BadExample):
            skipped.setdefault(str(found), []).append(source.describe(index))
    return Checked(len(indices), skipped, getattr(source, 'damage', {}), getattr(source, 'checksums', None))
