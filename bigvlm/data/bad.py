"""Examples that cannot be used: how sources and ops say so, and the record of them that runs report."""
import itertools
import logging
import threading
from collections.abc import Iterable

log = logging.getLogger(__name__)


class BadExample(Exception):
    """This example is permanently unusable; the message is the reason, the same for all examples that share it."""


class TooManyBad(RuntimeError):
    """More examples are unusable than the recipe tolerates."""


class Lost:
    """Which items of a data set are unusable, and why: each counted and named once, whichever thread or process meets it."""

    def __init__(self, total: int, max_bad: float, source: str):
        self._total, self._max_bad, self._source = total, max_bad, source
        self._examples: dict[int, tuple[str, str]] = {}  # index -> (name, reason), in the order met
        self._items: dict[str, list[str]] = {}
        self._told = 0
        self._lock = threading.Lock()

    def note(self, reason: str, items: Iterable[str]) -> None:
        """Record what the source itself has lost, such as the end of a truncated tar."""
        with self._lock:
            self._items.setdefault(reason, []).extend(items)

    def add(self, index: int, name: str, reason: str) -> None:
        """Record that example `index` is unusable. Raises TooManyBad once more than max_bad of the source are."""
        with self._lock:
            if index not in self._examples:
                self._examples[index] = name, reason
                self._items.setdefault(reason, []).append(name)
                log.info('unusable example %s: %s', name, reason)
            too_many = len(self._examples) > self._max_bad * self._total
        if too_many:
            raise TooManyBad(f'{self._source}: {len(self._examples)} of {self._total} examples are unusable, more than '
                             f'max_bad={self._max_bad:g} allows: {self.summary()}')

    def new(self) -> list[tuple[int, str, str]]:
        """(index, name, reason) of the examples added since this was last asked."""
        with self._lock:
            first, self._told = self._told, len(self._examples)
            return [(index, *found) for index, found in itertools.islice(self._examples.items(), first, None)]

    def merge(self, found: Iterable[tuple[int, str, str]]) -> None:
        """Add what `new` of another process told; in all, as if it had been met here. Raises TooManyBad."""
        for index, name, reason in found:
            self.add(index, name, reason)

    def reason(self, index: int) -> str | None:
        """Why `index` is known to be unusable, or None."""
        found = self._examples.get(index)
        return found and found[1]

    @property
    def count(self) -> int:
        """How many examples are known to be unusable."""
        return len(self._examples)

    @property
    def items(self) -> dict[str, list[str]]:
        """Reason -> names of the items, in the order met."""
        with self._lock:
            return {reason: list(names) for reason, names in self._items.items()}

    def summary(self) -> str:
        """Every reason with its count and its first few items, in one line."""
        return '; '.join(f'{reason} ({len(names)}): {", ".join(names[:3])}{", …" if len(names) > 3 else ""}'
                         for reason, names in self.items.items())
