"""Examples that cannot be used: how sources and ops say so, and the record of them that runs report."""
import logging
import threading
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

_NAMED = 1000  # items of each reason


class BadExample(Exception):
    """This example is permanently unusable; the message is the reason, the same for all examples that share it."""


class TooManyBad(RuntimeError):
    """More examples are unusable than the recipe tolerates."""


def usable(found: Any) -> Any:
    """What a source's `read` gave for one example, if it is no BadExample, which is raised."""
    if isinstance(found, BadExample):
        raise found
    return found


class Lost:
    """Which items of a data set are unusable, and why: each counted and named once, whichever thread or process meets it.

    Of each reason the first 1,000 items are named; all are counted, and known by their index.
    """

    def __init__(self, total: int, max_bad: float, source: str):
        self._total, self.max_bad, self._source = total, max_bad, source
        self._reasons: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._items: dict[str, list[str]] = {}
        self._untold: list[tuple[int, str, str]] | None = None
        self._lock = threading.Lock()

    def note(self, reason: str, items: Iterable[str]) -> None:
        """Record what the source itself has lost, such as the end of a truncated tar."""
        with self._lock:
            for item in items:
                self._count(reason, item)

    def add(self, index: int, name: str, reason: str) -> None:
        """Record that example `index` is unusable. Raises TooManyBad once more than max_bad of the source are."""
        with self._lock:
            if index not in self._reasons:
                self._reasons[index] = reason
                if self._untold is not None:
                    self._untold.append((index, name, reason))
                if self._count(reason, name):
                    log.info('unusable example %s: %s', name, reason)
            too_many = len(self._reasons) > self.max_bad * self._total
        if too_many:
            raise TooManyBad(f'{self._source}: {len(self._reasons)} of {self._total} examples are unusable, more than '
                             f'max_bad={self.max_bad:g} allows: {self.summary()}')

    def _count(self, reason: str, item: str) -> bool:
        """Whether the item is among those that are named."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._items.setdefault(reason, [])
        if len(names) < _NAMED:
            names.append(item)
            return True
        return False

    def tell(self) -> None:
        """From now on what is added is kept for `new`, as a worker process needs it."""
        self._untold = []

    def new(self) -> list[tuple[int, str, str]]:
        """(index, name, reason) of the examples added since this was last asked; `tell` comes before."""
        with self._lock:
            told, self._untold = self._untold, []
            return told

    def merge(self, found: Iterable[tuple[int, str, str]]) -> None:
        """Add what `new` of another process told; in all, as if it had been met here. Raises TooManyBad."""
        for index, name, reason in found:
            self.add(index, name, reason)

    def reason(self, index: int) -> str | None:
        """Why `index` is known to be unusable, or None."""
        return self._reasons.get(index)

    @property
    def count(self) -> int:
        """How many examples are known to be unusable."""
        return len(self._reasons)

    @property
    def items(self) -> dict[str, list[str]]:
        """Reason -> names of the items, in the order met."""
        with self._lock:
            return {reason: list(names) for reason, names in self._items.items()}

    def record(self) -> dict[str, dict[str, Any]]:
        """What lost.json says: reason -> `count` and the names of the first `items`."""
        found = self.items
        with self._lock:
            return {reason: dict(count=self._counts[reason], items=names) for reason, names in found.items()}

    def summary(self) -> str:
        """Every reason with its count and its first few items, in one line."""
        return '; '.join(f'{reason} ({noted["count"]}): {", ".join(noted["items"][:3])}{", …" if noted["count"] > 3 else ""}'
                         for reason, noted in self.record().items())
